"""Runs of refine_sd3_infer.py as wholes: Ctrl-C, going on after a kill, numbers of files, the table, many prompts."""

import csv
import json
import os
import re
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make, refusal, run_here, start_script
from PIL import Image

from common import tables
from common.locks import lock
from common.parameters import ParameterError
from experiments.commands import IMAGES, command_behind
from resd3_medium import refine_sd3_infer
from resd3_medium.folders import POCKET
from resd3_medium.image_folder import HEADER, ImageFolder, image_names
from resd3_medium.image_record import Record
from resd3_medium.image_run import ImageRun
from resd3_medium.infer_parameters import InferConfig
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.preview import save_preview
from resd3_medium.tasks import ImageTask, Measured, draw_tasks

SMALL = ["--device=cpu", "--width=32", "--height=32", "--cfg_scale=1", "--t5=off"]


@pytest.fixture
def run(models) -> Callable[..., None]:
    """Runs the script in this process with the tiny models."""
    return lambda *arguments: run_here(refine_sd3_infer, "--models", models, *SMALL, *arguments)


def ended(capsys: pytest.CaptureFixture, function: Callable[..., None], *arguments: object) -> tuple[int, str, str]:
    """The exit code of a run that ends early, and what it has printed on both streams."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        function(*arguments)
    return error.value.code, *capsys.readouterr()


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("[0-9]*.png"))}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "tasks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def after_images(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], None]) -> None:
    """Call `act` while the image after so many is in work, each time that one is."""
    decode = Pipeline.decode
    made = []

    def watched(pipeline: Pipeline, latents: object) -> list:
        made.append(1)
        if len(made) > count:
            act()
        return decode(pipeline, latents)

    monkeypatch.setattr(Pipeline, "decode", watched)


PROMPTS = ["a boat", "two: 'quoted', \"twice\"", "three\r\nlines", "été", "a boat"]
FIVE = [flag for prompt in PROMPTS for flag in ("--prompt", prompt)] + ["--steps=1-3", "--seed=5"]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_image_come_to_its_end(run, tmp_path, capfd, monkeypatch, number, code):
    run(*FIVE, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        after_images(patch, 1, lambda: signal.raise_signal(number))
        found, out, err = ended(capfd, run, *FIVE, "--out", tmp_path / "one")
    assert found == code and "Traceback" not in err
    assert "finishing image 2; press Ctrl-C again to stop at once\n" in err
    assert out.splitlines()[-1] == f"3 of 5 images are missing; go on with --resume {tmp_path / 'one'}"
    assert list(images(tmp_path / "one")) == [row["image"] for row in rows(tmp_path / "one")]
    assert len(images(tmp_path / "one")) == 2
    run_here(refine_sd3_infer, "--resume", tmp_path / "one")
    assert images(tmp_path / "one") == images(tmp_path / "whole")


def test_a_second_signal_stops_at_once(run, tmp_path, capfd, monkeypatch):
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    after_images(monkeypatch, 1, twice)
    code, _, err = ended(capfd, run, *FIVE, "--out", tmp_path / "one")
    assert code == 130 and err.splitlines()[-1] == "error: interrupted"
    assert len(images(tmp_path / "one")) == len(rows(tmp_path / "one")) == 1
    monkeypatch.undo()
    run("--prompt=a", "--steps=1", "--out", tmp_path / "one")
    assert "4 images of the run before are missing" in capfd.readouterr().err  # and are given up


def test_a_signal_while_the_last_image_is_made_changes_nothing(run, tmp_path, monkeypatch):
    after_images(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGINT))
    run("--prompt=a", "--steps=1", "--out", tmp_path / "one")
    assert len(images(tmp_path / "one")) == 1


@pytest.mark.parametrize("place", ["refine_sd3_infer.open_pipeline", "pipeline.Pipeline.encode"])
def test_ctrl_c_before_there_is_anything_stops_at_once(run, tmp_path, capfd, monkeypatch, place):
    """While models are loaded, and while prompts are encoded; then there is a run to go on with."""
    monkeypatch.setattr(f"resd3_medium.{place}", lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, err = ended(capfd, run, "--prompt=a", "--out", tmp_path / "new/folder")
    assert (code, err.splitlines()[-1]) == (130, "error: interrupted") and "finishing" not in err
    assert not images(tmp_path / "new/folder")
    assert (tmp_path / "new").exists() == ("encode" in place)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_gone_on_with(models, run, tmp_path, capsys):
    """Its files may have changed since, and it may have been killed between an image and its row."""
    lines, whole, cut = tmp_path / "prompts.txt", tmp_path / "whole", tmp_path / "cut"
    lines.write_text("\n".join(f"prompt {i}" for i in range(24)))
    flags = ["--prompts=prompts.txt", "--seed=random", "--steps=1-3", "--batch_size=2"]
    process = start_script(
        "resd3_medium/refine_sd3_infer.py", f"--models={models}", *SMALL, *flags, "--out=cut", folder=tmp_path
    )
    deadline = time.monotonic() + 60
    while len(images(cut)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    left, there = rows(cut), images(cut)
    assert len(there) < 24 and 0 <= len(there) - len(left) <= 2
    with (cut / "tasks.csv").open("rb+") as file:  # as if it had been killed one row earlier, in the middle of it
        file.truncate(file.seek(0, os.SEEK_END) - 9)
    lines.unlink()
    run_here(refine_sd3_infer, "--resume", cut, "--batch_size=2")
    assert f"{24 - len(there)} of 24 images are missing in {cut}" in capsys.readouterr().out
    assert sorted(row["image"] for row in rows(cut)) == list(images(cut)) and len(images(cut)) == 24
    assert there.items() <= images(cut).items()

    seed = json.loads((cut / "config.json").read_text())["parameters"]["seed"]
    lines.write_text("\n".join(f"prompt {i}" for i in range(24)))
    run("--prompts", lines, "--seed", seed, *flags[2:], "--out", whole)
    assert images(cut) == images(whole)

    before = images(cut), rows(cut)
    run_here(refine_sd3_infer, "--resume", cut, "--models=nowhere")  # no model is needed
    assert (images(cut), rows(cut)) == before


def test_deleted_and_damaged_images_are_made_again_and_listed_once(run, tmp_path):
    run(*FIVE, "--out", tmp_path / "one", "--batch_size=2")
    before = images(tmp_path / "one"), sorted(row["image"] for row in rows(tmp_path / "one"))
    (tmp_path / "one" / before[1][3]).unlink()
    (tmp_path / "one" / before[1][0]).write_bytes(b"")
    (tmp_path / "one" / before[1][1]).write_bytes(before[0][before[1][1]][:-20])
    run_here(refine_sd3_infer, "--resume", tmp_path / "one", "--offload=model")
    assert list(images(tmp_path / "one")) == before[1] == sorted(row["image"] for row in rows(tmp_path / "one"))


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory) -> Path:
    """A folder with a run of one image, from an initial one."""
    folder = tmp_path_factory.mktemp("finished")
    Image.new("RGB", (32, 32), "red").save(folder / "start.png")
    flags = ["--init_image", folder / "start.png", "--prompt=a", "--steps=2", "--out", folder / "out"]
    run_here(refine_sd3_infer, "--models", models, *SMALL, *flags)
    next((folder / "out").glob("0*.png")).unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (None, ["--resume=nowhere"], "--resume=nowhere: must be a folder of images"),
        (None, ["--seed=3"], "--seed=3: must not be combined with --resume"),
        (None, ["--out=x"], "--out=x: must not be combined with --resume"),
        (None, ["--batch_size=0"], "--batch_size=0"),
        (lambda out: (out / "config.json").write_text("{"), [], "with a whole config.json"),
        (lambda out: (out / "config.json").write_text('{"method": "LAD-TS"}'), [], "it is of another script"),
        (lambda out: (out.parent / "start.png").write_bytes(b"other"), [], "must be the image that the run was begun"),
        (lambda out: (out / "tasks.csv").write_text("my,table\n"), [], "its tasks.csv must be one of this script"),
    ],
)
def test_what_a_run_is_not_gone_on_with(finished, tmp_path, capsys, monkeypatch, change, arguments, told):
    monkeypatch.chdir(tmp_path)
    kept = {path: path.read_bytes() for path in finished.rglob("*.*")}
    if change:
        change(finished / "out")
    resume = [] if "--resume" in "".join(arguments) else [f"--resume={finished / 'out'}"]
    assert told in refusal(capsys, refine_sd3_infer, *resume, *arguments)
    for path, content in kept.items():
        path.write_bytes(content)
    assert not images(finished / "out") and not list(tmp_path.iterdir())


def test_weights_must_be_those_of_the_record():
    def found(strength: float = 0.5, **hashes: str) -> SimpleNamespace:
        record = {
            part: {"file": f"{part}.sft", "precision": "float16", "sha256": text} for part, text in hashes.items()
        }
        lora = SimpleNamespace(path=Path("/x/b.sft"), strength=strength, sha256="b" * 64)
        return SimpleNamespace(record=lambda keep="stored": record, loras=[lora])

    config, before = make(InferConfig, models="y", lora=["/x/b.sft:0.5"]), found(vae="v" * 64, t5="t" * 64)
    record = Record.of(["a"], 1, before, "stored", None)
    record.check_weights(config, before)
    assert record.cells() == (f"vae=vae.sft:float16:{'v' * 10}; t5=t5.sft:float16:{'t' * 10}", f"b.sft:0.5:{'b' * 10}")
    for other in (found(vae="v" * 64), found(vae="t" * 64, t5="t" * 64), found(vae="v" * 64, t5="t" * 64, clip="c")):
        with pytest.raises(ParameterError, match="--models=y: must be the weights that the run was begun with; "):
            record.check_weights(config, other)
    with pytest.raises(ParameterError, match=r"--lora=/x/b\.sft:0\.5: must be the file"):
        record.check_weights(config, found(0.7, vae="v" * 64, t5="t" * 64))


# --- files ------------------------------------------------------------------------------------------------------------


def test_numbers_follow_the_prompts_whatever_the_batches(run, tmp_path):
    """Neither do other people's files shift them, nor images and tables that are deleted."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("20240613_x.png", "99999999_y.png", "20240613_x_s1.png", "7000.png", "8000_mine.png", "90_a_s1.png"):
        (out / name).write_bytes(b"mine")
    prompts = [f"prompt {i}" for i in range(7)]
    flags = [flag for prompt in prompts for flag in ("--prompt", prompt)] + ["--steps=1-3", "--batch_size=3"]
    run(*flags, "--out", out)
    assert [name[:13] for name in images(out) if name[:4].isdigit() and "prompt" in name] == [
        f"{i + 1:04d}_prompt-{i}" for i in range(7)
    ]
    assert {int(row["image"][:4]): row["prompt"] for row in rows(out)} == dict(enumerate(prompts, 1))
    assert len({row["steps"] for row in rows(out)}) > 1

    (out / "tasks.csv").unlink()
    (out / "0003_prompt-2_s2.png").unlink()
    run(*flags[:2], "--steps=1", "--out", out)
    (out / "0008_prompt-0_s0.png").unlink()
    run(*flags[:2], "--steps=1", "--out", out)
    assert [row["image"] for row in rows(out)] == ["0008_prompt-0_s0.png", "0009_prompt-0_s0.png"]
    assert (out / "20240613_x.png").read_bytes() == b"mine"


def test_more_than_9999_images_have_names_that_sort(run, tmp_path):
    (tmp_path / "9998_a_s0.png").write_bytes(b"")
    run("--prompt=a", "--num_tasks=2", "--steps=1", "--out", tmp_path)
    run("--prompt=a", "--steps=1", "--out", tmp_path)
    assert [row["image"] for row in rows(tmp_path)] == ["09999_a_s0.png", "10000_a_s1.png", "10001_a_s0.png"]


def test_a_busy_folder_is_refused_before_anything_happens(run, models, tmp_path, capsys, monkeypatch):
    run("--prompt=a", "--steps=1", "--out", tmp_path)
    (tmp_path / ".0002_a_s1.partial.png").write_bytes(b"of the other run")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(refine_sd3_infer, "open_pipeline", lambda _: pytest.fail("models are loaded"))
    release = lock(tmp_path)  # what another process holds
    for flags in (["--prompt=a", "--out"], ["--resume"]):
        line = refusal(capsys, refine_sd3_infer, *flags, tmp_path)
        assert line.startswith(f"error: {flags[-1]}={tmp_path}: must be free")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    release()


def test_a_table_can_be_read_whatever_a_prompt_holds(run, tmp_path):
    prompts = ["long " * 28_000, "two\rlines\nof\r\nthree", "a\0b", "\"'`,;\t", "=1+1", " "]
    for _ in range(2):
        run(*[flag for prompt in prompts for flag in ("--prompt", prompt)], "--steps=1", "--out", tmp_path)
    assert [row["prompt"] for row in tables.read_csv(tmp_path / "tasks.csv")] == prompts * 2


def test_a_row_costs_the_same_after_40000(tmp_path, monkeypatch):
    name = "0001_a_s0.png,a" + "," * (len(HEADER) - 2)
    (tmp_path / "tasks.csv").write_text("\n".join([",".join(HEADER), *([name] * 40_000)]) + "\n")
    before, file = (tmp_path / "tasks.csv").read_bytes(), (tmp_path / "tasks.csv").stat().st_ino
    folder, task = ImageFolder(tmp_path), ImageTask("a", "", 1, Settings())
    folder.list("first.png", task, Measured(1, 2, 3, 4), ("", ""))
    monkeypatch.setattr(tables, "scan", lambda _: pytest.fail("the table is read again"))
    for i in range(3):
        folder.list(f"{i}.png", task, None, ("", ""))
    content = (tmp_path / "tasks.csv").read_bytes()
    assert content.startswith(before) and content.count(b"\n") == 40_005
    assert (tmp_path / "tasks.csv").stat().st_ino == file


def test_a_table_of_an_older_version_gets_the_new_columns(run, tmp_path, capsys):
    old = HEADER[: HEADER.index("weights")]
    tables.write_csv(tmp_path / "tasks.csv", old, [["0007_a_s0.png", "a\rb", *"x" * (len(old) - 2)]])
    run("--prompt=a", "--steps=1", "--out", tmp_path)
    first, second = tables.read_csv(tmp_path / "tasks.csv")
    assert tuple(first) == HEADER and first["prompt"] == "a\rb" and first["weights"] == first["denoise"] == ""
    assert second["image"] == "0008_a_s0.png"
    tables.write_csv(tmp_path / "tasks.csv", old, [["0008_a_s0.png", *"x" * (len(old) - 1)]])
    with (tmp_path / "tasks.csv").open("a") as file:
        file.write("0009_a_s0.p")
    ImageFolder(tmp_path)
    assert "its last line, of 11 bytes, is torn" in capsys.readouterr().err
    for foreign in ("my,table\n1,2\n", "one line, which has no end", ",".join([*HEADER, "newer"]) + "\n"):
        (tmp_path / "tasks.csv").write_text(foreign)
        assert "--out" in refusal(capsys, refine_sd3_infer, "--prompt=a", "--out", tmp_path)
        assert (tmp_path / "tasks.csv").read_text() == foreign


@pytest.mark.parametrize("content", ['{"method": "ladts", "parameters": {"seeds": 1}}', "mine", "[" * 100_000, None])
def test_a_config_of_something_else_is_not_written_over(run, tmp_path, capsys, content):
    path = tmp_path / "config.json"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    line = refusal(capsys, refine_sd3_infer, "--prompt=a", "--out", tmp_path)
    assert "its config.json is of something else" in line and list(tmp_path.iterdir()) == [path]
    assert content is None or path.read_text() == content


def test_home_folders_initial_images_and_repeated_images(run, tmp_path, monkeypatch):
    """A run from all of them can be gone on with when they are gone; its folder counts as one of images."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("start.png")
    run("--prompt=a", "--steps=2", "--out=~/one")
    (first,) = images(tmp_path / "one")
    run(f"--from_image=~/one/{first}", "--init_image=start.png", "--num_tasks=2", "--out=~/two")
    made = images(tmp_path / "two")
    assert [(row["init_image"], row["denoise"]) for row in rows(tmp_path / "two")] == [("start.png", "0.6")] * 2
    assert (rows(tmp_path / "one")[0]["init_image"], rows(tmp_path / "one")[0]["denoise"]) == ("", "")
    found = rows(tmp_path / "one")[0]["weights"].split("; ")
    assert (
        all(re.fullmatch(r"[\w-]+=\w+\.safetensors:float32:[0-9a-f]{10}", text) for text in found) and len(found) == 4
    )
    for path in (tmp_path / "one" / first, *(tmp_path / "two" / name for name in made)):
        path.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_here(refine_sd3_infer, "--resume=~/two")
    assert images(tmp_path / "two").keys() == made.keys() and not list(Path().iterdir())
    assert command_behind(tmp_path / "two").kind == IMAGES


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_previews_come_nearer_to_the_image_and_are_none(tmp_path, monkeypatch, sampler):
    """With the pocket model, whose factors come with it; the last one stays, and shifts no number."""
    seen = []

    def kept(path: Path, *arguments: object) -> None:
        save_preview(path, *arguments)
        seen.append(np.asarray(Image.open(path)).astype(int))

    monkeypatch.setattr("resd3_medium.image_run.save_preview", kept)
    for _ in range(2):
        run_here(
            *(refine_sd3_infer, "--models", POCKET, "--prompt=two blue rockets", "--steps=9", "--preview=4"),
            *("--sampler", sampler, "--device=cpu", "--out", tmp_path),
        )
    assert [name[:4] for name in images(tmp_path)] == ["0001", "0002"] and len(rows(tmp_path)) == 2
    assert (tmp_path / "preview.png").exists() and len(seen) == 4
    made = np.asarray(Image.open(tmp_path / next(iter(images(tmp_path))))).astype(int)
    far, near = (abs(one - made).mean() for one in seen[:2])
    assert made.shape == seen[0].shape and near < far and near < 25


def test_a_mistake_that_the_models_tell_leaves_no_folder(run, models, tmp_path, capsys):
    line = refusal(capsys, refine_sd3_infer, "--models", models, "--height=4096", "--out", tmp_path / "a/b")
    assert line.startswith("error: --height=4096") and not list(tmp_path.iterdir())


# --- many prompts -----------------------------------------------------------------------------------------------------


def test_few_conditionings_are_kept_of_many_prompts(models, tmp_path, monkeypatch):
    """Each prompt is encoded once, and its conditioning goes once its image is made; the negative one stays."""
    alive: weakref.WeakSet = weakref.WeakSet()
    encoded, most = [], []

    class Text:
        """Stands for a conditioning."""

    def encode(prompts: list[str], progress: Callable[[], None]) -> dict[str, Text]:
        texts = {prompt: Text() for prompt in prompts}
        alive.update(texts.values())
        encoded.extend(prompts)
        most.append(len(alive))
        return texts

    config = make(InferConfig, models=str(models), device="cpu", t5="off", offload="model", width=32, height=32)
    config.batch_size = 4
    prompts = [f"prompt {i}" for i in range(3000)]
    tasks = draw_tasks([*prompts, "prompt 2999"], "", 0, (1, 9), Settings())
    pipeline = open_pipeline(config)
    run = ImageRun(pipeline, config, tasks, image_names(tasks, 1), ImageFolder(tmp_path), Record([], 1, {}))
    monkeypatch.setattr(pipeline, "encode", encode)
    monkeypatch.setattr(run, "make", lambda batch, *_: [run.texts[text] for i in batch for text in run.prompts(i)])
    assert run.run(set(range(3001))) == 0
    assert set(encoded) == {*prompts, ""} and len(encoded) <= 3002
    assert max(most) <= 64 and len(most) < 60

"""refine_sd3_infer.py as a user runs it: images, their list, repeating them, and one line for every mistake."""

import csv
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_sd3 as reference
import torch
from helpers import refusal, run_here
from PIL import Image

from resd3_medium import refine_sd3_infer

SMALL = ["--device=cpu", "--width=64", "--height=48", "--steps=2"]


def make(models: Path, out: Path, *arguments: object) -> list[np.ndarray]:
    """Run the script in this process; the images in the order of their names."""
    run_here(refine_sd3_infer, "--models", models, "--out", out, *SMALL, *arguments)
    return pixels(out)


def pixels(out: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("*.png"))]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "tasks.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("t5", ["on", "off"])
def test_the_image_is_that_of_diffusers(models, tmp_path, capsys, t5):
    flags = "--dtype float32 --device cpu --negative_prompt blurry --width 128 --height 96 --steps 6 --cfg_scale 5"
    more = [*flags.split(), "--shift=3", "--seed=1", "--prompt", "a boat on a lake", "--t5", t5]
    run_here(refine_sd3_infer, "--models", models, *more, "--out", tmp_path / "images")
    *_, count, average, peak = capsys.readouterr().out.splitlines()
    assert count == f"1 images and tasks.csv in {tmp_path / 'images'}"
    assert re.fullmatch(r"average generation time [\d.]+ s \(text [\d.]+, denoise [\d.]+, decode [\d.]+\)", average)
    assert re.fullmatch(r"peak memory \d+ MiB", peak)

    pipeline = reference.pipeline(models, with_t5=t5 == "on")
    if t5 == "off":  # diffusers' own rows of zeros for T5 would change the image: 77 rows are the published behaviour
        pipeline._get_t5_prompt_embeds = lambda **_: torch.zeros(1, 0, 256)
    noise = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(1))
    words = {"prompt": "a boat on a lake", "negative_prompt": "blurry", "guidance_scale": 5.0, "latents": noise}
    theirs = pipeline(**words, height=96, width=128, num_inference_steps=6, max_sequence_length=77).images[0]
    (ours,) = pixels(tmp_path / "images")
    assert abs(ours - np.asarray(theirs).astype(int)).max() <= 1


def test_images_are_listed_repeated_and_never_overwritten(models, tmp_path):
    prompts = ["--prompt", "a, b", "--prompt", 'second: "näive" 🙂', "--seed", "7", "--batch_size", "2"]
    first = make(models, tmp_path / "one", *prompts)
    assert len(first) == 2 and abs(first[0] - first[1]).max() > 1
    table = rows(tmp_path / "one")
    assert [(row["prompt"], row["seed"], row["steps"]) for row in table] == [("a, b", "7", "2"), (prompts[3], "8", "2")]
    assert [row["image"] for row in table] == [path.name for path in sorted((tmp_path / "one").glob("*.png"))]
    assert all(float(row[stage]) > 0 for row in table for stage in ("text_s", "denoise_s", "decode_s"))

    second = tmp_path / "one" / table[1]["image"]
    text = Image.open(second).text
    assert text["prompt"] == prompts[3] and text["seed"] == "8" and text["cfg_scale"] == "5.0"
    again = ["--from_image", second, "--models", models, "--device=cpu", "--out"]
    run_here(refine_sd3_infer, *again, tmp_path / "two")
    (repeated,) = pixels(tmp_path / "two")
    assert abs(repeated - first[1]).max() <= 1  # alone instead of in a batch
    run_here(
        refine_sd3_infer,
        "--from_image",
        second,
        "--models",
        models,
        "--device=cpu",
        "--seed=9",
        "--out",
        tmp_path / "three",
    )
    assert abs(pixels(tmp_path / "three")[0] - first[1]).max() > 1

    before = {path: path.read_bytes() for path in (tmp_path / "one").glob("*.png")}
    assert len(make(models, tmp_path / "one", *prompts)) == 4
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(rows(tmp_path / "one")) == 4


def test_tasks_draw_captions_and_steps_with_their_seeds(models, tmp_path):
    flags = [
        "--models",
        models,
        "--device=cpu",
        "--num_tasks=4",
        "--seed=5",
        "--steps=1-4",
        "--width=32",
        "--height=32",
    ]
    for name in ("one", "two"):
        run_here(refine_sd3_infer, *flags, "--out", tmp_path / name)
    first, second = ([(r["prompt"], r["steps"], r["seed"]) for r in rows(tmp_path / name)] for name in ("one", "two"))
    assert first == second
    captions = (Path(__file__).resolve().parents[1] / "dataset" / "prompts.txt").read_text().splitlines()
    assert len({prompt for prompt, _, _ in first}) == 4 and {prompt for prompt, _, _ in first} <= set(captions)
    assert all(1 <= int(steps) <= 4 for _, steps, _ in first) and len({steps for _, steps, _ in first}) > 1


@pytest.mark.parametrize("level", ["model", "block"])
def test_memory_levels_give_the_same_image(models, tmp_path, level):
    """At bfloat16 the float32 weights are converted on the way, so that block streams on the CPU, too."""
    words = ["--prompt", "a boat", "--dtype", "bfloat16"]
    resident, other = (
        make(models, tmp_path / "none", *words),
        make(models, tmp_path / level, *words, "--offload", level),
    )
    assert (resident[0] == other[0]).all()


def test_odd_prompts_arrive_as_they_were_typed(models, tmp_path):
    """Too long for a parser of literals, with a leading dash, a line break, quotes; an empty negative prompt."""
    prompts = ["x " * 5000, "-dash first", "two\nlines", "'quoted', \"twice\"", "a,b", "2024_12", "None"]
    flags = [flag for prompt in prompts for flag in ("--prompt", prompt)]
    assert len(make(models, tmp_path, *flags, "--negative_prompt", "")) == len(prompts)
    assert [row["prompt"] for row in rows(tmp_path)] == prompts


def test_an_initial_image_may_be_given_to_a_repeated_image(models, tmp_path):
    """It then has the usual strength, 0.6, since the stored image had none; grey images of 16 bits are read, too."""
    usual = ["--models", models, "--device=cpu"]
    flags = ["--prompt=a", "--steps=5", "--width=64", "--height=48", "--out", tmp_path / "one"]
    run_here(refine_sd3_infer, *usual, *flags)
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 65536, (9, 9), dtype=np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(noise.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(tmp_path / "rgba.png")
    image, found = next((tmp_path / "one").glob("*.png")), pixels(tmp_path / "one")
    for name in ("grey", "rgba"):
        start = ["--from_image", image, "--init_image", tmp_path / f"{name}.png", "--models", models]
        run_here(refine_sd3_infer, *start, "--device=cpu", "--out", tmp_path / name)
        found += pixels(tmp_path / name)
        assert (
            json.loads(Image.open(next((tmp_path / name).glob("*.png"))).text["dedgeai"])["settings"]["denoise"] == 0.6
        )
    assert all(abs(a - b).max() > 1 for a, b in ((found[0], found[1]), (found[1], found[2])))


def test_long_and_empty_prompts_work_and_say_what_is_left_out(models, tmp_path, capsys):
    make(models, tmp_path, "--prompt", "word " * 90 + "end", "--prompt", "")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "leaves out" in line]
    assert len(warnings) == 2  # CLIP and T5
    assert all(line.endswith("word end'") for line in warnings)


def test_a_full_disk_is_told_in_one_line(models, tmp_path):
    """No file may grow beyond 4 KiB here, which no image fits in."""
    script = Path(refine_sd3_infer.__file__)
    flags = [f"--models={models}", *SMALL, "--prompt=a", f"--out={tmp_path / 'images'}"]
    limit = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", sys.executable, str(script), *flags]
    done = subprocess.run(limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "images").iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--width=100"], "--width=100: must be a multiple of 16"),
        (["--height=4096"], "--height=4096: must be at most 3072"),
        (["--steps=0"], "--steps=0"),
        (["--steps=9-3"], "--steps=9-3"),
        (["--denoise=0"], "--denoise=0"),
        (["--denoise=1.5"], "--denoise=1.5"),
        (["--denoise=0.5"], "--denoise=0.5: must come with --init_image"),
        (["--prompts=nowhere.txt"], "--prompts=nowhere.txt"),
        (["--prompts=empty.txt"], "--prompts=empty.txt"),
        (["--prompts=start.bin"], "--prompts=start.bin"),
        (["--init_image=start.bin"], "--init_image=start.bin"),
        (["--from_image=start.bin"], "--from_image=start.bin"),
        (["--from_image=plain.png"], "--from_image=plain.png"),
        (["--sampler=ddim"], "--sampler=ddim"),
        (["--device=tpu"], "--device=tpu"),
        (["--t5_tokens=1"], "--t5_tokens=1"),
        (["--models=nowhere"], "clip_g.safetensors, clip_l.safetensors, sd3_medium.safetensors missing"),
        (["--prompt=a", "--prompts=empty.txt"], "--prompts=empty.txt"),
        (["--prompt", "--seed=3"], "--prompt: must be followed by text"),
        (["--prompt"], "--prompt: must be followed by text"),
        (["--prompt=\udcff"], "--prompt=?: must be UTF-8 text"),
        (["--shift=1e-17"], "--shift=1e-17"),
        (["--seed=9223372036854775808", "--num_tasks=2"], "--seed=9223372036854775808"),
        (["--out=mine"], "--out=mine: its tasks.csv"),
    ],
)
def test_a_mistake_is_told_in_one_line(models, tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n\n")
    Path("start.bin").write_bytes(bytes(range(256)))
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("mine").mkdir()
    Path("mine/tasks.csv").write_text("my,table\n1,2\n")
    usual = {"--models": models, "--device": "cpu", "--out": "new"}
    given = {argument.partition("=")[0] for argument in arguments}
    more = [f"{name}={value}" for name, value in usual.items() if name not in given]
    assert told in refusal(capsys, refine_sd3_infer, *arguments, *more)
    assert not Path("new").exists()
    assert Path("mine/tasks.csv").read_text() == "my,table\n1,2\n"


@pytest.fixture
def copy(models, tmp_path) -> Path:
    """The model files, as links that a test may replace."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def rewrite(path: Path, change) -> None:
    """Replace a safetensors file by one with a changed header or changed tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("clip_l.safetensors", lambda t: t.pop("text_model.final_layer_norm.bias"), "text_model.final_layer_norm.bias"),
        (
            "sd3_medium.safetensors",
            lambda t: t.update({"model.diffusion_model.context_embedder.bias": torch.zeros(7)}),
            "model.diffusion_model.context_embedder.bias is [7], not [192]",
        ),
        ("clip_g.safetensors", lambda t: t.pop("text_projection.weight"), "text_projection.weight"),
        (
            "clip_g.safetensors",
            lambda t: t.update({"text_projection.weight": torch.ones(128, 128, dtype=torch.int8)}),
            "must hold floating-point weights",
        ),
        ("clip_g.safetensors", lambda t: (t.clear(), t.update(other=torch.ones(1))), "holds 1 tensors, such as other"),
        ("sd3_medium.safetensors", lambda t: [t.pop(n) for n in list(t) if n.startswith("first")], "no VAE"),
    ],
)
def test_wrong_weights_are_named(copy, capsys, file, change, told):
    rewrite(copy / file, change)
    line = refusal(capsys, refine_sd3_infer, "--models", copy, "--prompt=a", *SMALL, "--out", copy / "new")
    assert told in line and file in line


def test_files_that_are_not_whole_are_named(copy, models, capsys):
    path = copy / "clip_l.safetensors"
    for content in (b"", b"no weights at all", struct.pack("<Q", 10**12), (models / path.name).read_bytes()[:-100]):
        path.unlink()
        path.write_bytes(content)
        assert "clip_l.safetensors must be a whole safetensors file" in refusal(
            capsys, refine_sd3_infer, "--models", copy, "--prompt=a", *SMALL, "--out", copy / "new"
        )


def test_files_that_do_not_belong_together_are_told(copy, models, capsys):
    """CLIP-L's file under both names lacks a projection; with one, its width does not fit."""
    (copy / "clip_g.safetensors").unlink()
    shutil.copy(models / "clip_l.safetensors", copy / "clip_g.safetensors")
    rewrite(copy / "clip_g.safetensors", lambda t: t.update({"text_projection.weight": torch.eye(64)}))
    line = refusal(capsys, refine_sd3_infer, "--models", copy, "--prompt=a", *SMALL, "--out", copy / "new")
    assert "widths of CLIP-L and CLIP-G add up to 128, not 192" in line


def test_an_image_that_is_not_finite_is_told(copy, capsys):
    bias = "first_stage_model.decoder.conv_out.bias"
    rewrite(copy / "sd3_medium.safetensors", lambda t: t[bias].fill_(torch.nan))
    line = refusal(capsys, refine_sd3_infer, "--models", copy, "--prompt=a", *SMALL, "--out", copy / "new")
    assert "the image is no longer finite" in line


def test_a_latent_that_is_not_finite_is_told(copy, capsys):
    rewrite(
        copy / "sd3_medium.safetensors", lambda t: t["model.diffusion_model.final_layer.linear.bias"].fill_(torch.nan)
    )
    line = refusal(capsys, refine_sd3_infer, "--models", copy, "--prompt=a", *SMALL, "--out", copy / "new")
    assert "--dtype=float32" in line and "no longer finite" in line
    assert not list((copy / "new").glob("*"))


def test_the_settings_in_the_image_are_complete(models, tmp_path):
    make(models, tmp_path, "--prompt=a", "--sampler=dpmpp_2m", "--exact_end=True", "--zero_rows=3", "--t5=off")
    content = json.loads(Image.open(next(tmp_path.glob("*.png"))).text["dedgeai"])
    assert content["settings"]["sampler"] == "dpmpp_2m" and content["settings"]["exact_end"] is True
    assert (content["zero_rows"], content["t5"], content["dtype"]) == (3, "off", "float32")
    shutil.rmtree(tmp_path)

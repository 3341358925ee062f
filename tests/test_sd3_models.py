"""The scripts around the weights: checking, downloading (with the hub's answers made here), and the benchmark."""

import hashlib
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from helpers import make, refusal, run_here
from scripts_by_path import load

bench_sd3, check_models, download_models = map(load, ("bench_sd3", "check_models", "download_models"))
SMALL = ("--device=cpu", "--steps=1", "--repeats=1")


def test_check_says_what_is_right_missing_and_wrong(models, tmp_path, capsys):
    run_here(check_models, "--models", models, "--hash", "True")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["CLIP-L", "CLIP-G", "T5", "MMDiT", "VAE"]
    assert all("right: " in line for line in lines[:5])
    sums = {name: digest for digest, name in (line.split() for line in lines[5:9])}
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in models.glob("*.safetensors")}
    assert lines[9:] == ["together: SD3 medium"]

    shutil.copy(models / "sd3_medium.safetensors", tmp_path)
    (tmp_path / "clip_g.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as ended:
        run_here(check_models, "--models", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert lines[0].endswith("missing") and "whole safetensors file" in lines[1]
    assert lines[2].endswith("missing (optional)")
    assert "right" in lines[3] and "download_models.py" in lines[-1]


@pytest.fixture
def hub(models, monkeypatch) -> SimpleNamespace:
    """A hub that serves the tiny models under every model's name; `etag` may be set to tell another checksum."""
    served = SimpleNamespace(etag=None, asked=[])

    def ours(remote: str) -> Path:
        name = remote.split("/")[-1]
        if name.startswith("t5xxl"):
            return models / "t5xxl.safetensors"
        return models / ("sd3_medium.safetensors" if name.startswith("sd3") else name)

    def download(repository: str, remote: str, local_dir: Path) -> str:
        served.asked.append((repository, remote))
        target = Path(local_dir) / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(ours(remote), target))

    def metadata(url: str) -> SimpleNamespace:
        digest = hashlib.sha256(ours(url).read_bytes()).hexdigest()
        return SimpleNamespace(etag=served.etag or digest)

    monkeypatch.setattr(download_models, "hf_hub_url", lambda repository, remote: remote)
    monkeypatch.setattr(download_models, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(download_models, "hf_hub_download", download)
    free = {name: (repository, 0.0) for name, (repository, _) in download_models.MODEL_FILES.items()}
    monkeypatch.setattr(download_models, "MODEL_FILES", free)
    monkeypatch.setattr(download_models, "ENCODERS", dict.fromkeys(download_models.ENCODERS, 0.0))
    return served


@pytest.mark.parametrize(
    ("model", "t5", "names"),
    [
        ("sd3_medium", "fp16", {"sd3_medium", "clip_l", "clip_g", "t5xxl_fp16"}),
        ("sd3.5_large_turbo", "off", {"sd3.5_large_turbo", "clip_l", "clip_g"}),
    ],
)
def test_download_fetches_what_is_missing_under_the_names_that_are_read(hub, tmp_path, capsys, model, t5, names):
    run_here(download_models, "--out", tmp_path, "--model", model, "--t5", t5)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.safetensors" for name in names}
    assert {repository for repository, _ in hub.asked} == {download_models.MODEL_FILES[model][0]}
    asked = len(hub.asked)
    run_here(download_models, "--out", tmp_path, "--model", model, "--t5", t5)
    assert len(hub.asked) == asked == len(names)  # nothing is fetched twice
    run_here(check_models, "--models", tmp_path)


def test_a_damaged_download_is_deleted(hub, tmp_path, capsys):
    hub.etag = "0" * 64
    with pytest.raises(SystemExit) as ended:
        run_here(download_models, "--out", tmp_path)
    assert ended.value.code == 2
    assert "arrived damaged" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.safetensors"))


def cells(line: str) -> list[str]:
    """The cells of a row in Markdown."""
    return line.strip("| ").split(" | ")


@pytest.mark.slow
def test_the_benchmark_measures_each_level_in_a_process_of_its_own(models, capsys):
    run_here(bench_sd3, "--models", models, *SMALL, "--sizes=32", "--levels=block", "--compare=False")
    *_, header, _, row = capsys.readouterr().out.splitlines()
    found = dict(zip(cells(header), cells(row), strict=True))
    assert (found.pop("level"), found.pop("size")) == ("block", "32")
    assert list(found) == ["load s", "text s", "s per step", "decode s", "peak GiB"]
    assert all(0 <= float(value) < 60 for value in found.values()) and float(found["peak GiB"]) > 0.05


@pytest.mark.parametrize("wrong", [False, True])
def test_the_benchmark_compares_equal_velocities_and_shows_others(models, monkeypatch, wrong):
    def changed(*arguments: Any) -> Any:
        model = build(*arguments)
        model.final_layer.linear.bias += 0.1
        return model

    build = bench_sd3.build
    if wrong:
        monkeypatch.setattr(bench_sd3, "build", changed)
    here, there, difference = bench_sd3.compare_step(
        make(bench_sd3.BenchConfig, models=str(models), device="cpu", repeats=1), 32
    )
    assert 0 < here < 10 and 0 < there < 10
    assert 0.01 < difference < 1 if wrong else difference < 1e-5


class Program:
    """What stable_diffusion_cpp offers, with steps of 20 and 40 ms."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)

    def generate_image(self, prompt: str, sample_steps: int, progress_callback: Any, **options: Any) -> None:
        self.made.append(options)
        for step in range(sample_steps + 1):
            time.sleep(0.02 * step)
            progress_callback(step, sample_steps, 0.0)
        progress_callback(1, 9, 0.0)  # of tiles
        time.sleep(0.01)


def test_the_benchmark_measures_another_program_on_the_same_files(models, monkeypatch):
    """Its package is not part of the development tools: an imitation of its documented use stands for it."""
    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", SimpleNamespace(StableDiffusion=Program))
    found = bench_sd3.measure_sdcpp(make(bench_sd3.BenchConfig, models=str(models), steps=2), "q8_0", 32)
    assert found["step"] == pytest.approx(0.02, abs=0.015) and found["decode"] >= 0.01 and found["peak_mib"] > 50
    opened, drawn = Program.made
    files = {"model_path": "sd3_medium", "clip_l_path": "clip_l", "clip_g_path": "clip_g"}
    assert {name: opened[name] for name in files} == {n: str(models / f"{f}.safetensors") for n, f in files.items()}
    assert opened["wtype"] == "q8_0" and "vae_path" not in opened
    assert (drawn["width"], drawn["height"], drawn["cfg_scale"]) == (32, 32, 5.0)


@pytest.mark.parametrize(
    ("there", "device", "told"), [(False, "cpu", "pip install"), (True, "cuda", "on the CPU only"), (True, "cpu", None)]
)
def test_the_benchmark_says_why_the_other_program_is_left_out(models, monkeypatch, capsys, there, device, told):
    monkeypatch.setattr(bench_sd3.importlib.util, "find_spec", lambda _: there or None)
    made = dict.fromkeys(("load", "text", "step", "decode", "peak_mib"), 1024.0)
    monkeypatch.setattr(bench_sd3, "process", lambda _, one, **more: None if one.startswith("sdcpp-q8_0") else made)
    bench_sd3.compare_sdcpp(make(bench_sd3.BenchConfig, models=str(models)), bench_sd3.torch.device(device), [32])
    lines = capsys.readouterr().out.splitlines()[1:]
    if told:
        assert len(lines) == 1 and lines[0].startswith("stable-diffusion.cpp is left out: ") and told in lines[0]
        return
    programs = [cells(line)[:4] for line in lines[2:]]
    assert [row[0] for row in programs] == ["here"] * 2 + ["stable-diffusion.cpp"] * 2
    assert programs[2][1:] == ["f16", "32", "1024.00"] and programs[3][1:] == ["q8_0", "32", "failed"]
    assert cells(lines[2])[-1] == "1.00"


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--sizes=100", "multiples of 16"),
        ("--sizes=big", "numbers"),
        ("--levels=block,all", "not all"),
        ("--sdcpp=q9", "q8_0"),
    ],
)
def test_mistakes_of_the_benchmark_are_told(models, capsys, flag, told):
    line = refusal(capsys, bench_sd3, "--models", models, *SMALL, flag)
    assert line.startswith(f"error: {flag}: must be") and told in line

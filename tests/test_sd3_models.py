"""The scripts around the weights: checking, downloading (with the hub's answers made here), and the benchmark."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize(
    ("flag", "told"),
    [("--sizes=100", "multiples of 16"), ("--sizes=big", "numbers"), ("--levels=block,all", "not all")],
)
def test_mistakes_of_the_benchmark_are_told(models, capsys, flag, told):
    line = refusal(capsys, bench_sd3, "--models", models, *SMALL, flag)
    assert line.startswith(f"error: {flag}: must be") and told in line

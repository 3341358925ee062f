"""The scripts around the weights: checking, downloading (with the hub's answers made here), and the benchmark."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import run_here
from scripts_by_path import SCRIPTS, load

check_models, download_models = load("check_models"), load("download_models")


def test_check_says_what_is_right_missing_and_wrong(models, tmp_path, capsys):
    run_here(check_models, "--models", models)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["CLIP-L", "CLIP-G", "T5", "MMDiT", "VAE"]
    assert all("right: " in line for line in lines)

    for name in ("clip_g.safetensors", "sd3_medium.safetensors"):
        shutil.copy(models / name, tmp_path)
    (tmp_path / "clip_g.safetensors").rename(tmp_path / "clip_l.safetensors")  # has a projection, else it would do
    (tmp_path / "clip_g.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit) as ended:
        run_here(check_models, "--models", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert "whole safetensors file" in lines[1] and lines[2].endswith("missing (optional)")
    assert "right" in lines[3] and "download_models.py" in lines[-1]


@pytest.fixture
def hub(models, monkeypatch) -> SimpleNamespace:
    """A hub that serves the tiny models; `etag` may be set to tell another checksum."""
    served = SimpleNamespace(etag=None, asked=[])
    ours = {remote: models / name for name, (remote, _) in download_models.FILES.items()}

    def download(repository: str, remote: str, local_dir: Path) -> str:
        served.asked.append(remote)
        target = Path(local_dir) / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(ours[remote], target))

    def metadata(url: str) -> SimpleNamespace:
        digest = hashlib.sha256(ours[url].read_bytes()).hexdigest()
        return SimpleNamespace(etag=served.etag or digest)

    monkeypatch.setattr(download_models, "hf_hub_url", lambda repository, remote: remote)
    monkeypatch.setattr(download_models, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(download_models, "hf_hub_download", download)
    monkeypatch.setattr(download_models, "FILES", {name: (r, 0.0) for name, (r, _) in download_models.FILES.items()})
    return served


def test_download_fetches_what_is_missing_under_the_names_that_are_read(hub, models, tmp_path):
    run_here(download_models, "--out", tmp_path, "--t5", "True")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in models.iterdir()}
    assert len(hub.asked) == 4
    run_here(download_models, "--out", tmp_path)
    assert len(hub.asked) == 4  # nothing is fetched twice


def test_a_damaged_download_is_deleted(hub, tmp_path, capsys):
    hub.etag = "0" * 64
    with pytest.raises(SystemExit) as ended:
        run_here(download_models, "--out", tmp_path)
    assert ended.value.code == 2
    assert "arrived damaged" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_benchmark_compares_equal_velocities(models):
    flags = ["--models", str(models), "--device=cpu", "--sizes=32", "--levels=block", "--repeats=1"]
    command = [sys.executable, str(SCRIPTS / "bench_sd3.py"), *flags]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    level = next(line for line in lines if line.startswith("| block | 32 |"))
    assert all(float(cell) > 0 for cell in level.strip("| ").split(" | ")[2:])
    here, there, ratio, difference = map(float, lines[-1].strip("| ").split(" | ")[1:])
    assert ratio == pytest.approx(there / here, rel=0.2)
    assert difference < 1e-5

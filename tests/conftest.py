"""What several test files share. One thread each: small tensors lose more by threads that wait than they gain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts that tests start
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """For tests of numbers: a run's plot takes longer than a tiny run."""
    monkeypatch.setattr("lad_ts.report.plot_delays", lambda *_: None)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with tiny random model files of Stable Diffusion 3's layout, T5 included."""
    folder = tmp_path_factory.mktemp("models")
    script = [sys.executable, str(ROOT / "scripts/make_random_models.py"), "--t5=True", f"--out={folder}"]
    subprocess.run(script, check=True, capture_output=True)
    return folder

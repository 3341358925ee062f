"""What several test files share. One thread each: small tensors lose more by threads that wait than they gain."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import run_here
from scripts_by_path import load

os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts that tests start
torch.set_num_threads(1)

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup, whose way the processes of tests shall not inherit
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What scripts set for themselves would else stay for the tests that follow."""
    torch.set_num_threads(1)


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """For tests of numbers: a run's plot takes longer than a tiny run."""
    monkeypatch.setattr("lad_ts.report.plot_delays", lambda *_: None)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with tiny random model files of Stable Diffusion 3's layout, T5 included."""
    folder = tmp_path_factory.mktemp("models")
    run_here(load("make_random_models"), "--t5=True", "--out", folder)
    return folder


@pytest.fixture
def gpu(monkeypatch) -> torch.device:
    """The device that tests marked `cuda` compare with the CPU: the GPU, or what DEDGEAI_GPU names.

    There, `cpu` is for dry runs; `auto` takes the CPU where there is no GPU, so that the tests run everywhere. Products
    are exact: without the short formats that CUDA else takes for float32.
    """
    name = os.environ.get("DEDGEAI_GPU", "cuda")
    if name in ("auto", "cuda") and not torch.cuda.is_available():
        if name == "cuda":
            pytest.skip("there is no CUDA device")
        name = "cpu"
    name = "cuda" if name == "auto" else name
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(name)

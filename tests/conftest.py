"""What several test files share. One thread each: small tensors lose more by threads that wait than they gain."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts that tests start
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With several workers of pytest-xdist, the others wait while one runs a test that is marked `alone`."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    folder = tmp_path_factory.getbasetemp().parent  # of all workers
    with (folder / "turn.lock").open("w") as turn, (folder / "machine.lock").open("w") as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)  # nobody overtakes a test that waits to be alone
        fcntl.flock(machine, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield
        fcntl.flock(machine, fcntl.LOCK_UN)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with tiny random model files of Stable Diffusion 3's layout, T5 included."""
    folder = tmp_path_factory.mktemp("models")
    script = [sys.executable, str(ROOT / "scripts/make_random_models.py"), "--t5=True", f"--out={folder}"]
    subprocess.run(script, check=True, capture_output=True)
    return folder

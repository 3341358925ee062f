"""Threads beside busy processes: what scripts tell libraries before they are imported, and what comes of it."""

import os
import subprocess
import sys
from statistics import median

import pytest
from helpers import ROOT, start_script

from common.threads import BLAS, SPINS, WAITING, cores, share_cores

WAIT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(SPINS)}
SHARED = WAIT | {"OPENBLAS_NUM_THREADS": "1"}
TIMED = """
import os, subprocess, sys, time
from common.threads import cores, share_cores
share_cores(os.environ)
import torch

net, x = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)]), torch.randn(256, 256)

def seconds(threads):
    torch.set_num_threads(threads)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() < began + 0.4:
        net(x).sum().backward()
        rounds += 1
    return (time.perf_counter() - began) / rounds

busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
try:
    print(*(seconds(cores()) / seconds(1) for _ in range(5)))
finally:
    for process in busy:
        process.kill()
"""


@pytest.fixture
def unset(monkeypatch) -> None:
    """An environment that says nothing of threads."""
    for name in (*WAITING, *BLAS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", [*WAITING, *BLAS])
def test_what_a_user_has_set_stays(name):
    environment = {name: "7"}
    share_cores(environment)
    answered = WAIT if name in WAITING else {"OPENBLAS_NUM_THREADS"}
    assert environment == {key: value for key, value in SHARED.items() if key not in answered} | {name: "7"}


def test_an_empty_variable_says_nothing():
    environment = dict.fromkeys((*WAITING, *BLAS), "")
    share_cores(environment)
    assert {name: value for name, value in environment.items() if value} == SHARED


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active", "OPENBLAS_NUM_THREADS": "3"}])
def test_a_script_tells_libraries_before_they_are_imported(given, unset, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Look:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('numpy', 'torch'):\n"
        f"            print(name, *map(os.environ.get, {[*SHARED]}))\n"
        "sys.meta_path.insert(0, Look())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    told, _ = start_script("lad_ts/main_lad.py", "--help", folder=tmp_path).communicate(timeout=60)
    words = " ".join((given or SHARED).get(name, "None") for name in SHARED)
    assert {line for line in told.splitlines() if line.startswith(("numpy ", "torch "))} == {
        f"numpy {words}",
        f"torch {words}",
    }


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_cores_are_those_that_this_process_may_run_on():
    code = "import os, common.threads as t; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(t.cores())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and cores() == len(os.sched_getaffinity(0))


@pytest.mark.alone
@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_beside_busy_processes_more_threads_take_no_longer_than_one(unset):
    """With threads that spin this takes 10 to 20 times as long as with one."""
    done = subprocess.run([sys.executable, "-c", TIMED], cwd=ROOT, capture_output=True, text=True, check=True)
    ratios = [float(word) for word in done.stdout.split()]
    assert median(ratios) < 1.5, ratios

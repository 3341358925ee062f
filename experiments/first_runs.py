"""What a first training costs, whose functions no one has compiled yet. Start reading at `first_runs`."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.entry_scripts import ROOT
from common.failure import fail


def first_runs() -> Iterator[tuple[str, float, float]]:
    """Words, seconds and peak memory in MiB of trainings of one episode, each a process of its own.

    With the torch engine, and with the fused one: once as its functions are compiled, once as they are loaded. They are
    those of a copy of fused/, which keeps what is compiled beside it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "fused", folder / "fused", ignore=shutil.ignore_patterns("__pycache__"))
        for words, engine in (("torch", "torch"), ("fused, compiled", "fused"), ("fused, loaded", "fused")):
            yield words, *first_run(engine, folder)


def first_run(engine: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of main_lad.py for one episode, with packages of a folder before all others."""
    command = [sys.executable, str(ROOT / "lad_ts/main_lad.py"), "--episodes=1", "--device=cpu", f"--engine={engine}"]
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        done = subprocess.run(
            [*command, f"--out={out}/run"], env=environment, check=False, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
    memory = re.search(r"peak memory (\d+) MiB", done.stdout)
    if done.returncode or memory is None:
        fail(f"a training with --engine={engine} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}", 1)
    return seconds, float(memory[1])

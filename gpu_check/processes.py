"""Processes of a check: a part in a group of its own with a time limit, and the scripts that parts run.

A part that is over its time, or interrupted, is ended with all its processes. Start reading at `run_part`.
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common.command_line import ROOT
from gpu_check.parts import PARTS
from gpu_check.results import Conditions, SkipError

SKIPPED = 77  # exit code of a part that cannot run here
GRACE = 10.0  # s that a script gets to end itself
MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a part ended: ok, failed, skipped, out of time or interrupted; its seconds, and its last words."""

    word: str
    seconds: float
    words: str = ""


def run_part(name: str, given: Conditions, log: Path, asked: Callable[[], bool]) -> Outcome:
    """Run a part until it ends, its time is over, or `asked` says that all shall stop. It writes into `log`."""
    began = time.time()
    command = [sys.executable, "-m", "gpu_check.one_part", name, PARTS[name].place, given.to_json()]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )
        try:
            while not ended(process) and given.left() > 0 and not asked():
                time.sleep(0.05)
            by_itself = ended(process)
        finally:
            end_group(process)
    seconds = time.time() - began
    if not by_itself:
        return Outcome("interrupted" if asked() else "out of time", seconds)
    if process.returncode == 0:
        return Outcome("ok", seconds)
    return Outcome("skipped" if process.returncode == SKIPPED else "failed", seconds, last_words(log))


def environment() -> dict[str, str]:
    """The environment of the processes: they import this project from its folder, and reach for no network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return os.environ | offline | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def ended(process: subprocess.Popen) -> bool:
    """Whether a process has ended. It is not reaped, so that its group's number stays its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_group(process: subprocess.Popen) -> None:
    """End what is left of the group that a process leads: SIGTERM, and SIGKILL after some seconds."""
    if not ended(process):
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE + 2
        while not ended(process) and time.monotonic() < until:
            time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")[-300:]


def run_script(script: str, *arguments: str, seconds: float | None = None) -> str:
    """What a script of the project prints, told line by line; after `seconds`, it is ended, which is no failure.

    Raises SkipError when a package is missing, and RuntimeError with its last words when it fails.
    """
    command = [sys.executable, str(ROOT / script), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment()
    )
    lines: list[str] = []

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    stopped = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        stopped = True
        process.terminate()  # it ends its own processes
    finally:
        end_script(process)
    reader.join(2)  # not for ever: others may hold the pipe
    output = "".join(lines)
    if process.returncode and not stopped:
        if found := MISSING.search(output):
            raise SkipError(f"needs {found[1]}, which is not installed")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise RuntimeError(f"{script}: {words} (exit code {process.returncode})")
    return output


def end_script(process: subprocess.Popen) -> None:
    """Wait until a script that was told to end has done so, and end it after some seconds."""
    try:
        process.wait(GRACE)  # a second signal would not let it end its own processes
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def script_flags(**values: object) -> list[str]:
    """Values as a script's arguments, as in --steps=2."""
    return [f"--{name}={value}" for name, value in values.items()]

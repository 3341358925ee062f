"""Many runs at once: each is a method's own script, in a process of its own with one thread.

A job whose folder is complete is not run again, and one that was interrupted is resumed. Start reading at `run_jobs`.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from baselines.methods import choose, full_name
from common.failure import fail
from common.interruption import exit_code
from common.parameters import ParameterError, resolve
from common.progress import Progress
from common.run_folder import PROGRESS, claimed, progress, read_config, read_source, unused
from common.tables import read_csv
from lad_ts.method import Method

ROOT = Path(__file__).resolve().parents[1]
RUN_FILES = (
    *("config.json", "delay.csv", "seconds.csv", "metrics.csv", "evaluation.csv", "best.pt", "utilisation.csv"),
    *("delay.png", "delay.pdf", "summary.json"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One run: a method's name, as in `lad_ts`, `lad_ts:paper` or `water_filling`, its folder and its flags."""

    method: str
    folder: Path
    flags: dict[str, Any]

    @functools.cached_property
    def chosen(self) -> tuple[Method, dict[str, Any]]:
        """The method and all flags of its script. Raises ParameterError."""
        method, variant = choose(self.method)
        return method, self.flags | dict(method.flags) | dict(variant.flags if variant else {})

    @property
    def label(self) -> str:
        """The method's name as figures and tables show it. Raises ParameterError for bad flags."""
        method, flags = self.chosen
        return method.label(resolve(method.parameters, flags))

    def takes(self, parameter: str) -> bool:
        """Whether the method's script has a parameter."""
        return parameter in self.chosen[0].parameters.__dataclass_fields__

    def complete(self) -> bool:
        """Whether the folder's summary.json, a run's last file, tells of all the episodes."""
        try:
            return json.loads((self.folder / "summary.json").read_text())["episodes"] >= self.flags["episodes"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def episodes_done(self) -> int:
        """Episodes that are done, as the run tells while it goes on and its last checkpoint says otherwise."""
        path = self.folder / "delay.csv"
        try:
            state = path.stat()
            rows = (line_count(path, state.st_size, state.st_mtime_ns) - 1) // self.flags["seeds"]
        except OSError:
            rows = 0
        return max(rows, progress(self.folder))

    def check_flags(self) -> None:
        """Refuse unknown methods and bad flags. Raises ParameterError."""
        method, flags = self.chosen
        resolve(method.parameters, flags)

    def check_folder(self) -> None:
        """Refuse a folder that another process works in, or that holds another run. Raises ParameterError."""
        if not self.folder.is_dir():
            return
        if self.complete():
            self.check_run()
            return
        with claimed(self.folder):
            if not unused(self.folder):
                self.check_run()

    def check_run(self) -> None:
        """Refuse a folder that holds another run. Raises ParameterError."""
        _, stored = read_config(self.folder)
        source = read_source(self.folder)
        if source and source != self.chosen[0].source:
            reason = "holds a run of another state of this file; give another folder, or delete that run"
            raise ParameterError("methods", self.method, f"{self.folder} {reason}")
        method, flags = self.chosen
        digest = getattr(resolve(method.parameters, flags), "arrivals_sha256", None)
        if digest != stored.get("arrivals_sha256"):
            raise ParameterError("out", self.folder, "holds a run of another state of the file of arrivals")
        for name, value in flags.items():
            if name == "method" and source and same_class(str(stored.get(name)), value):
                continue
            longer = name == "episodes" and isinstance(stored.get(name), int) and stored[name] < value
            if stored.get(name) != value and not longer:
                raise ParameterError("out", self.folder, f"holds a run with {name}={stored.get(name)}, not {value}")

    @property
    def log(self) -> Path:
        """What the run has printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def command(self) -> list[str]:
        """How to run the job, or to go on with it; files of a run that ended before its first checkpoint go."""
        method, flags = self.chosen
        if method.learns and (self.folder / "checkpoint.pt").is_file():
            flags = {**method.flags, "resume": self.folder, "episodes": self.flags["episodes"]}
        else:
            with claimed(self.folder):
                for name in (*RUN_FILES, PROGRESS):
                    (self.folder / name).unlink(missing_ok=True)
            flags = flags | {"out": self.folder}
        return [sys.executable, str(ROOT / method.script), *(f"--{name}={value}" for name, value in flags.items())]

    def start(self) -> subprocess.Popen:
        """Start the job's process; what it prints goes to <folder>.log beside the folder."""
        with self.log.open("a") as file:
            # In a session of its own: run_jobs alone decides what Ctrl-C means for it.
            return subprocess.Popen(self.command(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def summary(self) -> dict[str, Any]:
        """What a whole run's summary.json says."""
        return json.loads((self.folder / "summary.json").read_text())

    def seconds(self) -> float:
        """Seconds that the run's episodes took, all seeds together."""
        return sum(float(row["seconds"]) for row in read_csv(self.folder / "seconds.csv"))


@functools.lru_cache(maxsize=1024)
def line_count(path: Path, size: int, changed: int) -> int:
    """Lines of a file of that size, last changed then; read once as long as both stay."""
    return path.read_bytes().count(b"\n")


def parse_methods(text: str) -> list[str]:
    """The methods of a comma-separated list, each once, with the default variant where none is named."""
    names = (os.path.expanduser(name.strip()) for name in text.split(","))  # noqa: PTH111
    return list(dict.fromkeys(full_name(name) for name in names))


def same_class(stored: str, name: str) -> bool:
    """Whether two names FILE.py:ClassName are of one class, wherever the file now lies."""
    return stored.rpartition(":")[2] == name.rpartition(":")[2]


def folder_name(method: str) -> str:
    """A folder's name for a method: lad_ts_tuned, or my_scheduler.py_MyClass."""
    return method.rpartition("/")[2].replace(":", "_")


class Forecast:
    """How long the jobs that are left will take, from the pace of those that run or have run.

    Methods that learn take far longer for an episode than others, so a job that waits is taken to be as fast as the
    mean of its own kind; one of a kind that has no pace yet counts nothing.
    """

    def __init__(self, jobs: list[Job], parallel: int) -> None:
        self.jobs, self.parallel = jobs, parallel
        self.started: dict[Job, tuple[float, int]] = {}  # when, and with how many episodes done
        self.pace: dict[Job, float] = {}  # s for an episode

    def start(self, job: Job, now: float) -> None:
        """Hear that a job starts, at `now` in s."""
        self.started[job] = now, job.episodes_done()

    def update(self, running: Iterable[Job], now: float) -> float | None:
        """Seconds that are left, None while nothing is known."""
        done = {job: job.episodes_done() for job in self.jobs}
        for job in running:
            began, before = self.started[job]
            if done[job] > before:
                self.pace[job] = (now - began) / (done[job] - before)
        if not self.pace:
            return None
        kinds = {job.chosen[0].learns: [] for job in self.jobs}
        for job, pace in self.pace.items():
            kinds[job.chosen[0].learns].append(pace)
        left = []
        for job in self.jobs:
            alike = kinds[job.chosen[0].learns]
            pace = self.pace.get(job, sum(alike) / len(alike) if alike else 0.0)
            left.append(pace * (job.flags["episodes"] - done[job]))
        return max(sum(left) / self.parallel, *left)


def run_jobs(jobs: list[Job], parallel: int) -> None:
    """Run all jobs that are not complete, `parallel` at a time, with a progress bar.

    Raises ParameterError before anything runs when a job is refused. When one fails, the others that run are
    interrupted, which makes those that learn write a checkpoint, and the process ends with exit code 1 and one line;
    after a signal with 128 + its number.
    """
    folders = [job.folder for job in jobs]
    for job in jobs:
        if folders.count(job.folder) > 1:
            raise ParameterError("methods", job.method, "must differ from the others in file or class name")
        job.check_flags()
    with contextlib.ExitStack() as kept:
        for place in sorted({folder.parent for folder in folders}):
            kept.enter_context(claimed(place))  # two of these would start the same runs
        for job in jobs:
            job.check_folder()
        work_off(jobs, parallel)


def work_off(jobs: list[Job], parallel: int) -> None:
    """Run what is not complete, in folders that are this process's to give."""
    waiting = [job for job in jobs if not job.complete()]
    running: dict[Job, subprocess.Popen] = {}
    forecast = Forecast(list(waiting), parallel)
    try:
        total = sum(job.flags["episodes"] for job in jobs)
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} episodes [{elapsed}{postfix}]"
        with Progress(total=total, bar_format=form) as bar:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    forecast.start(job, time.monotonic())
                    running[job] = job.start()
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    if (code := running.pop(job).returncode) != 0:
                        last = " ".join(job.log.read_text(errors="replace").strip().splitlines()[-1:])
                        fail(f"{job.method} ended with exit code {code}: {last} (see {job.log})", 1)
                left = forecast.update(running, time.monotonic())
                bar.n = sum(job.episodes_done() for job in jobs)
                words = f"{len(jobs) - len(waiting) - len(running)} of {len(jobs)} runs done"
                bar.set_postfix_str(words + ("" if left is None else f", about {left / 60:.1f} min left"))
                time.sleep(0.2)
    except KeyboardInterrupt as error:
        fail("interrupted; the same command goes on", exit_code(error))
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()

"""Every method by name, and how to run many of them: what the scripts that compare methods share.

A job is one run of a method's own script in a process of its own with one thread, so jobs do not wait for each other.
A job whose folder is complete is not run again, and one that was interrupted is resumed. Start reading at `run_jobs`.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from baselines.heuristics import HEURISTICS
from baselines.main_d2sac import D2SACConfig
from baselines.main_dqn import DQNConfig
from baselines.main_heuristics import HeuristicConfig, load_class
from baselines.main_sac import SACConfig
from common.command_line import fail
from common.parameters import ParameterError, resolve
from common.run_folder import read_config, read_csv, writable
from lad_ts.main_coop import CoopConfig
from lad_ts.main_lad import LadConfig
from lad_ts.training import FixedParameters, TrainingParameters

ROOT = Path(__file__).resolve().parents[1]
LEARNERS = {
    "lad_ts": ("lad_ts/main_lad.py", LadConfig),
    "d2sac_ts": ("baselines/main_d2sac.py", D2SACConfig),
    "sac_ts": ("baselines/main_sac.py", SACConfig),
    "dqn_ts": ("baselines/main_dqn.py", DQNConfig),
    "coop_lad_ts": ("lad_ts/main_coop.py", CoopConfig),
}
# What a word behind a learner's name stands for, as in lad_ts:paper; without one it is the first of its learner's.
PRESETS = {name: {"preset": name} for name in ("tuned", "paper")}
COOP_VARIANTS = {
    "mean": {},
    "tail": {"objective": "tail"},
    "slowdown": {"objective": "slowdown"},
    "per_bs": {"actor": "per_bs"},
    "prices": {"teacher": "prices"},
    "practised": {"practice": 60, "distil_episodes": 30},
    "tail_practised": {"objective": "tail", "practice": 60, "distil_episodes": 30},
}
RUN_FILES = ("config.json", "delay.csv", "seconds.csv", "utilisation.csv", "delay.png", "delay.pdf", "summary.json")
FIXED = ("opt_ts", "lower_bound", *HEURISTICS)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One run: a method's name, as in `lad_ts`, `lad_ts:paper` or `water_filling`, its folder and its flags."""

    method: str
    folder: Path
    flags: dict[str, Any]

    @property
    def script(self) -> tuple[str, type, dict[str, Any]]:
        """The script, its parameters and the flags that the method's name stands for. Raises ParameterError."""
        name, _, preset = self.method.partition(":")
        if name in LEARNERS and (preset or next(iter(variants(name)))) in variants(name):
            return *LEARNERS[name], variants(name)[preset or next(iter(variants(name)))]
        if self.method == "opt_ts":
            return "baselines/main_opt.py", FixedParameters, {}
        if self.method in FIXED or (":" in self.method and Path(name).is_file()):
            return "baselines/main_heuristics.py", HeuristicConfig, {"method": self.method}
        words = f"a learner with :paper, coop_lad_ts with :{', :'.join(COOP_VARIANTS)}, or FILE.py:ClassName"
        known = ", ".join([*LEARNERS, *FIXED])
        raise ParameterError("methods", self.method, f"must be one of {known}, {words}")

    def takes(self, parameter: str) -> bool:
        return parameter in self.script[1].__dataclass_fields__

    def complete(self) -> bool:
        """Whether the folder's summary.json, a run's last file, tells of all the episodes."""
        try:
            return json.loads((self.folder / "summary.json").read_text())["episodes"] >= self.flags["episodes"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def episodes_done(self) -> int:
        """Whole episodes in the folder's delay.csv, which a running learner renews at every checkpoint."""
        try:
            return len((self.folder / "delay.csv").read_bytes().splitlines()[1:]) // self.flags["seeds"]
        except OSError:
            return 0

    def check_flags(self) -> None:
        """Refuse unknown methods and bad flags. Raises ParameterError."""
        script, config, flags = self.script
        resolve(config, self.flags | flags)
        if script.endswith("main_heuristics.py"):
            load_class(self.method)

    def check_folder(self) -> None:
        """Refuse a folder that cannot be written or holds another run. Raises ParameterError."""
        writable(self.folder)
        if not any(self.folder.iterdir()):
            return
        _, stored = read_config(self.folder)
        for name, value in (self.flags | self.script[2]).items():
            longer = name == "episodes" and isinstance(stored.get(name), int) and stored[name] < value
            if stored.get(name) != value and not longer:
                raise ParameterError(
                    "out", None, f"{self.folder} holds a run with {name}={stored.get(name)}, not {value}"
                )

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def command(self) -> list[str]:
        """How to run the job, or to go on with it; files of a run that ended before its first checkpoint go."""
        script, config, flags = self.script
        if issubclass(config, TrainingParameters) and (self.folder / "checkpoint.pt").is_file():
            flags = {"resume": self.folder, "episodes": self.flags["episodes"]}
        else:
            for name in RUN_FILES:
                (self.folder / name).unlink(missing_ok=True)
            flags = self.flags | flags | {"out": self.folder}
        return [sys.executable, str(ROOT / script), *(f"--{name}={value}" for name, value in flags.items())]

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


def variants(name: str) -> dict[str, dict[str, Any]]:
    """The words that may stand behind a learner's name, and the flags that they mean; the first is the default."""
    return COOP_VARIANTS if name == "coop_lad_ts" else PRESETS


def parse_methods(text: str) -> list[str]:
    """The methods of a comma-separated list, each once; a learner without a preset is its default one."""
    names = [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(f"{name}:{next(iter(variants(name)))}" if name in LEARNERS else name for name in names))


def folder_name(method: str) -> str:
    """A folder's name for a method: lad_ts_tuned, or my_scheduler.py_MyClass."""
    return method.rpartition("/")[2].replace(":", "_")


def run_jobs(jobs: list[Job], parallel: int) -> None:
    """Run all jobs that are not complete, `parallel` at a time, with a progress bar.

    Raises ParameterError before anything runs when a job is refused. When one fails, the others that run are
    interrupted, which makes learners write a checkpoint, and the process ends with exit code 1 and one line; at Ctrl-C
    and SIGTERM with 130.
    """
    folders = [job.folder for job in jobs]
    for job in jobs:
        if folders.count(job.folder) > 1:
            raise ParameterError("methods", job.method, "must differ from the others in file or class name")
        job.check_flags()
    for job in jobs:
        job.check_folder()
    waiting = [job for job in jobs if not job.complete()]
    running: dict[Job, subprocess.Popen] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tqdm(total=sum(job.flags["episodes"] for job in jobs), unit="episode") as bar:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[job] = job.start()
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    if (code := running.pop(job).returncode) != 0:
                        last = " ".join(job.log.read_text(errors="replace").strip().splitlines()[-1:])
                        fail(f"{job.method} ended with exit code {code}: {last} (see {job.log})", 1)
                bar.n = sum(job.episodes_done() for job in jobs)
                bar.set_postfix_str(f"{len(jobs) - len(waiting) - len(running)} of {len(jobs)} runs done")
                time.sleep(0.2)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on", 130)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)

"""Every method by name, and how to run many of them: what the scripts that compare methods share.

A job is one run of a method's own script in a process of its own with one thread, so jobs do not wait for each other.
A job whose folder is complete is not run again, and one that was interrupted is resumed. Start reading at `run_jobs`.
"""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from baselines.heuristics import HEURISTICS
from baselines.main_d2sac import D2SACConfig
from baselines.main_dqn import DQNConfig
from baselines.main_heuristics import HeuristicConfig
from baselines.main_sac import SACConfig
from common.parameters import ParameterError, resolve
from common.run_folder import read_csv
from lad_ts.main_lad import LadConfig
from lad_ts.training import FixedParameters, TrainingParameters

ROOT = Path(__file__).resolve().parents[1]
LEARNERS = {
    "lad_ts": ("lad_ts/main_lad.py", LadConfig),
    "d2sac_ts": ("baselines/main_d2sac.py", D2SACConfig),
    "sac_ts": ("baselines/main_sac.py", SACConfig),
    "dqn_ts": ("baselines/main_dqn.py", DQNConfig),
}
FILES_WITHOUT_CHECKPOINT = ("config.json", "delay.csv", "seconds.csv", "utilisation.csv", "delay.png", "delay.pdf")
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
        if name in LEARNERS and preset in ("", "tuned", "paper"):
            return *LEARNERS[name], {"preset": preset or "tuned"}
        if self.method == "opt_ts":
            return "baselines/main_opt.py", FixedParameters, {}
        if self.method in FIXED or (":" in self.method and Path(name).is_file()):
            return "baselines/main_heuristics.py", HeuristicConfig, {"method": self.method}
        raise ParameterError(
            f"--methods={self.method}: must be one of {', '.join([*LEARNERS, *FIXED])}, a learner with :paper, "
            "or FILE.py:ClassName"
        )

    def takes(self, parameter: str) -> bool:
        return parameter in self.script[1].__dataclass_fields__

    def episodes_done(self) -> int:
        """Whole episodes in the folder's delay.csv, which a running learner renews at every checkpoint."""
        table = self.folder / "delay.csv"
        return (len(read_csv(table)) if table.is_file() else 0) // self.flags["seeds"]

    def check(self) -> None:
        """Refuse unknown methods, bad flags and a folder that holds another run. Raises ParameterError."""
        _, config, flags = self.script
        resolve(config, self.flags | flags)
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        try:
            stored = json.loads((self.folder / "config.json").read_text())["parameters"]
        except (OSError, ValueError, KeyError):
            raise ParameterError(f"--out: {self.folder} holds files but no run; must be empty or absent") from None
        for name, value in (self.flags | flags).items():
            if stored.get(name) != value and not (name == "episodes" and stored[name] < value):
                raise ParameterError(f"--out: {self.folder} holds a run with {name}={stored.get(name)}, not {value}")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def run(self) -> None:
        """Run or resume the job unless it is complete; what it prints goes to <folder>.log beside the folder."""
        if self.episodes_done() >= self.flags["episodes"]:
            return
        script, config, flags = self.script
        if issubclass(config, TrainingParameters) and (self.folder / "checkpoint.pt").is_file():
            flags = {"resume": self.folder, "episodes": self.flags["episodes"]}
        else:
            for name in FILES_WITHOUT_CHECKPOINT:  # of a run that ended before its first checkpoint
                (self.folder / name).unlink(missing_ok=True)
            flags = self.flags | flags | {"out": self.folder}
        command = [sys.executable, str(ROOT / script), *(f"--{name}={value}" for name, value in flags.items())]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            last = self.log.read_text().strip().splitlines()[-1:]
            raise ChildProcessError(f"{self.method} ended with exit code {code}: {' '.join(last)} (see {self.log})")

    def peak_memory(self) -> float:
        """Peak memory in MiB that the run's log states last; 0 where there is none."""
        words = self.log.read_text().rpartition("peak memory ")[2].split() if self.log.is_file() else []
        return float(words[0]) if words else 0.0

    def seconds(self) -> float:
        """Seconds that the run's episodes took, all seeds together."""
        return sum(float(row["seconds"]) for row in read_csv(self.folder / "seconds.csv"))


def parse_methods(text: str) -> list[str]:
    """The methods of a comma-separated list, each once; a learner without a preset is the tuned one."""
    names = [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(f"{name}:tuned" if name in LEARNERS else name for name in names))


def folder_name(method: str) -> str:
    """A folder's name for a method: lad_ts_tuned, or my_scheduler.py_MyClass."""
    return method.rpartition("/")[2].replace(":", "_")


def run_jobs(jobs: list[Job], parallel: int) -> None:
    """Run all jobs, `parallel` at a time, with a progress bar.

    Raises ParameterError before anything runs when a job is refused. When a job fails, ends the process with exit code
    1 and one line, after the jobs that are running.
    """
    for job in jobs:
        job.check()
    total = sum(job.flags["episodes"] for job in jobs)
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=total, unit="episode") as bar:
        waiting = {pool.submit(job.run) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()  # raises what the job raised
                bar.n = sum(job.episodes_done() for job in jobs)
                bar.set_postfix_str(f"{len(jobs) - len(waiting)} of {len(jobs)} runs done")
        except ChildProcessError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"error: {error}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

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
from lad_ts.main_lad import LadConfig
from lad_ts.parameters import ParameterError
from lad_ts.run_folder import read_csv
from lad_ts.training import FixedParameters, TrainingParameters

ROOT = Path(__file__).resolve().parents[1]
LEARNERS = {
    "lad_ts": ("lad_ts/main_lad.py", LadConfig),
    "d2sac_ts": ("baselines/main_d2sac.py", D2SACConfig),
    "sac_ts": ("baselines/main_sac.py", SACConfig),
    "dqn_ts": ("baselines/main_dqn.py", DQNConfig),
}
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

    def complete(self) -> bool:
        """Whether the folder holds this very run. Raises ParameterError when it holds another one."""
        if not (self.folder / "config.json").is_file():
            return False
        stored = json.loads((self.folder / "config.json").read_text())["parameters"]
        for name, value in (self.flags | self.script[2]).items():
            if stored.get(name) != value and not (name == "episodes" and stored[name] < value):
                raise ParameterError(f"--out: {self.folder} holds a run with {name}={stored.get(name)}, not {value}")
        return self.episodes_done() >= self.flags["episodes"]

    def run(self) -> float:
        """Run or resume the job unless it is complete; its output goes to log.txt. Returns its peak memory in MiB."""
        if self.complete():
            return 0.0
        script, config, flags = self.script
        flags = self.flags | flags
        if issubclass(config, TrainingParameters) and (self.folder / "checkpoint.pt").is_file():
            flags = {"resume": self.folder, "episodes": self.flags["episodes"]}
        else:
            self.discard()
            flags |= {"out": self.folder}
        command = [sys.executable, str(ROOT / script), *(f"--{name}={value}" for name, value in flags.items())]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_name(f"{self.folder.name}.log")
        with log.open("a") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {code}: {log.read_text().splitlines()[-1]}")
        words = log.read_text().split("peak memory ")[-1].split()
        return float(words[0])

    def discard(self) -> None:
        """Empty the folder of a run that ended before its first checkpoint."""
        for file in self.folder.glob("*") if self.folder.is_dir() else []:
            file.unlink()


def run_jobs(jobs: list[Job], parallel: int) -> float:
    """Run all jobs, `parallel` at a time, with a progress bar. Returns the peak memory in MiB of the largest.

    Raises ParameterError for unknown methods and RuntimeError for a job that fails, with the last line it printed.
    """
    for job in jobs:
        job.complete()  # finds wrong names and folders before anything runs
    total = sum(job.flags["episodes"] for job in jobs)
    with ThreadPoolExecutor(parallel) as pool, tqdm(total=total, unit="episode") as bar:
        waiting = futures = {pool.submit(job.run): job for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()  # raises what the job raised
                bar.n = sum(job.episodes_done() for job in jobs)
                bar.set_postfix_str(f"{len(jobs) - len(waiting)} of {len(jobs)} runs done")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return max(future.result() for future in futures)

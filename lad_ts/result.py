"""What a run has come to, as `train` gives it to whoever called it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lad_ts.environment_lad import Scenario
from lad_ts.method import Runnable
from lad_ts.policy_export import export_policy


class DivergedError(RuntimeError):
    """A network holds NaN or infinity: the training cannot go on."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A run: its parameters, what it has measured, and where its files are.

    `history` has the columns of delay.csv, seconds.csv and metrics.csv as arrays [episodes, seeds], delays in s.
    `paths` has the files of `folder` by their names. `learner` is the scheduler, trained where it learns. `summary` is
    what summary.json holds, `report` what scripts print. `interrupted` is 0 for a whole run; after a
    signal it is 128 + its number, as 130 for Ctrl-C, and the files tell of the episodes so far.
    """

    config: Any
    folder: Path
    history: dict[str, np.ndarray]
    learner: Runnable
    summary: dict[str, Any]
    report: str
    interrupted: int
    exported: Path | None = None  # the policy that was written as ONNX

    @property
    def paths(self) -> dict[str, Path]:
        """The files of the run's folder, and an exported policy, by their names, as in paths["checkpoint.pt"]."""
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.name[0] != "."]
        return {path.name: path for path in (*files, *filter(None, [self.exported]))}


def with_export(result: Result, path: Path | None, scenario: Scenario, key: str, seeds: list[int]) -> Result:
    """The result once its policy is written into `path`, where there is one and the run is whole; its words tell so."""
    if path is None:
        return result
    if result.interrupted:
        words = f"{path} is not written, since the run has not come to its end"
    else:
        words = export_policy(path, result.learner, scenario, result.config, key, seeds)
    exported = None if result.interrupted else path
    return dataclasses.replace(result, report=f"{result.report}\n{words}", exported=exported)

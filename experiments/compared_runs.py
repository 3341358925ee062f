"""The runs of a comparison, read from their folders: seeds of several runs of a method are merged into one.

Array jobs run one method many times, each with seeds of its own. Runs are of one method when their labels are the same,
which are the methods' names but for those that the user gives. Start reading at `compared_runs`.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baselines.methods import METHODS
from common.parameters import ParameterError, Parameters
from common.run_folder import describe, read_config, with_defaults
from common.statistics_seeds import episode_mean
from common.tables import read_csv
from lad_ts.environment_lad import EnvironmentParameters
from lad_ts.history import HEADER as DELAY_COLUMNS
from lad_ts.run_parameters import FixedParameters, RunParameters, TrainingParameters, training_seeds

# result sizes change the delay by about 1 ms: with tied_sizes a run still counts as the same environment
ENVIRONMENT = {field.name for field in dataclasses.fields(EnvironmentParameters)} - {"tied_sizes"}
# how a run is run, which does not tell a method from another
WAYS = {field.name for field in dataclasses.fields(TrainingParameters)} - {"episodes"}
COLUMNS = tuple(name for name in DELAY_COLUMNS if name.endswith("_s"))
EVALUATION = ", evaluation"  # how the method of an evaluation ends


@dataclasses.dataclass
class Run:
    """Runs of one method: its name, the label that is shown, and columns [episodes, seeds]; seeds ascend."""

    method: str
    label: str
    parameters: dict[str, Any]
    seeds: list[int]
    columns: dict[str, np.ndarray]
    folder: Path

    @property
    def learns(self) -> bool:
        return "checkpoint_every" in self.parameters and not self.method.endswith(EVALUATION)

    @property
    def episodes(self) -> int:
        return len(self.columns["delay_s"])

    def final(self, name: str, last: int) -> np.ndarray:
        """Mean of a column over the last episodes, for every seed."""
        return episode_mean(self.columns[name][-last:])

    @property
    def gap(self) -> np.ndarray:
        """Delay in percent above Opt-TS's, [episodes, seeds]."""
        return 100 * (self.columns["delay_s"] / self.columns["opt_delay_s"] - 1)


def compared_runs(top: Path, labels: Sequence[str] = ()) -> list[Run]:
    """A run for every method below `top`, all on one environment with the same seeds and episodes.

    `labels` are texts FOLDER=LABEL. Raises ParameterError.
    """
    folders = sorted(path.parent for path in top.rglob("delay.csv") if not path.parent.name.startswith("evaluation"))
    if not folders:
        raise ParameterError("runs", top, "must be a folder with runs below it; no delay.csv was found")
    labelled = labels_of(top, folders, labels)
    groups: dict[str, list[Run]] = {}
    for folder in folders:
        run = read_run(folder)
        run.label = labelled.get(folder, run.method)
        groups.setdefault(run.label, []).append(run)
    runs = [merged(top, group) for group in groups.values()]
    for run in runs[1:]:
        for name in sorted(ENVIRONMENT | {"held_out"}):
            refuse_difference(top, run, runs[0], name, run.parameters.get(name), runs[0].parameters.get(name))
        refuse_difference(top, run, runs[0], "seeds", words(run.seeds), words(runs[0].seeds))
        refuse_difference(top, run, runs[0], "episodes", run.episodes, runs[0].episodes)
    return runs


def refuse_difference(top: Path, run: Run, other: Run, name: str, ours: Any, theirs: Any) -> None:
    """Raise ParameterError unless two methods agree in something."""
    if ours != theirs:
        reason = f"{run.label} has {name}={ours}, {other.label} {theirs}; must be the same"
        raise ParameterError("runs", top, reason)


def labels_of(top: Path, folders: Sequence[Path], labels: Sequence[str]) -> dict[Path, str]:
    """The labels of run folders that FOLDER=LABEL names: by name or path below `top`, with * for any text.

    A folder above runs stands for all of them. Raises ParameterError.
    """
    found: dict[Path, str] = {}
    for text in labels:
        parts = text.split("=")
        for cut in range(1, len(parts)):  # names and labels may hold the sign, too
            pattern, label = "=".join(parts[:cut]).rstrip("/"), "=".join(parts[cut:]).strip()
            if chosen := [folder for folder in folders if matches(top, folder, pattern)]:
                break
        else:
            names = ", ".join(folder.relative_to(top).as_posix() for folder in folders[:5])
            more = ", .." if len(folders) > 5 else ""
            raise ParameterError("label", text, f"must be FOLDER=LABEL, of a run's folder below --runs: {names}{more}")
        if not label or not label.isprintable():
            raise ParameterError("label", text, "must have a text of one line behind the folder and =")
        for folder in chosen:
            if found.setdefault(folder, label) != label:
                raise ParameterError("label", text, f"{folder.name} must have one label; it has {found[folder]}, too")
    return found


def matches(top: Path, folder: Path, pattern: str) -> bool:
    """Whether a pattern means a run's folder, or one above it that lies below `top`."""
    inside = folder.relative_to(top)
    places = [inside, *inside.parents]
    texts = {text for place in places for text in (place.as_posix(), place.name)}
    texts = texts - {"", "."} | {folder.name}
    return any(text == pattern or fnmatch.fnmatchcase(text, pattern) for text in texts)


def read_run(folder: Path) -> Run:
    """A run from its folder. Raises ParameterError when its files are not whole."""
    method, parameters = read_config(folder, "runs")
    cls = parameter_class(method)
    known = {name: value for name, value in parameters.items() if name in cls.__dataclass_fields__}
    parameters = parameters | with_defaults(cls, known, "runs", folder)
    parameters["held_out"] = parameters.get("held_out", method.endswith(EVALUATION))  # evaluations are no trainings
    try:
        content = json.loads((folder / "config.json").read_text())
        if source := content.get("source"):  # the file itself tells, wherever it lay
            parameters |= {"method": str(parameters.get("method", "")).rpartition(":")[2], "source": source}
        seeds = training_seeds(RunParameters(seed=parameters["seed"], seeds=parameters["seeds"]))
        rows, times = read_csv(folder / "delay.csv"), read_csv(folder / "seconds.csv")
        if not rows:
            raise ValueError("no episode")
        if [int(row["seed"]) for row in rows] != seeds * (len(rows) // len(seeds)):
            raise ValueError("delay.csv has other seeds than config.json")
        columns = {name: np.array([float(row[name]) for row in rows]).reshape(-1, len(seeds)) for name in COLUMNS}
        columns["seconds"] = np.array([float(row["seconds"]) for row in times]).reshape(-1, len(seeds))
        if len(times) != len(rows):
            raise ValueError("seconds.csv has other episodes than delay.csv")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ParameterError("runs", None, f"{folder} must hold a whole run ({describe(error)})") from None
    return Run(method, method, parameters, seeds, columns, folder)


def parameter_class(method: str) -> type[Parameters]:
    """The parameters of a method by its name in config.json; what all rules have where it is a user's own."""
    name = method.removesuffix(EVALUATION)
    names = (name, name.rpartition(" (")[0])
    return next((m.parameters for m in METHODS.values() if m.name in names), FixedParameters)


def merged(top: Path, runs: list[Run]) -> Run:
    """Runs of one label as one run of all their seeds. Raises ParameterError unless only seeds differ, and all do."""
    first, way_out = runs[0], "tell them apart by --label FOLDER=LABEL"
    owner = dict.fromkeys(first.seeds, first)
    for run in runs[1:]:
        pairs = [("method", run.method, first.method)]
        every = dict.fromkeys([*first.parameters, *run.parameters])
        pairs += [(name, run.parameters.get(name), first.parameters.get(name)) for name in every if name not in WAYS]
        pairs += [("episodes in delay.csv", run.episodes, first.episodes)]
        for name, ours, theirs in pairs:
            if plain(ours) != plain(theirs):
                folders = f"{place(top, run)} has {name}={ours}, {place(top, first)} {theirs}"
                raise ParameterError("runs", top, f"runs of {run.label} must be the same: {folders}; or {way_out}")
        for seed in run.seeds:
            if other := owner.get(seed):
                both = f"{place(top, other)} and {place(top, run)}"
                reason = f"runs of {run.label} must have different seeds: seed {seed} is in {both}; or {way_out}"
                raise ParameterError("runs", top, reason)
            owner[seed] = run
    order = np.argsort([seed for run in runs for seed in run.seeds])
    columns = {name: np.concatenate([run.columns[name] for run in runs], 1)[:, order] for name in first.columns}
    return dataclasses.replace(first, seeds=sorted(owner), columns=columns)


def plain(value: Any) -> Any:
    """A value as JSON gives it, which has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def place(top: Path, run: Run) -> str:
    """A run's folder below `top`."""
    inside = run.folder.relative_to(top).as_posix()
    return run.folder.name if inside == "." else inside


def words(seeds: Sequence[int]) -> str:
    """Seeds in words: 0-4, or 0-1,3."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and parts[-1][-1] + 1 == seed:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)

"""The command behind a folder of results, told from what lies in it. Start reading at `command_behind`.

A run's config.json names its method and every resolved parameter; the method tells the script, and only parameters that
differ from the script's defaults are shown. Comparisons and sweeps have no config.json: their runs and tables tell.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines.methods import METHODS, choose, default_methods
from baselines.own import LEARNERS_SCRIPT, RULES_SCRIPT
from common.entry_scripts import ROOT, read_script
from common.parameters import ParameterError, Parameters
from common.run_folder import describe
from common.tables import read_csv
from experiments.jobs import folder_name, parse_methods
from lad_ts.environment_lad import EnvironmentParameters

# What config.json calls the runs that schedule no method, by how it begins: the script and the kind.
OTHERS = {
    "coop_study": ("scripts/coop_study.py", "Cooperative LAD-TS, the study"),
    "pocket evaluation": ("scripts/eval_pocket.py", "Pocket model"),
    "pocket": ("scripts/train_pocket.py", "Pocket model"),
    "meg test": ("meg/test_MEG.py", "Mobile edge generation"),
    "meg data": ("meg/make_dataset.py", "Mobile edge generation"),
    "meg_dt": ("meg/train_split.py", "Mobile edge generation"),
    "e2e_meg_dt": ("meg/train_JSCC_merging.py", "Mobile edge generation"),
    "dedgeai,": ("dedgeai/main_dedgeai.py", "Edge system"),
}
TRAININGS = {"scripts/train_pocket.py", "meg/train_split.py", "meg/train_JSCC_merging.py"}
COMPARISON, SWEEP, IMAGES, RUNS, OTHER = "Comparison of methods", "Sweeps", "Images", "Scheduling runs", "Other folders"
STUDY = OTHERS["coop_study"][1]
KINDS = tuple(dict.fromkeys([COMPARISON, SWEEP, RUNS, IMAGES, *(kind for _, kind in OTHERS.values()), OTHER]))
# Where a run goes, and what goes on with it, is no part of what it is.
ENVIRONMENT = tuple(field.name for field in dataclasses.fields(EnvironmentParameters))
PLACES = {"out", "resume", "evaluate"}
HOW_TO_EVALUATE = ("evaluation_episodes", "evaluation_action", "device", "threads")


class FolderError(ValueError):
    """A folder whose files are broken, or that a run has not finished."""


@dataclasses.dataclass(frozen=True)
class Behind:
    """What made a folder: a title, its kind, and the command, empty where nothing tells it."""

    title: str
    kind: str
    command: str = ""
    note: str = ""


def differing(parameters: type[Parameters], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored values that differ from what the script takes without them, its preset's defaults included."""
    fields = parameters.__dataclass_fields__
    preset = parameters.PRESETS.get(str(stored.get("preset", "")), {})
    found = {}
    for name, value in stored.items():
        if name in fields and name not in PLACES and value is not None:
            default = preset.get(name, fields[name].default)
            if value != (list(default) if isinstance(default, tuple) else default):
                found[name] = value
    return found


def command_words(script: str, flags: Mapping[str, Any]) -> str:
    """A command as a user types it; a flag with several values is given once for each."""
    words = ["python", script]
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            text = f"{one:g}" if isinstance(one, float) and float(f"{one:g}") == one else str(one)
            words += [f"--{name}={text}"] if text.startswith("-") or not text else [f"--{name}", text]
    return shlex.join(words)


def path_words(path: Path) -> str:
    """A path as a command names it: below the project's folder where it lies there."""
    whole = path.resolve()
    return whole.relative_to(ROOT).as_posix() if whole.is_relative_to(ROOT) else str(path)


def read_record(folder: Path) -> tuple[str, dict[str, Any]]:
    """Method and parameters of config.json. Raises FolderError."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        method, parameters = content["method"], content["parameters"]
        if not (isinstance(method, str) and isinstance(parameters, dict)):
            raise TypeError("values of the wrong type")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FolderError(f"config.json cannot be read ({describe(error)})") from None
    return method, parameters


def command_behind(folder: Path) -> Behind:
    """What made the folder. Raises FolderError for a broken file, and where a run's last file is missing."""
    if not (folder / "config.json").is_file():
        return without_record(folder)
    label, stored = read_record(folder)
    if label == "images":  # perhaps of several runs
        return without_record(folder)
    name, evaluation = label.removesuffix(", evaluation"), label.endswith(", evaluation")
    by_name = {method.name: method.script for method in METHODS.values()}
    script = by_name.get(name) or by_name.get(name.rpartition(" (")[0])
    if script is None and ":" in str(stored.get("method", "")):  # a class of the user's own
        script = LEARNERS_SCRIPT if "checkpoint_every" in stored else RULES_SCRIPT
    if script:
        if not (folder / "summary.json").is_file():
            raise FolderError("no summary.json: the run goes on, or was stopped")
        return scheduling_run(folder, script, label, stored, evaluation)
    for beginning, (script, kind) in OTHERS.items():
        if label.startswith(beginning):
            if script in TRAININGS and not (folder / "summary.json").is_file():
                raise FolderError("no summary.json: the training goes on, or was stopped")
            command, note = from_record(script, stored)
            found = read_script(script)
            return Behind(label, kind, command, "; ".join(filter(None, [found.summary if found else "", note])))
    return Behind(label, OTHER)


def from_record(script: str, stored: Mapping[str, Any]) -> tuple[str, str]:
    """The command of a script with the stored parameters, and a note on those that it does not have."""
    found = read_script(script)
    assert found is not None, script
    unknown = sorted(set(stored) - found.parameters.__dataclass_fields__.keys())
    if script == LEARNERS_SCRIPT:  # the file is not run to ask for defaults, so its own parameters are shown in full
        given = {name: stored[name] for name in unknown if stored[name] is not None}
        flags = {"method": stored.get("method"), **differing(found.parameters, stored), **given}
        return command_words(script, flags), ""
    note = f"the script has no parameter {', '.join(unknown)}, which config.json names" if unknown else ""
    return command_words(script, differing(found.parameters, stored)), note


def scheduling_run(folder: Path, script: str, label: str, stored: dict[str, Any], evaluation: bool) -> Behind:
    """A run of a method, or the evaluation of one, which lies beside its checkpoint unless the user says otherwise."""
    first, seeds = stored.get("seed", 0), stored.get("seeds", 1)
    words = f"seed {first}" if seeds == 1 else f"{seeds} seeds from {first} on"
    if not evaluation:
        return Behind(f"{label}: {stored.get('episodes')} episodes, {words}", RUNS, *from_record(script, stored))
    title = f"{label}: {stored.get('evaluation_episodes')} episodes, {words}"
    checkpoint = folder.parent / Path(stored.get("evaluate") or "checkpoint.pt").name
    if not checkpoint.is_file():
        return Behind(title, RUNS)
    found = read_script(script)
    assert found is not None, script
    how = {name: value for name, value in differing(found.parameters, stored).items() if name in HOW_TO_EVALUATE}
    if " on " in label:  # in another environment than that of the training
        trained = read_record(folder.parent)[1]
        how |= {name: stored[name] for name in ENVIRONMENT if name in stored and stored[name] != trained.get(name)}
    return Behind(title, RUNS, command_words(script, {"evaluate": path_words(checkpoint), **how}))


def without_record(folder: Path) -> Behind:
    """What made a folder without config.json: a comparison, a sweep, images, or something unknown."""
    names = {path.name for path in folder.iterdir()}
    if {"table.csv", "comparison.png", "runs"} <= names:
        return Behind("Comparison", COMPARISON, comparison_command(folder))
    if {"sweep.csv", "runs"} <= names:
        return sweep(folder)
    if "tasks.csv" in names and next(iter(rows_of(folder / "tasks.csv")), {}).keys() >= {"image", "prompt", "seed"}:
        return Behind("Images", IMAGES, note="the command below an image makes it again")
    return Behind(folder.name, OTHER)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises FolderError."""
    try:
        return read_csv(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"{path.name} cannot be read ({describe(error)})") from None


def records_below(folder: Path) -> dict[str, dict[str, Any]]:
    """The parameters of the runs of a comparison or a sweep, by the names of their folders, broken ones left out."""
    found = {}
    for path in sorted((folder / "runs").glob("*/config.json")):
        try:
            stored = read_record(path.parent)[1]
        except FolderError:
            continue
        if isinstance(stored.get("episodes"), int) and isinstance(stored.get("seeds"), int):
            found[path.parent.name] = stored
    return found


def comparison_command(folder: Path) -> str:
    """The command of scripts/reproduce.py, if the runs are as it makes them; else empty."""
    every = [f"{m.key}:{v}" if v else m.key for m in METHODS.values() for v in m.variants or [""]]
    by_folder = {folder_name(name): name for name in every}
    names, flags = [], []
    for run, stored in records_below(folder).items():
        if run not in by_folder:
            return ""
        method, variant = choose(by_folder[run])
        implied = {**method.flags, **(variant.flags if variant else {})}
        more = {
            k: v for k, v in differing(method.parameters, stored).items() if k not in (*implied, "episodes", "seeds")
        }
        if more:
            return ""
        names.append(by_folder[run])
        flags.append({name: stored[name] for name in ("episodes", "seeds")})
    if not flags or any(other != flags[0] for other in flags):
        return ""
    given = flags[0]
    if set(names) != set(default_methods()):
        given["methods"] = ",".join(sorted(names, key=every.index))
    return from_record("scripts/reproduce.py", given)[0]


def sweep(folder: Path) -> Behind:
    """A sweep, whose table tells what was varied, and whose runs for how long."""
    rows = rows_of(folder / "sweep.csv")
    header = list(rows[0]) if rows else []
    if header[:1] + header[2:] != ["method", "seed", "delay_s", "opt_delay_s"]:
        raise FolderError("sweep.csv has other columns than a sweep's")
    vary = header[1]
    columns = {name: list(dict.fromkeys(row[name] or "" for row in rows)) for name in header[:3]}
    episodes = {stored["episodes"] for stored in records_below(folder).values()}
    title = f"Delay against {vary}"
    script = read_script("scripts/sweep.py")
    if len(episodes) != 1 or script is None:
        return Behind(title, SWEEP)
    given = {"vary": vary, "values": ",".join(columns[vary]), "methods": ",".join(columns["method"])}
    try:
        if parse_methods(script.parameters.__dataclass_fields__["methods"].default) == columns["method"]:
            del given["methods"]
    except ParameterError:
        pass
    given |= {"episodes": episodes.pop(), "seeds": len(columns["seed"])}
    return Behind(title, SWEEP, command_words(script.path, differing(script.parameters, given)))

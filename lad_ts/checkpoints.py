"""Checkpoints of a training: written, and taken up again by --resume and --evaluate. Start at `stored_config`."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.device import choose_device
from common.parameters import ParameterError, resolve
from common.run_folder import (
    load_checkpoint,
    read_config,
    read_source,
    replace_file,
    save_checkpoint,
    with_defaults,
)
from lad_ts.engines import with_engine
from lad_ts.history import History
from lad_ts.method import Method
from lad_ts.run_parameters import DEVICES, training_seeds
from lad_ts.scheduler import LearningScheduler

# Parameters that the command line may change for a stored run.
FREE = {
    "resume": {
        "method",
        "episodes",
        "device",
        "threads",
        "checkpoint_every",
        "export",
        "log",
        "evaluate_every",
        "engine",
    },
    "evaluate": {"method", "evaluation_episodes", "evaluation_action", "device", "threads", "out", "export", "engine"},
}


def write_checkpoint(folder: Path, config: Any, method: Method, scheduler: LearningScheduler, history: History) -> None:
    """checkpoint.pt with all that a run needs to go on to the same numbers."""
    content = {"method": method.name, "config": dataclasses.asdict(config)}
    content |= {"source": method.source} if method.source else {}
    save_checkpoint(folder / "checkpoint.pt", content | {"learner": scheduler.state_dict(), **history.stored()})


def keep_best(folder: Path, history: History) -> None:
    """Make checkpoint.pt best.pt, too, where it is the best of all evaluations."""
    if history.episodes and history.best() == history.episodes:
        whole = (folder / "checkpoint.pt").read_bytes()
        replace_file(folder / "best.pt", lambda temporary: temporary.write_bytes(whole))


def stored_config(config: Any, given: Collection[str], content: dict[str, Any], method: Method, flag: str) -> Any:
    """The parameters of a checkpoint with those of `FREE[flag]` taken from `config`.

    Parameters that were added since it was written take their defaults, and a line tells so. `given` names those of
    `config` that the user has given.

    Raises ParameterError when the checkpoint is another method's or version's, or when the command line contradicts a
    stored parameter that is not free.
    """
    place, free, stored = getattr(config, flag), FREE[flag], content["config"]
    if content["method"] != method.name:
        raise ParameterError(flag, place, f"holds a run of {content['method']}; must be one of {method.name}")
    check_source(content, method, flag, place)
    stored = with_defaults(type(config), stored, flag, place)
    for name in sorted(set(given) - free - {flag}):
        if getattr(config, name) != stored[name]:
            words = f"must be {stored[name]}, as stored in --{flag}={place}"
            raise ParameterError(name, getattr(config, name), words)
    changes = {name: getattr(config, name) for name in free.intersection(given)}
    if flag == "evaluate" and "engine" in stored:  # what takes less time is another question there
        changes = {"engine": "torch"} | changes
    try:
        return resolve(type(config), stored | changes | {"resume": None, "evaluate": None, "export": None})
    except ParameterError as error:
        raise ParameterError(flag, place, f"holds a parameter that is not allowed ({error})") from None


def check_source(content: dict[str, Any], method: Method, flag: str, place: Any) -> None:
    """Refuse to go on with a run of another state of a user's file, and tell of it before an evaluation.

    Raises ParameterError.
    """
    if content.get("source", "") != method.source:
        words = f"holds a run of another state of the file of {method.name}"
        if flag == "resume":
            raise ParameterError(flag, place, f"{words}; must be the one that began it")
        print(f"{place} {words}; it is evaluated by the present one")


def restore(config: Any, content: dict[str, Any], method: Method, flag: str, place: Path | str) -> LearningScheduler:
    """A scheduler with a checkpoint's state. Raises ParameterError of `flag` and its value when they do not fit."""
    scheduler = built(config, method)
    try:
        scheduler.load_state_dict(content["learner"])
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise ParameterError(flag, place, f"the checkpoint must fit its own parameters ({error})") from None
    if not scheduler.finite():
        raise ParameterError(flag, place, "must hold finite weights, but has NaN or infinity")
    return scheduler


def built(config: Any, method: Method) -> LearningScheduler:
    """The scheduler of a method that learns, as it is before its first episode."""
    scheduler = method.build(config, training_seeds(config), choose_device(config.device, DEVICES))
    assert isinstance(scheduler, LearningScheduler)
    return scheduler


def begun(folder: Path) -> dict[str, Any]:
    """What a checkpoint of no episode would hold, of a run that has written its config.json. Raises ParameterError."""
    label, parameters = read_config(folder, "resume")
    name = label.rpartition(" (")[0] if label.endswith(")") else label  # the label of a run ends with its variant
    stored = {"method": name, "config": parameters, "source": read_source(folder)}
    return stored | {"learner": None, "history": []}


def resume_run(config: Any, given: Collection[str], method: Method) -> tuple[Any, LearningScheduler, History, str]:
    """Take up the run in `--resume`'s folder at its last checkpoint; one that is at its end is only drawn again.

    A run that was killed before its first checkpoint begins anew, with the parameters of its config.json. The last of
    what is returned tells of the engine.
    """
    place, path = config.resume, Path(config.resume) / "checkpoint.pt"
    content = load_checkpoint(path, "resume") if path.exists() else begun(Path(place))
    config = stored_config(config, given, content, method, "resume")  # describes the run, interrupted or not
    config, words = with_engine(config, method.build, choose_device(config.device, DEVICES), "engine" in given)
    if content["learner"] is None:
        return config, built(config, method), History(), words
    scheduler = restore(config, content, method, "resume", place)
    try:
        history = History.of_checkpoint(content, training_seeds(config))
    except (LookupError, ValueError, TypeError) as error:
        raise ParameterError("resume", place, f"must hold a whole checkpoint ({error})") from None
    if history.episodes > config.episodes:
        words = f"must be at least the {history.episodes} of --resume={place}"
        raise ParameterError("episodes", config.episodes, words)
    return config, scheduler, history, words

"""Classes of a user's own, given as FILE.py:ClassName: found, checked, and those that learn made into methods.

main_own.py runs one that learns, main_heuristics.py one that does not. Start reading at `own_class`.
"""

import dataclasses
import functools
import hashlib
import sys
import types
from pathlib import Path
from typing import Any

from common.command_line import take_texts
from common.parameters import ParameterError, Parameters, expanded, field_type, parameter
from common.run_folder import load_checkpoint, read_config
from lad_ts.environment_lad import EnvironmentParameters
from lad_ts.method import Method, Variant
from lad_ts.own_code import Blamed, class_mistake, file_of, guarded
from lad_ts.run_parameters import TrainingParameters
from lad_ts.scheduler import LearningScheduler, Scheduler

RULES_SCRIPT, LEARNERS_SCRIPT = "baselines/main_heuristics.py", "baselines/main_own.py"
FORM = "FILE.py:ClassName"


@dataclasses.dataclass(kw_only=True)
class OwnConfig(TrainingParameters, EnvironmentParameters):
    """The parameters of main_own.py that every learner has; `for_arguments` adds those of the one that is given."""

    method: str | None = parameter(
        None,
        f"learner to train, as {FORM}; with --resume or --evaluate, by default the stored one",
        path=True,
        more="Its own parameters are told by --help beside --method.",
    )

    def check(self) -> None:
        super().check()
        if self.method is None:
            raise ParameterError("method", None, f"must be given, as {FORM} of a class that learns")

    @classmethod
    def for_arguments(cls, arguments: list[str]) -> type[Parameters]:
        texts = {
            name: expanded(cls.__dataclass_fields__[name], values[-1])
            for name, values in take_texts(cls, arguments)[0].items()
        }
        place = texts.get("method")
        if place is None and "resume" in texts:
            place = read_config(Path(texts["resume"]), "resume")[1].get("method")
        elif place is None and "evaluate" in texts:
            place = load_checkpoint(Path(texts["evaluate"]), "evaluate")["config"].get("method")
        return cls if place is None else own_learner(place).parameters


def own_file(name: str) -> str:
    """The FILE.py of FILE.py:ClassName or FILE.py:ClassName:variant; empty when there is no such file."""
    file = name.rpartition(":")[0]
    return next((part for part in (file, file.rpartition(":")[0]) if part and Path(part).is_file()), "")


def own_class(place: str, flag: str, allowed: str = f"must be {FORM}") -> tuple[type[Scheduler], str]:
    """The guarded class of FILE.py:ClassName, and the SHA-256 of its file. Raises ParameterError of `flag`."""
    file, _, name = place.rpartition(":")
    if not (file.endswith(".py") and Path(file).is_file()):
        raise ParameterError(flag, place, allowed)
    content = Path(file).read_bytes()
    try:
        return checked(Path(file).resolve(), content, name), hashlib.sha256(content).hexdigest()
    except ParameterError as error:
        raise ParameterError(flag, place, error.reason) from error


@functools.cache
def checked(path: Path, content: bytes, name: str) -> type[Scheduler]:
    """The guarded class of a file with this content. Raises ParameterError when there is none, or it is not whole."""
    found = getattr(loaded(path, content), name, None)
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise ParameterError(None, None, f"must be {FORM} of a Scheduler ({name} is none)")
    with Blamed(name, str(path)):
        mistake = class_mistake(found)
    if mistake:
        raise ParameterError(None, None, f"{name} {mistake}")
    return guarded(found)


@functools.cache
def loaded(path: Path, content: bytes) -> types.ModuleType:
    """The module of a file with this content, run once, under a name that takes nobody's place."""
    name = f"own_{path.stem}_{hashlib.sha256(bytes(path) + content).hexdigest()[:16]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses look their annotations up
    with Blamed("the file", str(path)):
        exec(compile(content, path, "exec"), vars(module))
    return module


def own_learner(place: str, flag: str = "method") -> Method:
    """The method of a class that learns, FILE.py:ClassName. Raises ParameterError of `flag` when it is none."""
    found, source = own_class(place, flag)
    if not issubclass(found, LearningScheduler):
        raise ParameterError(flag, place, f"the class does not learn; python {RULES_SCRIPT} runs it")
    try:
        config = config_class(found, place)
    except ParameterError as error:
        raise ParameterError(flag, place, f"{found.__name__}.{error.reason}") from error
    name = found.__name__
    variants = {preset: Variant({"preset": preset}, 500) for preset in presets(config)}
    return Method(
        name, name.replace("_", " "), config, found, LEARNERS_SCRIPT, {"method": place}, variants, source=source
    )


def presets(config: type[Parameters]) -> list[str]:
    """The presets that --preset takes, the default one first; empty where there is no such parameter."""
    field = config.__dataclass_fields__.get("preset")
    if field is None:
        return []
    choices = field.metadata["choices"] or tuple(config.PRESETS)
    return sorted((name for name in config.PRESETS if name in choices), key=lambda name: name != field.default)


def config_class(found: type[LearningScheduler], place: str) -> type[OwnConfig]:
    """Every parameter of a run of a learner: its own and OwnConfig's. Raises ParameterError for a wrong declaration."""
    declared, needed = found.Parameters, needed_parameters(found)
    if not (isinstance(declared, type) and issubclass(declared, needed)):
        raise ParameterError(None, None, f"Parameters must be a subclass of {needed.__name__}, as its base class needs")
    if run := sorted(OwnConfig.__dataclass_fields__.keys() - EnvironmentParameters.__dataclass_fields__.keys()):
        taken = [name for name in run if name in declared.__dataclass_fields__]
        if taken:
            raise ParameterError(None, None, f"Parameters must not declare {', '.join(taken)}, which every run has")
    for base in declared.__mro__:
        if issubclass(base, Parameters) and "__dataclass_params__" not in vars(base):
            raise ParameterError(None, None, f"Parameters: {base.__name__} must be a @dataclasses.dataclass")
    for field in dataclasses.fields(declared):
        if "text" not in field.metadata:
            raise ParameterError(None, None, f"Parameters: {field.name} must be declared by parameter(...)")
        with Blamed(f"Parameters: the type of {field.name}", file_of(declared)):
            kind, _ = field_type(declared, field.name)
        if kind not in (int, float, bool, str, tuple):
            raise ParameterError(None, None, f"Parameters: {field.name} must be an int, float, bool or str")

    def check(self: OwnConfig) -> None:
        with Blamed(f"{declared.__name__}.check", file_of(declared)):
            super(config, self).check()  # type: ignore[misc]

    method = dataclasses.field(default=place, metadata=OwnConfig.__dataclass_fields__["method"].metadata)
    words: dict[str, Any] = {"check": check, "__module__": __name__}
    config = dataclasses.make_dataclass(
        f"{found.__name__}Config",
        [("method", "str | None", method)],
        bases=(OwnConfig,) if issubclass(OwnConfig, declared) else (declared, OwnConfig),
        namespace=words,
        kw_only=True,
    )
    return config


def needed_parameters(found: type[LearningScheduler]) -> type[EnvironmentParameters]:
    """What the nearest base class of the project declares as its parameters."""
    bases = [base for base in found.__mro__ if "Parameters" in vars(base) and not base.__module__.startswith("own_")]
    return bases[0].Parameters

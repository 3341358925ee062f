"""Classes of a user's own file: a mistake in one ends in a line that names class, method and place.

Only such classes are guarded. A mistake of the project's own code, and of its own methods, ends in a traceback. Start
reading at `guarded`.
"""

import inspect
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import out_of_memory
from common.parameters import ParameterError
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.episodes import check_action
from lad_ts.scheduler import LearningScheduler, Scheduler

LONGEST = 300  # characters of an exception that are told
REQUIRED = {Scheduler: ("act",), LearningScheduler: ("learn", "state_dict", "load_state_dict")}
PLAIN = (int, float, bool, str, type(None))  # what a checkpoint may hold besides tensors


class Blamed:
    """A context in which everything that goes wrong is a mistake of a user's code, `what` in the file `path`.

    Raises ParameterError in its place, whose cause is the exception. ParameterErrors and a lack of memory pass.
    """

    def __init__(self, what: str, path: str) -> None:
        self.what, self.path = what, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        if not isinstance(error, Exception | SystemExit) or isinstance(error, ParameterError) or out_of_memory(error):
            return
        raise ParameterError(None, None, self.words(error)) from error

    def words(self, error: BaseException) -> str:
        """What failed, where in the user's file the exception came from, and what it says."""
        lines = [
            line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == self.path
        ]
        if isinstance(error, SyntaxError) and error.filename == self.path:
            lines.append(error.lineno or 1)
        place = f" at {Path(self.path).name}:{lines[-1]}" if lines else ""
        text = " ".join(str(error).split())[:LONGEST]
        return f"{self.what} failed{place} with {type(error).__name__}{f': {text}' if text else ''}"


def class_mistake(cls: type[Scheduler]) -> str:
    """What is wrong with a scheduler's class before anything is made of it, in words; empty when nothing is."""
    if words := kind_mistake(cls):
        return words
    for base, names in REQUIRED.items():
        for name in names if issubclass(cls, base) else ():
            if getattr(cls, name) is getattr(base, name):
                return f"must define {name}({', '.join([*inspect.signature(getattr(base, name)).parameters][1:])})"
    if cls.run is not Scheduler.run:
        return "must not define run, by which every scheduler's episodes are run"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"must define {', '.join(missing)}"
    try:
        inspect.signature(cls).bind(None, (), "cpu")
    except (TypeError, ValueError) as error:
        return f"must have __init__(self, params, seeds, device) ({error})"
    return ""


def kind_mistake(scheduler: Scheduler | type[Scheduler]) -> str:
    """What contradicts that a class, or an object of it, learns or does not; empty when nothing does."""
    cls = scheduler if isinstance(scheduler, type) else type(scheduler)
    if issubclass(cls, LearningScheduler):
        return "" if scheduler.learns is True else f"must have learns = True, not {scheduler.learns}, as it can learn"
    for name in ("learns", "training"):
        if getattr(scheduler, name) is not False:
            return f"must have {name} = False, or subclass LearningScheduler, which has what learning takes"
    return ""


def guarded(cls: type[Scheduler]) -> type[Scheduler]:
    """The class with every call of it guarded: what it raises, what it returns, and what it could write into."""
    guard = GuardedLearner if issubclass(cls, LearningScheduler) else Guarded
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    with Blamed(cls.__name__, file_of(cls)):
        return types.new_class(cls.__name__, (guard, cls), exec_body=lambda space: space.update(names))


def file_of(cls: type) -> str:
    """The file that a class stands in."""
    return str(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")


class Guarded(Scheduler):
    """What stands before a user's class in the order of its bases."""

    def __init__(self, params: Any = None, seeds: Sequence[int] = (), device: Any = "cpu") -> None:
        with self.blamed("__init__"):
            super().__init__(params, seeds, device)
        if words := kind_mistake(self):
            self.refuse("__init__", words)

    def blamed(self, name: str) -> "BlamedMethod":
        return BlamedMethod(self, name)

    def refuse(self, name: str, words: str) -> None:
        raise ParameterError(None, None, f"{type(self).__name__}.{name}: {words}")

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        with self.blamed("begin"):
            super().begin(scenario, list(rows))

    def act(self, slot: Slot) -> torch.Tensor:
        with self.blamed("act"):
            action = super().act(slot)
        if not isinstance(action, torch.Tensor):
            action = as_tensor(action, slot, type(self).__name__)
        check_action(action, slot, type(self).__name__)
        return action.to(torch.int64)

    def lose(self, down: np.ndarray, scenario: Scenario) -> None:
        with self.blamed("lose"):
            super().lose(down, scenario)


class GuardedLearner(Guarded, LearningScheduler):
    """The same before a class that learns."""

    state_was_checked = False

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        with self.blamed("learn"):
            super().learn(slot.copy(), action.clone(), delay.clone(), following.copy())

    def finite(self) -> bool:
        if not self.state_was_checked:  # after the first episode, not hours later at the first checkpoint
            self.state_was_checked = True
            self.state_dict()
        with self.blamed("finite"):
            return bool(super().finite())

    def state_dict(self) -> dict[str, torch.Tensor]:
        with self.blamed("state_dict"):
            state = super().state_dict()
        if not isinstance(state, dict):
            self.refuse("state_dict", f"returned {type(state).__name__}; must be a dict of tensors by name")
        for name, value in state.items():
            if not (isinstance(name, str) and storable(value)):
                self.refuse("state_dict", f"holds {type(value).__name__} as {name!r}; must be tensors by name")
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        with self.blamed("load_state_dict"):
            super().load_state_dict(state)


class BlamedMethod(Blamed):
    """A call of a method of a guarded scheduler."""

    def __init__(self, scheduler: Guarded, name: str) -> None:
        super().__init__(f"{type(scheduler).__name__}.{name}", file_of(type(scheduler)))
        self.scheduler, self.name = scheduler, name

    def words(self, error: BaseException) -> str:
        """The same; of a forgotten call of the base's method, that it must be there."""
        words, cls = super().words(error), type(self.scheduler)
        if not isinstance(error, AttributeError) or error.obj is not self.scheduler or error.name is None:
            return words
        for step, call in (("__init__", "__init__(params, seeds, device)"), ("begin", "begin(scenario, rows)")):
            if (step == "__init__" or self.name != "__init__") and forgotten(cls, step, error.name):
                return f"{cls.__name__}.{step} must call super().{call}, which sets {error.name}"
        return words


def forgotten(cls: type, step: str, attribute: str) -> bool:
    """Whether a user's class has a `step` of its own before bases of the project whose `step` sets an attribute."""
    bases = [base for base in cls.__mro__ if step in vars(base) and base not in (Guarded, GuardedLearner)]
    own = [base for base in bases if base.__module__ == cls.__module__]
    codes = [getattr(vars(base)[step], "__code__", None) for base in bases if base not in own]
    return bool(own) and any(attribute in code.co_names for code in codes if code is not None)


def as_tensor(action: Any, slot: Slot, name: str) -> torch.Tensor:
    """What a scheduler returned, as a tensor of integers. Raises ParameterError when it is nothing of the kind."""
    wanted = f"must be integers {list(slot.mask.shape)}"
    try:
        array = np.asarray(action)
    except Exception as error:
        raise ParameterError(
            None, None, f"{name}.act returned {type(action).__name__}; {wanted} ({' '.join(str(error).split())})"
        ) from error
    if array.dtype.kind not in "iu":
        found = type(action).__name__ if array.dtype.kind not in "fcb" else f"{array.dtype} {list(array.shape)}"
        raise ParameterError(None, None, f"{name}.act returned {found}; {wanted}")
    return torch.from_numpy(array.astype(np.int64))


def storable(value: Any) -> bool:
    """Whether a checkpoint that is read with weights_only may hold a value."""
    if isinstance(value, dict):
        return all(type(key) in PLAIN and storable(part) for key, part in value.items())
    if type(value) in (list, tuple):
        return all(storable(part) for part in value)
    return isinstance(value, torch.Tensor) or type(value) in PLAIN

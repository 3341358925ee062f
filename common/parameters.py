"""Parameters: declared once, used for the command line, its help, validation and config.json.

A script's parameters are the fields of a dataclass, each made by `parameter(...)` with its default, unit, allowed
range and one line of text. `resolve` gives checked values from those that a user gave; command_line.py turns a class
into a command. Start reading at `parameter`.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Collection
from typing import Any, Self, TypeVar

P = TypeVar("P", bound="Parameters")
LARGEST = 2**31 - 1  # no number of this project is larger, and integers of that size fit everywhere


class ParameterError(ValueError):
    """A parameter has a value that is not allowed: its flag, the value as given, and what is allowed.

    `flag` is None for a mistake that no parameter alone makes, `value` where there is none to show. As text, it is one
    line for the user.
    """

    def __init__(self, flag: str | None, value: Any, reason: str) -> None:
        super().__init__(flag, value, reason)
        self.flag, self.value, self.reason = flag, value, reason

    def __str__(self) -> str:
        if self.flag is None:
            return self.reason
        return f"--{self.flag}{'' if self.value is None else f'={self.value}'}: {self.reason}"

    def renamed(self, **flags: str) -> "ParameterError":
        """The same error of a script that calls a flag by another name, as in renamed(evaluate="checkpoint")."""
        flag = flags.get(self.flag, self.flag) if self.flag else self.flag
        return ParameterError(flag, self.value, self.reason)


def plain(number: float) -> str:
    """A number of a help text: 1000000 rather than 1e+06."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def parameter(
    default: Any,
    text: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    empty: bool = False,
    path: bool = False,
    more: str = "",
) -> Any:
    """A dataclass field whose metadata hold the help text, the unit and the allowed values.

    `text` is what --help shows in one line, `more` what the page of parameters says besides. `low` and `high` are
    inclusive, `above` is exclusive, `empty` allows a text without characters, `path` says that the text names a file or
    folder. A default of None means "by preset" or "not given". A choice that ends with N stands for all numbers there,
    as in cuda:N.
    """
    metadata: dict[str, Any] = {"text": text, "unit": unit, "low": low, "high": high, "above": above}
    metadata |= {"choices": choices, "empty": empty, "path": path, "more": more}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(kw_only=True)
class Parameters:
    """Base of every parameter class.

    `PRESETS` maps a preset's name to the values it fills in, and `FILLS` another field's name to such values by what is
    chosen. `GROUP` is the heading in --help above the fields that a class declares.
    """

    PRESETS: typing.ClassVar[dict[str, dict[str, Any]]] = {}
    FILLS: typing.ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    GROUP: typing.ClassVar[str] = "parameters"
    _given = frozenset[str]()  # names that were given; without a type here, it is no parameter

    def __new__(cls, **given: Any) -> Self:
        self = super().__new__(cls)
        self._given = frozenset(given)
        return self

    def __post_init__(self) -> None:
        """Fill in what the preset, and after it FILLS, say of parameters that were not given."""
        known = set(self._given)
        for name, value in self.PRESETS.get(str(getattr(self, "preset", "")), {}).items():
            if name not in self._given or getattr(self, name) is None:
                setattr(self, name, value)
                known.add(name)
        for chooser, options in self.FILLS.items():
            for name, value in options.get(str(getattr(self, chooser)), {}).items():
                if name not in known:
                    setattr(self, name, value)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Checked parameters: those given, then the preset's, then the defaults, as in of(episodes=3, preset="paper").

        Raises ParameterError for unknown names, wrong types, values out of range and contradictions.
        """
        return resolve(cls, given)

    def explicit(self) -> dict[str, Any]:
        """The parameters that were given, and those that have been changed since."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = type(self)(**{name: values[name] for name in ("preset", *self.FILLS) if name in values})
        return {name: v for name, v in values.items() if name in self._given or v != getattr(plain, name)}

    def checked(self) -> Self:
        """The same parameters with values of the right types. Raises ParameterError, as `of` does."""
        return resolve(type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, self.explicit())

    @classmethod
    def for_arguments(cls, arguments: list[str]) -> "type[Parameters]":
        """The class that reads a command's arguments, where one of them adds parameters. Raises ParameterError."""
        return cls

    def check(self) -> None:
        """Conditions over several fields; subclasses extend it. Raises ParameterError."""


def numbers(name: str, text: str, counter: str, count: int) -> list[float]:
    """The numbers of a parameter that is a list, as many as the parameter `counter` says. Raises ParameterError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(0 < value < math.inf for value in values):
        raise ParameterError(name, text, f"must be --{counter}={count} numbers above 0, separated by commas")
    return values


def field_type(cls: type[Parameters], name: str) -> tuple[type, bool]:
    """The plain type of a field and whether None is allowed."""
    hint = typing.get_type_hints(cls)[name]
    if hint == tuple[str, ...]:
        return tuple, False
    if isinstance(hint, types.UnionType):
        plain = [t for t in typing.get_args(hint) if t is not type(None)]
        return plain[0], True
    return hint, False


def allowed_values(cls: type[Parameters], field: dataclasses.Field) -> str:
    """The allowed values of a field in words."""
    kind, _ = field_type(cls, field.name)
    meta = field.metadata
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"])
    words = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "text" if meta["empty"] else "text, not empty",
        tuple: "text; may be given more than once",
    }[kind]
    limits = (("low", "at least"), ("above", "above"), ("high", "at most"))
    bounds = [f"{phrase} {plain(meta[key])}" for key, phrase in limits if meta[key] is not None]
    return ", ".join(filter(None, [words, " and ".join(bounds)]))


def expanded(field: dataclasses.Field, text: str) -> str:
    """A text; of a path, with the home folder that a leading ~ or ~user stands for, if there is such a user."""
    return os.path.expanduser(text) if field.metadata["path"] else text  # noqa: PTH111


def convert(cls: type[Parameters], name: str, value: Any) -> Any:
    """`value` as the type of field `name`, checked against its range. Raises ParameterError."""
    field = cls.__dataclass_fields__[name]
    kind, optional = field_type(cls, name)
    if value is None and optional:
        return None
    allowed = allowed_values(cls, field)
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, int) and abs(value) > 10**20:  # it may be too long to print
        value = math.inf if value > 0 else -math.inf
    refusal = ParameterError(name, "None" if value is None else value, f"must be {allowed}")
    if kind is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise refusal
        return tuple(expanded(field, text) for text in value)
    if kind is str:
        if isinstance(value, bool) or value is None or (value == "" and not field.metadata["empty"]):
            raise refusal
        value = expanded(field, str(value))
    elif kind is bool:
        if not isinstance(value, bool):
            raise refusal
    else:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusal
        if abs(value) > LARGEST:  # infinity, too
            limit = "" if "at most" in allowed else f", at most {LARGEST}"
            raise ParameterError(name, value, f"must be {allowed}{limit}")
        if math.isnan(value) or (kind is int and value != int(value)):
            raise refusal
        value = kind(value)
        meta = field.metadata
        low, high, above = meta["low"], meta["high"], meta["above"]
        if (
            (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
        ):
            raise refusal
    choices = field.metadata["choices"]
    if choices and value not in choices and re.sub(r"[0-9]+$", "N", value) not in choices:
        raise refusal
    return value


def resolve(cls: type[P], given: dict[str, Any], explicit: Collection[str] | None = None) -> P:
    """Checked parameters from the explicitly `given` values, then the preset's and FILLS', then the defaults.


    `explicit` tells which of them count as given, where not all do.
    Raises ParameterError for unknown names, wrong types, values out of range and contradictions.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean --{close[0]}? " if close else ""
            raise ParameterError(name, given[name], f"no such parameter; {hint}--help lists them all")
    config = cls(**{name: convert(cls, name, value) for name, value in given.items()})
    config._given = frozenset(given if explicit is None else explicit)
    if not (getattr(config, "resume", None) or getattr(config, "evaluate", None)):
        config.check()  # otherwise it is checked once the stored run's parameters are in
    return config

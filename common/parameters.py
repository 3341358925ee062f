"""Parameters: declared once, used for the command line, its help, validation and config.json.

A script's parameters are the fields of a dataclass, each made by `parameter(...)` with its default, unit, allowed
range and one line of text. `command_line` turns such a class into a command through `fire` and refuses unknown
flags, wrong types and values out of range with one line and exit code 2. Start reading at `command_line`.
"""

import dataclasses
import difflib
import inspect
import io
import math
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire

LARGEST = 2**31 - 1  # no number of this project is larger, and integers of that size fit everywhere


class ParameterError(ValueError):
    """A parameter has a value that is not allowed; the message is one line for the user."""


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
) -> Any:
    """A dataclass field whose metadata hold the help text, the unit and the allowed values.

    `low` and `high` are inclusive, `above` is exclusive, `empty` allows a text without characters.
    A default of None means "by preset" or "not given".
    """
    metadata = {"text": text, "unit": unit, "low": low, "high": high, "above": above}
    metadata |= {"choices": choices, "empty": empty}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(kw_only=True)
class Parameters:
    """Base of every parameter class. `PRESETS` maps a preset's name to the values it fills in."""

    PRESETS: typing.ClassVar[dict[str, dict[str, Any]]] = {}

    def check(self) -> None:
        """Conditions over several fields; subclasses extend it. Raises ParameterError."""


def numbers(name: str, text: str, counter: str, count: int) -> list[float]:
    """The numbers of a parameter that is a list, as many as the parameter `counter` says. Raises ParameterError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(0 < value < math.inf for value in values):
        raise ParameterError(f"--{name}={text}: must be --{counter}={count} numbers above 0, separated by commas")
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
    bounds = [f"{phrase} {meta[key]:g}" for key, phrase in limits if meta[key] is not None]
    return ", ".join(filter(None, [words, " and ".join(bounds)]))


def convert(cls: type[Parameters], name: str, value: Any) -> Any:
    """`value` as the type of field `name`, checked against its range. Raises ParameterError."""
    field = cls.__dataclass_fields__[name]
    kind, optional = field_type(cls, name)
    if value is None and optional:
        return None
    allowed = allowed_values(cls, field)
    if isinstance(value, int) and abs(value) > 10**20:  # it may be too long to print
        value = math.inf if value > 0 else -math.inf
    refusal = ParameterError(f"--{name}={value}: must be {allowed}")
    if kind is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise refusal
        return tuple(value)
    if kind is str:
        if isinstance(value, bool) or value is None or (value == "" and not field.metadata["empty"]):
            raise refusal
        value = str(value)
    elif kind is bool:
        if not isinstance(value, bool):
            raise refusal
    else:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refusal
        if abs(value) > LARGEST:  # infinity, too
            limit = "" if "at most" in allowed else f", at most {LARGEST}"
            raise ParameterError(f"--{name}={value}: must be {allowed}{limit}")
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
    if field.metadata["choices"] and value not in field.metadata["choices"]:
        raise refusal
    return value


def resolve(cls: type[Parameters], given: dict[str, Any]) -> Parameters:
    """Checked parameters from the explicitly `given` values, then the preset's, then the defaults.

    Raises ParameterError for unknown names, wrong types, values out of range and contradictions.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean --{close[0]}? " if close else ""
            raise ParameterError(f"--{name}={given[name]}: no such parameter; {hint}--help lists them all")
    values = {name: convert(cls, name, value) for name, value in given.items()}
    preset = values.get("preset", getattr(cls, "preset", None))
    for name, value in cls.PRESETS.get(preset, {}).items():
        if values.get(name) is None:
            values[name] = value
    config = cls(**values)
    if not (getattr(config, "resume", None) or getattr(config, "evaluate", None)):
        config.check()  # otherwise it is checked once the stored run's parameters are in
    return config


def help_text(cls: type[Parameters], description: str) -> str:
    """A docstring in the form that fire prints: the description, then one line for each parameter."""
    lines = [description.strip(), "", "Args:"]
    for field in dataclasses.fields(cls):
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        presets = [f"{p}: {v[field.name]}" for p, v in cls.PRESETS.items() if field.name in v]
        default = "; default by preset (" + ", ".join(presets) + ")" if presets else ""
        allowed = allowed_values(cls, field)
        lines.append(f"    {field.name}: {field.metadata['text']}{unit} ({allowed}{default})")
    return "\n".join(lines)


def parse(cls: type[Parameters], arguments: list[str], description: str, script: str) -> dict[str, Any]:
    """The explicitly given flags as a dictionary. Exits with 0 after --help; raises ParameterError."""

    def collect(*positional: Any, **flags: Any) -> None:
        if positional:
            raise ParameterError(f"{positional[0]}: every value needs its parameter's name, as in --name value")
        given.update(flags)

    given: dict[str, Any] = {}
    fields = dataclasses.fields(cls)
    texts, arguments = take_texts(cls, arguments)
    for name, values in texts.items():
        several = field_type(cls, name)[0] is tuple
        if len(values) > 1 and not several:
            raise ParameterError(f"--{name}: must be given once, not {len(values)} times")
        given[name] = values if several else values[0]
    flags = [match[1].replace("-", "_") for a in arguments if (match := FLAG.match(a))]
    for name in flags:
        if flags.count(name) > 1:
            raise ParameterError(f"--{name}: must be given once, not {flags.count(name)} times")
    declared = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields]
    collect.__doc__ = help_text(cls, description)
    if {"-h", "--help"} & set(arguments):
        collect.__signature__ = inspect.Signature(declared)
        fire.Fire(collect, command=["--", "--help"], name=script)
    if {"-", "--"} & set(arguments):
        raise ParameterError("-: a lone dash is not a parameter; every value needs its name, as in --name value")
    # Everything is accepted here, because fire itself would complain about a flag only after the run.
    accept_all = (
        inspect.Parameter("positional", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("flags", inspect.Parameter.VAR_KEYWORD),
    )
    collect.__signature__ = inspect.Signature([accept_all[0], *declared, accept_all[1]])
    fire.Fire(collect, command=arguments, name=script)
    for letter in [name for name in given if len(name) == 1]:
        matches = [field.name for field in fields if field.name.startswith(letter)]
        if len(matches) == 1:  # the short flags that the help shows
            given[matches[0]] = given.pop(letter)
    return given


FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?$", re.DOTALL)


def take_texts(cls: type[Parameters], arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The texts given for parameters that are text, as they were typed, and the arguments that are left.

    fire never sees them: it would read 2024_12 as a number, a,b as a tuple, and fail on long ones.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    texts: dict[str, list[str]] = {}
    left, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        match = FLAG.match(argument)
        name = match[1].replace("-", "_") if match else ""
        if len(name) == 1:  # the short flags that the help shows
            starting = [full for full in names if full.startswith(name)]
            name = starting[0] if len(starting) == 1 else name
        if name not in names or field_type(cls, name)[0] not in (str, tuple):
            left.append(argument)
            continue
        if match[2] is None and (not rest or rest[0].startswith("--")):
            raise ParameterError(f"--{name}: must be followed by {allowed_values(cls, cls.__dataclass_fields__[name])}")
        text = rest.pop(0) if match[2] is None else match[2]
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ParameterError(f"--{name}={text.encode(errors='replace').decode()}: must be UTF-8 text") from None
        texts.setdefault(name, []).append(text)
    return texts, left


def command_line(
    cls: type[Parameters],
    main: Callable[[Parameters, dict[str, Any]], None],
    description: str,
    arguments: list[str] | None = None,
) -> None:
    """Run `main(config, given)` on parsed and checked parameters; `given` holds the explicit ones.

    Any ParameterError ends the process with exit code 2 and one line on standard error, Ctrl-C with 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the plus-minus sign is no reason to fail
    try:
        given = parse(cls, sys.argv[1:] if arguments is None else arguments, description, Path(sys.argv[0]).name)
        main(resolve(cls, given), given)
    except ParameterError as error:
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except OSError as error:
        fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:  # numpy raises the first, torch the second
        if isinstance(error, RuntimeError) and not any(w in str(error) for w in ("allocate memory", "out of memory")):
            raise
        fail(f"these sizes need more memory than there is ({(str(error).splitlines() or ['no details'])[0]})", 2)


def fail(message: str, code: int) -> typing.NoReturn:
    """End the process with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

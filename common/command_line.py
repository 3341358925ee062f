"""A parameter class as a command: flags to values, --help, and one line with exit code 2 for every mistake.

`fire` reads the values of numbers and switches; texts reach the parameters as they were typed. Start reading at
`command_line`.
"""

import dataclasses
import inspect
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire

from common import quiet_start
from common.failure import fail
from common.interruption import exit_code, terminable
from common.parameters import ParameterError, Parameters, allowed_values, expanded, field_type, plain, resolve

if quiet_start.script_starts():  # scripts draw into files; a notebook's backend would end them
    os.environ["MPLBACKEND"] = "Agg"
ROOT = Path(__file__).resolve().parents[1]
TRACEBACK = "DEDGEAI_TRACEBACK"  # a variable of the environment: not empty, mistakes show their whole traceback


def command_line(
    cls: type[Parameters],
    main: Callable[[Any, dict[str, Any]], None],
    description: str | None,
    arguments: list[str] | None = None,
) -> None:
    """Run `main(config, given)` on parsed and checked parameters; `given` holds the explicit ones.

    Any ParameterError ends the process with exit code 2 and one line on standard error, Ctrl-C with 130, SIGTERM with
    143, SIGHUP with 129. With TRACEBACK set, the traceback stands before the line of a ParameterError.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the plus-minus sign is no reason to fail
    try:
        quiet_start.started()
        script = Path(sys.argv[0]).name
        arguments = sys.argv[1:] if arguments is None else arguments
        cls = cls.for_arguments(arguments)
        given = parse(cls, arguments, description or "", script)
        with terminable():
            main(resolve(cls, given), given)
    except ParameterError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        fail(str(error), 2)
    except KeyboardInterrupt as error:
        quiet_start.ended()
        fail(quiet_start.WORDS[exit_code(error) - 128], exit_code(error))
    except BrokenPipeError:  # who read the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail(f"these sizes need more memory than there is ({(str(error).splitlines() or ['no details'])[0]})", 2)
    finally:
        quiet_start.ended()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception tells that there is too little memory: numpy raises MemoryError, torch RuntimeError."""
    words = ("allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


ORDER = ("run", "environment", "agent", "method")  # groups that come first in --help


def groups(cls: type[Parameters]) -> dict[str, list[dataclasses.Field]]:
    """The fields by the GROUP of the class that declares them first; groups in ORDER, then as bases add them."""
    found: dict[str, list[dataclasses.Field]] = {name: [] for name in ORDER}
    for field in dataclasses.fields(cls):
        bases = [base for base in cls.__mro__ if issubclass(base, Parameters)]
        declared = [base for base in bases if field.name in vars(base).get("__annotations__", {})]
        found.setdefault(declared[-1].GROUP, []).append(field)
    return {name: fields for name, fields in found.items() if fields}


def default_words(cls: type[Parameters], field: dataclasses.Field) -> str:
    """The default of a field in words: by preset where presets differ, nothing where there is none."""
    presets = {name: values.get(field.name, field.default) for name, values in cls.PRESETS.items()}
    if len(set(map(str, presets.values()))) > 1:
        return "by preset " + ", ".join(f"{name}: {value}" for name, value in presets.items())
    default = next(iter(presets.values()), field.default)
    return "" if default is None or default in ((), "") else f"default {str(default).removeprefix(f'{ROOT}/')}"


def limits(field: dataclasses.Field) -> str:
    """What is allowed besides the type, in short: choices, or the ends of a range."""
    meta = field.metadata
    if meta["choices"]:
        return " | ".join(meta["choices"])
    if meta["low"] is not None and meta["high"] is not None:
        return f"{plain(meta['low'])} to {plain(meta['high'])}"
    words = (("low", "at least"), ("above", "above"), ("high", "at most"))
    return ", ".join(f"{word} {plain(meta[name])}" for name, word in words if meta[name] is not None)


def help_text(cls: type[Parameters], description: str, script: str) -> str:
    """What --help prints: the description, then the parameters in groups, one line each."""
    lines = [description.strip(), "", f"usage: {script} [--name value ..]"]
    width = max((len(field.name) for field in dataclasses.fields(cls)), default=0) + 4
    for title, fields in groups(cls).items():
        lines += ["", f"{title}:"]
        for field in fields:
            unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
            notes = "; ".join(filter(None, [limits(field), default_words(cls, field)]))
            text = f"{field.metadata['text']}{unit}{f' ({notes})' if notes else ''}"
            lines.append(f"  {'--' + field.name:{width}s}{text}")
    return "\n".join(lines)


def parse(cls: type[Parameters], arguments: list[str], description: str, script: str) -> dict[str, Any]:
    """The explicitly given flags as a dictionary. Exits with 0 after --help; raises ParameterError."""

    def collect(*positional: Any, **flags: Any) -> None:
        if positional:
            raise ParameterError(None, None, f"{positional[0]}: every value needs its parameter's name: --name value")
        given.update(flags)

    given: dict[str, Any] = {}
    fields = dataclasses.fields(cls)
    if asks_for_help(cls, arguments):
        print(help_text(cls, description, script))
        sys.exit(0)
    texts, arguments = take_texts(cls, arguments)
    for name, values in texts.items():
        several = field_type(cls, name)[0] is tuple
        if len(values) > 1 and not several:
            raise ParameterError(name, None, f"must be given once, not {len(values)} times")
        values = [expanded(cls.__dataclass_fields__[name], value) for value in values]
        given[name] = values if several else values[0]
    flags = [match[1].replace("-", "_") for a in arguments if (match := FLAG.match(a))]
    for name in flags:
        if flags.count(name) > 1:
            raise ParameterError(name, None, f"must be given once, not {flags.count(name)} times")
    if {"-", "--"} & set(arguments):
        raise ParameterError(
            None, None, "-: a lone dash is not a parameter; every value needs its name, as in --name value"
        )
    # Everything is accepted here, because fire itself would complain about a flag only after the run.
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = [
        inspect.Parameter("positional", inspect.Parameter.VAR_POSITIONAL),
        *(inspect.Parameter(field.name, keyword, default=field.default) for field in fields),
        inspect.Parameter("flags", inspect.Parameter.VAR_KEYWORD),
    ]
    collect.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    fire.Fire(collect, command=arguments, name=script)
    return given


FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?$", re.DOTALL)
HELP = re.compile(r"(-h|--h|--help)(=.*)?$", re.DOTALL)


def asks_for_help(cls: type[Parameters], arguments: list[str]) -> bool:
    """Whether -h or --help is among the arguments, other than as the value of a parameter that may be any text."""
    value = False
    for argument in arguments:
        if HELP.match(argument) and not value:
            return True
        name, attached = flag_of(cls, argument)
        value = not value and attached is None and free_text(cls, name)
    return False


def free_text(cls: type[Parameters], name: str) -> bool:
    """Whether a name is that of a parameter that may be any text, as a prompt may."""
    if (field := cls.__dataclass_fields__.get(name)) is None or field.metadata["choices"] or field.metadata["path"]:
        return False
    return field_type(cls, name)[0] in (str, tuple)


def flag_of(cls: type[Parameters], argument: str) -> tuple[str, str | None]:
    """The parameter that an argument names, empty when it names none, and the value that is attached to it by =.

    A letter that only one parameter starts with stands for it; -h stands for none.
    """
    if (match := FLAG.match(argument)) is None or HELP.match(argument):
        return "", None
    name = match[1].replace("-", "_")
    starting = starting_with(cls, name)
    return starting[0] if len(starting) == 1 else name, match[2]


def starting_with(cls: type[Parameters], letter: str) -> list[str]:
    """The parameters that start with a letter; none for a longer name."""
    return [field.name for field in dataclasses.fields(cls) if len(letter) == 1 and field.name.startswith(letter)]


def take_texts(cls: type[Parameters], arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The texts given for parameters that are text, as they were typed, and the arguments that are left.

    fire never sees them: it would read 2024_12 as a number, a,b as a tuple, and fail on long ones.
    """
    texts: dict[str, list[str]] = {}
    left, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, attached = flag_of(cls, argument)
        if starting := starting_with(cls, name):
            several = " or ".join(f"--{full}" for full in starting)
            raise ParameterError(name, attached, f"must be the whole name of one parameter: {several}")
        if name not in cls.__dataclass_fields__:
            left.append(argument)
            continue
        kind, _ = field_type(cls, name)
        following = rest[0] if rest else "--"
        if attached is None and HELP.match(following) and not free_text(cls, name):
            continue  # help is asked for, in the value's place
        if kind is not bool and attached is None and following.startswith("--") and not HELP.match(following):
            raise ParameterError(
                name, None, f"must be followed by {allowed_values(cls, cls.__dataclass_fields__[name])}"
            )
        if kind not in (str, tuple):
            left.append(f"--{name}" if attached is None else f"--{name}={attached}")
            continue
        text = rest.pop(0) if attached is None else attached
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ParameterError(name, text.encode(errors="replace").decode(), "must be UTF-8 text") from None
        texts.setdefault(name, []).append(text)
    return texts, left

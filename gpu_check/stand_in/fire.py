"""Stands in for the package fire where it is not installed, for flags such as --steps=2 and --steps 2.

Only check_gpu.sh puts it on the path, behind everything that is installed. Start reading at `Fire`.
"""

import ast
from collections.abc import Callable, Sequence
from typing import Any


def value_of(text: str) -> Any:
    """A number, True, False or None as such, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def Fire(component: Callable[..., Any], command: Sequence[str], name: str = "") -> Any:  # noqa: N802
    """Call `component` with the flags as keywords, and with all other arguments; a flag without a value is True."""
    rest, positional, flags = list(command), [], {}
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            positional.append(value_of(argument))
            continue
        flag, attached, text = argument[2:].partition("=")
        if not attached:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        flags[flag.replace("-", "_")] = value_of(text)
    return component(*positional, **flags)

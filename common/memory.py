"""The memory of a process: giving freed memory back to the system, where that can be asked for."""

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def trim() -> Callable[[int], int] | None:
    """The function of the C library that gives back freed memory; glibc alone has it."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None


def give_back() -> None:
    """Give back what the C library keeps of freed memory, as after a model was dropped."""
    if (function := trim()) is not None:
        function(0)

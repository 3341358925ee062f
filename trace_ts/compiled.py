"""How the simulator's functions are compiled, and where the result is kept. Start reading at `compiled`."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit

FOLDER = Path(__file__).resolve().parent


@functools.cache
def place() -> Path | None:
    """A folder for compiled code that no other state of this folder's files uses; None where nothing can be written.

    numba looks only at the file of the function itself, not at those whose functions it calls.
    """
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(FOLDER.glob("*.py"))]
    folder = FOLDER / "__pycache__" / f"compiled-{hashlib.sha256(repr(files).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator. The functions run side by side in threads, and get tuples of arrays that their caller keeps.

    They make no arrays of their own: counting references to all those that they are given would take most of the time.
    They stand in the code of their callers, since passing on such tuples, a hundred arrays, would take what is left.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        before, config.CACHE_DIR = config.CACHE_DIR, str(place() or "")
        try:
            keep = place() is not None
            return njit(nogil=True, _nrt=False, error_model="numpy", cache=keep, forceinline=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate

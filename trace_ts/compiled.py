"""How the simulator's functions are compiled, and where the result is kept. Start reading at `compiled`."""

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache

FOLDER = Path(__file__).resolve().parent


@functools.cache
def place() -> Path | None:
    """A folder for compiled code that no other state of this folder's files uses; None where nothing can be written.

    numba looks only at the file of the function itself, not at those whose functions it calls.
    """
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(FOLDER.glob("*.py"))]
    folder = FOLDER / "__pycache__" / f"compiled-{hashlib.sha256(repr(files).encode()).hexdigest()[:16]}"
    try:
        if not folder.exists():
            for former in folder.parent.glob("compiled-*"):  # of files that have changed since
                shutil.rmtree(former, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


class KeptCode(FunctionCache):
    """numba's files of a compiled function. Where they are damaged, or the disk is full, it is compiled anew."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for arguments of these types, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a file that a failing machine has cut off may raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, if there is room for it."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator. The functions run side by side in threads, and get tuples of arrays that their caller keeps.

    They make no arrays of their own: counting references to all those that they are given would take most of the time.
    They stand in the code of their callers, since passing on such tuples, a hundred arrays, would take what is left.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        before, config.CACHE_DIR = config.CACHE_DIR, str(place() or "")
        try:
            made = njit(nogil=True, _nrt=False, error_model="numpy", forceinline=True, **options)(function)
            if place() is not None and made is not function:  # as it is where compiling is switched off
                made._cache = KeptCode(function)
            return made
        finally:
            config.CACHE_DIR = before

    return decorate

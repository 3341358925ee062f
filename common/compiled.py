"""How functions are compiled with numba, and where the result is kept. Start reading at `compiler`."""

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, UserProvidedCacheLocator

HERE = Path(__file__).resolve().parent


@functools.cache
def place(folder: Path) -> Path | None:
    """Where to keep the compiled code of a folder; None where nothing can be written.

    No other state of the folder's files, nor of this folder's, uses it: numba looks only at the file of the function
    itself, not at those whose functions and constants it takes.
    """
    paths = [path for part in {folder, HERE} for path in sorted(part.glob("*.py"))]
    files = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    kept = folder / "__pycache__" / f"compiled-{hashlib.sha256(repr(files).encode()).hexdigest()[:16]}"
    try:
        if not kept.exists():
            for former in kept.parent.glob("compiled-*"):  # of files that have changed since
                shutil.rmtree(former, ignore_errors=True)
        kept.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return kept if os.access(kept, os.W_OK) else None


def kept_code(folder: Path, function: str) -> tuple[bool, bool]:
    """Whether compiled code of a folder can be kept, and whether that of a function is there already."""
    kept = place(folder)
    return kept is not None, kept is not None and any(kept.rglob(f"*.{function}-*.nbi"))


class CheckedFile(IndexDataCacheFile):
    """numba's files, with a checksum at the end: damaged machine code would end the process, whatever calls it."""

    def _dump(self, obj: Any) -> bytes:
        data = bytes(super()._dump(obj))
        return data + hashlib.sha256(data).digest()

    def _load_data(self, name: str) -> Any:
        whole = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(whole[:-32]).digest() != whole[-32:]:
            raise ValueError(f"{name} is damaged")
        return super()._load_data(name)


class OnePlace(CompileResultCacheImpl):
    """The folder that `place` gives: others that numba would try know nothing of the state of other files."""

    _locator_classes = [UserProvidedCacheLocator]  # noqa: RUF012


class KeptCode(FunctionCache):
    """numba's files of a compiled function. Where they are damaged, or the disk is full, it is compiled anew."""

    _impl_class = OnePlace

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file.__class__ = CheckedFile

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for arguments of these types, or None."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a file that a failing machine has cut off may raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None
        # Two processes at once may have given the same name to the code for different arguments.
        return found if found is None or tuple(found.signature.args) == tuple(sig) else None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, if there is room for it."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def compiler(folder: Path, **settings: Any) -> Callable[..., Callable[[Callable[..., Any]], Any]]:
    """What makes decorators for the functions of a folder, which numba compiles with these settings.

    The functions run side by side in threads, and get arrays that their caller keeps. They make none of their own:
    counting references to all those that they are given would take most of the time.
    """

    def compiled(**more: Any) -> Callable[[Callable[..., Any]], Any]:
        """A decorator, with further settings of numba's."""

        def decorate(function: Callable[..., Any]) -> Any:
            kept, before = place(folder), vars(config)["CACHE_DIR"]
            vars(config)["CACHE_DIR"] = str(kept or "")
            try:
                options: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy", **settings, **more}
                made = njit(**options)(function)
                if kept is not None and made is not function:  # as it is where compiling is switched off
                    with contextlib.suppress(RuntimeError):  # that of a folder which cannot be written after all
                        made._cache = KeptCode(function)
                return made
            finally:
                vars(config)["CACHE_DIR"] = before

        return decorate

    return compiled

"""Progress bars: drawn over and over in a terminal, a plain line every so often where there is none.

Every bar of the project is a `Progress`. It is used as tqdm is, and `hidden` switches bars off.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # s between the lines of a bar that has no terminal
_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextmanager
def hidden(hide: bool = True) -> Iterator[None]:
    """No bars meanwhile, in this thread."""
    token = _hidden.set(hide or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(token)


def terminal() -> bool:
    """Whether standard error is one."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


class Progress(tqdm):
    """tqdm's bar. Without a terminal, it is a line at its start, every EVERY seconds, and at its end.

    Bars that a terminal would clear (leave=False) have lines only when they take that long.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.disable: bool
        self.plain = not terminal()
        options["disable"] = options.get("disable", False) or _hidden.get() or sys.stderr is None
        if self.plain:
            options |= {"mininterval": 1.0} | ({} if "bar_format" in options else {"ncols": 0})
        self.told = -EVERY if options.get("leave", True) else time.monotonic()
        self.told_at: float | None = None  # what `n` the last line tells
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the bar as it is now."""
        if not self.plain:
            return super().display(msg, pos)
        if time.monotonic() - self.told >= EVERY:
            self.tell()
        return True

    def tell(self) -> None:
        """Write the bar as a line, unless the last one told as much."""
        if self.n != self.told_at:
            self.fp.write(f"{str(self).strip()}\n")
            self.fp.flush()
        self.told, self.told_at = time.monotonic(), self.n

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:
            self.told_at = self.n  # what ends with an error has that as its last line
        super().__exit__(kind, *error)

    def close(self) -> None:
        """End the bar, with its last line."""
        if not self.plain or self.disable:
            super().close()
            return
        if self.leave or self.told_at is not None:
            self.tell()
        self.disable = True
        self._decr_instances(self)


def brief(value: float) -> str:
    """A number with three digits that count, as 7.88, 0.00234 or 1234."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

"""Ctrl-C, and the SIGTERM by which clusters take machines back: a request to stop where work can be taken up again.

Programs that one of them ends have exit code 128 + its number, as is usual: 130 and 143.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt."""


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a program that `error` ends."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile. Signals reach the main thread alone; elsewhere this changes nothing."""

    def terminate(*_: Any) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """Turns the first of SIGNALS into `asked`; a second one stops at once. Use it as a context manager."""

    asked = False
    code = 0  # the exit code, once asked

    def __enter__(self) -> "Interruption":
        main = threading.current_thread() is threading.main_thread()
        self.previous = {number: signal.signal(number, self.ask) for number in SIGNALS} if main else {}
        return self

    def ask(self, number: int, *_: Any) -> None:
        """What the first signal calls."""
        self.asked, self.code = True, 128 + number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

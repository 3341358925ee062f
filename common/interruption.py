"""Ctrl-C, the SIGTERM by which clusters take machines back, the SIGHUP of a terminal that is closed: requests to stop
where work can be taken up again.

Programs that one of them ends have exit code 128 + its number, as is usual: 130, 143 and 129. Start reading at
`handled`.
"""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn

from common import quiet_start

Handler = Callable[[int, Any], Any]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, its argument, raised where Ctrl-C would raise KeyboardInterrupt."""


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a program that `error` ends."""
    return 128 + (error.args[0] if isinstance(error, Terminated) else signal.SIGINT)


def set_handler(number: int, handler: Handler) -> Callable[[], Any]:
    """Let a signal call `handler`; returns what undoes it. A SIGHUP that nohup has ignored stays ignored.

    Signals reach the main thread alone; elsewhere this changes nothing.
    """

    def called(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            keep_writable()
        handler(number, frame)

    main = threading.current_thread() is threading.main_thread()
    if not main or (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
        return lambda: None
    before = signal.signal(number, called)
    return lambda: signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not set from Python


def keep_writable() -> None:
    """Let what goes to a terminal that is gone go nowhere, so that what is still to be done does not fail for it."""
    for number in (1, 2):
        try:
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.write(number, b"\n")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


@contextmanager
def handled(handler: Handler, numbers: Iterable[int] = tuple(quiet_start.WORDS)) -> Iterator[None]:
    """Signals call `handler` meanwhile."""
    with ExitStack() as stack:
        for number in numbers:
            stack.callback(set_handler(number, handler))
        yield


def terminable() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP raise Terminated meanwhile."""

    def terminate(number: int, _: Any) -> NoReturn:
        raise Terminated(number)

    return handled(terminate, (signal.SIGTERM, signal.SIGHUP))


class Interruption:
    """Turns the first signal into `asked`; a second one stops at once. Use it as a context manager."""

    asked = False
    code = 0  # the exit code, once asked

    def __enter__(self) -> "Interruption":
        self.undo = [set_handler(number, self.ask) for number in quiet_start.WORDS]
        return self

    def ask(self, number: int, *_: Any) -> None:
        """What the first signal calls."""
        self.asked, self.code = True, 128 + number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        while self.undo:
            self.undo.pop()()

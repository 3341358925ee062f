"""Ctrl-C as a request: work goes on to a point from which it can be taken up again."""

import signal
from typing import Any


class Interruption:
    """Turns the first Ctrl-C into `asked`; a second one stops at once. Use it as a context manager."""

    def __enter__(self) -> "Interruption":
        self.asked = False
        self.previous = signal.signal(signal.SIGINT, self.ask)
        return self

    def ask(self, *_: Any) -> None:
        """What the first Ctrl-C calls."""
        self.asked = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

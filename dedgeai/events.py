"""Server-sent events: each is encoded once, goes to everyone who listens, and is kept for those who come back.

Start reading at `Events.tell`.
"""

import asyncio
import functools
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from fastapi.sse import format_sse_event

KEPT = 2000  # events for those who come back
MOST_WAITING = 1000  # events that a listener may be behind, until it is told to begin anew
COMMENT_SECONDS = 15.0  # s of silence after which a comment keeps the connection open


class Event:
    """One event. Its data, JSON, is asked for when somebody listens; `last` says that its task has no other."""

    def __init__(self, name: str, mark: str, data: Callable[[], str], last: bool = False) -> None:
        self.name, self.mark, self.data, self.last = name, mark, data, last

    @functools.cached_property
    def lines(self) -> bytes:
        """What is sent."""
        return format_sse_event(event=self.name, data_str=self.data(), id=self.mark)


class Listener:
    """One stream: what waits to be sent on it, and whether it ends then."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.wake = asyncio.Event()
        self.ended = False

    def take(self, event: Event, reset: Event) -> None:
        """Have an event sent; `reset` stands for those before it, if too many wait: it is slow, or much happens."""
        if len(self.waiting) >= MOST_WAITING:
            self.waiting = [reset.lines]
        self.waiting.append(event.lines)
        self.wake.set()


class Events:
    """All events since the start, and who listens: to a task by its number, or to everything by None."""

    def __init__(self) -> None:
        self.boot, self.count, self.closed = secrets.token_hex(4), 0, False
        self.kept: deque[Event] = deque(maxlen=KEPT)
        self.listeners: dict[int | None, set[Listener]] = {}

    @property
    def mark(self) -> str:
        """The id of the newest event."""
        return f"{self.boot}-{self.count}"

    def tell(self, name: str, data: Callable[[], str], task: int | None = None, last: bool = False) -> None:
        """Something happened, to a task or to everything."""
        reset = self.reset()
        self.count += 1
        event = Event(name, self.mark, data, last)
        self.kept.append(event)
        for subject in {None, task}:
            for listener in self.listeners.get(subject, ()):
                listener.take(event, reset)
                listener.ended |= last and subject is not None

    def hello(self, mark: str = "") -> Event:
        """What every stream begins with; it goes on after the event with this id, or the newest."""
        return Event("hello", mark or self.mark, lambda: f'{{"boot":"{self.boot}"}}')

    def reset(self) -> Event:
        """What tells that events were left out."""
        return Event("reset", self.mark, lambda: "{}")

    def since(self, mark: str) -> list[Event]:
        """What somebody hears first: a hello, then what came after the event with this id, if one is given.

        Where that is not known any more, it is told to begin anew.
        """
        boot, _, count = mark.partition("-")
        behind = self.count - int(count) if boot == self.boot and count.isdecimal() and len(count) < 19 else -1
        known = 0 <= behind <= len(self.kept)
        if known:
            return [self.hello(mark), *list(self.kept)[len(self.kept) - behind :]]
        return [self.hello(), *([self.reset()] if mark else [])]

    async def follow(self, task: int | None, first: Callable[[], Iterable[Event]]) -> AsyncIterator[bytes]:
        """What `first` tells, then the events of a task until its last, or all events for ever."""
        listener = Listener()
        self.listeners.setdefault(task, set()).add(listener)
        try:
            for event in first():
                listener.waiting.append(event.lines)
                listener.ended |= event.last and task is not None
            while listener.waiting or not (listener.ended or self.closed):
                if lines := listener.waiting:
                    listener.waiting = []
                    yield b"".join(lines)
                    continue
                try:
                    async with asyncio.timeout(COMMENT_SECONDS):
                        await listener.wake.wait()
                    listener.wake.clear()
                except TimeoutError:
                    listener.waiting.append(b": nothing new\n\n")
        finally:
            self.listeners[task].discard(listener)
            if not self.listeners[task]:
                del self.listeners[task]

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        for listeners in self.listeners.values():
            for listener in listeners:
                listener.wake.set()

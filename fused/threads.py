"""The threads that run compiled functions side by side, each with memory of its own. Start reading at `Crew`."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fused.networks import WIDTH


class Room(NamedTuple):
    """A thread's memory."""

    work: np.ndarray  # float32
    begins: np.ndarray  # int64 [64], of a minibatch's rows in the replay


class Plan:
    """Gives out places in an array of floats, one after another."""

    def __init__(self) -> None:
        self.end = 0

    def panels(self, rows: int) -> int:
        """The place of so many panels."""
        return self.numbers(rows * WIDTH)

    def numbers(self, count: int) -> int:
        """The place of so many floats, 64 bytes and their multiples after the array's begin."""
        place, self.end = self.end, self.end + -(-count // 16) * 16
        return place


class Crew:
    """So many threads at most."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.turn = np.zeros(1, np.int64)  # what the next thread takes up
        self.rooms: list[Room] = []
        self.pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """A copy has threads and memory of its own."""
        return Crew, (self.threads,)

    def run(self, function: Any, count: int, size: int, *arguments: Any) -> None:
        """`function(turn, room, *arguments)` in each thread, until `count` parts are done; rooms have `size` floats.

        The parts' numbers are to be taken from `turn`, from 0 on.
        """
        threads = min(self.threads, count)
        if self.rooms and len(self.rooms[0].work) < size:
            self.rooms = []
        while len(self.rooms) < threads:
            self.rooms.append(Room(np.zeros(size, np.float32), np.zeros(WIDTH, np.int64)))
        self.turn[0] = 0
        if threads <= 1:
            function(self.turn, self.rooms[0], *arguments)
            return
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.threads)
        others = [self.pool.submit(function, self.turn, room, *arguments) for room in self.rooms[1:threads]]
        function(self.turn, self.rooms[0], *arguments)
        for other in others:
            if not other.cancel():  # one that has not begun would find nothing left to do
                other.result()

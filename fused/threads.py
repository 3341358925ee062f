"""The threads that run compiled functions side by side, each with memory of its own. Start reading at `Crew`."""

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fused.networks import WIDTH

UNCOUNTED = 4  # first calls of a function
TURNS = 32  # calls of which the other choice has one, to be seen again
WORTH = 0.8  # of one thread's time is what all must stay below
NEWEST = 0.1  # share of the newest call in what calls took lately


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


class Pace:
    """Whether all threads take clearly less time for a function at present than one, by what either took lately.

    Beside busy processes, all wait for the one that the system has set aside. What is computed is the same.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.seconds: dict[bool, float] = {}  # for a part, by one thread (False) and by all: newer calls count more

    def alone(self) -> bool:
        """Whether the next call is for one thread: the other choice has a turn in every TURNS."""
        self.calls += 1
        if len(self.seconds) < 2:
            return True in self.seconds
        pays = self.seconds[True] < WORTH * self.seconds[False]
        return pays if self.calls % TURNS == 0 else not pays

    def took(self, together: bool, seconds: float) -> None:
        """Hear what a call took for each part. The first calls also load what is compiled, and do not count."""
        if self.calls > UNCOUNTED:
            self.seconds[together] = self.seconds.get(together, seconds) * (1 - NEWEST) + seconds * NEWEST


class Crew:
    """So many threads at most, or one where these take longer."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.paces: defaultdict[Any, Pace] = defaultdict(Pace)  # of each function
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
        if threads > 1 and self.paces[function].alone():
            threads = 1
        if self.rooms and len(self.rooms[0].work) < size:
            self.rooms = []
        while len(self.rooms) < threads:
            self.rooms.append(Room(np.zeros(size, np.float32), np.zeros(WIDTH, np.int64)))
        self.turn[0] = 0
        began = time.perf_counter()
        if threads <= 1:
            function(self.turn, self.rooms[0], *arguments)
        else:
            self.together(function, threads, *arguments)
        if self.threads > 1 and count > 1:
            self.paces[function].took(threads > 1, (time.perf_counter() - began) / count)

    def together(self, function: Any, threads: int, *arguments: Any) -> None:
        """`function` in several threads at once."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(self.threads)
        others = [self.pool.submit(function, self.turn, room, *arguments) for room in self.rooms[1:threads]]
        function(self.turn, self.rooms[0], *arguments)
        for other in others:
            if not other.cancel():  # one that has not begun would find nothing left to do
                other.result()

"""The tasks of a run: when and where they arrive and what they ask for, drawn from the run's seed.

A run on real servers and a simulated one draw the same tasks and cut them into the same slots and rounds. Start reading
at `Demand`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from common.random_streams import Stream, random_generator
from edge_sim.server_profile import Profile


def input_mbit(prompt: str) -> float:
    """d of a task with this prompt in Mbit: what a base station sends on to another one's server."""
    return 8e-6 * len(prompt.encode())


@dataclasses.dataclass(frozen=True)
class TaskStream:
    """K tasks in order: time [K] in s, base station [K], denoising steps [K] and d, size [K] in Mbit.

    Tasks that are replayed have `model` [K], numbers of the models of a catalogue, and `user` [K].
    """

    time: np.ndarray
    base_station: np.ndarray
    steps: np.ndarray
    size: np.ndarray
    model: np.ndarray | None = None
    user: np.ndarray | None = None

    def __len__(self) -> int:
        return self.time.size

    def slots(self, slot_seconds: float) -> Iterator[tuple[float, np.ndarray]]:
        """Time and tasks (indices) of every slot that has some: those that arrived since the slot before.

        Tasks that arrive at time 0 are scheduled at time 0, and those that are replayed, or without slots (of 0 s),
        at the time of their arrival.
        """
        if self.model is not None or not slot_seconds:
            for part in np.split(np.arange(len(self)), np.flatnonzero(np.diff(self.time)) + 1):
                yield float(self.time[part[0]]), part
            return
        number = np.ceil(self.time / slot_seconds - 1e-9).astype(np.int64)
        first = np.flatnonzero(np.diff(number, prepend=-1))
        for part in np.split(np.arange(len(self)), first[1:]):
            if part.size:
                yield float(number[part[0]]) * slot_seconds, part


def draw_stream(
    count: int, servers: int, steps: tuple[int, int], sizes: np.ndarray, rate: float | None, seed: int
) -> TaskStream:
    """`count` tasks at random base stations with random steps. Task k has the size sizes[k % len(sizes)].

    With a `rate` in tasks/s they arrive as a Poisson process, otherwise all at time 0.
    """
    random = random_generator(Stream.EDGE_ARRIVALS, seed, count)
    time = np.zeros(count) if rate is None else random.exponential(1 / rate, count).cumsum()
    return TaskStream(
        time,
        random.integers(0, servers, count),
        random.integers(steps[0], steps[1], count, endpoint=True),
        np.resize(sizes, count),
    )


def sizes_of(prompts: Sequence[str]) -> np.ndarray:
    """d [K] in Mbit of tasks with these prompts."""
    return np.array([input_mbit(prompt) for prompt in prompts])


class Arrivals(Protocol):
    """Tasks that are not drawn; see `Replay`."""

    def stream(self, count: int, servers: int, sizes: np.ndarray, load: float | None, profile: Profile) -> TaskStream:
        """The first `count` tasks, of the sizes [K] in Mbit, at so many base stations."""


@dataclasses.dataclass(frozen=True)
class Demand:
    """What the tasks of a run, or of several runs one after another, ask for.

    `counts` are the runs' numbers of tasks, `prompts` has one for each task of all runs, `steps` are the fewest and the
    most denoising steps. Without a `load` all tasks of a run arrive at once. What is to be replayed comes as it does.
    """

    counts: list[int]
    prompts: list[str]
    steps: tuple[int, int]
    load: float | None
    servers: int  # base stations, each with an edge server
    seed: int
    replay: Arrivals | None = None

    def runs(self, profile: Profile) -> Iterator[tuple[int, TaskStream]]:
        """The number of the first task, and the tasks, of each run on servers of this profile."""
        rate = None if self.load is None else self.load * profile.task_rate(sum(self.steps) / 2)
        first = 0
        for count in self.counts:
            sizes = sizes_of(self.prompts[first : first + count])
            if self.replay is not None:
                yield first, self.replay.stream(count, self.servers, sizes, self.load, profile)
            else:
                yield first, draw_stream(count, self.servers, self.steps, sizes, rate, self.seed)
            first += count


def rounds(base_station: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut tasks [K] that are scheduled at one time into rounds with at most `most` at each base station, in order.

    Each round is an array of indices into `base_station`.
    """
    place = place_of(base_station)
    number = place // most
    for k in range(int(number.max()) + 1 if number.size else 0):
        yield np.flatnonzero(number == k)


def place_of(base_station: np.ndarray) -> np.ndarray:
    """How many tasks before each [K] are of the same base station."""
    order = np.argsort(base_station, kind="stable")
    ordered = base_station[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    place = np.empty(base_station.size, dtype=np.int64)
    place[order] = np.arange(order.size) - np.repeat(first, np.diff(first, append=order.size))
    return place

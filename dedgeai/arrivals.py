"""The tasks of a run: when and where they arrive and what they ask for, drawn from the run's seed.

A run on real servers and a simulated one draw the same tasks and cut them into the same slots and rounds. Start reading
at `Arrivals`.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

STREAM = 6  # apart from the streams of environment_lad


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """K tasks in order: time [K] in s, base station [K], denoising steps [K] and d, size [K] in Mbit."""

    time: np.ndarray
    base_station: np.ndarray
    steps: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return self.time.size

    def slots(self, slot_seconds: float) -> Iterator[tuple[float, np.ndarray]]:
        """Time and tasks (indices) of every slot that has some: those that arrived since the slot before.

        Tasks that arrive at time 0 are scheduled at time 0.
        """
        number = np.ceil(self.time / slot_seconds - 1e-9).astype(np.int64)
        first = np.flatnonzero(np.diff(number, prepend=-1))
        for part in np.split(np.arange(len(self)), first[1:]):
            if part.size:
                yield float(number[part[0]]) * slot_seconds, part


def draw_arrivals(
    count: int, servers: int, steps: tuple[int, int], sizes: np.ndarray, rate: float | None, seed: int
) -> Arrivals:
    """`count` tasks at random base stations with random steps. Task k has the size sizes[k % len(sizes)].

    With a `rate` in tasks/s they arrive as a Poisson process, otherwise all at time 0.
    """
    random = np.random.default_rng([STREAM, seed, count])
    time = np.zeros(count) if rate is None else random.exponential(1 / rate, count).cumsum()
    return Arrivals(
        time,
        random.integers(0, servers, count),
        random.integers(steps[0], steps[1], count, endpoint=True),
        np.resize(sizes, count),
    )


def rounds(base_station: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut tasks that are scheduled at one time into rounds with at most `most` at each base station, in order."""
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

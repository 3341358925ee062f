"""What travels between dispatcher and edge servers: tasks, their results, and a server's state.

Nothing here needs torch, so that an edge server that only waits for the profile's time starts at once. Start reading at
`Task`.
"""

import dataclasses
from collections.abc import Iterable

DENSITY = 0.2048  # Gcycles of a denoising step: the middle of the paper's range, since no server counts its cycles


def input_mbit(prompt: str) -> float:
    """d of a task with this prompt in Mbit: what a base station sends on to another one's server."""
    return 8e-6 * len(prompt.encode())


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to make, as it arrived at a base station."""

    number: int
    prompt: str
    steps: int
    seed: int
    width: int
    height: int
    base_station: int

    @property
    def size(self) -> float:
        """d in Mbit."""
        return input_mbit(self.prompt)


def batch_of(tasks: Iterable[Task], most: int) -> list[Task]:
    """The first task, and up to `most` - 1 others that can be denoised with it: same steps, same size."""
    alike: list[Task] = []
    for task in tasks:
        first = alike[0] if alike else task
        if (task.steps, task.width, task.height) == (first.steps, first.width, first.height):
            alike.append(task)
        if len(alike) == most:
            break
    return alike


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a task: a PNG file's bytes, or an error in words; and its share of the batch's seconds."""

    number: int
    image: bytes
    error: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class State:
    """What an edge server says of itself. `seconds_per_step` is a moving average of what it measured last."""

    queued: int
    running: int
    backlog_seconds: float
    backlog_gcycles: float
    seconds_per_step: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Results up to and including number `last` of those that this start of the server has made, and its state."""

    last: int
    results: list[Result]
    state: State

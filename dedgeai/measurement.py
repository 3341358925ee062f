"""Measuring the profile: every edge server makes a few images with few and with many steps, all servers at once.

At once, because servers that share a machine slow each other down. Start reading at `measure_profile`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.parameters import ParameterError
from common.progress import Progress
from dedgeai.cluster import Cluster
from dedgeai.tasks import Task
from edge_sim.server_profile import Profile, fitted

DEATHS = 3  # of servers with work, after which measuring is given up
WARM_UP = 1  # first images of each server, which are not counted
Measured = tuple[int, Task, int, float]


class Measurement:
    """Takes the place of the system as the cluster's owner, and gathers what the servers say.

    `end` becomes what was found: server, task, bytes of the image and seconds of each; or raises ParameterError.
    """

    def __init__(self, cluster: Cluster, expected: int, quiet: bool) -> None:
        self.cluster, self.expected, self.deaths = cluster, expected, 0
        self.found: list[Measured] = []
        self.again: dict[int, list[Task]] = {}  # tasks of servers that are down
        self.end: asyncio.Future[list[Measured]] = asyncio.get_running_loop().create_future()
        self.bar = Progress(total=expected, unit="image", desc="profile", disable=quiet)

    def ignore(self, *_: Any) -> None:
        """What need not be noted; nothing is moved while servers are measured."""

    started = progress = moved = ignore

    def made(self, server: int, task: Task, image: bytes | None, error: str, seconds: float) -> None:
        """Take in a result; the last one, or a failure, ends the measurement."""
        self.found.append((server, task, len(image or b""), seconds))
        self.bar.update()
        if error:
            self.fail(error)
        elif len(self.found) == self.expected and not self.end.done():
            self.end.set_result(self.found)

    def lost(self, server: int, running: list[Task], queued: list[Task]) -> None:
        """What a server that died had is sent to it again when it is back, a few times."""
        self.again[server] = [*running, *queued]
        self.deaths += bool(self.again[server])
        if self.deaths > DEATHS:
            self.fail(f"edge server {server} died while its speed was measured")

    def joined(self, server: int) -> None:
        """A server that is back gets the tasks that it lost."""
        self.cluster.send({server: self.again.pop(server, [])})

    def broken(self, error: BaseException) -> None:
        """A mistake of this program's own ends the measurement."""
        self.fail(f"{type(error).__name__}: {error}")

    def fail(self, words: str) -> None:
        """Give the measurement up."""
        if not self.end.done():
            self.end.set_exception(ParameterError(None, None, f"the generator failed: {words}"))


async def measure_tasks(cluster: Cluster, orders: dict[int, list[Task]], quiet: bool = False) -> list[Measured]:
    """Have servers work on tasks of their own, outside the system. Raises ParameterError when a task fails."""
    owner, rebalance = cluster.owner, cluster.rebalance
    measurement = Measurement(cluster, sum(map(len, orders.values())), quiet)
    cluster.owner, cluster.rebalance = measurement, False
    try:
        cluster.send(orders)
        return await measurement.end
    finally:
        measurement.bar.close()
        cluster.owner, cluster.rebalance = owner, rebalance


async def measure_profile(
    cluster: Cluster,
    prompts: Sequence[str],
    steps: tuple[int, int],
    size: tuple[int, int],
    repeats: int,
    source: dict[str, Any],
) -> Profile:
    """The profile of the cluster's servers, from `repeats` images of the fewest and of the most steps each.

    `size` is width and height in pixels, `source` what the profile says of its origin. Raises ParameterError when an
    image fails.
    """
    low, high = steps[0], max(steps[1], steps[0] + 1)
    demands = [low] * WARM_UP + [low, high] * repeats
    # Numbers differ between servers, and are negative so that they are no task's.
    orders = {
        s: [
            Task(-1 - i - s * len(demands), prompts[i % len(prompts)], demand, i, *size, base_station=s)
            for i, demand in enumerate(demands)
        ]
        for s in range(len(cluster.servers))
    }
    found = await measure_tasks(cluster, orders)
    rows = []
    for server in orders:
        counted = [(task.steps, seconds) for where, task, _, seconds in found if where == server][WARM_UP:]
        rows.append(fitted(*np.array(counted, dtype=float).T))
    return Profile(*np.array(rows).T, float(np.mean([8e-6 * size for _, _, size, _ in found])), source)

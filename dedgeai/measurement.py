"""Measuring the profile: every edge server makes a few images with few and with many steps, all servers at once.

At once, because servers that share a machine slow each other down. Start reading at `measure_profile`.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.parameters import ParameterError
from common.progress import Progress
from dedgeai.cluster import Cluster
from dedgeai.server_profile import Profile, fitted
from dedgeai.tasks import Result, Task

DEATHS = 3  # of servers with work, after which measuring is given up
WARM_UP = 1  # first images of each server, which are not counted


class Measurement:
    """Takes the place of the system as the cluster's owner, and gathers what the servers say.

    `found` holds server and result of each task; `problem` says in words why measuring was given up.
    """

    def __init__(self, cluster: Cluster, expected: int, quiet: bool) -> None:
        self.cluster, self.expected = cluster, expected
        self.found: list[tuple[int, Result]] = []
        self.done = asyncio.Event()
        self.problem: str | None = None
        self.waiting: dict[int, list[Task]] = {}  # tasks of servers that are down
        self.deaths = 0
        self.bar = Progress(total=expected, unit="image", desc="profile", disable=quiet)

    def results(self, server: int, results: list[Result]) -> None:
        """Take in results; the last one, or a failure, ends the measurement."""
        self.found += [(server, result) for result in results]
        self.bar.update(len(results))
        self.problem = self.problem or next((result.error for result in results if result.error), None)
        if len(self.found) >= self.expected or self.problem:
            self.done.set()

    def lost(self, server: int, running: list[Task], queued: list[Task]) -> None:
        """What a server that died had is sent to it again when it is back, a few times."""
        self.waiting[server] = [*self.waiting.get(server, []), *running, *queued]
        self.deaths += bool(self.waiting[server])
        if self.deaths > DEATHS:
            self.problem = f"edge server {server} died while its speed was measured"
            self.done.set()

    def moved(self, server: int, tasks: list[Task]) -> None:
        """Nothing is moved while servers are measured."""

    def joined(self, server: int) -> None:
        """A server that is back gets the tasks that it lost."""
        if tasks := self.waiting.pop(server, []):
            self.cluster.send(server, tasks)

    def broken(self, error: BaseException) -> None:
        """A mistake of this program's own ends the measurement."""
        self.problem = f"{type(error).__name__}: {error}"
        self.done.set()


async def measure_tasks(
    cluster: Cluster, orders: dict[int, list[Task]], quiet: bool = False
) -> list[tuple[int, Result]]:
    """Have servers work on tasks of their own, outside the system. Returns server and result of each.

    Raises ParameterError when a task fails.
    """
    owner, options = cluster.owner, cluster.options
    measurement = Measurement(cluster, sum(map(len, orders.values())), quiet)
    cluster.owner = measurement
    cluster.options = dataclasses.replace(options, rebalance=False)
    try:
        for server, tasks in orders.items():
            cluster.send(server, tasks)
        await measurement.done.wait()
    finally:
        measurement.bar.close()
        cluster.owner, cluster.options = owner, options
    if measurement.problem:
        raise ParameterError(None, None, f"the generator failed: {measurement.problem}")
    return measurement.found


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
    tasks = [
        Task(-1 - i, prompts[i % len(prompts)], demand, i, *size, base_station=0) for i, demand in enumerate(demands)
    ]
    servers = range(len(cluster.servers))
    # Numbers differ between servers, and are negative so that they are no task's.
    orders = {
        s: [Task(t.number - s * len(tasks), t.prompt, t.steps, t.seed, t.width, t.height, s) for t in tasks]
        for s in servers
    }
    demand = {task.number: task.steps for tasks in orders.values() for task in tasks}
    found = await measure_tasks(cluster, orders)
    rows = []
    for server in servers:
        counted = [result for s, result in found if s == server][WARM_UP:]
        steps_made = np.array([demand[result.number] for result in counted], dtype=float)
        rows.append(fitted(steps_made, np.array([result.seconds for result in counted])))
    mbit = float(np.mean([8e-6 * len(result.image) for _, result in found]))
    return Profile(*np.array(rows).T, mbit, source)

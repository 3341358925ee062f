"""Measuring the profile: every edge server makes a few images with few and with many steps, all servers at once.

At once, because servers that share a machine slow each other down. Start reading at `measure_profile`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.exceptions import RayError, RayTaskError

from common.parameters import ParameterError
from common.progress import Progress
from dedgeai.cluster import POLL_SECONDS, Cluster
from dedgeai.queues import Server
from dedgeai.tasks import Task
from edge_sim.server_profile import Profile, fitted

DEATHS = 3  # of a server, after which measuring is given up
WARM_UP = 1  # first images of each server, which are not counted
Measured = tuple[int, int, float]  # denoising steps of a task, bytes of its image, seconds that it took


async def measure_tasks(cluster: Cluster, orders: dict[int, list[Task]], quiet: bool = False) -> list[list[Measured]]:
    """Have servers work on tasks of their own, past the queues. Raises ParameterError when a task fails."""
    with Progress(total=sum(map(len, orders.values())), unit="image", desc="profile", disable=quiet) as bar:
        works = [asyncio.ensure_future(measure_server(cluster, cluster.servers[s], orders[s], bar)) for s in orders]
        try:
            return await asyncio.gather(*works)
        finally:
            for work in works:
                work.cancel()


async def measure_server(cluster: Cluster, server: Server, tasks: list[Task], bar: Progress) -> list[Measured]:
    """Have a server work on tasks; one that it dies with it gets again when it is back. Raises ParameterError."""
    found: list[Measured] = []
    deaths = 0
    while len(found) < len(tasks):
        task = tasks[len(found)]
        try:
            made = await asyncio.wait_for(server.handle.run.remote([task]), cluster.config.job_timeout)
            (image,) = made.images
        except RayTaskError as problem:
            raise ParameterError(None, None, f"the generator failed: {problem.cause}") from None
        except (RayError, TimeoutError) as problem:
            deaths += 1
            if deaths > DEATHS:
                words = f"the generator failed: edge server {server.number} died while its speed was measured"
                raise ParameterError(None, None, words) from None
            if isinstance(problem, TimeoutError):
                cluster.kill(server)
            server.up = False
            server.life.cancel()  # the cluster sees to it that it works again
            while not server.up:
                await asyncio.sleep(POLL_SECONDS)
        else:
            if image is not None:  # else the server was greeted anew meanwhile, and dropped the task
                found.append((task.steps, len(image), made.seconds))
                bar.update()
    return found


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
    found = np.array(await measure_tasks(cluster, {server.number: tasks for server in cluster.servers}))  # [B, K, 3]
    rows = [fitted(steps, seconds) for steps, _, seconds in found[:, WARM_UP:].transpose(0, 2, 1)]
    return Profile(*np.array(rows).T, float(8e-6 * found[:, :, 1].mean()), source)

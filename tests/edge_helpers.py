"""What the tests of the edge system share."""

import asyncio
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.exceptions import ActorUnavailableError, RayTaskError

from dedgeai.cluster import Cluster
from dedgeai.edge_server import EdgeServer, OpenCompute
from dedgeai.queues import Server
from edge_sim.dispatcher import ClusterScheduler
from edge_sim.schedulers import SchedulerOptions, make_scheduler, method_of
from edge_sim.server_profile import Profile


def ready(scheduler: str, profile: Profile, folder: Path, checkpoint: Path | None = None) -> ClusterScheduler:
    """A scheduler for rounds of at most 4 tasks at each base station; one that learns is trained for 2 episodes."""
    method = method_of(scheduler)
    options = SchedulerOptions(scheduler, method, checkpoint, folder, 2, 4, (10, 19), 0.001, 450.0, 0)
    return make_scheduler(options, profile)


class LocalActor:
    """An edge server that lives in the test's process and is called, and dies, as Ray's actors do."""

    def __init__(self, number: int, compute: OpenCompute) -> None:
        self.start = lambda: EdgeServer(number, compute)
        self.server = self.start()
        self.calls: set[asyncio.Task] = set()
        self.log: list[str] = []  # names of the calls, in order

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=functools.partial(self.call, name))

    def call(self, name: str, *arguments: Any) -> asyncio.Task:
        self.log.append(name)
        call = asyncio.ensure_future(self.answer(name, *arguments))
        self.calls.add(call)
        call.add_done_callback(self.calls.discard)
        return call

    async def answer(self, name: str, *arguments: Any) -> Any:
        server = self.server
        try:
            return await getattr(server, name)(*copy.deepcopy(arguments))
        except asyncio.CancelledError:
            if server is self.server:
                raise
            raise ActorUnavailableError("it died", None) from None
        except Exception as error:
            raise RayTaskError(name, "", error, "a test", ip="here") from None

    def die(self) -> None:
        """Lose all calls, and start anew."""
        self.server = self.start()
        for call in self.calls:
            call.cancel()


class LocalCluster(Cluster):
    """A cluster whose servers are LocalActors."""

    def create(self, server: Server) -> None:
        server.handle = LocalActor(server.number, self.compute)

    def kill(self, server: Server, restart: bool = True) -> None:
        server.handle.die()


class Recorder:
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.told.append((name, *arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of this name."""
        return [arguments for told, *arguments in self.told if told == name]

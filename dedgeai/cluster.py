"""Edge servers as Ray actors: how they start, what is sent to them, and what happens when one dies or hangs.

A server that is killed is started again by Ray and joins when it answers; the tasks that it had are handed back to
the owner, who sends them elsewhere. Start reading at `Cluster.follow`.
"""

import asyncio
import contextlib
import ctypes
import functools
import signal
import time
from collections.abc import Coroutine
from itertools import chain
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from common.parameters import ParameterError
from common.run_folder import describe
from dedgeai.configuration import ServerParameters
from dedgeai.edge_server import BatchError, Compute, EdgeServer, OpenCompute
from dedgeai.queues import Call, Queues, Server
from dedgeai.ray_start import RESOURCE
from dedgeai.tasks import Made

START_SECONDS = 600  # s until a server must have loaded its generator
POLL_SECONDS = 0.25  # s between questions how far a server is, or whether it is back


class Cluster(Queues):
    """All edge servers, and the tasks that each of them has."""

    def __init__(self, config: ServerParameters, compute: OpenCompute, owner: Any) -> None:
        super().__init__(config, owner)
        self.compute = compute
        self.background: set[asyncio.Task] = set()

    # --- life of the servers ---

    async def start(self) -> None:
        """Start all servers, and wait for their generators. Raises ParameterError when one cannot load."""
        for server in self.servers:
            self.create(server)
        results = await asyncio.gather(*(self.greet(server) for server in self.servers))
        if problems := [error for error in results if error is not None]:
            raise refusal(problems[0])
        for server in self.servers:
            server.up = True
            self.spawn(self.follow(server))
        self.spawn(self.watch())

    def create(self, server: Server) -> None:
        """Have Ray start the server's process; `greet` tells when it is up."""
        actor = ray.remote(EdgeServer).options(
            num_cpus=0,
            num_gpus=self.config.gpus_per_server,
            resources={RESOURCE: 1},
            max_restarts=-1,
            max_task_retries=0,  # a lost call is not repeated by Ray: tasks are sent again by the dispatcher
        )
        server.handle = actor.remote(server.number, functools.partial(mortal, self.compute))

    def kill(self, server: Server, restart: bool = True) -> None:
        """End the server's process, and have Ray start it again or not."""
        ray.kill(server.handle, no_restart=not restart)

    async def greet(self, server: Server) -> RayError | TimeoutError | None:
        """Wait for the server's answer, and take note of who it is now. Returns what kept it from answering."""
        try:
            hello = await asyncio.wait_for(server.handle.hello.remote(), START_SECONDS)
        except (RayError, TimeoutError) as error:
            return error
        incarnation, server.process, server.machine, server.resident = hello
        if incarnation != server.incarnation:
            server.starts += 1
            server.seconds_per_step = float(self.rates[server.number])
        server.incarnation = incarnation
        return None

    async def follow(self, server: Server) -> None:
        """For ever: notice when a server dies, hand back its tasks, and wait until it is there again."""
        while True:
            server.life = asyncio.ensure_future(server.handle.live.remote())
            await asyncio.gather(server.life, return_exceptions=True)
            self.lose(server)
            await self.revive(server)
            server.up = True
            self.owner.joined(server.number)
            self.settle()

    async def revive(self, server: Server) -> None:
        """Wait for the next start of a server that does not answer."""
        pause = POLL_SECONDS
        while True:
            await asyncio.sleep(pause)
            error = await self.greet(server)
            if error is None:
                return
            if isinstance(error, ActorDiedError):  # Ray gave it up
                self.create(server)
            if isinstance(error, TimeoutError):
                self.kill(server)
            if isinstance(error, ActorDiedError | RayTaskError):  # it fails to start, or to open its generator
                pause = min(2 * pause, 30.0)

    async def watch(self) -> None:
        """For ever: ask busy servers how far they are, and kill those that give no result for too long."""
        while True:
            await asyncio.sleep(min(POLL_SECONDS, self.config.job_timeout / 4))
            now = time.monotonic()
            for server in self.servers:
                if not server.calls:
                    continue
                if now - server.since > self.config.job_timeout:
                    self.kill(server)
                    server.life.cancel()  # its tasks need not wait for its end
                elif server.asked is None or server.asked.done():
                    server.asked = self.spawn(self.ask(server, server.calls[0]))

    async def ask(self, server: Server, call: Call) -> None:
        """Learn how far a server is with a batch. That it does not answer says nothing."""
        with contextlib.suppress(RayError):
            steps = await server.handle.steps.remote()
            step = max((steps.get(task.number, 0) for task in call.tasks), default=0)
            if call in server.calls and step > call.step:
                call.step, call.stepped = step, time.monotonic()
                self.owner.progress(dict.fromkeys((task.number for task in call.tasks), step))

    # --- work ---

    def planned(self, server: Server) -> list[str]:
        """The models that a server will hold when it has done all that it has, the last used one first."""
        tasks = chain(reversed(server.waiting.values()), (call.tasks[0] for call in reversed(server.calls)))
        names = chain((task.model for task in tasks), reversed(server.resident))
        found: dict[str, None] = {}
        while len(found) < self.config.resident_models and (name := next(names, None)) is not None:
            found[name] = None
        return [*found]

    def begin(self, server: Server, call: Call) -> None:
        """Send a batch to a server."""
        self.spawn(self.run(server, call))

    async def run(self, server: Server, call: Call) -> None:
        """Have a server work on a batch, and take in what becomes of it."""
        try:
            made, error = await server.handle.run.remote(call.tasks), ""
        except RayTaskError as problem:  # the server goes on
            more = problem.cause.args[1:] if isinstance(problem.cause, BatchError) else ()
            made, error = Made([None] * len(call.tasks), 0.0, *more), str(problem.cause)
        except RayError:
            if call in server.calls:
                server.life.cancel()  # `follow` hands its tasks back
            return
        self.ended(server, call, made, error)

    def stop(self, server: Server, number: int) -> None:
        """Tell a server that a task that it has was cancelled."""
        server.handle.cancel.remote([number])

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Run a coroutine beside the others; `close` cancels it, and its mistakes go to the owner."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.finished)
        return task

    def finished(self, task: asyncio.Task) -> None:
        """Tell the owner of what a spawned coroutine raised."""
        self.background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.owner.broken(task.exception())

    async def close(self) -> None:
        """Cancel what runs beside, and end the servers."""
        self.paused = True
        for task in list(self.background):
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        for server in self.servers:
            if server.handle is not None:
                self.kill(server, restart=False)


def mortal(opened: OpenCompute, number: int) -> Compute:
    """Open a server's generator in its process, which SIGTERM ends at once from now on.

    Ray would have it wait for all calls, `live` among them, while nothing is worked on any more.
    """
    ctypes.CDLL(None).signal(signal.SIGTERM, None)  # signal.signal is for the main thread, which is Ray's
    return opened(number)


def refusal(error: RayError | TimeoutError) -> ParameterError:
    """Why an edge server could not start, in one line; of the flag that it is about where the server says which."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ParameterError):
        return ParameterError(cause.flag, cause.value, f"{cause.reason} (on an edge server)")
    if isinstance(cause, TimeoutError):
        words = f"no answer within {START_SECONDS} s"
    elif isinstance(cause, RayError):  # of a process that ended, whose reason stands last
        words = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
    else:
        words = describe(cause)
    return ParameterError(None, None, f"an edge server could not start: {words}")

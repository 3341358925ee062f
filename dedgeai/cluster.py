"""Edge servers as Ray actors, seen from the driver: sending, fetching, and what to do when one dies.

A server that is killed is started again by Ray and joins when it answers; the tasks that it had are handed back to
the owner of the cluster, who sends them elsewhere. Each result counts once, whoever sends it twice. Start reading at
`Cluster.follow`.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from common.parameters import ParameterError
from common.run_folder import describe
from dedgeai.edge_server import ComputeOptions, EdgeServer
from dedgeai.options import ClusterOptions
from dedgeai.ray_start import RESOURCE
from dedgeai.tasks import DENSITY, Result, State, Task, batch_of

START_SECONDS = 600  # s until a server must have loaded its generator
POLL_SECONDS = 0.2  # s between questions whether a server is back


class RemoteServer:
    """What the driver knows of one edge server."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.handle: Any = None
        self.up = False
        self.outstanding: dict[int, Task] = {}  # sent and not come back, in the order of sending
        self.steps = 0.0  # of those, with overhead
        self.outbox: list[Task] = []  # of those, what has not been sent yet
        self.delivering = False
        self.seconds_per_step = 0.0  # as it last reported
        self.since = 0.0  # when it began its oldest outstanding task, as far as is known
        self.incarnation, self.process, self.machine = "", 0, ""
        self.starts = 0
        self.last = 0  # results fetched from this incarnation
        self.state: State | None = None


class Owner(Protocol):
    """Who is told what happens to tasks. No call may block."""

    def results(self, server: int, results: list[Result]) -> None:
        """Results of tasks that the server had; each task comes once, unless it was sent again meanwhile."""

    def lost(self, server: int, running: list[Task], queued: list[Task]) -> None:
        """Tasks of a server that died, to be sent again: those that it worked on, and the others."""

    def moved(self, server: int, tasks: list[Task]) -> None:
        """Tasks that were taken back from another server and have been sent to this one, which was idle."""

    def joined(self, server: int) -> None:
        """A server that had died works again."""

    def broken(self, error: BaseException) -> None:
        """A mistake of this program's own."""


class Cluster:
    """All edge servers, and the tasks that each of them has."""

    def __init__(self, options: ClusterOptions, compute: ComputeOptions, owner: Owner) -> None:
        self.options, self.compute, self.owner = options, compute, owner
        self.servers = [RemoteServer(number) for number in range(options.servers)]
        self.overhead = 0.0
        self.capacity = np.ones(options.servers)
        self.rates = np.zeros(options.servers)
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

    def create(self, server: RemoteServer) -> None:
        """Have Ray start the server's process; `greet` tells when it is up."""
        actor = ray.remote(EdgeServer).options(
            num_cpus=0,
            num_gpus=self.options.gpus,
            resources={RESOURCE: 1},
            max_restarts=-1,
            max_task_retries=0,  # a lost call is not repeated by Ray: tasks are sent again by the dispatcher
            max_concurrency=100,
        )
        server.handle = actor.remote(server.number, self.compute, self.options.batch_size)

    async def greet(self, server: RemoteServer) -> RayError | TimeoutError | None:
        """Wait for the server's answer, and take note of who it is now. Returns what kept it from answering."""
        rate = self.rates[server.number]
        try:
            hello = server.handle.hello.remote(rate, self.overhead)
            incarnation, process, machine = await asyncio.wait_for(as_future(hello), START_SECONDS)
        except (RayError, TimeoutError) as error:
            return error
        if incarnation != server.incarnation:
            server.last, server.starts = 0, server.starts + 1
            server.seconds_per_step = rate
        server.incarnation, server.process, server.machine = incarnation, process, machine
        return None

    async def calibrate(self, rates: np.ndarray, overhead: float) -> None:
        """Tell the servers the profile: seconds per step [B], and what a task costs besides, in steps."""
        self.rates, self.overhead = rates, overhead
        self.capacity = DENSITY / rates
        for server in self.servers:
            server.seconds_per_step = rates[server.number]
        await asyncio.gather(*(self.greet(server) for server in self.servers))

    async def follow(self, server: RemoteServer) -> None:
        """Fetch a server's results for ever; when it dies, hand back its tasks and wait until it is there again."""
        while True:
            try:
                report = await as_future(server.handle.collect.remote(server.last))
            except RayError:
                await self.mourn(server)
                continue
            server.last, server.state = report.last, report.state
            server.seconds_per_step = report.state.seconds_per_step
            fresh = [result for result in report.results if self.forget(server, result.number)]
            server.since = time.monotonic()
            self.owner.results(server.number, fresh)
            if not server.outstanding and self.options.rebalance:
                self.spawn(self.help_out(server))

    async def mourn(self, server: RemoteServer) -> None:
        """Hand back the tasks of a server that does not answer, and wait for its next start."""
        server.up, before = False, server.incarnation
        running = self.running(server)
        others = [task for task in server.outstanding.values() if task not in running]
        server.outstanding.clear()
        server.outbox.clear()
        server.steps = 0.0
        self.owner.lost(server.number, running, others)
        pause = POLL_SECONDS
        while True:
            await asyncio.sleep(pause)
            error = await self.greet(server)
            if error is None and server.incarnation == before:  # it was out of reach, and still has what others do now
                error = await self.emptied(server)
            if error is None:
                break
            if isinstance(error, ActorDiedError):  # Ray gave it up
                self.create(server)
            if isinstance(error, ActorDiedError | RayTaskError):  # it fails to start, or to open its generator
                pause = min(2 * pause, 30.0)
        server.up = True
        if self.options.rebalance:
            self.spawn(self.help_out(server))
        self.owner.joined(server.number)

    async def emptied(self, server: RemoteServer) -> RayError | None:
        """Take all queued tasks from a server, to forget them. Returns what kept it from answering."""
        try:
            await as_future(server.handle.withdraw.remote(2**31))
        except RayError as error:
            return error
        return None

    async def watch(self) -> None:
        """Kill servers that have had work for too long without a result; they are then started again."""
        while True:
            await asyncio.sleep(min(1.0, self.options.job_timeout / 4))
            for server in self.servers:
                hung = time.monotonic() - server.since > self.options.job_timeout
                if server.up and server.outstanding and hung:
                    ray.kill(server.handle, no_restart=False)
                    server.since = time.monotonic()

    # --- tasks ---

    def send(self, number: int, tasks: list[Task]) -> None:
        """Put tasks at the end of a server's queue. A server that dies meanwhile hands them back."""
        server = self.servers[number]
        if not server.outstanding:
            server.since = time.monotonic()
        server.outstanding |= {task.number: task for task in tasks}
        server.steps += sum(task.steps + self.overhead for task in tasks)
        server.outbox += tasks
        if not server.delivering:
            server.delivering = True
            self.spawn(self.deliver(server))

    async def deliver(self, server: RemoteServer) -> None:
        """Send what is in the outbox, one call after another, because a server may take up calls in any order."""
        while server.outbox:
            tasks, server.outbox = server.outbox, []
            try:
                await as_future(server.handle.enqueue.remote(tasks))
            except RayError:
                lost = [task for task in tasks if self.forget(server, task.number)]
                if lost:  # unless `mourn` has handed them back
                    self.owner.lost(server.number, [], lost)
        server.delivering = False

    def running(self, server: RemoteServer) -> list[Task]:
        """What a server works on, as far as its rule and what was delivered to it tell."""
        waiting = {task.number for task in server.outbox}
        return batch_of(
            (task for number, task in server.outstanding.items() if number not in waiting), self.options.batch_size
        )

    def forget(self, server: RemoteServer, number: int) -> bool:
        """Take a task off a server's list. False when it was not there."""
        task = server.outstanding.pop(number, None)
        if task is not None:
            server.steps -= task.steps + self.overhead
        return task is not None

    async def help_out(self, idle: RemoteServer) -> None:
        """Give a server without work the second half of the queue that would take longest."""
        seconds = self.backlog_seconds()
        busiest = self.servers[int(seconds.argmax())]
        count = (len(busiest.outstanding) - self.options.batch_size + 1) // 2
        if busiest is idle or not busiest.up or not idle.up or idle.outstanding or count < 1:
            return
        tasks = await self.withdraw(busiest, count)
        if not idle.up:
            self.owner.lost(busiest.number, [], tasks)
        elif tasks:
            self.send(idle.number, tasks)
            self.owner.moved(idle.number, tasks)

    async def withdraw(self, server: RemoteServer, count: int) -> list[Task]:
        """Take tasks back from the end of a server's queue; from one that does not answer, what was not delivered."""
        kept = max(0, len(server.outbox) - count)
        taken, server.outbox = server.outbox[kept:], server.outbox[:kept]
        tasks: list[Task] = []
        if count > len(taken):
            try:
                tasks = await as_future(server.handle.withdraw.remote(count - len(taken)))
            except RayError:
                tasks = []
        return [task for task in (*tasks, *taken) if self.forget(server, task.number)]

    async def withdraw_all(self, server: RemoteServer) -> None:
        """Take back all that a server has not begun, until nothing more is on the way to it."""
        while True:
            busy = server.delivering
            if not await self.withdraw(server, 2**31) and not busy:
                return
            await asyncio.sleep(0.01)

    def backlog_seconds(self) -> np.ndarray:
        """Seconds [B] until each server has done what it was sent, at the speed that it reported last."""
        now = time.monotonic()
        seconds = np.zeros(len(self.servers))
        for server in self.servers:
            if server.outstanding:
                first = next(iter(server.outstanding.values())).steps + self.overhead
                done = min((now - server.since) / max(server.seconds_per_step, 1e-9), first)
                seconds[server.number] = (server.steps - done) * server.seconds_per_step
        return seconds

    def backlog(self) -> np.ndarray:
        """Backlogs [B] in Gcycles of the profile's speeds: a server that has become slower has a longer one."""
        return self.backlog_seconds() * self.capacity

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others; `close` cancels it, and its mistakes go to the owner."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.finished)

    def finished(self, task: asyncio.Task) -> None:
        """Tell the owner of what a spawned coroutine raised."""
        self.background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.owner.broken(task.exception())

    async def close(self) -> None:
        """Cancel what runs beside, and end the servers."""
        for task in list(self.background):
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        for server in self.servers:
            if server.handle is not None:
                ray.kill(server.handle)


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


async def as_future(reference: Any) -> Any:
    """What a Ray call returns, once it is there. Raises RayError where it failed."""
    return await reference

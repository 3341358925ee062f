"""The queue of every edge server, in the driver: which task is worked on when, and where.

A server holds the batch that it works on and at most one more, which is sent ahead when the first is about to end; all
else waits here, where it can be cancelled at once and taken over by servers without work. cluster.py adds the processes
of the servers. Start reading at `Queues.settle`.
"""

import asyncio
import dataclasses
import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from dedgeai.configuration import ServerParameters
from dedgeai.tasks import Made, Task
from edge_sim.catalogue import use
from edge_sim.server_profile import DENSITY

PREFETCH_SECONDS = 0.1  # s before the end of a batch at which the next one is sent ahead
SMOOTHING = 0.2  # weight of the last batch in the moving average of a server's speed
CHOICE = 1000  # waiting tasks that a batch is chosen from, the oldest ones
SHORT, PLACES_SECONDS = 100, 0.2  # positions in a queue of more tasks may be so old


@dataclasses.dataclass(eq=False)
class Call:
    """A batch at a server."""

    tasks: list[Task]
    work: float  # in steps
    loading: float = 0.0  # s for which its model is expected to load
    began: float | None = None  # when the server could begin with it; None: it was sent ahead
    step: int = 0  # denoising steps that it is known to have done, and since when
    stepped: float = 0.0


class Server:
    """What the driver knows of one edge server. Its length is the number of its tasks."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.up = False
        self.calls: list[Call] = []  # the first one runs
        self.waiting: OrderedDict[int, Task] = OrderedDict()
        self.work = 0.0  # of those, in steps without overhead
        self.seconds_per_step = 1.0  # a moving average
        self.since = 0.0  # when it last began a batch
        self.handle: Any = None
        self.life: Any = None
        self.asked: Any = None
        self.incarnation, self.process, self.machine = "", 0, ""
        self.starts = 0
        self.resident: list[str] = []  # models of the catalogue that it holds, as it last said
        self.loads, self.load_seconds = 0, 0.0  # of models that it has loaded, and the time that took
        self.loading: float | None = 0.0  # s of loads in its queue; None: they must be counted anew
        self.places: dict[int, tuple[int, float]] = {}  # tasks before each waiting one; steps up to its end
        self.placed: float | None = None  # when that was; None: it must be done anew

    def __len__(self) -> int:
        return len(self.waiting) + sum(len(call.tasks) for call in self.calls)

    def remove(self, number: int) -> Task:
        """Take a waiting task out."""
        task, self.loading = self.waiting.pop(number), None
        self.work = self.work - task.work if self.waiting else 0.0
        return task

    def next_batch(self, most: int) -> list[Task]:
        """Take out the oldest waiting task, and up to most - 1 of its kind: first those of its request."""
        oldest = next(iter(self.waiting.values()))
        choice = itertools.islice(self.waiting.values(), CHOICE if most > 1 else 1)
        alike = [task for task in choice if task.kind == oldest.kind]
        alike.sort(key=lambda task: task.request is None or task.request != oldest.request)
        return [self.remove(task.number) for task in alike[:most]]


class Queues:
    """The queues of all servers, and what they have begun. Who derives from it does `begin` and `stop`.

    `owner` is told what happens to tasks, by the methods that `EdgeSystem` has for it; they do not block.
    """

    def __init__(self, config: ServerParameters, owner: Any) -> None:
        self.config, self.owner = config, owner
        self.servers = [Server(number) for number in range(config.num_servers)]
        self.where: dict[int, Server] = {}  # the server of each task, by its number
        self.paused = False
        self.on_idle: Callable[[], Any] = lambda: None  # called when servers have no work
        # s of a load of each model of the catalogue: their mean so far, else what the catalogue says; and their number
        self.load_time = {entry.name: entry.seconds for entry in config.entries}
        self.loads: Counter[str] = Counter()
        self.calibrate(np.ones(config.num_servers), 0.0)

    def calibrate(self, rates: np.ndarray, overhead: float) -> None:
        """Take up the profile: seconds per step [B], and what a task costs besides its steps, counted in steps."""
        self.rates, self.overhead = rates, overhead
        for server, rate in zip(self.servers, rates.tolist(), strict=True):
            server.seconds_per_step = rate

    def begin(self, server: Server, call: Call) -> None:
        """Have the server work on a batch; `ended` is to be called with what becomes of it."""
        raise NotImplementedError

    def stop(self, server: Server, number: int) -> None:
        """Tell the server that a task that it has was cancelled."""
        raise NotImplementedError

    # --- changes ---

    def send(self, orders: dict[int, list[Task]]) -> None:
        """Put tasks at the ends of servers' queues, by the servers' numbers."""
        for number, tasks in orders.items():
            self.put(self.servers[number], tasks)
        self.settle()

    def put(self, server: Server, tasks: list[Task]) -> None:
        """Put tasks at the end of a server's queue."""
        server.loading = None
        for task in tasks:
            server.waiting[task.number] = task
            server.work += task.work
            self.where[task.number] = server

    def cancel(self, number: int) -> bool:
        """Cancel a task. True: it is gone, as it waited or others of its batch go on; False: the owner is told of its
        end, with which its batch ends."""
        server = self.where.get(number)
        if server is None:
            return False
        if number in server.waiting:
            server.remove(number)
            del self.where[number]
            return True
        self.stop(server, number)
        batch = next(call.tasks for call in server.calls if any(task.number == number for task in call.tasks))
        others = sum(task.number in self.where for task in batch) > 1
        if others:
            del self.where[number]
        return others

    def ended(self, server: Server, call: Call, made: Made, error: str = "") -> None:
        """Take in what became of a batch. It counts once, and not if its tasks were handed back as lost."""
        if call not in server.calls:
            return
        server.calls.remove(call)
        server.resident, server.loading = made.resident, None
        if made.loading:
            model = call.tasks[0].model
            self.loads[model] += 1
            before = self.load_time.get(model, 0.0)
            self.load_time[model] = before + (made.loading - before) / self.loads[model]
            server.loads, server.load_seconds = server.loads + 1, server.load_seconds + made.loading
        if any(made.images):
            measured = (made.seconds * len(call.tasks) - made.loading) / call.work if call.work else 0.0
            server.seconds_per_step += SMOOTHING * (measured - server.seconds_per_step)
        if server.calls:
            self.lead(server, server.calls[0])
        for task, image in zip(call.tasks, made.images, strict=True):
            if self.where.pop(task.number, None) is not None:
                self.owner.made(server.number, task, image, error, made.seconds)
        self.settle()

    def lose(self, server: Server) -> None:
        """Hand back the tasks of a server that died."""
        server.up, server.resident = False, []
        running, *ahead = [call.tasks for call in server.calls] or [[]]
        queued = [*itertools.chain(*ahead), *server.waiting.values()]
        server.calls, server.waiting, server.work, server.loading = [], OrderedDict(), 0.0, 0.0
        running, queued = ([task for task in tasks if task.number in self.where] for tasks in (running, queued))
        for task in (*running, *queued):
            del self.where[task.number]
        self.owner.lost(server.number, running, queued)

    def pause(self, paused: bool) -> None:
        """Begin no batch from now on, or go on."""
        self.paused = paused
        self.settle()

    async def drained(self) -> None:
        """Until no server works any more."""
        while any(server.calls for server in self.servers):
            await asyncio.sleep(0.02)

    # --- what follows from a change ---

    def settle(self) -> None:
        """Have every server work that can; it is called after each change."""
        if self.paused:
            return
        idle = []
        for server in self.servers:
            if server.up:
                self.feed(server)
                if not server.calls:
                    idle.append(server)
        if idle:
            self.on_idle()
        idle.sort(key=lambda server: -server.seconds_per_step)
        while self.config.rebalance and idle and (busy := [server for server in self.servers if server.waiting]):
            self.take_over(idle.pop(), max(busy, key=self.seconds))

    def feed(self, server: Server) -> None:
        """Begin a batch if the server has none, and another if that one is about to end."""
        while server.waiting and (not server.calls or self.about_to_end(server)):
            tasks = server.next_batch(self.config.batch_size)
            call = Call(tasks, sum(task.work + self.overhead for task in tasks), *self.load_times(server, tasks[:1]))
            server.calls.append(call)
            if len(server.calls) == 1:
                self.lead(server, call)
            self.owner.started(server.number, tasks)
            self.begin(server, call)

    def about_to_end(self, server: Server) -> bool:
        """Whether the server's only batch ends so soon that the next one is to be sent ahead."""
        return len(server.calls) == 1 and self.left(server, server.calls[0]) <= PREFETCH_SECONDS

    def lead(self, server: Server, call: Call) -> None:
        """Note that a batch runs from now on, and settle again when it is about to end, a moment later for sure."""
        call.began = call.stepped = server.since = time.monotonic()
        delay = self.left(server, call) - PREFETCH_SECONDS
        asyncio.get_running_loop().call_later(max(0.0, delay) + 0.001, self.settle)

    def take_over(self, idle: Server, busy: Server) -> None:
        """Move the end of a queue to a server without work, in order, so that both are done as soon as possible.

        Where both are equally fast, it is the second half of what is left, by time.
        """
        left, taken, tasks = self.seconds(busy), 0.0, []
        loads = self.load_times(idle, reversed(busy.waiting.values()))
        for task, load in zip(reversed(busy.waiting.values()), loads, strict=True):
            work = task.work + self.overhead
            taken += work * idle.seconds_per_step + load
            if taken > left:
                break
            left -= work * busy.seconds_per_step
            tasks.append(task)
        if tasks:
            tasks = [busy.remove(task.number) for task in tasks][::-1]
            idle.placed = None
            self.put(idle, tasks)
            self.owner.moved(idle.number, tasks)
            self.feed(idle)

    # --- how long it takes ---

    def left(self, server: Server, call: Call) -> float:
        """Seconds until a batch is done, once the one before it is; the longer it is overdue, the more."""
        passed = 0.0 if call.began is None else time.monotonic() - call.stepped
        loading = 0.0 if call.step else call.loading
        return abs(loading + call.work * (1 - call.step / call.tasks[0].steps) * server.seconds_per_step - passed)

    def load_times(self, server: Server, tasks: Iterable[Task]) -> Iterator[float]:
        """Seconds that each of the tasks which follow a server's batches will wait for its model to be loaded."""
        resident, most = [*server.resident], self.config.resident_models
        for call in server.calls if self.load_time else ():
            use(resident, call.tasks[0].model, most)
        for task in tasks:
            loads = bool(self.load_time) and use(resident, task.model, most)
            yield self.load_time.get(task.model, 0.0) if loads else 0.0

    def seconds(self, server: Server) -> float:
        """Seconds until a server has done all that it has, at the speed of its last batches."""
        if server.loading is None:
            server.loading = sum(self.load_times(server, server.waiting.values())) if self.load_time else 0.0
        waiting = (server.work + self.overhead * len(server.waiting)) * server.seconds_per_step + server.loading
        return waiting + sum(self.left(server, call) for call in server.calls)

    def backlog_seconds(self) -> np.ndarray:
        """Seconds [B] until each server has done all that it has."""
        return np.array([self.seconds(server) for server in self.servers])

    def backlog(self) -> np.ndarray:
        """Backlogs [B] in Gcycles of the profile's speeds: a server that has become slower has a longer one."""
        return self.backlog_seconds() * DENSITY / self.rates

    def place(self, number: int) -> tuple[int, float] | None:
        """Tasks before one at its server, 0 for those that run, and seconds until it is done. None: it is at none."""
        server = self.where.get(number)
        if server is None:
            return None
        ahead, seconds = 0, 0.0
        for call in server.calls:
            seconds += self.left(server, call)
            if number not in server.waiting and any(task.number == number for task in call.tasks):
                return ahead, seconds
            ahead += len(call.tasks)
        if server.placed is None or len(server.waiting) < SHORT or time.monotonic() > server.placed + PLACES_SECONDS:
            loads = zip(server.waiting.values(), self.load_times(server, server.waiting.values()), strict=True)
            rate = server.seconds_per_step
            works = itertools.accumulate(task.work + self.overhead + load / rate for task, load in loads)
            server.places = dict(zip(server.waiting, enumerate(works), strict=True))
            server.placed = time.monotonic()
        if number not in server.places:  # it came last
            return len(server) - 1, self.seconds(server)
        before, work = server.places[number]
        return ahead + before, seconds + work * server.seconds_per_step

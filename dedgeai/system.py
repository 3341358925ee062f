"""The edge system: base stations that take tasks in, the dispatcher, the cluster, the journal, and every task's record.

Tasks come in groups, are cut into rounds, and each round is decided and sent at once. Every task that was accepted ends
as done, with its image on disk, or as failed, with a reason. Start reading at `EdgeSystem.dispatch`.
"""

import asyncio
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.run_folder import replace_file
from dedgeai.cluster import Cluster
from dedgeai.dispatcher import Backlog, Dispatcher
from dedgeai.edge_server import ComputeOptions
from dedgeai.journal import Journal
from dedgeai.options import ClusterOptions, SystemOptions
from dedgeai.records import DONE, FAILED, OUTCOME, SENT, WAITING, Record
from dedgeai.server_profile import Profile
from dedgeai.task_stream import rounds
from dedgeai.tasks import Result, Task

QUEUE_SAMPLE_SECONDS = 0.2
SAMPLES_KEPT = 100_000  # of dispatching times and queue lengths, the last ones


def write_durably(path: Path, content: bytes) -> None:
    """A file that is whole on the disk when this returns."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write)


class EdgeSystem:
    """Everything of a run but its parameters and its tasks. `start` it, `submit` groups of tasks, `close` it."""

    def __init__(self, cluster: ClusterOptions, compute: ComputeOptions, options: SystemOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.cluster = Cluster(cluster, compute, self)
        self.journal = Journal(folder / "journal.jsonl")
        self.records: dict[int, Record] = {}
        self.left = 0  # tasks that are neither done nor failed
        self.counts = {DONE: 0, FAILED: 0}
        self.groups: deque[tuple[float, list[Task]]] = deque()
        self.stopping = False
        self.wake, self.progress = asyncio.Event(), asyncio.Event()
        self.origin = time.monotonic()
        # from taking a round up to sending it: seconds, and tasks
        self.dispatch_seconds: deque[tuple[float, int]] = deque(maxlen=SAMPLES_KEPT)
        self.queues: deque[tuple[float, list[int]]] = deque(maxlen=SAMPLES_KEPT)
        self.moved_tasks = 0
        self.error: BaseException | None = None
        self.on_error: Callable[[], Any] = lambda: None
        self.seen: set[int] = set()  # tasks with a result that is being stored
        self.dispatcher: Dispatcher | None = None
        self.open: dict[int, tuple[float, list[Record]]] = {}  # rounds to learn from, and when they were decided
        self.next_lesson = 0

    def now(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self.origin

    async def start(self) -> None:
        """Start the edge servers. Raises ParameterError when one cannot load its generator."""
        await self.cluster.start()

    async def schedule_with(self, dispatcher: Dispatcher, profile: Profile) -> None:
        """From now on tasks are taken, and scheduled by this dispatcher for servers of this profile."""
        (self.folder / "images").mkdir(exist_ok=True)
        self.dispatcher, self.profile = dispatcher, profile
        await self.cluster.calibrate(profile.seconds_per_step, profile.overhead)
        self.cluster.spawn(self.dispatch())
        self.cluster.spawn(self.sample())
        self.restart_clock()

    def restart_clock(self) -> None:
        """Times of the records count from now on; only while nothing is under way."""
        self.origin = time.monotonic()
        self.nominal = Backlog(self.profile)

    async def close(self) -> None:
        """End the edge servers, whatever they are doing."""
        await self.cluster.close()

    # --- tasks come in ---

    async def submit(self, tasks: Sequence[Task], arrived: Sequence[float] | None = None, slot: float = 0.0) -> None:
        """Accept a group of tasks: when this returns, they are in the journal and will be finished.

        `arrived` are their times of arrival, by default now; `slot` is the time that the profile's backlogs go by.
        """
        entries = [{"event": "submitted", **dataclasses.asdict(task)} for task in tasks]
        now = self.now()
        for i, task in enumerate(tasks):
            self.records[task.number] = Record(task, submitted=now if arrived is None else arrived[i])
        self.left += len(tasks)
        try:
            await self.journal.write(*entries)
        except OSError:
            for task in tasks:
                del self.records[task.number]
            self.left -= len(tasks)
            raise
        self.groups.append((slot, list(tasks)))
        self.wake.set()

    def recall(self, task: Task, entry: dict[str, Any]) -> None:
        """Take in what the journal says of a task that an earlier process finished."""
        self.counts[entry["event"]] += 1
        values = {name: entry[name] for name in OUTCOME}
        self.records[task.number] = Record(task, state=entry["event"], recalled=True, **values)

    async def wait(self) -> None:
        """Until all tasks are done or have failed. Raises what went wrong in this program itself."""
        while True:
            self.progress.clear()
            if self.error is not None:
                raise self.error
            if not self.left:
                return
            await self.progress.wait()

    # --- and are dispatched ---

    async def dispatch(self) -> None:
        """Decide and send round after round, for ever."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.groups and any(server.up for server in self.cluster.servers):
                slot, tasks = self.groups.popleft()
                for part in rounds(np.array([task.base_station for task in tasks]), self.dispatcher.ready.num_tasks):
                    if self.stopping:
                        return
                    self.send_round(slot, [tasks[i] for i in part])
                    await asyncio.sleep(0)

    def send_round(self, slot: float, tasks: list[Task]) -> None:
        """Decide a round's tasks and hand them to the servers."""
        began = time.perf_counter()
        base_station = np.array([task.base_station for task in tasks])
        work = self.profile.workload(np.array([task.steps for task in tasks]))
        seen = self.nominal.at(slot) if self.options.by_profile else self.cluster.backlog()
        number = self.dispatcher.round
        chosen = self.dispatcher.decide(base_station, work, np.array([task.size for task in tasks]), seen)
        self.nominal.add(chosen, work)
        now, orders = self.now(), {}
        if self.options.learn:
            self.open[number] = (now, [self.records[task.number] for task in tasks])
        for task, server in zip(tasks, chosen.tolist(), strict=True):
            record = self.records[task.number]
            if record.decided is None:
                record.round, record.decided = number, server
            record.server = self.living(server)
            record.state, record.sent = SENT, now
            orders.setdefault(record.server, []).append(task)
        for server, part in orders.items():
            self.cluster.send(server, part)
        self.dispatch_seconds.append((time.perf_counter() - began, len(tasks)))

    def living(self, server: int) -> int:
        """The server, or while it is down the one with the least backlog of those that are up."""
        servers = self.cluster.servers
        if servers[server].up or not any(other.up for other in servers):
            return server
        seconds = self.cluster.backlog_seconds()
        return min((other.number for other in servers if other.up), key=lambda number: seconds[number])

    # --- what the cluster tells ---

    def results(self, server: int, results: list[Result]) -> None:
        """Have the results of tasks stored that have none yet."""
        now = self.now()
        for result in results:
            record = self.records.get(result.number)
            if record is not None and not record.final and result.number not in self.seen:
                self.seen.add(result.number)
                record.server, record.finished = server, now
                self.cluster.spawn(self.store(record, result))

    async def store(self, record: Record, result: Result) -> None:
        """Write the image, then the journal, then say that the task is done."""
        error = result.error
        try:
            if not error:
                name = f"{record.task.number:06d}.png"
                await asyncio.to_thread(write_durably, self.folder / "images" / name, result.image)
                record.image = name
        except OSError as problem:
            error = f"its image could not be written ({problem.strerror or problem})"
        try:
            await self.conclude(record, FAILED if error else DONE, error)
        finally:
            self.seen.discard(record.task.number)

    async def conclude(self, record: Record, state: str, error: str = "") -> None:
        """Write how a task ended into the journal, then say so. Raises OSError when it cannot be written."""
        record.error = error
        outcome = {name: getattr(record, name) for name in OUTCOME}
        await self.journal.write({"event": state, "number": record.task.number, **outcome})
        record.state = state
        self.left -= 1
        self.counts[state] += 1
        self.learn()
        self.progress.set()

    def learn(self) -> None:
        """Let the scheduler learn from rounds whose tasks are all finished, in order."""
        while self.next_lesson + 1 in self.open and all(record.final for record in self.open[self.next_lesson][1]):
            decided, records = self.open.pop(self.next_lesson)
            self.dispatcher.learn_from(self.next_lesson, np.array([record.finished - decided for record in records]))
            self.next_lesson += 1

    def lost(self, server: int, running: list[Task], queued: list[Task]) -> None:
        """Have a dead server's tasks scheduled again, but for those that too many servers died on."""
        again = []
        for task in (*running, *queued):
            record = self.records[task.number]
            record.attempts += task in running
            if record.attempts < self.options.attempts:
                record.state = WAITING
                again.append(task)
            else:
                record.finished = self.now()
                reason = f"{record.attempts} edge servers died while working on it"
                self.cluster.spawn(self.conclude(record, FAILED, reason))
        if again:
            self.groups.append((self.nominal.now, again))
            self.wake.set()

    def moved(self, server: int, tasks: list[Task]) -> None:
        """Note which server has tasks that an idle one took over."""
        now = self.now()
        self.moved_tasks += len(tasks)
        for task in tasks:
            record = self.records[task.number]
            record.server, record.sent, record.moves = server, now, record.moves + 1

    def joined(self, server: int) -> None:
        """Go on with tasks that waited for a server."""
        self.wake.set()

    def broken(self, error: BaseException) -> None:
        """Stop waiting: `wait` raises this mistake of the program's own."""
        self.error = error
        self.progress.set()
        self.on_error()

    async def sample(self) -> None:
        """Note the queues' lengths while there is work."""
        begun = time.monotonic()  # `now` starts anew with every run
        while True:
            if self.left:
                self.queues.append(
                    (time.monotonic() - begun, [len(server.outstanding) for server in self.cluster.servers])
                )
            await asyncio.sleep(QUEUE_SAMPLE_SECONDS)

    # --- ends ---

    async def cancel_queued(self) -> None:
        """Take back what has not begun and wait for what runs, so that a later start has the rest to do."""
        self.stopping = True
        self.cluster.options = dataclasses.replace(self.cluster.options, rebalance=False)
        await asyncio.gather(*(self.cluster.withdraw_all(server) for server in self.cluster.servers if server.up))
        while any(server.up and server.outstanding for server in self.cluster.servers) or self.seen:
            await asyncio.sleep(0.05)

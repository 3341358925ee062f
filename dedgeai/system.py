"""The edge system: takes tasks in, has them decided and made, and keeps the record of each.

Tasks are accepted once they are in the record. Every task that was accepted ends
as done, with its image on disk, as failed, with a reason, or as cancelled. Start reading at `EdgeSystem.submit`.
"""

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dedgeai.archive import RETRY_SECONDS, Archive
from dedgeai.cluster import Cluster
from dedgeai.configuration import DedgeParameters
from dedgeai.deciding import Rounds
from dedgeai.edge_server import OpenCompute
from dedgeai.records import CANCELLED, DONE, FAILED, RUNNING, WAITING, Record
from dedgeai.store import Store
from dedgeai.tasks import Task
from edge_sim.dispatcher import Dispatcher
from edge_sim.server_profile import Profile

QUEUE_SAMPLE_SECONDS = 0.2


class EdgeSystem:
    """Everything of a run but its tasks. Start its cluster, `schedule_with` a dispatcher, `submit` tasks, `close`."""

    def __init__(self, config: DedgeParameters, compute: OpenCompute, folder: Path, store: Store) -> None:
        self.config, self.folder, self.store = config, folder, store
        self.cluster = Cluster(config, compute, self)
        self.archive = Archive(folder, store, self.pause)
        self.records: dict[int, Record] = {}  # of unfinished tasks
        self.watchers: list[Callable[[Record], Any]] = []  # told of every change of a record
        self.rounds = Rounds(config, self.cluster, self.now, self.tell)
        self.ended = asyncio.Event()
        self.stopping = False
        self.origin = time.monotonic()
        self.queues: deque[tuple[float, list[int]]] = deque(maxlen=100_000)  # lengths over time, of a run
        self.moved_tasks = 0
        self.error: BaseException | None = None
        self.on_error: Callable[[], Any] = lambda: None

    @property
    def left(self) -> int:
        """Unfinished tasks."""
        return len(self.records)

    @property
    def trouble(self) -> str:
        """Why nothing can be written to disk at present, in words; servers begin nothing meanwhile."""
        return self.archive.trouble

    def now(self) -> float:
        """Seconds since the clock was started."""
        return time.monotonic() - self.origin

    def schedule_with(self, dispatcher: Dispatcher, profile: Profile) -> None:
        """From now on tasks are taken, and scheduled by this dispatcher for servers of this profile."""
        self.cluster.calibrate(profile.seconds_per_step, profile.overhead)
        self.start_anew(dispatcher, profile)
        for work in (self.rounds.decide_all(), self.archive.watch()):
            self.cluster.spawn(work)
        if not self.config.serve:
            self.cluster.spawn(self.sample())

    def start_anew(self, dispatcher: Dispatcher, profile: Profile) -> None:
        """Times of the records count from now on, and this dispatcher decides; only while nothing is under way."""
        self.origin, self.dispatcher, self.profile = time.monotonic(), dispatcher, profile
        self.rounds.begin(dispatcher, profile)

    # --- tasks come in ---

    async def submit(
        self,
        tasks: Sequence[Task],
        arrived: Sequence[float] | None = None,
        slot: float | None = None,
        key: str = "",
        digest: str = "",
    ) -> list[Record]:
        """Accept tasks: when this returns, they are in the record and will be finished. Raises StoreError.

        `arrived` are their times of arrival, by default now; for `slot` see `Rounds.take`. `key` and `digest` are the
        request's idempotency key and what it asked for.
        """
        wall, now = time.time(), self.now()
        times = [now] * len(tasks) if arrived is None else arrived
        records = [Record(task, wall, submitted) for task, submitted in zip(tasks, times, strict=True)]
        self.records |= {record.task.number: record for record in records}
        try:
            await self.store.add(records, key, digest)
        except OSError:
            for record in records:
                self.records.pop(record.task.number, None)  # it may be cancelled already
            raise
        self.take(slot, records, store=False)
        return records

    def recall(self) -> int:
        """Take up what an earlier process left, as if it had just come; returns how many tasks. Delays go on."""
        records, servers = self.store.unfinished(), len(self.cluster.servers)
        models = [entry.name for entry in self.config.entries] or [""]
        for record in records:
            station, model = record.task.base_station % servers, record.task.model or models[0]
            record.submitted = self.now() - max(0.0, time.time() - record.accepted_at)
            record.task = dataclasses.replace(record.task, base_station=station, model=model)
        self.records |= {record.task.number: record for record in records}
        for record in records:
            if record.task.model not in models:
                self.conclude(record, FAILED, f"its model {record.task.model} is no longer in the catalogue")
        self.take(None, [record for record in records if record.finished is None])
        return len(records)

    def take(self, slot: float | None, records: list[Record], store: bool = True) -> None:
        """Have records decided; without `store` the record on disk says already that they wait."""
        self.rounds.take(slot, records)
        self.tell(records, store)

    # --- what the cluster tells ---

    def started(self, server: int, tasks: list[Task]) -> None:
        """Note what a server was told to work on."""
        records = [self.records[task.number] for task in tasks]
        for record in records:
            record.state, record.started, record.step = RUNNING, self.now(), 0
        self.tell(records)

    def progress(self, steps: dict[int, int]) -> None:
        """Note denoising steps that are done, by task number; about 4 times a second."""
        for number, step in steps.items():
            record = self.records.get(number)
            if record is not None and record.finished is None and record.step != step:
                record.step = step
                self.tell([record], store=False)

    def made(self, server: int, task: Task, image: bytes | None, error: str, seconds: float) -> None:
        """Have a task's image stored, or why there is none; neither where it was cancelled.

        Each task comes once, but for those that the cluster's `cancel` has said are gone. The first result counts.
        """
        record = self.records.get(task.number)
        if record is not None and record.finished is None:
            record.server = server
            self.conclude(record, DONE if image is not None else FAILED if error else CANCELLED, error, image)

    def lost(self, server: int, running: list[Task], queued: list[Task]) -> None:
        """Have the tasks of a server that died, those that it worked on and the others, scheduled again.

        Those that too many servers died on fail.
        """
        print(f"edge server {server} died; it is started again, and others get its tasks", flush=True)
        again, hit = [], {task.number for task in running}
        for task in (*running, *queued):
            record = self.records[task.number]
            record.attempts += task.number in hit
            if record.cancelling:
                self.conclude(record, CANCELLED)
            elif record.attempts < self.config.attempts:
                record.state, record.started, record.step = WAITING, None, 0
                again.append(record)
            else:
                self.conclude(record, FAILED, f"{record.attempts} edge servers died while working on it")
        if again:
            self.take(self.rounds.nominal.now, again)

    def moved(self, server: int, tasks: list[Task]) -> None:
        """Note which server has tasks that an idle one took over."""
        self.moved_tasks += len(tasks)
        records = [self.records[task.number] for task in tasks]
        for record in records:
            record.server, record.sent, record.moves = server, self.now(), record.moves + 1
        self.tell(records)

    def joined(self, server: int) -> None:
        """Go on with tasks that waited for a server."""
        print(f"edge server {server} works again", flush=True)
        self.rounds.wake.set()

    def broken(self, error: BaseException) -> None:
        """Stop waiting: `finished` raises this mistake of the program's own."""
        self.error = error
        self.change()
        self.on_error()

    # --- how tasks end ---

    async def cancel(self, number: int) -> Record:
        """End an unfinished task: at once if no server works on it, else at its next step."""
        record = self.records[number]
        if record.finished is None and not record.cancelling:
            record.cancelling = True
            if record.state == WAITING or self.cluster.cancel(number):
                await asyncio.wait([self.conclude(record, CANCELLED)], timeout=RETRY_SECONDS)
            if record.cancelling:  # at its next step, or once that can be stored
                self.tell([record], store=False)
        return record

    def conclude(self, record: Record, state: str, error: str = "", image: bytes | None = None) -> asyncio.Task:
        """Say how a task ends; the returned work ends when that is stored."""
        record.finished, record.finished_at, record.error = self.now(), time.time(), error
        return self.cluster.spawn(self.store_end(record, state, image))

    async def store_end(self, record: Record, state: str, image: bytes | None) -> None:
        """Have the end of a task stored, then say that it has ended."""
        await self.archive.keep(record, state, image)
        record.cancelling = False
        self.records.pop(record.task.number, None)
        self.tell([record], store=False)
        self.change()
        self.rounds.learn()

    # --- who wants to know ---

    def find(self, number: int) -> Record | None:
        """What is known of a task."""
        return self.records.get(number) or self.store.get(number)

    def place(self, record: Record) -> tuple[int | None, float | None]:
        """Tasks before an unfinished one at its server, None where it is at none; and the seconds until it is done."""
        if record.finished is not None:
            return None, None
        if found := self.cluster.place(record.task.number):
            return found
        rate = self.cluster.servers[0].seconds_per_step
        return None, float(self.cluster.backlog_seconds().min()) + rate * (record.task.work + self.cluster.overhead)

    async def finished(self, numbers: Iterable[int] | None = None) -> None:
        """Until these tasks, or all, have ended. Raises what went wrong in this program itself."""
        wanted = None if numbers is None else set(numbers)
        while True:
            if self.error is not None:
                raise self.error
            if not self.records or (wanted is not None and wanted.isdisjoint(self.records)):
                return
            await self.ended.wait()

    def tell(self, records: Iterable[Record], store: bool = True) -> None:
        """Tell the watchers of changed records, and with `store` the record on disk."""
        for record in records:
            if store:
                self.store.note(record)
            for watcher in self.watchers:
                watcher(record)

    def change(self) -> None:
        """Wake who waits for the end of tasks."""
        self.ended.set()
        self.ended = asyncio.Event()

    async def sample(self) -> None:
        """Note the queues' lengths while there is work."""
        begun = time.monotonic()  # `now` starts anew with every number of tasks
        while True:
            if self.left:
                self.queues.append((time.monotonic() - begun, [len(server) for server in self.cluster.servers]))
            await asyncio.sleep(QUEUE_SAMPLE_SECONDS)

    # --- ends ---

    def pause(self) -> None:
        """Let servers begin nothing while nothing can be stored, or while this stops."""
        self.cluster.pause(self.stopping or bool(self.trouble))

    async def stop(self) -> None:
        """Let what runs end, and begin nothing, so that a later start has the rest to do."""
        self.stopping = self.rounds.stopped = True
        self.pause()
        await self.cluster.drained()
        while any(record.finished is not None for record in self.records.values()) and not self.trouble:
            await self.ended.wait()

    async def close(self) -> None:
        """End the edge servers, whatever they are doing, and close the record."""
        await self.cluster.close()
        await self.store.close()

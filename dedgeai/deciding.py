"""Rounds: tasks that were accepted are decided together, and handed to the servers' queues.

Start reading at `Rounds.decide_all`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from dedgeai.cluster import Cluster
from dedgeai.configuration import DedgeParameters
from dedgeai.records import QUEUED, Record
from edge_sim.dispatcher import CHOICE, Backlog, Dispatcher
from edge_sim.server_profile import Profile
from edge_sim.servers import Asked, Known, Servers
from edge_sim.task_stream import input_mbit, rounds

REST, REST_SECONDS = 3, 0.01  # of deciding's time, and at most: how long tasks then come together for the next round


class Rounds:
    """Has a dispatcher decide what `take` was given, for servers of a profile, one round after another.

    `now` is the system's clock, and `sent` is told of the records that have gone to servers. With --learn the
    dispatcher learns from each round when all its tasks have ended, which `learn` looks for.
    """

    def __init__(
        self, config: DedgeParameters, cluster: Cluster, now: Callable[[], float], sent: Callable[[list[Record]], Any]
    ) -> None:
        self.config, self.cluster, self.now, self.sent = config, cluster, now, sent
        self.groups: deque[tuple[float | None, list[Record]]] = deque()
        self.numbers = {entry.name: number for number, entry in enumerate(config.entries)}  # of models
        self.held: list[list[Record]] = []  # chunks that the scheduler holds back
        self.waited: set[int] = set()  # numbers of the first tasks of those that it has held back before
        cluster.on_idle = self.again
        self.wake = asyncio.Event()
        self.stopped = False
        # from taking up a round to sending it: seconds, and tasks
        self.seconds: deque[tuple[float, int]] = deque(maxlen=1000 if config.serve else 100_000)
        self.timed: Callable[[float], Any] = lambda seconds: None  # told of each of these seconds
        # rounds to learn from: when they were decided, and the tasks of each decision
        self.lessons: dict[int, tuple[float, list[list[Record]]]] = {}

    def begin(self, dispatcher: Dispatcher, profile: Profile) -> None:
        """From now on this dispatcher decides."""
        self.dispatcher, self.profile, self.nominal = dispatcher, profile, Backlog(profile)
        if dispatcher.ready.knows_models:
            self.planned = Servers(profile, dispatcher.ready.scheduler.models)

    def take(self, slot: float | None, records: list[Record]) -> None:
        """Put records at the end of what is to be decided.

        `slot` is the time that the profile's backlogs go by, for tasks that make rounds of their own; others are
        decided together with what else has come meanwhile.
        """
        if slot is None and self.groups and self.groups[-1][0] is None:
            self.groups[-1][1].extend(records)
        else:
            self.groups.append((slot, list(records)))
        self.wake.set()

    def again(self) -> None:
        """Have decided again what the scheduler holds back."""
        if self.held and not self.groups:
            self.take(None, [])

    @property
    def can_decide(self) -> bool:
        """Whether a server is up, or tasks that find none are held back."""
        return self.dispatcher.ready.holds_back or any(server.up for server in self.cluster.servers)

    async def decide_all(self) -> None:
        """Decide and send round after round, for ever."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.groups and not self.stopped and self.can_decide:
                slot, records = self.groups.popleft()
                chunks = self.chunks(records)
                if self.dispatcher.ready.holds_back:
                    chunks = self.with_held(chunks)
                stations = np.array([chunk[0].task.base_station for chunk in chunks], dtype=np.int64)
                rest = 0.0
                for part in rounds(stations, self.dispatcher.ready.num_tasks):
                    began = time.perf_counter()
                    self.send_round(self.now() if slot is None else slot, [chunks[i] for i in part])
                    rest += REST * (time.perf_counter() - began)
                    await asyncio.sleep(0)
                if slot is None:
                    await asyncio.sleep(min(rest, REST_SECONDS))

    def chunks(self, records: list[Record]) -> list[list[Record]]:
        """What is decided together: images of one request that fit into a batch; else each task alone."""
        found: list[list[Record]] = []
        for record in records:
            request = record.task.request
            together = found and request is not None and found[-1][0].task.request == request
            if together and len(found[-1]) < self.config.batch_size:
                found[-1].append(record)
            else:
                found.append([record])
        return found

    def send_round(self, slot: float, chunks: list[list[Record]]) -> None:
        """Decide the server of each chunk, and hand their tasks to the servers."""
        chunks = [[record for record in chunk if record.finished is None] for chunk in chunks]  # not cancelled
        if not (chunks := [chunk for chunk in chunks if chunk]):
            return
        began = time.perf_counter()
        station = np.array([chunk[0].task.base_station for chunk in chunks])
        work = np.array([self.profile.workload([record.task.work for record in chunk]).sum() for chunk in chunks])
        number, by_profile, nominal = self.dispatcher.round, self.config.backlog == "profile", self.nominal.at(slot)
        if self.dispatcher.ready.knows_models:
            asked = self.asked(chunks)
            known = self.planned.known(slot) if by_profile else self.known()
            chosen = self.dispatcher.decide_knowing(station, asked, known)
            if by_profile:
                self.planned.send(chosen, slot, asked)
            chunks, chosen, work = self.hold_back(chunks, chosen, work)
        else:
            size = np.array([input_mbit(chunk[0].task.prompt) for chunk in chunks])
            chosen = self.dispatcher.decide(station, work, size, nominal if by_profile else self.cluster.backlog())
        self.nominal.add(chosen, work)
        now, orders = self.now(), {}
        if self.config.learn:
            self.lessons[number] = (now, chunks)
        for chunk, server in zip(chunks, chosen.tolist(), strict=True):
            goes_to = self.living(server)
            for record in chunk:
                if record.decided is None:
                    record.round, record.decided = number, server
                record.state, record.server, record.sent = QUEUED, goes_to, now
                orders.setdefault(goes_to, []).append(record.task)
        self.cluster.send(orders)
        self.sent([record for chunk in chunks for record in chunk if record.state == QUEUED])  # the others have begun
        seconds = time.perf_counter() - began
        self.seconds.append((seconds, sum(map(len, chunks))))
        self.timed(seconds)

    def with_held(self, chunks: list[list[Record]]) -> list[list[Record]]:
        """The oldest ones of these chunks and those that are held back, which are to be decided now."""
        self.waited = {chunk[0].task.number for chunk in self.held}
        left = [chunk for chunk in [*self.held, *chunks] if any(record.finished is None for record in chunk)]
        left.sort(key=lambda chunk: chunk[0].submitted)
        self.held = left[CHOICE:]
        return left[:CHOICE]

    def hold_back(
        self, chunks: list[list[Record]], chosen: np.ndarray, work: np.ndarray
    ) -> tuple[list[list[Record]], np.ndarray, np.ndarray]:
        """Keep the chunks that are to wait; returns the others, their servers and their work, each [K]."""
        self.held = [*(chunks[i] for i in np.flatnonzero(chosen < 0)), *self.held]
        sent = np.flatnonzero(chosen >= 0)
        return [chunks[i] for i in sent], chosen[sent], work[sent]

    def asked(self, chunks: list[list[Record]]) -> Asked:
        """What a scheduler that knows models is told of chunks."""
        firsts, overhead = [chunk[0] for chunk in chunks], self.profile.overhead
        return Asked(
            np.array([sum(record.task.work + overhead for record in chunk) for chunk in chunks]),
            np.array([self.numbers.get(first.task.model, 0) for first in firsts]),
            np.array([first.task.user for first in firsts], dtype=object),
            np.array([first.decided is not None or first.task.number in self.waited for first in firsts]),
        )

    def known(self) -> Known:
        """What such a scheduler is told of the servers."""
        cluster, most, planned = self.cluster, self.config.resident_models, []
        for server in cluster.servers:
            held = [self.numbers.get(name, 0) for name in cluster.planned(server)] if self.numbers else [0]
            planned.append((held + [-1] * most)[:most])
        return Known(
            cluster.backlog_seconds(),
            np.array([len(server) for server in cluster.servers]),
            np.array(planned),
            np.array([server.up for server in cluster.servers]),
            np.array([*cluster.load_time.values()] or [0.0]),
        )

    def living(self, server: int) -> int:
        """The server, or while it is down the one with the least backlog of those that are up."""
        servers = self.cluster.servers
        if servers[server].up or not any(other.up for other in servers):
            return server
        seconds = self.cluster.backlog_seconds()
        return min((other.number for other in servers if other.up), key=lambda number: seconds[number])

    def learn(self) -> None:
        """Let the dispatcher learn from rounds whose tasks have all ended, in order."""
        while self.lessons and next(iter(self.lessons)) + 1 in self.lessons:
            number, (decided, chunks) = next(iter(self.lessons.items()))
            if not all(record.final for chunk in chunks for record in chunk):
                return
            del self.lessons[number]
            ends = [max(record.finished for record in chunk) for chunk in chunks]
            self.dispatcher.learn_from(number, np.array(ends) - decided)

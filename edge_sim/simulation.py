"""The edge system on a virtual clock: the same dispatcher, servers that are numbers, up to millions of tasks.

Each server works on its tasks in the order in which they were sent, so a slot's delays are running sums. Start reading
at `simulate`.
"""

import dataclasses

import numpy as np

from common.progress import Progress
from common.random_streams import Stream, random_generator
from edge_sim.dispatcher import Backlog, Dispatcher
from edge_sim.server_profile import Profile
from edge_sim.task_stream import TaskStream, rounds


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What became of K tasks: server [K], start, finish and delay [K] in s; and of the queues.

    `queue_time` [M] in s and `queue_length` [M, 3] hold the mean, 95th percentile and maximum over the servers of the
    number of tasks that wait or run when slot m is to be scheduled.
    """

    server: np.ndarray
    start: np.ndarray
    finish: np.ndarray
    delay: np.ndarray
    queue_time: np.ndarray
    queue_length: np.ndarray


def first_in_first_out(
    server: np.ndarray, now: float, seconds: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Start and finish [K] of tasks that are sent to servers at one time, in order, and take `seconds` [K].

    free [B] is when each server has done what it had before; it is brought up to date.
    """
    order = np.argsort(server, kind="stable")
    chosen, total = server[order], seconds[order].cumsum()
    first = np.flatnonzero(np.diff(chosen, prepend=-1))
    before = np.repeat(np.where(first > 0, total[first - 1], 0.0), np.diff(first, append=chosen.size))
    finish = np.empty(server.size)
    finish[order] = np.maximum(free[chosen], now) + (total - before)
    np.maximum.at(free, server, finish)
    return finish - seconds, finish


def simulate(
    dispatcher: Dispatcher,
    profile: Profile,
    stream: TaskStream,
    link_rate: float,
    seed: int,
    by_profile: bool = False,
    progress: bool = True,
) -> Simulated:
    """Schedule and serve all tasks of a stream. Service times vary by the profile's spread, seeded.

    `link_rate` is v in Mbit/s, by which inputs and images travel. Raises ParameterError when a scheduler of the user's
    own chooses a server that there is not.

    The dispatcher sees the simulated backlogs, or with `by_profile` those that the profile says, which a live run with
    the same tasks sees as well.
    """
    ready, count = dispatcher.ready, len(stream)
    noise = random_generator(Stream.EDGE_DURATIONS, seed).standard_normal(count)
    work, free = profile.workload(stream.steps), np.zeros(profile.servers)
    server = np.empty(count, dtype=np.int64)
    start, finish = np.empty(count), np.empty(count)
    nominal, queues = Backlog(profile), QueueLengths(profile.servers)
    with Progress(total=count, unit="task", unit_scale=True, desc=ready.name, disable=not progress) as bar:
        for now, tasks in stream.slots(ready.slot_seconds):
            queues.record(now)
            for part in rounds(stream.base_station[tasks], ready.num_tasks):
                ids = tasks[part]
                seen = nominal.at(now) if by_profile else np.maximum(free - now, 0) * profile.capacity
                chosen = dispatcher.decide(stream.base_station[ids], work[ids], stream.size[ids], seen)
                nominal.add(chosen, work[ids])
                spread = profile.spread[chosen]
                factor = np.exp(spread * noise[ids] - spread**2 / 2)  # of mean 1
                seconds = profile.seconds(chosen, stream.steps[ids]) * factor
                server[ids] = chosen
                start[ids], finish[ids] = first_in_first_out(chosen, now, seconds, free)
                queues.add(chosen, finish[ids])
                bar.update(ids.size)
    upload = (server != stream.base_station) * stream.size
    delay = finish - stream.time + (upload + profile.result_mbit) / link_rate
    return Simulated(server, start, finish, delay, np.array(queues.time), np.array(queues.length).reshape(-1, 3))


class QueueLengths:
    """How many tasks every server has when a slot begins."""

    def __init__(self, servers: int) -> None:
        self.count = np.zeros(servers, dtype=np.int64)
        self.server, self.finish = np.empty(0, dtype=np.int64), np.empty(0)
        self.time: list[float] = []
        self.length: list[tuple[float, float, float]] = []

    def add(self, server: np.ndarray, finish: np.ndarray) -> None:
        """Take in tasks that are sent now: their servers [K] and when they are done [K] in s."""
        self.count += np.bincount(server, minlength=self.count.size)
        self.server = np.concatenate([self.server, server])
        self.finish = np.concatenate([self.finish, finish])

    def record(self, now: float) -> None:
        """Note the lengths at a time in s, which must not go back."""
        done = self.finish <= now
        self.count -= np.bincount(self.server[done], minlength=self.count.size)
        self.server, self.finish = self.server[~done], self.finish[~done]
        self.time.append(now)
        self.length.append((self.count.mean(), np.percentile(self.count, 95), self.count.max()))

"""The edge system on a virtual clock: the same dispatcher, servers that are numbers, up to millions of tasks.

Start reading at `simulate`.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from common.progress import Progress
from common.random_streams import Stream, random_generator
from edge_sim.dispatcher import CHOICE, Backlog, Dispatcher
from edge_sim.server_profile import Profile
from edge_sim.servers import Models, Servers, asked_of
from edge_sim.task_stream import TaskStream, rounds


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What became of K tasks: server [K], start, finish and delay [K] in s; loads [K] is whether its model had to be
    loaded, from the start on. And of the queues:

    `queue_time` [M] in s and `queue_length` [M, 3] hold the mean, 95th percentile and maximum over the servers of the
    number of tasks that wait or run when slot m is to be scheduled.
    """

    server: np.ndarray
    start: np.ndarray
    finish: np.ndarray
    delay: np.ndarray
    loads: np.ndarray
    queue_time: np.ndarray
    queue_length: np.ndarray


def moments(
    slots: Iterable[tuple[float, np.ndarray]], servers: Servers, held: list[int]
) -> Iterator[tuple[float, np.ndarray]]:
    """Slots, as `TaskStream.slots` has them, and while tasks are held back, the times at which servers become idle."""
    for now, tasks in slots:
        while held and servers.free.min() < now:
            yield float(servers.free.min()), tasks[:0]
        yield now, tasks
    while held:
        yield float(servers.free.min()), tasks[:0]


def simulate(
    dispatcher: Dispatcher,
    profile: Profile,
    stream: TaskStream,
    link_rate: float,
    seed: int,
    by_profile: bool = False,
    models: Models | None = None,
    progress: bool = True,
) -> Simulated:
    """Schedule and serve all tasks of a stream. Service times vary by the profile's spread, seeded.

    `link_rate` is v in Mbit/s, by which inputs and images travel. Without `models` there is one, which is never loaded.
    Raises ParameterError when a scheduler of the user's own chooses a server that there is not.

    The dispatcher sees the simulated servers, or with `by_profile` what the profile says of them, which a live run with
    the same tasks sees as well. One that holds tasks back always sees the simulated servers.
    """
    ready, count, models = dispatcher.ready, len(stream), models or Models()
    noise = random_generator(Stream.EDGE_DURATIONS, seed).standard_normal(count)
    work, asked = profile.workload(stream.steps), asked_of(stream, profile)
    server, start, finish = np.empty(count, dtype=np.int64), np.empty(count), np.empty(count)
    loads = np.empty(count, dtype=bool)
    servers, nominal, backlog = Servers(profile, models), Servers(profile, models), Backlog(profile)
    time, length, held = [], [], []
    with Progress(total=count, unit="task", unit_scale=True, desc=ready.name, disable=not progress) as bar:
        for now, tasks in moments(stream.slots(ready.slot_seconds), servers, held):
            servers.at(now)
            time.append(now)
            length.append((servers.count.mean(), np.percentile(servers.count, 95), servers.count.max()))
            tasks, later = np.append(np.array(held, dtype=np.int64), tasks), tasks[:0]
            if ready.holds_back:
                tasks, later = tasks[:CHOICE], tasks[CHOICE:]
            for part in rounds(stream.base_station[tasks], ready.num_tasks):
                ids = tasks[part]
                seen = backlog.at(now) if by_profile else np.maximum(servers.free - now, 0) * profile.capacity
                if ready.knows_models:
                    known = (nominal if by_profile and not ready.holds_back else servers).known(now)
                    asks = dataclasses.replace(asked.part(ids), again=np.arange(ids.size) < len(held))
                    chosen = dispatcher.decide_knowing(stream.base_station[ids], asks, known)
                    held[:] = [*ids[chosen < 0].tolist(), *later.tolist()]
                    ids, chosen = ids[chosen >= 0], chosen[chosen >= 0]
                    nominal.send(chosen, now, asked.part(ids))
                else:
                    chosen = dispatcher.decide(stream.base_station[ids], work[ids], stream.size[ids], seen)
                    backlog.add(chosen, work[ids])
                spread = profile.spread[chosen]
                factor = np.exp(spread * noise[ids] - spread**2 / 2)  # of mean 1
                seconds = profile.seconds(chosen, stream.steps[ids]) * factor
                server[ids] = chosen
                start[ids], finish[ids], loads[ids] = servers.take(chosen, now, seconds, asked.model[ids])
                bar.update(ids.size)
    upload = (server != stream.base_station) * stream.size
    delay = finish - stream.time + (upload + profile.result_mbit) / link_rate
    return Simulated(server, start, finish, delay, loads, np.array(time), np.array(length).reshape(-1, 3))

"""What one queue for all servers would bring, and what no policy can do better than.

Start reading at `simulate_pull` and `bound`.
"""

import dataclasses
import heapq
from typing import ClassVar

import numpy as np

from trace_ts.cluster import (
    DISCIPLINES,
    FCFS,
    NONE,
    RESIDENT_FIRST,
    Cluster,
    Tasks,
    advance,
    fail,
    holds,
    new_cluster,
    recover,
    send,
)
from trace_ts.compiled import compiled
from trace_ts.scenario import Scenario, draw_outages, draw_rates
from trace_ts.simulation import Outcome, new_tasks, outcome
from trace_ts.workload import Requests


@compiled()
def best_pair(c: Cluster, tasks: Tasks, waiting: np.ndarray, count: int, now: float, order: int) -> tuple[int, int]:
    """Which of the first `count` tasks in waiting [K], oldest first, goes to which idle server: place and server.

    Of all pairs the one that takes the least time with its loading, RESIDENT_FIRST: of those without loading if there
    are some, FCFS: of those of the oldest task. (NONE, NONE) if there is no pair.
    """
    if count > 0 and now - tasks.time[waiting[0]] > c.ageing[0]:
        order = FCFS
    best, best_last, place, server = np.inf, True, NONE, NONE
    for b in range(len(c.rate)):
        if c.current[b] != NONE or not c.up[b]:
            continue
        for i in range(min(count, 1) if order == FCFS else count):
            k = waiting[i]
            missing = not holds(c, b, tasks.model[k])
            seconds = tasks.work[k] / c.rate[b] + (c.load_seconds[tasks.model[k]] if missing else 0.0)
            last = missing and order == RESIDENT_FIRST
            if last < best_last or (last == best_last and (seconds < best or (seconds == best and i < place))):
                best, best_last, place, server = seconds, last, i, b
    return place, server


@compiled()
def put(waiting: np.ndarray, count: int, k: int) -> None:
    """Insert a task into the first `count` of waiting [K], which are in order of arrival."""
    while count > 0 and waiting[count - 1] > k:
        waiting[count] = waiting[count - 1]
        count -= 1
    waiting[count] = k


@compiled()
def hand_out(c: Cluster, tasks: Tasks, waiting: np.ndarray, count: int, now: float, order: int) -> int:
    """Send idle servers the tasks that they take of the first `count` of waiting [K]. Returns how many wait on."""
    place, b = best_pair(c, tasks, waiting, count, now, order)
    while place != NONE:
        k, count = waiting[place], count - 1
        for i in range(place, count):
            waiting[i] = waiting[i + 1]
        send(c, tasks, k, b, now)
        place, b = best_pair(c, tasks, waiting, count, now, order)
    return count


@compiled()
def pull(
    c: Cluster,
    tasks: Tasks,
    order: int,
    outage_time: np.ndarray,
    outage_server: np.ndarray,
    outage_up: np.ndarray,
    waiting: np.ndarray,
    lost: np.ndarray,
) -> None:
    """Serve all K tasks from one queue. Outages [E] as in `event_loop.run`; waiting [K] and lost [K] are room."""
    arrived, count, event, left = 0, 0, 0, len(tasks.time)
    while True:
        at = np.inf
        for b in range(len(c.rate)):
            at = min(at, c.end[b])
        if arrived < len(tasks.time):
            at = min(at, tasks.time[arrived])
        outage = event < len(outage_time) and outage_time[event] <= at
        if outage:
            at = outage_time[event]
        for b in range(len(c.rate)):
            left -= c.end[b] <= at
        advance(c, tasks, at)
        if left == 0:
            return
        if outage:
            b = outage_server[event]
            if outage_up[event]:
                recover(c, tasks, b, at)
            elif fail(c, b, lost) > 0:
                put(waiting, count, lost[0])
                count += 1
            event += 1
        elif arrived < len(tasks.time) and tasks.time[arrived] <= at:
            put(waiting, count, arrived)
            arrived, count = arrived + 1, count + 1
        count = hand_out(c, tasks, waiting, count, at, order)


def simulate_pull(
    requests: Requests,
    scenario: Scenario,
    draw: int,
    part: slice = slice(None),
    order: str = "shortest",
    rate: np.ndarray | None = None,
) -> Outcome:
    """Serve a part of the requests from one queue, of which an idle server takes the next task; as `simulate`.

    The order is a discipline: "shortest" takes the task that takes the least time with its loading on that server,
    "resident_first" such a one of a resident model if there is one, "fcfs" the oldest. Of several idle servers the one
    that would be done first takes it, under resident_first one that has its model before others. Ageing holds as for
    queues of servers; the scenario's discipline and the age of news do not matter, since nobody decides before a server
    is idle. A task that an outage interrupts goes back to its place in the queue. Raises ValueError for another order.
    """
    if order not in DISCIPLINES:
        raise ValueError(f"order is {order!r}, not one of {tuple(DISCIPLINES)}")
    rate = draw_rates(scenario.num_servers, draw) if rate is None else rate
    tasks = new_tasks(requests, scenario, draw, part, rate)
    count, load_seconds = len(tasks.time), np.full(requests.num_models, scenario.load_time)
    cluster = new_cluster(rate, load_seconds, scenario.resident_models, count, "fcfs", scenario.ageing or np.inf)
    outages = draw_outages(scenario, tasks.time[-1], draw)
    room = np.empty((2, count), dtype=np.int64)
    pull(cluster, tasks, DISCIPLINES[order], *outages, room[0], room[1])
    return outcome(tasks, rate)


@dataclasses.dataclass(frozen=True)
class Pull:
    """The central queue as a contestant beside rules and learned policies."""

    order: str = "shortest"
    needs: ClassVar[str] = "w, f, resident models, L, and one queue for all"

    def simulate(self, requests: Requests, scenario: Scenario, draw: int, part: slice) -> Outcome:
        """`simulate_pull` in this order."""
        return simulate_pull(requests, scenario, draw, part, self.order)


CENTRAL = {"pull": Pull("shortest"), "pull_resident": Pull("resident_first"), "pull_fcfs": Pull("fcfs")}


def pooled(release: np.ndarray, work: np.ndarray, rate: float, remaining: bool) -> tuple[np.ndarray, np.ndarray]:
    """One server of this rate that always works on the least task: finish [K] and mean busy time [K] in s.

    The least by remaining work, or by all its work. work [K] in image-steps, release [K] in s in any order. A task's
    mean busy time is the time at which it is worked on, on average.
    """
    left, busy, finish = work.astype(np.float64).tolist(), [0.0] * len(work), np.zeros(len(work))
    order, now, heap, i = np.argsort(release, kind="stable").tolist(), 0.0, [], 0
    while i < len(order) or heap:
        if not heap:
            now = max(now, float(release[order[i]]))
        while i < len(order) and release[order[i]] <= now:
            k = order[i]
            heapq.heappush(heap, (left[k] if remaining else work[k], k))
            i += 1
        k = heap[0][1]
        until = float(release[order[i]]) if i < len(order) else np.inf
        end = now + left[k] / rate
        done = min(left[k], (until - now) * rate) if end > until else left[k]
        now, before = min(end, until), now
        busy[k] += done * (now + before) / 2
        left[k] -= done
        if end <= until:
            heapq.heappop(heap)
            finish[k] = now
        elif remaining:
            heapq.heapreplace(heap, (left[k], k))
    return finish, np.array(busy) / work


def bounds(requests: Requests, scenario: Scenario, draw: int, part: slice = slice(None)) -> dict[str, float]:
    """Three lower bounds in s of the mean delay that any policy and discipline reach, by name.

    A model is loaded for the first time when a task of it has come, so no task of it is worked on before
    r = max(its arrival, first arrival of its model + L). Let F be the sum of the rates f, f* the greatest, w a task's
    work (with noise: as it turns out).

    service: from r on, a task takes at least w / f*.
    pooled: what the servers do at any time, one server of rate F can do, by sharing itself out; of all that it can do,
    shortest remaining work first has the least mean finish (Schrage 1968).
    busy: let M be the mean of the times at which a task's work is done. It is worked on at no more than f*, so
    finish >= M + w / (2 f*). The sum of M is that over all work done of its time / w, so it is least where the server
    of rate F always works on the task of the least w (Goemans et al. 2002).

    Outages and further loads only take away from what servers do. Models are not resident at the start.
    """
    rate = draw_rates(scenario.num_servers, draw)
    tasks = new_tasks(requests, scenario, draw, part, rate)
    work, first = tasks.work * tasks.noise, np.full(requests.num_models, np.inf)
    np.minimum.at(first, tasks.model, tasks.time)
    release = np.maximum(tasks.time, first[tasks.model] + scenario.load_time)
    service = work / rate.max()
    finish, _ = pooled(release, work, rate.sum(), remaining=True)
    _, busy = pooled(release, work, rate.sum(), remaining=False)
    ends = {"service": release + service, "pooled": finish, "busy": busy + service / 2}
    return {name: float((end - tasks.time).mean()) for name, end in ends.items()}


def bound(requests: Requests, scenario: Scenario, draw: int, part: slice = slice(None)) -> float:
    """The greatest of `bounds`, in s."""
    return max(bounds(requests, scenario, draw, part).values())

"""The event loop: tasks arrive, agents choose servers, servers work, fail and come back.

Start reading at `run`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.choosing import Policy, choose
from trace_ts.cluster import NONE, Cluster, Tasks, advance, fail, recover, send
from trace_ts.compiled import compiled
from trace_ts.memory import Memory, remember
from trace_ts.score import ON_SERVER, ON_TASK, Network
from trace_ts.view import View, look, note, snapshot

GOLDEN = 0.6180339887498949
FOREVER = 1e300  # s


class Seen(NamedTuple):
    """What a network saw of each of K tasks, or arrays of length 0 where it is not kept.

    on_server [K, ON_SERVER, B], on_task [K, ON_TASK], and what the chain began with, begin [K, B].
    """

    on_server: np.ndarray
    on_task: np.ndarray
    begin: np.ndarray


def new_seen(tasks: int, servers: int) -> Seen:
    """Room for what is seen of so many tasks."""
    float32 = np.float32
    return Seen(
        np.zeros((tasks, ON_SERVER, servers), float32), np.zeros((tasks, ON_TASK), float32), np.zeros((tasks, servers))
    )


@compiled()
def prefer(
    p: Policy,
    n: Network,
    c: Cluster,
    v: View,
    m: Memory,
    tasks: Tasks,
    k: int,
    now: float,
    uniform: float,
    cost: np.ndarray,
) -> int:
    """The server that a policy chooses for task k."""
    look(v, c, tasks.base_station[k], tasks.model[k], now)
    return choose(p, n, c, v, m, tasks, k, (uniform + GOLDEN * tasks.attempts[k]) % 1.0, cost)


@compiled()
def decide(
    p: Policy,
    n: Network,
    c: Cluster,
    v: View,
    m: Memory,
    tasks: Tasks,
    k: int,
    now: float,
    uniform: float,
    cost: np.ndarray,
    seen: Seen,
) -> None:
    """Choose a server for task k and send it there."""
    chosen = prefer(p, n, c, v, m, tasks, k, now, uniform, cost)
    if len(seen.on_task) > 0:
        for i in range(len(n.on_task)):
            seen.on_task[k, i] = n.on_task[i]
        for b in range(len(c.rate)):
            seen.begin[k, b] = n.begin[b]
            for i in range(n.on_server.shape[0]):
                seen.on_server[k, i, b] = n.on_server[i, b]
    send(c, tasks, k, chosen, now)
    note(v, c, tasks, k, chosen)


@compiled()
def news(v: View, c: Cluster, tasks: Tasks, now: float) -> None:
    """Tell all agents how the servers were at the last multiple of `age`, unless they know."""
    age = v.age[0]
    if age > 0 and np.floor(now / age) > v.round[0]:
        at = np.floor(now / age) * age
        advance(c, tasks, at)
        snapshot(v, c, at, int(np.floor(now / age)))


class Course(NamedTuple):
    """How far an episode is, and what fails in it.

    now [1] in s, task [1] that is to be placed, or NONE; cost [1] in task-seconds since the last decision. arrived [1]
    tasks and happened [1] outage events so far; lost [K] tasks to be sent anew, of which those from begin [1] to before
    end [1] are still to be. At outage_time [E] in s, ascending, server outage_server [E] goes down or, where outage_up
    [E], comes back.
    """

    now: np.ndarray
    task: np.ndarray
    cost: np.ndarray
    arrived: np.ndarray
    happened: np.ndarray
    lost: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    outage_time: np.ndarray
    outage_server: np.ndarray
    outage_up: np.ndarray


def new_course(tasks: int, outages: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Course:
    """The course before the first of so many tasks."""
    place = [np.zeros(1, dtype=np.int64) for _ in range(4)]
    lost = np.empty(tasks, dtype=np.int64)
    return Course(np.zeros(1), np.full(1, NONE), np.zeros(1), place[0], place[1], lost, place[2], place[3], *outages)


@compiled()
def pass_time(w: Course, c: Cluster, v: View, tasks: Tasks, now: float) -> None:
    """Let servers work until a time in s, be it the end of all time. Adds the task-seconds meanwhile."""
    since = w.now[0]
    c.past[0], c.past[1] = since, 0.0
    if now < FOREVER:
        news(v, c, tasks, now)
        w.now[0] = now
    advance(c, tasks, now)
    w.cost[0] += c.past[1] + (w.arrived[0] - c.past[2]) * (now - since)


@compiled()
def find_task(w: Course, c: Cluster, v: View, tasks: Tasks) -> None:
    """Let time go on until a task is to be placed, or all are served."""
    count, events = len(tasks.time), len(w.outage_time)
    while w.begin[0] == w.end[0]:
        last, event = w.arrived[0] == count, w.happened[0]
        now, outage = FOREVER if last else tasks.time[w.arrived[0]], False
        if event < events and w.outage_time[event] <= now and not (last and c.past[2] == count):
            now, outage = w.outage_time[event], True
        pass_time(w, c, v, tasks, now)
        if not outage:
            w.task[0] = NONE if last else w.arrived[0]
            w.arrived[0] += 1
            return
        w.happened[0] += 1
        if w.outage_up[event]:
            recover(c, tasks, w.outage_server[event], now)
        else:
            w.begin[0], w.end[0] = 0, fail(c, w.outage_server[event], w.lost)
    w.task[0] = w.lost[w.begin[0]]
    w.begin[0] += 1


@compiled()
def run(
    p: Policy,
    n: Network,
    c: Cluster,
    v: View,
    m: Memory,
    tasks: Tasks,
    uniform: np.ndarray,
    w: Course,
    cost: np.ndarray,
    seen: Seen,
) -> None:
    """Schedule and serve all K tasks; what becomes of them is filled into `tasks`.

    uniform [K] are the numbers from [0, 1) by which rules draw. cost [B] is room to work in.
    """
    while True:
        find_task(w, c, v, tasks)
        k = w.task[0]
        if k == NONE:
            break
        decide(p, n, c, v, m, tasks, k, w.now[0], uniform[k], cost, seen)
        if tasks.attempts[k] == 1:
            remember(m, tasks, k)

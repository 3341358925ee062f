"""The event loop: tasks arrive, agents choose servers, servers work, fail and come back.

Start reading at `run`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.choosing import Policy, choose
from trace_ts.cluster import Cluster, Tasks, advance, fail, recover, send
from trace_ts.compiled import compiled
from trace_ts.memory import Memory, remember
from trace_ts.score import ON_SERVER, ON_TASK, Network
from trace_ts.view import View, look, note, snapshot

GOLDEN = 0.6180339887498949


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
    look(v, c, tasks.base_station[k], tasks.model[k], now)
    chosen = choose(p, n, c, v, m, tasks, k, (uniform + GOLDEN * tasks.attempts[k]) % 1.0, cost)
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


@compiled()
def idle(c: Cluster) -> bool:
    """Whether no server has anything to do."""
    tasks = 0
    for b in range(len(c.rate)):
        tasks += c.count[b]
    return tasks == 0


@compiled()
def run(
    p: Policy,
    n: Network,
    c: Cluster,
    v: View,
    m: Memory,
    tasks: Tasks,
    uniform: np.ndarray,
    outage_time: np.ndarray,
    outage_server: np.ndarray,
    outage_up: np.ndarray,
    lost: np.ndarray,
    cost: np.ndarray,
    seen: Seen,
) -> None:
    """Schedule and serve all K tasks; what becomes of them is filled into `tasks`.

    uniform [K] are the numbers from [0, 1) by which rules draw. At outage_time [E] in s, ascending, server
    outage_server [E] goes down or, where outage_up [E], comes back. What a server loses is sent anew at once.
    """
    event = 0
    for k in range(len(tasks.time) + 1):
        last = k == len(tasks.time)
        now = np.inf if last else tasks.time[k]
        while event < len(outage_time) and outage_time[event] <= now and not (last and idle(c)):
            at, b = outage_time[event], outage_server[event]
            news(v, c, tasks, at)
            advance(c, tasks, at)
            if outage_up[event]:
                recover(c, tasks, b, at)
            else:
                for i in range(fail(c, b, lost)):
                    decide(p, n, c, v, m, tasks, lost[i], at, uniform[lost[i]], cost, seen)
            event += 1
        if last:
            break
        news(v, c, tasks, now)
        advance(c, tasks, now)
        decide(p, n, c, v, m, tasks, k, now, uniform[k], cost, seen)
        remember(m, tasks, k)
    advance(c, tasks, 1e300)

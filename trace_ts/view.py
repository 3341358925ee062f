"""What an agent at a base station knows of the servers: all of it as it was up to `age` seconds ago.

Every `age` seconds all agents learn backlogs and resident models. Between, backlogs are taken to shrink as time passes.
An agent that counts its own sends adds what it has sent since. With age 0 everybody sees everything. Start reading at
`look`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.cluster import FCFS, NONE, Cluster, Tasks, backlog, holds
from trace_ts.compiled import compiled


class View(NamedTuple):
    """age [1] in s, own [1] whether own sends are counted, round [1] the number of the last snapshot.

    Of the snapshot: free [B] in s, when each server would be done; count [B]; held [B, N] whether a model is held;
    victim [B] the model that the next load drives out, or NONE; holders [N]. Of own sends, for each of G base stations:
    own_seconds and own_count [G, B], own_held [G, B, N]: the round in which they were written, valid in this alone;
    own_round [G, B]. What `look` fills in for one task: backlog [B] in s, queue [B] tasks, miss [B].
    """

    age: np.ndarray
    own: np.ndarray
    round: np.ndarray
    free: np.ndarray
    snapshot_count: np.ndarray
    held: np.ndarray
    snapshot_victim: np.ndarray
    snapshot_holders: np.ndarray
    own_seconds: np.ndarray
    own_count: np.ndarray
    own_held: np.ndarray
    own_round: np.ndarray
    backlog: np.ndarray
    queue: np.ndarray
    miss: np.ndarray
    victim: np.ndarray
    holders: np.ndarray


def new_view(servers: int, models: int, base_stations: int, age: float, own_sends: bool) -> View:
    """The view before the first task: every server is idle."""
    stale = base_stations if age > 0 else 0
    return View(
        age=np.array([age], dtype=np.float64),
        own=np.array([own_sends]),
        round=np.zeros(1, dtype=np.int64),
        free=np.zeros(servers),
        snapshot_count=np.zeros(servers, dtype=np.int64),
        held=np.zeros((servers if stale else 0, models), dtype=np.bool_),
        snapshot_victim=np.full(servers, NONE),
        snapshot_holders=np.zeros(models, dtype=np.int64),
        own_seconds=np.zeros((stale, servers)),
        own_count=np.zeros((stale, servers), dtype=np.int64),
        own_held=np.full((stale, servers, models), NONE),
        own_round=np.full((stale, servers), NONE),
        backlog=np.zeros(servers),
        queue=np.zeros(servers, dtype=np.int64),
        miss=np.zeros(servers, dtype=np.bool_),
        victim=np.full(servers, NONE),
        holders=np.zeros(models, dtype=np.int64),
    )


@compiled()
def next_victim(c: Cluster, b: int) -> int:
    """The model that a load on this server drives out, or NONE."""
    slots = c.planned if c.discipline[0] == FCFS else c.resident
    return slots[b, slots.shape[1] - 1]


@compiled()
def snapshot(v: View, c: Cluster, now: float, number: int) -> None:
    """Tell all agents how the servers are at this time, in s."""
    v.round[0] = number
    for model in range(len(c.holders)):
        v.snapshot_holders[model] = c.holders[model]
    for b in range(len(c.rate)):
        v.free[b] = now + backlog(c, b, now)
        v.snapshot_count[b] = c.count[b]
        v.snapshot_victim[b] = next_victim(c, b)
        for model in range(len(c.holders)):
            v.held[b, model] = holds(c, b, model)


@compiled()
def look(v: View, c: Cluster, g: int, model: int, now: float) -> None:
    """Fill in what base station g knows now of all servers, for a task of this model."""
    if v.age[0] == 0.0:
        for b in range(len(c.rate)):
            v.backlog[b] = backlog(c, b, now)
            v.queue[b] = c.count[b]
            v.miss[b] = not holds(c, b, model)
            v.victim[b] = next_victim(c, b)
        return
    for b in range(len(c.rate)):
        own = v.own[0] and v.own_round[g, b] == v.round[0]
        v.backlog[b] = max(v.free[b] - now, 0.0) + (v.own_seconds[g, b] if own else 0.0)
        v.queue[b] = v.snapshot_count[b] + (v.own_count[g, b] if own else 0)
        v.miss[b] = not (v.held[b, model] or (own and v.own_held[g, b, model] == v.round[0]))
        v.victim[b] = v.snapshot_victim[b]


@compiled()
def note(v: View, c: Cluster, tasks: Tasks, k: int, b: int) -> None:
    """Remember that task k was sent to server b, by its base station."""
    if v.age[0] == 0.0 or not v.own[0]:
        return
    g, model = tasks.base_station[k], tasks.model[k]
    if v.own_round[g, b] != v.round[0]:
        v.own_round[g, b], v.own_seconds[g, b], v.own_count[g, b] = v.round[0], 0.0, 0
    missing = not v.held[b, model] and v.own_held[g, b, model] != v.round[0]
    v.own_seconds[g, b] += tasks.work[k] / c.rate[b] + (c.load_seconds[model] if missing else 0.0)
    v.own_count[g, b] += 1
    v.own_held[g, b, model] = v.round[0]


@compiled()
def known_holders(v: View, c: Cluster, model: int) -> int:
    """How many servers hold a model, as far as agents know."""
    return c.holders[model] if v.age[0] == 0.0 else v.snapshot_holders[model]

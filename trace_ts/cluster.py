"""Edge servers with queues and resident models, as arrays that compiled code changes in place.

A server works on one task at a time. A task whose model is not resident waits until it is loaded; of the M resident
models the least recently used goes. Start reading at `send` and `advance`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.compiled import compiled

FCFS, SHORTEST, RESIDENT_FIRST = 0, 1, 2
DISCIPLINES = {"fcfs": FCFS, "shortest": SHORTEST, "resident_first": RESIDENT_FIRST}
NONE = -1


class Tasks(NamedTuple):
    """K tasks in order of time: what is known of each, and what becomes of it.

    time [K] in s, work [K] in image-steps, model, user and base_station [K], noise [K] by which the nominal service
    time is multiplied. Then, filled in: server [K], start and finish [K] in s, loads [K] (whether its model had to be
    loaded), attempts [K] (how often it was sent).
    """

    time: np.ndarray
    work: np.ndarray
    model: np.ndarray
    user: np.ndarray
    base_station: np.ndarray
    noise: np.ndarray
    server: np.ndarray
    start: np.ndarray
    finish: np.ndarray
    loads: np.ndarray
    attempts: np.ndarray


def unsent(
    time: np.ndarray,
    work: np.ndarray,
    model: np.ndarray,
    user: np.ndarray,
    base_station: np.ndarray,
    noise: np.ndarray,
) -> Tasks:
    """K tasks of which nothing has become yet."""
    count = len(time)
    return Tasks(
        *(time, work, model, user, base_station, noise),
        server=np.full(count, NONE),
        start=np.empty(count),
        finish=np.empty(count),
        loads=np.empty(count, dtype=np.bool_),
        attempts=np.zeros(count, dtype=np.int64),
    )


class Cluster(NamedTuple):
    """B servers, N models.

    rate [B] in image-steps/s, load_seconds [N], ageing [1] in s, discipline [1]. up [B] is false while a server is
    down. current [B] is the task that runs, or NONE; end [B] when it ends, nominal_end [B] when it would without noise.
    head, tail [B] and next [K] are the waiting tasks' linked lists, in the order in which they were sent; cost [K] is
    what each is expected to take, seconds [B] the sum of that over those that wait, count [B] the tasks that wait or
    run, of_model [B, N] the same by model. resident [B, M] are the models in memory, the most recently used first;
    planned [B, M] those after all that waits, first come first served. holders [N] counts the servers that hold a model
    or will. past [3]: a time in s, the sum of the seconds from it to the ends of tasks that are done, and the number of
    tasks that are done at all.
    """

    rate: np.ndarray
    load_seconds: np.ndarray
    ageing: np.ndarray
    discipline: np.ndarray
    up: np.ndarray
    current: np.ndarray
    end: np.ndarray
    nominal_end: np.ndarray
    head: np.ndarray
    tail: np.ndarray
    next: np.ndarray
    cost: np.ndarray
    seconds: np.ndarray
    count: np.ndarray
    of_model: np.ndarray
    resident: np.ndarray
    planned: np.ndarray
    holders: np.ndarray
    past: np.ndarray


def new_cluster(
    rate: np.ndarray, load_seconds: np.ndarray, resident_models: int, tasks: int, discipline: str, ageing: float
) -> Cluster:
    """Idle servers without a model, for at most so many tasks."""
    servers, models = len(rate), len(load_seconds)
    slots = np.full((2, servers, resident_models), NONE)
    return Cluster(
        rate=np.asarray(rate, dtype=np.float64),
        load_seconds=np.asarray(load_seconds, dtype=np.float64),
        ageing=np.array([ageing], dtype=np.float64),
        discipline=np.array([DISCIPLINES[discipline]]),
        up=np.ones(servers, dtype=np.bool_),
        current=np.full(servers, NONE),
        end=np.full(servers, np.inf),
        nominal_end=np.zeros(servers),
        head=np.full(servers, NONE),
        tail=np.full(servers, NONE),
        next=np.full(tasks, NONE),
        cost=np.zeros(tasks),
        seconds=np.zeros(servers),
        count=np.zeros(servers, dtype=np.int64),
        of_model=np.zeros((servers, models), dtype=np.int64),
        resident=slots[0],
        planned=slots[1],
        holders=np.zeros(models, dtype=np.int64),
        past=np.zeros(3),
    )


@compiled()
def touch(slots: np.ndarray, model: int) -> int:
    """Make a model the most recently used of slots [M]. NONE if it was among them, else its load drove this one out.

    An empty slot that was taken is -2.
    """
    place = len(slots) - 1
    out = slots[place] - 1 if slots[place] == NONE else slots[place]
    for i in range(len(slots)):
        if slots[i] == model:
            place, out = i, NONE
            break
    for i in range(place, 0, -1):
        slots[i] = slots[i - 1]
    slots[0] = model
    return out


@compiled()
def holds(c: Cluster, b: int, model: int) -> bool:
    """Whether a task of this model that is sent now will find it resident, as far as can be said."""
    if c.discipline[0] != FCFS and c.of_model[b, model] > 0:
        return True
    slots = c.planned if c.discipline[0] == FCFS else c.resident
    found = False
    for i in range(slots.shape[1]):
        found |= slots[b, i] == model
    return found


@compiled()
def backlog(c: Cluster, b: int, now: float) -> float:
    """Seconds until a server has done what it has, by nominal service times and the loads that are foreseen."""
    running = max(c.nominal_end[b] - now, 0.0) if c.current[b] != NONE else 0.0
    return running + c.seconds[b]


@compiled()
def send(c: Cluster, tasks: Tasks, k: int, b: int, now: float) -> None:
    """Put a task into a server's queue, or start it."""
    model = tasks.model[k]
    missing = not holds(c, b, model)
    if missing:
        c.holders[model] += 1
    if c.discipline[0] == FCFS:
        out = touch(c.planned[b], model)
        if out >= 0:
            c.holders[out] -= 1
    c.cost[k] = tasks.work[k] / c.rate[b] + (c.load_seconds[model] if missing else 0.0)
    c.of_model[b, model] += 1
    c.count[b] += 1
    c.seconds[b] += c.cost[k]
    tasks.server[k] = b
    tasks.attempts[k] += 1
    c.next[k] = NONE
    if c.tail[b] == NONE:
        c.head[b] = k
    else:
        c.next[c.tail[b]] = k
    c.tail[b] = k
    if c.current[b] == NONE and c.up[b]:
        start(c, tasks, b, now)


@compiled()
def before_next(c: Cluster, tasks: Tasks, b: int, now: float) -> int:
    """The waiting task before the one that a server takes next, or NONE if that is the first."""
    if c.discipline[0] == FCFS or c.next[c.head[b]] == NONE:
        return NONE
    if now - tasks.time[c.head[b]] > c.ageing[0]:
        return NONE
    best, best_missing, chosen, before, k = np.inf, True, NONE, NONE, c.head[b]
    while k != NONE:
        missing = True
        for i in range(c.resident.shape[1]):
            missing &= c.resident[b, i] != tasks.model[k]
        seconds = tasks.work[k] / c.rate[b] + (c.load_seconds[tasks.model[k]] if missing else 0.0)
        missing &= c.discipline[0] == RESIDENT_FIRST  # which it looks at first
        if missing < best_missing or (missing == best_missing and seconds < best):
            best, best_missing, chosen = seconds, missing, before
        before, k = k, c.next[k]
    return chosen


@compiled()
def start(c: Cluster, tasks: Tasks, b: int, now: float) -> None:
    """Begin the next waiting task of a server that has some."""
    before = before_next(c, tasks, b, now)
    k = c.head[b] if before == NONE else c.next[before]
    if before == NONE:
        c.head[b] = c.next[k]
    else:
        c.next[before] = c.next[k]
    if c.tail[b] == k:
        c.tail[b] = before
    c.seconds[b] = c.seconds[b] - c.cost[k] if c.head[b] != NONE else 0.0
    model = tasks.model[k]
    out = touch(c.resident[b], model)
    if out >= 0 and c.discipline[0] != FCFS and c.of_model[b, out] == 0:
        c.holders[out] -= 1
    load = c.load_seconds[model] if out != NONE else 0.0
    service = tasks.work[k] / c.rate[b]
    c.current[b], tasks.start[k], tasks.loads[k] = k, now, out != NONE
    c.end[b] = now + load + service * tasks.noise[k]
    c.nominal_end[b] = now + load + service


@compiled()
def advance(c: Cluster, tasks: Tasks, now: float) -> None:
    """Let all servers work until a time in s."""
    for b in range(len(c.rate)):
        while c.end[b] <= now:
            k, at = c.current[b], c.end[b]
            tasks.finish[k] = at
            c.past[1] += at - c.past[0]
            c.past[2] += 1
            c.count[b] -= 1
            c.of_model[b, tasks.model[k]] -= 1
            c.current[b], c.end[b] = NONE, np.inf
            if c.head[b] != NONE:
                start(c, tasks, b, at)


@compiled()
def fail(c: Cluster, b: int, lost: np.ndarray) -> int:
    """Take a server down. What it ran and what waited goes into lost [K], in this order; returns their number."""
    count = 0
    if c.current[b] != NONE:
        lost[count] = c.current[b]
        count += 1
    k = c.head[b]
    while k != NONE:
        lost[count] = k
        count += 1
        k = c.next[k]
    for model in range(len(c.holders)):
        c.holders[model] -= holds(c, b, model)
        c.of_model[b, model] = 0
    c.up[b], c.current[b], c.end[b], c.head[b], c.tail[b] = False, NONE, np.inf, NONE, NONE
    c.seconds[b], c.count[b] = 0.0, 0
    for i in range(c.resident.shape[1]):
        c.resident[b, i], c.planned[b, i] = NONE, NONE
    return count


@compiled()
def recover(c: Cluster, tasks: Tasks, b: int, now: float) -> None:
    """Bring a server back, without a model. It begins with what was sent to it meanwhile."""
    c.up[b] = True
    if c.head[b] != NONE:
        start(c, tasks, b, now)

"""The rules' choices, in compiled code. Start reading at `choose`; `rules.py` gives the rules their names."""

from typing import NamedTuple

import numpy as np

from trace_ts.cluster import Cluster, Tasks
from trace_ts.compiled import compiled
from trace_ts.memory import Memory, share
from trace_ts.score import Network, score
from trace_ts.view import View, known_holders

DRAWN, ROUND_ROBIN, TWO_CHOICES, FEWEST_TASKS, LEAST_BACKLOG, PRICED, NETWORK = range(7)


class Policy(NamedTuple):
    """kind [1], one of the above; constants [P] of its score; allowed [C, B], the servers of each class of tasks.

    A task is of the class of its model in of_model [N], or of its work: limits [C - 1] in image-steps, ascending. With
    one class all servers are allowed. share [B] are the probabilities of what is drawn.
    """

    kind: np.ndarray
    constants: np.ndarray
    allowed: np.ndarray
    class_of_model: np.ndarray
    limits: np.ndarray
    share: np.ndarray
    mean_service: np.ndarray


def new_policy(kind: int, servers: int, **values: np.ndarray | list[float] | float) -> Policy:
    """A policy with what is not given left out."""
    fields = {
        "kind": [kind],
        "constants": [1.0, 1, 0, 0, 0, 0, 0],
        "allowed": np.ones((1, servers), dtype=np.bool_),
        "class_of_model": np.zeros(0, dtype=np.int64),
        "limits": [],
        "share": np.ones(servers),
        "mean_service": [1.0],
    } | values
    types = {"kind": np.int64, "allowed": np.bool_, "class_of_model": np.int64}
    return Policy(**{name: np.ascontiguousarray(value, types.get(name, np.float64)) for name, value in fields.items()})


@compiled()
def class_of(p: Policy, tasks: Tasks, k: int) -> int:
    """The class of a task."""
    if len(p.class_of_model):
        return p.class_of_model[tasks.model[k]]
    number = 0
    while number < len(p.limits) and tasks.work[k] > p.limits[number]:
        number += 1
    return number


@compiled()
def draw(weight: np.ndarray, uniform: float) -> int:
    """An index [B] in proportion to weight [B], which has a positive one."""
    left, chosen = 0.0, -1
    for b in range(len(weight)):
        left += uniform * weight[b]
    for b in range(len(weight)):
        if weight[b] > 0:
            chosen = b
            left -= weight[b]
            if left < 0:
                break
    return chosen


@compiled()
def price(p: Policy, c: Cluster, v: View, m: Memory, model: int, b: int, own: float) -> float:
    """What a load costs in the priced rule, in s: L (theta + phi q / S + psi r(victim)) / (1 + chi r(model))."""
    theta, phi, psi, chi = p.constants[2], p.constants[3], p.constants[4], p.constants[5]
    driven_out = worth(c, v, m, v.victim[b]) if v.victim[b] >= 0 and psi > 0 else 0.0
    return c.load_seconds[model] * (theta + phi * v.backlog[b] / p.mean_service[0] + psi * driven_out) / (1 + chi * own)


@compiled()
def worth(c: Cluster, v: View, m: Memory, model: int) -> float:
    """r(model) = B share / holders: how much each server that holds a model is in demand."""
    return len(c.rate) * share(m, model) / max(known_holders(v, c, model), 1)


@compiled()
def choose(
    p: Policy, n: Network, c: Cluster, v: View, m: Memory, tasks: Tasks, k: int, uniform: float, cost: np.ndarray
) -> int:
    """The server of task k, by what `look` has filled in. cost [B] is room to work in."""
    kind, model, allowed = p.kind[0], tasks.model[k], p.allowed[class_of(p, tasks, k)]
    servers, some_up = len(c.rate), False
    for b in range(servers):
        some_up |= allowed[b] and c.up[b]
    if kind in (DRAWN, TWO_CHOICES):
        for b in range(servers):
            cost[b] = p.share[b] if allowed[b] and (c.up[b] or not some_up) else 0.0
        first = draw(cost, uniform)
        if kind == DRAWN:
            return first
        second = draw(cost, uniform * 7919.0 % 1.0)
        ahead = v.backlog[second] + tasks.work[k] / c.rate[second] < v.backlog[first] + tasks.work[k] / c.rate[first]
        return second if ahead else first
    own = worth(c, v, m, model) if kind == PRICED and p.constants[5] > 0 else 0.0
    if kind == NETWORK:
        score(n, c, v, m, tasks, k, uniform, cost)
    best, chosen, g, fastest = np.inf, 0, tasks.base_station[k], 0.0
    shares = 0.0  # of the servers that take part
    for b in range(servers):
        fastest = max(fastest, c.rate[b])
    for b in range(servers):
        if not allowed[b] or (some_up and not c.up[b]):
            cost[b] = np.inf
            continue
        if kind == ROUND_ROBIN:
            m.credit[g, b] += p.share[b]
            shares += p.share[b]
            cost[b] = -m.credit[g, b]
        elif kind == FEWEST_TASKS:
            cost[b] = v.queue[b] - 0.5 * c.rate[b] / fastest
        elif kind == LEAST_BACKLOG:
            cost[b] = v.backlog[b] - 1e-6 * c.rate[b] / fastest
        elif kind == PRICED:
            cost[b] = p.constants[0] * v.backlog[b] + p.constants[1] * tasks.work[k] / c.rate[b]
            if v.miss[b]:
                cost[b] += price(p, c, v, m, model, b, own)
        if cost[b] < best:
            best, chosen = cost[b], b
    if kind == ROUND_ROBIN:
        m.credit[g, chosen] -= shares
    elif p.constants[6] > 0:
        for b in range(servers):
            cost[b] = np.exp((best - cost[b]) / (p.constants[6] * p.mean_service[0]))
        chosen = draw(cost, uniform)
    return chosen

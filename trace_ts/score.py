"""A score for every server by a small network that all servers share, and LAD-TS's chain over such scores.

Start reading at `score`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.cluster import Cluster, Tasks
from trace_ts.compiled import compiled
from trace_ts.memory import Memory, share
from trace_ts.view import View, known_holders

ON_SERVER = 8  # inputs that differ from server to server; the last is the chain's x
ON_TASK = 13  # inputs that are the same for all; the last is the chain's step
ZEROS, NOISE, BY_USER, BY_MODEL, BY_STATION = range(5)


class Network(NamedTuple):
    """H hidden units. server_in [H, ON_SERVER], task_in [H, ON_TASK], bias [H], out [2, H]; all float32.

    constants [7]: alpha, beta, theta, phi, psi, chi and the temperature in mean services. scene [5]: load, loading time
    in mean services, age in mean services, M, mean work. schedule [I, 2]: of each step of the chain, last first, what
    the prediction and what x count; no step: no chain. latent [1] is what the chain starts from. memory [.., B] is what
    it ended with before.
    begin [B] is what the chain of the last task started from.
    """

    server_in: np.ndarray
    task_in: np.ndarray
    bias: np.ndarray
    out: np.ndarray
    constants: np.ndarray
    scene: np.ndarray
    mean_service: np.ndarray
    schedule: np.ndarray
    latent: np.ndarray
    memory: np.ndarray
    on_server: np.ndarray
    on_task: np.ndarray
    hidden: np.ndarray
    heads: np.ndarray
    begin: np.ndarray
    x: np.ndarray


def new_network(
    servers: int,
    hidden: int,
    constants: np.ndarray,
    scene: np.ndarray,
    mean_service: float,
    schedule: np.ndarray,
    latent: int,
    memories: int,
    weights: tuple[np.ndarray, ...] = (),
) -> Network:
    """A network of weights (server_in, task_in, bias, out), or of zeros, with room to work in."""
    if not weights:
        weights = tuple(np.zeros(n) for n in ((hidden, ON_SERVER), (hidden, ON_TASK), hidden, (2, hidden)))
    return Network(
        *(np.ascontiguousarray(values, np.float32) for values in weights),
        constants=np.asarray(constants, dtype=np.float64),
        scene=np.asarray(scene, dtype=np.float64),
        mean_service=np.array([mean_service]),
        schedule=np.ascontiguousarray(schedule, dtype=np.float64),
        latent=np.array([latent]),
        memory=np.zeros((memories, servers)),
        on_server=np.zeros((ON_SERVER, servers), dtype=np.float32),
        on_task=np.zeros(ON_TASK, dtype=np.float32),
        hidden=np.zeros(servers, dtype=np.float32),
        heads=np.zeros((2, servers), dtype=np.float32),
        begin=np.zeros(servers),
        x=np.zeros(servers),
    )


def no_network(servers: int) -> Network:
    """What rules hand to the event loop in a network's place."""
    return new_network(servers, 1, np.ones(7), np.ones(5), 1.0, np.empty((0, 2)), ZEROS, 1)


@compiled(fastmath=True)
def inputs(n: Network, c: Cluster, v: View, m: Memory, tasks: Tasks, k: int) -> None:
    """Fill in what the network sees of the servers and of task k."""
    servers, model, mean = len(c.rate), tasks.model[k], n.mean_service[0]
    total, least, least_holder, rate_holders, rates = 0.0, 1e30, 1e30, 0.0, 0.0
    for b in range(servers):
        q = v.backlog[b]
        total += q
        least = min(least, q)
        rates += c.rate[b]
        if not v.miss[b]:
            least_holder = min(least_holder, q)
            rate_holders += c.rate[b]
    average = total / servers
    for b in range(servers):
        q = v.backlog[b]
        driven_out = v.victim[b]
        worth = 0.0
        if driven_out >= 0:
            worth = servers * share(m, driven_out) / max(known_holders(v, c, driven_out), 1)
        n.on_server[0, b] = np.log1p(q / mean)
        n.on_server[1, b] = (q - average) / (mean + average)
        n.on_server[2, b] = np.log(tasks.work[k] / c.rate[b] / mean)
        n.on_server[3, b] = 1.0 if v.miss[b] else 0.0
        n.on_server[4, b] = np.log1p(worth)
        n.on_server[5, b] = c.rate[b] * servers / rates - 1
        n.on_server[6, b] = np.log1p(v.queue[b])
        n.on_server[7, b] = 0.0
    holders = known_holders(v, c, model)
    of_model = share(m, model)
    work_share = m.work[model] / m.total[1] if m.total[1] > 0 else 0.0
    t = n.on_task
    t[0] = np.log1p(average / mean)
    t[1] = np.log1p(least / mean)
    t[2] = np.log1p(min(least_holder, 30 * mean) / mean)
    t[3] = np.log1p(holders)
    t[4] = np.log(of_model + 1e-3) / 3 + 1
    t[5] = min(np.log1p(work_share * rates / rate_holders), 3.0) if rate_holders > 0 else 3.0
    t[6] = 1.0 if m.last_model[tasks.user[k]] == model else 0.0
    t[7] = np.log(tasks.work[k] / n.scene[4])
    t[8] = n.scene[0] - 0.8
    t[9] = n.scene[1]
    t[10] = np.log1p(n.scene[2])
    t[11] = np.log(n.scene[3])
    t[12] = 0.0


@compiled(fastmath=True)
def heads(n: Network) -> None:
    """The network's two outputs for each server: heads [2, B] from on_server [ON_SERVER, B] and on_task [ON_TASK]."""
    servers = n.heads.shape[1]
    for b in range(servers):
        n.heads[0, b] = 0
        n.heads[1, b] = 0
    for h in range(len(n.bias)):
        same = n.bias[h]
        for i in range(n.on_task.shape[0]):
            same += n.task_in[h, i] * n.on_task[i]
        for b in range(servers):
            n.hidden[b] = same
        for i in range(n.on_server.shape[0]):
            w = n.server_in[h, i]
            for b in range(servers):
                n.hidden[b] += w * n.on_server[i, b]
        first, second = n.out[0, h], n.out[1, h]
        for b in range(servers):
            a = max(n.hidden[b], np.float32(0.01) * n.hidden[b])
            n.heads[0, b] += first * a
            n.heads[1, b] += second * a


@compiled(fastmath=True)
def plain_score(n: Network, c: Cluster, v: View, m: Memory, tasks: Tasks, k: int, cost: np.ndarray) -> None:
    """The score [B] of each server in s, the least is the best: the priced rule, changed by the network's two heads.

    alpha q + beta w/f + (S + mean q) g2 + [miss] L (theta + phi q/S + psi r(victim)) / (1 + chi r(model)) exp(g1)
    """
    heads(n)
    servers, model, mean = len(c.rate), tasks.model[k], n.mean_service[0]
    alpha, beta, theta = n.constants[0], n.constants[1], n.constants[2]
    phi, psi, chi = n.constants[3], n.constants[4], n.constants[5]
    own = servers * share(m, model) / max(known_holders(v, c, model), 1)
    scale = mean * np.exp(np.float64(n.on_task[0]))
    for b in range(servers):
        q = v.backlog[b]
        cost[b] = alpha * q + beta * tasks.work[k] / c.rate[b] + scale * n.heads[1, b]
        if v.miss[b]:
            worth = np.exp(np.float64(n.on_server[4, b])) - 1
            change = np.exp(min(max(n.heads[0, b], np.float32(-5)), np.float32(5)))
            cost[b] += c.load_seconds[model] * (theta + phi * q / mean + psi * worth) / (1 + chi * own) * change


@compiled(fastmath=True)
def score(n: Network, c: Cluster, v: View, m: Memory, tasks: Tasks, k: int, uniform: float, cost: np.ndarray) -> None:
    """The score [B] in s by which task k chooses, plain or by the chain."""
    inputs(n, c, v, m, tasks, k)
    steps, servers = n.schedule.shape[0], len(c.rate)
    if steps == 0:
        plain_score(n, c, v, m, tasks, k, cost)
        return
    latent, row = n.latent[0], 0
    if latent == BY_USER:
        row = tasks.user[k]
    elif latent == BY_MODEL:
        row = tasks.model[k]
    elif latent == BY_STATION:
        row = tasks.base_station[k]
    for b in range(servers):
        if latent == NOISE:  # a normal number from two uniform ones
            first, second = (uniform * (3 * b + 7919) + 0.1) % 1.0, (uniform * (5 * b + 104729) + 0.7) % 1.0
            n.x[b] = np.sqrt(-2 * np.log(first + 1e-12)) * np.cos(2 * np.pi * second)
        else:
            n.x[b] = n.memory[row, b]
        n.begin[b] = n.x[b]
    for i in range(steps):
        n.on_task[ON_TASK - 1] = 1 - i / steps
        for b in range(servers):
            n.on_server[ON_SERVER - 1, b] = n.x[b]
        plain_score(n, c, v, m, tasks, k, cost)
        least = cost[0]
        for b in range(servers):
            least = min(least, cost[b])
        for b in range(servers):
            predicted = max((least - cost[b]) / n.mean_service[0], -20.0)
            n.x[b] = n.schedule[i, 0] * predicted + n.schedule[i, 1] * n.x[b]
    for b in range(servers):
        cost[b] = -n.x[b] * n.mean_service[0]
        if latent >= BY_USER:
            n.memory[row, b] = n.x[b]

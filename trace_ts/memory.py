"""What agents remember of the tasks before: how popular each model is, and what each user asked for last.

Start reading at `remember`.
"""

from typing import NamedTuple

import numpy as np

from trace_ts.cluster import NONE, Tasks
from trace_ts.compiled import compiled

POPULARITY_TASKS = 1000.0  # a task counts 1 / e as much after so many others


class Memory(NamedTuple):
    """weight [1] of the next task; requests and work [N] by model, each task with its weight; last_model [U] of a user.

    total [2] is the sum of requests and of work. credit [G, B] is what weighted round robin owes the
    servers, at each of G base stations.
    """

    weight: np.ndarray
    requests: np.ndarray
    work: np.ndarray
    total: np.ndarray
    last_model: np.ndarray
    credit: np.ndarray


def new_memory(servers: int, models: int, users: int, base_stations: int) -> Memory:
    """Nothing is known."""
    return Memory(
        weight=np.ones(1),
        requests=np.zeros(models),
        work=np.zeros(models),
        total=np.zeros(2),
        last_model=np.full(users, NONE),
        credit=np.zeros((base_stations, servers)),
    )


@compiled()
def share(m: Memory, model: int) -> float:
    """The share of the requests that ask for a model, recent ones first."""
    return m.requests[model] / m.total[0] if m.total[0] > 0 else 0.0


@compiled()
def remember(m: Memory, tasks: Tasks, k: int) -> None:
    """Take in a task that has been sent for the first time."""
    model, weight = tasks.model[k], m.weight[0]
    m.requests[model] += weight
    m.work[model] += weight * tasks.work[k]
    m.total[0] += weight
    m.total[1] += weight * tasks.work[k]
    m.weight[0] *= np.exp(1 / POPULARITY_TASKS)
    if m.weight[0] > 1e100:
        for values in (m.requests, m.work, m.total):
            for i in range(len(values)):
                values[i] /= m.weight[0]
        m.weight[0] = 1.0
    m.last_model[tasks.user[k]] = model

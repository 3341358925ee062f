"""What each decision cost everybody, in hindsight: the task's own delay, and what those behind it waited for it.

Start reading at `marginal_cost`.
"""

import numpy as np

from trace_ts.compiled import compiled
from trace_ts.simulation import Outcome


@compiled()
def add_waiting_behind(
    order: np.ndarray, time: np.ndarray, start: np.ndarray, finish: np.ndarray, server: np.ndarray, cost: np.ndarray
) -> None:
    """Add to each task's cost [K] by how much those after it would start earlier without it."""
    count = len(order)
    for i in range(count):
        k = order[i]
        gain = finish[k] - start[k]
        for j in range(i + 1, count):
            later = order[j]
            if server[later] != server[k]:
                break
            gain = min(gain, start[later] - time[later])
            if gain <= 0:
                break
            cost[k] += gain


def marginal_cost(outcome: Outcome) -> np.ndarray:
    """By how much all delays together would be shorter without each task [K], in s, its own included.

    The tasks after it on its server are taken to keep their order and their loads.
    """
    order = np.lexsort((outcome.start, outcome.server))
    cost = outcome.delay.copy()
    add_waiting_behind(order, outcome.time, outcome.start, outcome.finish, outcome.server, cost)
    return cost

"""What each decision cost everybody, in hindsight: the task's own delay, and what those behind it waited for it.

Start reading at `marginal_cost`.
"""

import numpy as np

from trace_ts.compiled import compiled
from trace_ts.simulation import Outcome


@compiled()
def add_waiting_behind(
    order: np.ndarray,
    time: np.ndarray,
    start: np.ndarray,
    finish: np.ndarray,
    server: np.ndarray,
    model: np.ndarray,
    load: float,
    cost: np.ndarray,
) -> None:
    """Add to each task's cost [K] by how much those after it would start earlier without it."""
    count = len(order)
    for i in range(count):
        k = order[i]
        before = model[order[i - 1]] if i > 0 and server[order[i - 1]] == server[k] else -1
        gain = finish[k] - start[k]
        for j in range(i + 1, count):
            later = order[j]
            if server[later] != server[k]:
                break
            waited, idle = start[later] - time[later], start[later] - finish[order[j - 1]]
            gain = min(gain, waited) if gain > 0 else min(gain + idle, 0.0)
            if j == i + 1:  # it may need a load only with task k, or only without it
                gain += (load if model[later] != model[k] else 0.0) - (load if model[later] != before else 0.0)
            cost[k] += gain
            if gain == 0:
                break


def marginal_cost(outcome: Outcome, model: np.ndarray, load_time: float) -> np.ndarray:
    """By how much all delays together would be shorter without each task [K], in s, its own included.

    The tasks after it on its server are taken to keep their order. One model is resident; model [K] is the tasks'.
    """
    order = np.lexsort((outcome.start, outcome.server))
    cost = outcome.delay.copy()
    add_waiting_behind(
        order, outcome.time, outcome.start, outcome.finish, outcome.server, model, float(load_time), cost
    )
    return cost

"""What an outcome is judged by. Start reading at `measures`."""

import numpy as np

from trace_ts.simulation import Outcome
from trace_ts.workload import Requests

SLO = (2, 5)  # a task keeps SLO-k when its delay is at most k times its service on a server of mean speed


def jain(values: np.ndarray) -> float:
    """Jain's fairness index of positive values: 1 if all are equal, 1 / n if one has everything."""
    return float(values.sum() ** 2 / (values.size * (values**2).sum()))


def measures(outcome: Outcome, requests: Requests) -> dict[str, float]:
    """Figures of an outcome, by name with their unit; requests are those that it is of.

    Shares are from 0 to 1: those of tasks that keep an SLO or need a load (switches), and of time in which servers load
    or serve (utilisation). The wait is the delay without loading and service, the slowdown the delay over the service
    on a server of mean speed. Fairness is Jain's index over the users' mean slowdowns, inverted so that what is long
    weighs little.
    """
    delay, nominal = outcome.delay, requests.work / outcome.rate.mean()
    slowdown = delay / nominal
    users, place = np.unique(requests.user, return_inverse=True)
    by_user = np.bincount(place, slowdown) / np.bincount(place, minlength=users.size)
    span = outcome.finish.max() - outcome.time.min()
    busy = outcome.finish - outcome.start
    percentiles = {f"p{q}_s": float(np.percentile(delay, q)) for q in (50, 95, 99)}
    return {
        "mean_s": float(delay.mean()),
        **percentiles,
        "wait_s": float((outcome.start - outcome.time).mean()),
        "slowdown": float(slowdown.mean()),
        **{f"slo_{k}": float((delay <= k * nominal).mean()) for k in SLO},
        "switches": float(outcome.loads.mean()),
        "utilisation": float(busy.sum() / (span * outcome.rate.size)),
        "fairness": jain(1 / by_user),
    }


def by_block(outcome: Outcome, blocks: int) -> np.ndarray:
    """Mean delay [blocks] in s of consecutive tasks, as many in each."""
    return np.array([part.mean() for part in np.array_split(outcome.delay, blocks)])

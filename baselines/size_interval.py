"""SITA: keep small tasks apart from large ones, on edge servers of their own.

Start reading at `SizeInterval`; `best_intervals` fits the cutoffs.
"""

from collections.abc import Sequence

import numpy as np

from baselines.heuristics import Heuristic, expected_work, fill_levels
from lad_ts.environment_lad import Scenario, Slot


def best_intervals(count: np.ndarray, work: np.ndarray, capacity: np.ndarray, classes: int) -> np.ndarray:
    """Cut task sizes and servers, both in order, into `classes` matching intervals with the least fluid wait.

    count and work [N] are the mean tasks and Gcycles per slot of each size, capacity [B] is what the servers do in a
    slot. A class with load rho makes its tasks wait in proportion to max(0, rho - 1): its queue grows all episode when
    it is overloaded. Dynamic programming over (sizes, servers) given out so far. Returns the interval ends
    [classes, 2] as numbers of sizes and of servers.
    """
    # At most 50 sizes and 20 servers are candidates for an end, so the table stays small.
    n_end = np.unique(np.linspace(0, count.size, min(count.size, 50) + 1).round().astype(int))
    b_end = np.unique(np.linspace(0, capacity.size, min(capacity.size, 20) + 1).round().astype(int))
    tasks, load, rate = (np.concatenate([[0], x.cumsum()]) for x in (count, work, capacity))
    tasks, load, rate = tasks[n_end], load[n_end], rate[b_end]

    def between(x: np.ndarray) -> np.ndarray:
        return x - x[:, None]  # [start, end]

    some = np.arange(rate.size)[:, None] < np.arange(rate.size)  # every class gets a server
    rho = between(load)[:, None, :, None] / np.where(some, between(rate), 1)[None, :, None]
    cost = between(tasks)[:, None, :, None] * np.maximum(rho - 1, 0)  # [n start, b start, n end, b end]
    forward = np.arange(tasks.size)[:, None] <= np.arange(tasks.size)
    cost = np.where(forward[:, None, :, None] & some[None, :, None], cost, np.inf)
    best, came = cost[0, 0], []
    for _ in range(classes - 1):
        total = (best[:, :, None, None] + cost).reshape(best.size, *best.shape)
        came.append(total.argmin(0))
        best = total.min(0)
    ends = [(tasks.size - 1, rate.size - 1)]
    for table in reversed(came):
        ends.append(divmod(int(table[ends[-1]]), rate.size))
    return np.array([(n_end[n], b_end[b]) for n, b in reversed(ends)])


class SizeInterval(Heuristic):
    """Size-interval task assignment (SITA): each class of task sizes has edge servers of its own, water-filled.

    Under overload the fluid model reserves enough servers for the small tasks, which then hardly wait, and lets the
    queues of the large ones grow: that is what beats the greedy Opt-TS on the mean (SITA with unequal load,
    Harchol-Balter et al. 1999), at the price of the large tasks.
    """

    needs = "q at the slot's start, f, w, distribution of the work per slot"

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        classes = min(self.params.classes, self.num_bs, self.params.num_tasks)
        work = expected_work(self.params, scenario)
        self.limits = np.empty((len(work), classes - 1))  # a task above k limits in Gcycles is of class k
        server = np.empty(scenario.capacity.shape, dtype=np.int64)  # class of each ES
        for row, (capacity, load, workload) in enumerate(
            zip(scenario.capacity * self.params.slot_length, work, scenario.workload, strict=True)
        ):
            before = row - 1  # rows of the same scenario stand together and share their intervals
            if row and all((x[row] == x[before]).all() for x in (scenario.capacity, scenario.workload)):
                self.limits[row], server[row] = self.limits[before], server[before]
                continue
            n, es = np.argsort(workload, kind="stable"), np.argsort(capacity, kind="stable")
            ends = best_intervals(load[n] / workload[n], load[n], capacity[es], classes)
            last = workload[n[np.maximum(ends[:-1, 0] - 1, 0)]]  # the largest task of each class but the last
            if self.params.file_tasks is not None:  # tasks lie between the classes of a file
                last = (last + workload[n[np.minimum(ends[:-1, 0], n.size - 1)]]) / 2
            self.limits[row] = np.where(ends[:-1, 0] > 0, last, -np.inf)
            server[row, es] = np.searchsorted(ends[:, 1], np.arange(es.size), side="right")
        self.member = server[:, None] == np.arange(classes)[:, None]  # [R, class, B]
        sizes = self.classes(scenario.workload)
        self.class_work = np.stack([(work * (sizes == k)).sum(1) for k in range(classes)], 1)

    def classes(self, workload: np.ndarray) -> np.ndarray:
        """The class of each workload [R, ..] in Gcycles."""
        rows = zip(self.limits, workload, strict=True)
        return np.stack([limits.searchsorted(values, side="left") for limits, values in rows])

    def act(self, slot: Slot) -> np.ndarray:
        return self.draw_from(self.shares(slot), slot, self.classes(slot.workload.cpu().numpy()))

    def shares(self, slot: Slot) -> np.ndarray:
        """The probabilities [R, class, B] of the ESs."""
        capacity = self.scenario.capacity[:, None] * self.member
        return fill_levels(slot.backlog.cpu().numpy()[:, None], capacity, self.class_work)


class SizeIntervalStatic(SizeInterval):
    """SITA without feedback: inside its class, a task takes an ES in proportion to capacity."""

    needs = "f, w, distribution of the work per slot"

    def shares(self, slot: Slot) -> np.ndarray:
        return self.scenario.capacity[:, None] * self.member

"""Schedulers without learning, each a few lines on top of `Scheduler`, and what each of them must know.

`HEURISTICS` names them for main_heuristics.py. All draw from the rows' own generators, so runs repeat. Start reading at
`CapacityProportional`, the shortest of those that do well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lad_ts.environment_lad import EnvironmentParameters, Scenario, Slot
from lad_ts.queue_model import presence
from lad_ts.references import VirtualOpt
from lad_ts.routing_table import coordinated_uniforms, fit_tables, scenario_rows
from lad_ts.scheduler import Scheduler


class Heuristic(Scheduler):
    """A scheduler that draws servers from probabilities."""

    def draw_from(
        self,
        probabilities: np.ndarray,
        slot: Slot,
        group: np.ndarray | None = None,
        uniform: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws [R, B, N] from probabilities [R, K, B]; group [R, B, N] tells which of the K a task has.

        They are independent, unless the uniform numbers [R, B, N] are given.
        """
        level = probabilities.cumsum(-1)
        level /= level[..., -1:]
        if uniform is None:
            uniform = self.uniform(*slot.mask.shape[1:])
        action = np.empty(uniform.shape, dtype=np.int64)
        for row, k in np.ndindex(level.shape[:2]):
            drawn = level[row, k, :-1].searchsorted(uniform[row], side="right")
            np.copyto(action[row], drawn, where=True if group is None else group[row] == k)
        return action


class UniformRandom(Heuristic):
    """Every ES is equally likely."""

    needs = "nothing"

    def act(self, slot: Slot) -> np.ndarray:
        return (self.uniform(*slot.mask.shape[1:]) * self.num_bs).astype(np.int64)


class LocalOnly(Heuristic):
    """Every BS uses its own ES."""

    needs = "nothing"

    def act(self, slot: Slot) -> np.ndarray:
        return np.broadcast_to(np.arange(self.num_bs)[:, None], slot.mask.shape).copy()


class CapacityProportional(Heuristic):
    """An ES is as likely as its capacity is large."""

    needs = "f"

    def act(self, slot: Slot) -> np.ndarray:
        return self.draw_from(self.scenario.capacity[:, None], slot)


class CapacityRoundRobin(Heuristic):
    """Weighted round robin: each BS goes through the ESs in turn, an ES coming up in proportion to its capacity.

    The turns of ES b are due at (j + 1/2) / f[b], j = 0, 1, ..; each BS starts at a random place in that sequence.
    """

    needs = "f"

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        length = self.params.num_slots * self.params.num_tasks
        places = max(1000, 10 * self.num_bs)
        self.served = np.floor(places * self.uniform(self.num_bs)).astype(np.int64)
        self.turns = np.stack([self.sequence(capacity, places + length) for capacity in scenario.capacity])

    @staticmethod
    def sequence(capacity: np.ndarray, length: int) -> np.ndarray:
        share = capacity / capacity.sum()
        turns = np.ceil(length * share).astype(np.int64) + capacity.size // 2 + 1
        server = np.repeat(np.arange(capacity.size), turns)
        number = np.concatenate([np.arange(count) for count in turns])
        return server[np.argsort((number + 0.5) / share[server], kind="stable")][:length]

    def act(self, slot: Slot) -> np.ndarray:
        row = np.arange(len(self.turns))[:, None, None]
        action = self.turns[row, self.served[..., None] + np.arange(slot.mask.shape[2])]
        self.served = self.served + slot.mask.cpu().numpy().sum(2)
        return action


class ShortestQueue(Heuristic):
    """The ES whose backlog at the slot's start takes the least time; ties are broken at random.

    All tasks of a slot run to the same server: what happens when everybody follows the same old news.
    """

    needs = "q at the slot's start, f"

    def act(self, slot: Slot) -> np.ndarray:
        seconds = slot.backlog.cpu().numpy() / self.scenario.capacity
        shortest = seconds == seconds.min(-1, keepdims=True)
        return self.draw_from(shortest[:, None].astype(float), slot)


def expected_work(params: EnvironmentParameters, scenario: Scenario) -> np.ndarray:
    """Gcycles [R, N] that the n-th tasks of all BSs bring in a slot on average."""
    return scenario.workload * presence(params) * scenario.capacity.shape[1]


def fill_levels(backlog: np.ndarray, capacity: np.ndarray, work: np.ndarray) -> np.ndarray:
    """How to pour work [..] Gcycles onto ESs so that they finish together: probabilities [.., B].

    backlog [.., B] in Gcycles and capacity [.., B] in Gcycles/s; an ES with capacity 0 gets nothing. With the level L
    that solves sum_b max(0, L f[b] - q[b]) = work, ES b gets a share in proportion to max(0, L f[b] - q[b]).
    """
    seconds = np.where(capacity > 0, backlog / np.where(capacity > 0, capacity, 1), np.inf)
    order = np.argsort(seconds, axis=-1)
    f, q, s = (np.take_along_axis(np.broadcast_to(x, seconds.shape), order, -1) for x in (capacity, backlog, seconds))
    level = (work[..., None] + np.cumsum(np.where(f > 0, q, 0), -1)) / np.cumsum(f, -1)
    used = (level > s).sum(-1, keepdims=True)  # an ES counts if the level of all before it lies above its backlog
    level = np.take_along_axis(level, np.maximum(used - 1, 0), -1)
    poured = np.maximum(0, level * capacity - backlog) * (capacity > 0)
    return np.where(poured.sum(-1, keepdims=True) > 0, poured, capacity)


class WaterFilling(Heuristic):
    """Random in proportion to what fills all ESs to one level, from the backlog known at the slot's start."""

    needs = "q at the slot's start, f, mean work per slot"

    def act(self, slot: Slot) -> np.ndarray:
        work = expected_work(self.params, self.scenario).sum(1)
        share = fill_levels(slot.backlog.cpu().numpy(), self.scenario.capacity, work)
        return self.draw_from(share[:, None], slot)


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


class FittedTable(Heuristic):
    """A routing table for (slot, task number), fitted centrally through the queue model, corrected by the backlogs.

    The teacher of Cooperative LAD-TS (lad_ts/routing_table.py), with the parameters of its script.
    """

    needs = "q at the slot's start, t, f, w, distribution of the task counts, a table fitted in advance"
    feedback = True

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        key = np.concatenate([scenario.capacity, scenario.workload, scenario.link_rate], 1)
        _, first, self.row = np.unique(key, axis=0, return_index=True, return_inverse=True)
        self.row = self.row.reshape(-1)  # rows of the same scenario share a table
        if getattr(self, "fitted", None) is None or not np.array_equal(self.fitted, key[first]):
            seeds = [rows[row][0] for row in first]
            self.table, _ = fit_tables(self.params, scenario_rows(scenario, first), seeds)
            self.fitted = key[first]
        self.offset = self.uniform(self.params.num_slots)
        self.spread = coordinated_uniforms(self.num_bs, scenario.workload.shape[1]).numpy()
        self.down = np.zeros(scenario.capacity.shape, dtype=bool)

    def lose(self, down: np.ndarray, scenario: Scenario) -> None:
        super().lose(down, scenario)
        self.down = down

    def act(self, slot: Slot) -> np.ndarray:
        logits = self.table.log_table[self.row, slot.t].double().numpy()  # [R, N, B]
        if self.feedback:
            excess = slot.backlog.cpu().numpy() - self.table.nominal[self.row, slot.t].double().numpy()
            logits = logits - self.params.feedback * (excess / self.scenario.capacity)[:, None]
        logits = np.where(self.down[:, None], -np.inf, logits)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        uniform = (self.offset[:, slot.t, None, None] + self.spread) % 1 if self.params.coordinated else None
        number = np.broadcast_to(np.arange(logits.shape[1]), slot.mask.shape)
        return self.draw_from(share, slot, number, uniform)


class FittedTableStatic(FittedTable):
    """The fitted table as it is: no state at all but the time."""

    needs = "t, f, w, distribution of the task counts, a table fitted in advance"
    feedback = False


HEURISTICS: dict[str, Any] = {
    "uniform_random": UniformRandom,
    "local_only": LocalOnly,
    "capacity_proportional": CapacityProportional,
    "capacity_round_robin": CapacityRoundRobin,
    "shortest_queue": ShortestQueue,
    "water_filling": WaterFilling,
    "size_interval": SizeInterval,
    "size_interval_static": SizeIntervalStatic,
    "routing_table": FittedTable,
    "routing_table_static": FittedTableStatic,
    "virtual_opt": VirtualOpt,
}

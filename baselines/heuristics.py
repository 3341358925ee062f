"""Schedulers without learning, each a few lines on top of `Scheduler`, and what each of them must know.

All draw from the rows' own generators, so runs repeat. rules.py names them. Start reading at `CapacityProportional`,
the shortest of those that do well.
"""

from collections.abc import Sequence

import numpy as np

from lad_ts.environment_lad import EnvironmentParameters, Scenario, Slot, presence
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
        """The first `length` turns as numbers of ESs, for capacity [B]."""
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

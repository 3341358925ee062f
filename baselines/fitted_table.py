"""The teacher of Cooperative LAD-TS as a scheduler of its own: a routing table, with and without feedback."""

from collections.abc import Sequence

import numpy as np

from baselines.heuristics import Heuristic
from coop_lad_ts.routing_table import coordinated_uniforms, fit_tables
from lad_ts.environment_lad import Scenario, Slot


class FittedTable(Heuristic):
    """A routing table for (slot, task number), fitted centrally through the queue model, corrected by the backlogs.

    The teacher of Cooperative LAD-TS (coop_lad_ts/routing_table.py), with the parameters of its script.
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
            self.table, _ = fit_tables(self.params, scenario.rows(first), seeds)
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
        return self.draw_from(share, slot, self.number(slot), uniform)

    def number(self, slot: Slot) -> np.ndarray:
        """The class [R, B, N] that each task is taken for: its number, or with a file the nearest by workload."""
        if self.params.file_tasks is None:
            return np.broadcast_to(np.arange(slot.mask.shape[2]), slot.mask.shape)
        found = np.empty(slot.mask.shape, dtype=np.int64)
        for row, (classes, tasks) in enumerate(zip(self.scenario.workload, slot.workload.cpu().numpy(), strict=True)):
            order = np.argsort(classes, kind="stable")
            middle = (classes[order][1:] + classes[order][:-1]) / 2
            found[row] = order[middle.searchsorted(tasks)]
        return found


class FittedTableStatic(FittedTable):
    """The fitted table as it is: no state at all but the time."""

    needs = "t, f, w, distribution of the task counts, a table fitted in advance"
    feedback = False

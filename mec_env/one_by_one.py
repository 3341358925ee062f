"""Tasks decided one after another, in every environment at its own pace: one may be slots ahead of another.

The delays are those of `CollaborativeMEC.step` for the same actions, to the last bit. Start reading at `OneByOne.send`.
"""

import numpy as np
import torch

from lad_ts.arrivals import Arrivals
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.observation import Scales, features


class OneByOne:
    """The queues of S environments, and the task that each is to decide next: the n-th of BS `station` in slot t.

    t, station and n are [S]. As in `CollaborativeMEC`, slot T - 1 is not scheduled: an episode is over when it is
    reached, and the task then is the slot's first cell.
    """

    def __init__(self, scenario: Scenario, slot_length: float) -> None:
        self.scenario, self.slot_length = scenario, slot_length
        rows, self.num_bs = scenario.capacity.shape
        self.row = np.arange(rows)
        self.t, self.station, self.n = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        self.over = np.ones(rows, dtype=bool)
        self.backlog = np.zeros((rows, self.num_bs))  # in Gcycles, at the slot's start
        self.sent = np.zeros((rows, self.num_bs))  # in Gcycles, so far in the slot
        self.count = np.zeros((rows, 0, self.num_bs), dtype=np.int64)
        self.size = self.workload = self.result_size = np.zeros((rows, 0, self.num_bs, 0))

    def start(self, arrivals: Arrivals, which: np.ndarray) -> None:
        """Start an episode in the environments with the numbers `which`, the rows of arrivals."""
        shape = arrivals.size.shape[1:]
        own = {"count": arrivals.count, "size": arrivals.size}
        for name in ("workload", "result_size"):
            # The classes of the scenario, which every slot and BS shares, take no memory.
            values = getattr(arrivals, name)
            if values is None:
                classes = getattr(self.scenario, name)
                setattr(self, name, np.broadcast_to(classes[:, None, None], (len(classes), *shape)))
            else:
                own[name] = values
        for name, values in own.items():
            if getattr(self, name).shape[1] != shape[0]:
                setattr(self, name, np.zeros((len(self.row), *values.shape[1:]), values.dtype))
            getattr(self, name)[which] = values
        self.t[which] = self.station[which] = self.n[which] = 0
        self.backlog[which] = self.sent[which] = 0.0
        self.over[which] = False
        self._find_task()

    def send(self, action: np.ndarray) -> np.ndarray:
        """Send each environment's task to the ES action [S]. Returns the delays [S] in s, 0 where it is over."""
        here = self.row, self.t, self.station, self.n
        going = ~self.over
        work, capacity = self.workload[here], self.scenario.capacity[self.row, action]
        ahead = self.backlog[self.row, action] + self.sent[self.row, action]
        upload = (action != self.station) * self.size[here]
        transmission = (upload + self.result_size[here]) / self.scenario.link_rate[self.row, action]
        delay = (transmission + work / capacity + ahead / capacity) * going
        self.sent[self.row, action] += work * going
        self.n += going
        self._find_task()
        return delay

    def _find_task(self) -> None:
        """Go on to the next task where the present BS has no more; a slot without further tasks ends."""
        last = self.count.shape[1] - 1
        while True:
            done = ~self.over & (self.n >= self.count[self.row, self.t, self.station])
            if not done.any():
                return
            self.n[done] = 0
            self.station[done] += 1
            ends = done & (self.station == self.num_bs)
            if not ends.any():
                continue
            self.station[ends] = 0
            left = self.backlog[ends] + self.sent[ends] - self.scenario.capacity[ends] * self.slot_length
            self.backlog[ends], self.sent[ends] = np.maximum(left, 0.0), 0.0
            self.t[ends] += 1
            self.over |= self.t == last

    def observe(self, kind: str, scales: Scales, in_slot: bool) -> torch.Tensor:
        """Each environment's observation [S, F]; with `in_slot`, backlogs have the work sent earlier in the slot."""
        here = self.row, self.t, self.station, self.n
        present = self.n < self.count[here[:3]]
        backlog = self.backlog + self.sent if in_slot else self.backlog
        task = (torch.from_numpy(x)[:, None, None] for x in (present, self.size[here] * present))
        workload = torch.from_numpy(self.workload[here] * present)[:, None, None]
        slot = Slot(0, *task, workload, torch.from_numpy(backlog))
        return features(slot, torch.tensor(self.scenario.capacity), kind, scales)[:, 0, 0]

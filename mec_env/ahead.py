"""What of a step can be worked out before: the tasks' part of observations, and how delays weigh in rewards."""

import torch

from lad_ts.arrivals import Arrivals
from lad_ts.environment_lad import CollaborativeMEC
from lad_ts.observation import Scales, task_part

CELLS = 2**19  # task cells that are worked out at once, which bounds the memory


class Ahead:
    """Parts of the next slots of an episode in S environments, some slots at a time."""

    def __init__(self, mec: CollaborativeMEC, arrivals: Arrivals, kind: str, scales: Scales, reward: str) -> None:
        self.mec, self.arrivals, self.kind, self.scales = mec, arrivals, kind, scales
        rows, _, stations, self.num_tasks = arrivals.size.shape
        self.together = max(1, CELLS // (rows * stations * self.num_tasks))
        self.slots = range(0)
        count = torch.as_tensor(arrivals.count, device=mec.device)
        if reward == "sum":
            shares = torch.full(count.shape, self.num_tasks, device=mec.device)
        elif reward == "team":
            shares = count.sum(2, keepdim=True).expand(count.shape)
        else:
            shares = count
        self.weights = -1.0 / shares.clamp(min=1).double()

    def weight(self, t: int) -> torch.Tensor:
        """The factor [S, B] of the delays of a BS's tasks in its reward."""
        return self.weights[:, t]

    def tasks(self, t: int) -> torch.Tensor:
        """The tasks' part of the observations of slot t, [S, B, N, 2] float32; zeros where there is no task."""
        if t not in self.slots:
            self.slots = range(t, min(t + self.together, self.arrivals.size.shape[1]))
            part, device = slice(self.slots.start, self.slots.stop), self.mec.device
            count = torch.as_tensor(self.arrivals.count[:, part], device=device)
            mask = torch.arange(self.num_tasks, device=device) < count[..., None]
            size = torch.as_tensor(self.arrivals.size[:, part], device=device)
            own = self.arrivals.workload
            workload = self.mec.workload[:, None] if own is None else torch.as_tensor(own[:, part], device=device)
            self.part = task_part(size * mask, workload * mask, self.kind, self.scales)
        return self.part[:, t - self.slots.start]

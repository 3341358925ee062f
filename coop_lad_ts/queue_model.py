"""The queues of the environment as a differentiable model: from action probabilities to everybody's expected delay.

Loads are replaced by their expectations. The recursion q[t+1] = max(q[t] + sent - f, 0) over a whole episode has the
closed form S[t] - min(0, S[1], .., S[t]) with S the running sum of sent - f (Lindley 1952), so a model of any length is
a few batched operations, and gradients say what a task costs all those behind it. With deterministic routing this is
the simulator. Start reading at `QueueModel.delays`, then at `QueueModel.table_delays`.
"""

import dataclasses

import numpy as np
import torch

from lad_ts.environment_lad import Scenario


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimises, as the cost of a task by its delay; see `cost`.

    kind `mean`: the delay. `tail`: the delay, and `weight` times what lies above `threshold` [R] in s, smoothly.
    `slowdown`: the delay over what the task would need alone on its best server.
    """

    kind: str
    weight: float = 0.0
    threshold: torch.Tensor | None = None

    def cost(self, delay: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """The cost of delay [R, .., N, B] in s; alone [R, N] in s is the least delay of the n-th task."""
        if self.kind == "slowdown":
            return delay / alone.view(alone.shape[0], *[1] * (delay.dim() - 3), -1, 1)
        if self.kind == "tail":
            above = delay - self.threshold.to(delay).view(-1, *[1] * (delay.dim() - 1))
            return delay + self.weight * torch.nn.functional.softplus(2 * above) / 2
        return delay


class QueueModel:
    """The expected delays of R scenarios with B servers and N task indices, all in one dtype.

    capacity [R, B] in Gcycles/s, link_rate [R, B] in Mbit/s, workload [R, N] in Gcycles, result_size [R, N] in Mbit.
    `own` [R, N, B] and `alone` [R, N] are the seconds that a task of a server's own BS takes without any queue, on each
    ES and on the best. If `ordered`, the n-th task of a BS comes after n - 1 others of its slot; if not, n is a class
    of tasks that come in any order.
    """

    def __init__(
        self,
        scenario: Scenario,
        slot_length: float = 1.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        ordered: bool = True,
    ) -> None:
        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.capacity, self.link_rate = tensor(scenario.capacity), tensor(scenario.link_rate)
        self.workload, self.result_size = tensor(scenario.workload), tensor(scenario.result_size)
        self.slot_length, self.num_bs, self.ordered = slot_length, scenario.capacity.shape[1], ordered
        transmission = self.result_size[:, :, None] / self.link_rate[:, None]
        self.own = self.workload[:, :, None] / self.capacity[:, None] + transmission
        self.alone = self.own.amin(2)

    def backlogs(self, sent: torch.Tensor) -> torch.Tensor:
        """q [R, .., T, B] at the start of every slot, from the work sent in it, [R, .., T, B]; all in Gcycles."""
        capacity = self.capacity.view(-1, *[1] * (sent.dim() - 2), self.num_bs)
        surplus = (sent - capacity * self.slot_length).cumsum(-2)
        path = torch.cat([torch.zeros_like(surplus[..., :1, :]), surplus[..., :-1, :]], -2)
        return path - path.cummin(-2).values

    def delays(self, probabilities: torch.Tensor, mask: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """Expected delay [R, T, B, N, B] in s of every task on every ES while all others are routed as given.

        probabilities [R, T, B, N, B] are each task's over the ESs, mask [R, T, B, N] tells the tasks that exist, size
        [R, T, B, N] is in Mbit. Weighted by the probabilities, these are the tasks' expected delays; for probabilities
        of 0 and 1 they are the simulator's (arXiv 2412.18212, service delay model).
        """
        work = ((mask * self.workload[:, None, None])[..., None] * probabilities).flatten(2, 3)
        in_order = work.cumsum(2)
        ahead = (in_order - work).unflatten(2, mask.shape[2:])  # what was sent earlier in the slot
        backlog = self.backlogs(in_order[:, :, -1])
        queue = (backlog[:, :, None, None] + ahead) / self.capacity[:, None, None, None]
        away = 1 - torch.eye(self.num_bs, dtype=work.dtype, device=work.device)
        hop = away[:, None] / self.link_rate[:, None, None]  # [R, B, 1, B] in s/Mbit
        return queue + size.to(work.dtype)[..., None] * hop[:, None] + self.own[:, None, None]

    def table_delays(self, table: torch.Tensor, count: torch.Tensor, size: float) -> torch.Tensor:
        """Expected delay [R, E, T, N, B] in s of the n-th task of a slot on every ES, averaged over the BSs.

        table [R, T, N, B] holds the action probabilities that all BSs use, count [R, E, T, N] how many BSs have an n-th
        task in a slot, for E arrival paths, size is the mean input in Mbit. On average a task has what (B - 1) / 2
        other BSs send before it, and all of its own BS's earlier tasks.
        """
        work = self.workload[:, None, :, None] * table
        sent = torch.einsum("retn,rtnb->retb", count, work)
        others = sent * ((self.num_bs - 1) / (2 * self.num_bs)) + self.backlogs(sent)
        own_queue = work.cumsum(2) - work
        if not self.ordered:  # half of a slot's work comes before a task, whatever its class
            others, own_queue = sent / 2 + self.backlogs(sent), torch.zeros_like(own_queue)
        hop = size * (1 - 1 / self.num_bs) / self.link_rate[:, None, None]
        capacity = self.capacity[:, None, None]
        alone = own_queue / capacity + hop + self.own[:, None]  # what no other BS changes
        return others[:, :, :, None] / capacity[:, None] + alone[:, None]

    def table_cost(self, table: torch.Tensor, count: torch.Tensor, size: float, objective: Objective) -> torch.Tensor:
        """The mean cost of a task under `objective` [R], for table and count as in `table_delays`."""
        cost = (table[:, None] * objective.cost(self.table_delays(table, count, size), self.alone)).sum(-1)
        return (cost * count).sum((1, 2, 3)) / count.sum((1, 2, 3)).clamp(min=1)

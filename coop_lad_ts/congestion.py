"""Congestion prices, measured instead of modelled: what a task costs those behind it, read off a finished episode.

The price of a server in a slot is the seconds by which one more Gcycle would have delayed all tasks that came behind it
until the queue emptied: their number over the server's capacity. Start reading at `measured_costs`.
"""

import torch

from coop_lad_ts.routing_table import LOG_FLOOR, RoutingTable

WARM_START = 5  # episodes in which prices are only measured


def measured_costs(
    backlog: torch.Tensor, work: torch.Tensor, tasks: torch.Tensor, capacity: torch.Tensor, slot_length: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Wait [S, T, B] in s, and price [S, T, B] in s per Gcycle, of each ES in each slot of an episode.

    backlog [S, T, B] at the slots' starts and work [S, T, B] sent in them, in Gcycles, tasks [S, T, B] how many were
    sent, capacity [S, B]. A task in the middle of a slot has half of the slot's work before it, and half of its tasks
    and those of all slots until the queue is empty behind it.
    """
    f = capacity[:, None]
    stays = backlog + work > f * slot_length  # the queue goes over into the next slot
    behind, later = torch.empty_like(work), torch.zeros_like(work[:, 0])
    for t in reversed(range(work.shape[1])):
        carried = stays[:, t] * later
        behind[:, t] = tasks[:, t] / 2 + carried
        later = tasks[:, t] + carried
    return (backlog + work / 2) / f, behind / f


class CongestionPrices:
    """A routing table [S, T - 1, N, B] that moves away from what has cost the most, after each episode."""

    def __init__(self, table: RoutingTable, rate: float, memory: float) -> None:
        self.table, self.rate, self.memory = table, rate, memory
        self.wait, self.price = torch.zeros_like(table.nominal), torch.zeros_like(table.nominal)
        self.episodes = torch.zeros(1, dtype=torch.int64)

    def learn(
        self, wait: torch.Tensor, price: torch.Tensor, backlog: torch.Tensor, own: torch.Tensor, workload: torch.Tensor
    ) -> None:
        """Take in an episode's wait and price [S, T - 1, B] and its backlogs; own [S, N, B] in s, workload [S, N].

        log p -= rate * (cost - mean cost under p), with cost = wait + own time + workload * price.
        """
        weight = self.memory if self.episodes else 1.0
        self.wait.lerp_(wait, weight)
        self.price.lerp_(price, weight)
        self.table.nominal.lerp_(backlog, weight)
        self.episodes += 1
        late = int(self.episodes) - WARM_START
        if late <= 0:
            return
        cost = self.wait[:, :, None] + own[:, None] + workload[:, None, :, None] * self.price[:, :, None]
        probabilities = self.table.log_table.softmax(-1)
        advantage = cost - (probabilities * cost).sum(-1, keepdim=True)
        step = self.rate / (1 + late / 20)
        self.table.log_table.sub_(step * advantage).copy_(self.table.log_table.log_softmax(-1).clamp(min=LOG_FLOOR))

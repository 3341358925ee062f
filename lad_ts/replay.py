"""Replay memory for many agents at once: one ring of transitions for each agent, in one tensor."""

import torch


class Replay:
    """Rings of `capacity` transitions for G agents; a transition is a row of named columns.

    `columns` maps each name to its width. The memory is one float32 tensor [G, capacity, sum of widths], so taking a
    minibatch of all agents is one indexing.
    """

    def __init__(self, agents: int, capacity: int, columns: dict[str, int], device: torch.device) -> None:
        self.capacity, self.columns = capacity, columns
        self.rows = torch.zeros(agents, capacity, sum(columns.values()), device=device)
        self.written = torch.zeros(agents, 1, dtype=torch.int64, device=device)
        self.offset = torch.arange(agents, device=device)[:, None] * capacity

    def add(self, mask: torch.Tensor, **values: torch.Tensor) -> None:
        """Append, for every agent, the transitions n with mask [G, N]; each value is [G, N, width].

        The mask must be a prefix of each agent's N cells, and N at most the capacity.
        """
        new = torch.cat([values[name].to(self.rows.dtype) for name in self.columns], -1)
        slot = (self.written + torch.arange(mask.shape[1], device=mask.device)) % self.capacity
        self.rows.view(-1, self.rows.shape[-1])[(self.offset + slot)[mask]] = new[mask]
        self.written += mask.sum(1, keepdim=True)

    @property
    def size(self) -> torch.Tensor:
        """Transitions held by each agent, [G, 1]."""
        return self.written.clamp(max=self.capacity)

    def take(self, uniform: torch.Tensor) -> dict[str, torch.Tensor]:
        """A minibatch [G, M, width] of each column, drawn with replacement by uniform numbers [G, M] in [0, 1)."""
        index = torch.minimum((uniform * self.size).long(), (self.size - 1).clamp(min=0))
        flat = self.rows.view(-1, self.rows.shape[-1])
        batch = flat.index_select(0, (self.offset + index).view(-1)).view(*index.shape, -1)
        return dict(zip(self.columns, batch.split(list(self.columns.values()), -1), strict=True))

    def parts(self) -> dict[str, torch.Tensor]:
        """The memory of each column, [G, capacity, width]."""
        return dict(zip(self.columns, self.rows.split(list(self.columns.values()), -1), strict=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"rows": self.rows, "written": self.written}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.rows.copy_(state["rows"])
        self.written.copy_(state["written"])

"""What agents measure of their own learning: losses, entropy, norms of gradients, averaged over an episode.

A learner that has a `Metrics` as `self.metrics` calls `add` once an update; the training asks for the episode's means
and writes them into metrics.csv. Nothing here touches what is learned. Start reading at `Metrics.add`.
"""

import numpy as np
import torch

KEPT = 64  # updates whose numbers are kept as they are, before they are added up


def norm(gradient: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm [G, 1] of each agent's gradient [G, P]."""
    return torch.linalg.vector_norm(gradient, dim=1, keepdim=True)


class Metrics:
    """Sums over an episode's updates, for G stacked agents or seeds; G is a multiple of `seeds`."""

    def __init__(self, seeds: int, names: tuple[str, ...]) -> None:
        """`names` are the columns of metrics.csv, in order."""
        self.seeds, self.names = seeds, names
        self.clear()

    def clear(self) -> None:
        """Forget the updates so far."""
        self._kept: list[dict[str, torch.Tensor] | torch.Tensor] = []  # of the agents `_learning`
        self._learning: torch.Tensor | None = None
        self._total: dict[str, torch.Tensor] = {}  # sums over updates [G]
        self._count: dict[str, torch.Tensor] = {}  # updates [G]

    def add(self, learning: torch.Tensor | None = None, **values: torch.Tensor) -> None:
        """Note an update of the agents with the indices `learning` (None: all).

        Each value is [.., G, M]: some numbers of every agent, of which the mean counts. It may be part of a graph of
        gradients, and must not be changed in place later. A name may be left out; one that was not announced is lost.
        """
        self._keep(learning, {name: value.detach() for name, value in values.items()})

    def add_all(self, learning: torch.Tensor | None, table: torch.Tensor) -> None:
        """As `add`, of all names at once: a number of every agent for each, [G, names]."""
        self._keep(learning, table)

    def _keep(self, learning: torch.Tensor | None, values: dict[str, torch.Tensor] | torch.Tensor) -> None:
        if learning is not self._learning or len(self._kept) == KEPT:
            self._add_up()
            self._learning = learning
        self._kept.append(values)

    @torch.no_grad()
    def _add_up(self) -> None:
        kept = [
            dict(zip(self.names, values.unsqueeze(-1).unbind(1), strict=True)) if torch.is_tensor(values) else values
            for values in self._kept
        ]
        for name in self.names:
            found = [values[name] for values in kept if name in values]
            if not found:
                continue
            total = torch.stack(found).mean(-1, dtype=torch.float64).sum(0)
            total = total if total.dim() == 1 else total.flatten(0, -2).mean(0)  # [G]
            if self._learning is None:
                count = torch.full_like(total, len(found))
            else:
                count = torch.zeros_like(total).index_fill(0, self._learning, len(found))
                total = torch.where(count > 0, total, 0)
            self._total[name] = self._total[name] + total if name in self._total else total
            self._count[name] = self._count[name] + count if name in self._count else count
        self._kept = []

    def take(self) -> dict[str, np.ndarray]:
        """The mean [S] of each name over the updates since the last call and each seed's agents, and begin anew.

        NaN for a seed that has not learned.
        """
        self._add_up()
        means = {name: np.full(self.seeds, np.nan) for name in self.names}
        if self._total:
            sums = torch.stack([torch.stack([self._total[name], self._count[name]]) for name in self._total])
            total, count = sums.view(len(sums), 2, self.seeds, -1).sum(-1).cpu().numpy().swapaxes(0, 1)
            with np.errstate(invalid="ignore"):  # 0 / 0 where no agent of a seed has learned
                means |= dict(zip(self._total, total / count, strict=True))
        self.clear()
        return means

"""An evolution strategy: parameters that make a measured cost small, without gradients of what is measured.

Candidates in antithetic pairs around the present parameters, costs by rank, steps by Adam (Salimans et al. 2017,
arXiv 1703.03864). Start reading at `Evolution.advance`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from common.random_streams import Stream, random_generator
from trace_ts.search import Search


class Evolution:
    """A search from parameters `start` [P].

    costs(candidates [N, P], generator) gives the candidates' costs [N], all measured on the same things, which it may
    draw by the generator. `first` and `second` [P] are Adam's moments.
    """

    def __init__(
        self,
        start: np.ndarray,
        costs: Callable[[np.ndarray, np.random.Generator], np.ndarray],
        search: Search,
        seed: int,
    ) -> None:
        self.costs, self.search = costs, search
        self.generator = random_generator(Stream.TRACE_SEARCH, seed)
        self.parameters = np.array(start, dtype=np.float64)
        self.first, self.second = np.zeros_like(self.parameters), np.zeros_like(self.parameters)

    def advance(self, generation: int) -> None:
        """A step down the slope that the candidates' ranks tell."""
        search, point = self.search, self.parameters
        step = self.generator.standard_normal((search.pairs, point.size))
        candidates = np.concatenate([point + search.sigma * step, point - search.sigma * step])
        cost = self.costs(candidates, self.generator)
        rank = cost.argsort().argsort() / (cost.size - 1)  # from 0 to 1
        slope = (rank[: search.pairs] - rank[search.pairs :]) @ step / (search.pairs * search.sigma)
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        mean, spread = self.first / (1 - 0.9**generation), self.second / (1 - 0.999**generation)
        self.parameters = point - search.rate * search.slowdown(generation) * mean / (np.sqrt(spread) + 1e-8)

    def state(self) -> dict[str, Any]:
        """What the search goes on from."""
        arrays = {"point": self.parameters, "first": self.first, "second": self.second}
        return arrays | {"generator": dict(self.generator.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises LookupError, TypeError or ValueError for one of another kind."""
        self.parameters, self.first, self.second = (state[name] for name in ("point", "first", "second"))
        self.generator.bit_generator.state = state["generator"]

"""A search for parameters in generations: the best validated ones are found, and a killed one goes on.

Start reading at `improve`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from trace_ts.search_file import Part


@dataclasses.dataclass(frozen=True)
class Search:
    """How long and how wide a search is: the same for rules' constants and for networks' weights."""

    generations: int = 150
    pairs: int = 16
    sigma: float = 0.1  # standard deviation of candidates
    rate: float = 0.1  # of Adam's first step; it falls to 0 along a cosine
    check_every: int = 10  # generations between two validations
    threads: int = 0  # candidates that are measured at a time; 0: as many as there are cores

    def slowdown(self, generation: int) -> float:
        """What steps of a generation, from 1 on, count: from 1 to nearly 0 along a cosine."""
        return float(1 + np.cos(np.pi * (generation - 1) / self.generations)) / 2


@dataclasses.dataclass(frozen=True)
class Found:
    """The best validated parameters [P], their cost, and (generation, cost) of every validation."""

    parameters: np.ndarray
    cost: float
    history: list[tuple[int, float]]


class Searcher(Protocol):
    """What changes parameters from generation to generation."""

    @property
    def parameters(self) -> np.ndarray:
        """The present ones [P]."""

    def advance(self, generation: int) -> None:
        """Change them once; generations count from 1."""

    def state(self) -> dict[str, Any]:
        """All that a search goes on from to the same end, as arrays and what JSON holds by name."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was taken of. Raises LookupError, TypeError or ValueError for what it cannot be."""


def improve(
    searcher: Searcher,
    validate: Callable[[np.ndarray], float],
    search: Search,
    progress: Callable[[int, float], None] = lambda generation, cost: None,
    kept: Part | None = None,
) -> Found:
    """Let a searcher advance, and give the parameters of the least validate(parameters), its first ones included.

    progress(generation, cost) gets the least cost at first and after each generation. The search goes on from the state
    in `kept` and keeps its own there. Raises ParameterError when that file is damaged.
    """
    begun, found = (kept and kept.load(lambda **state: restored(searcher, **state))) or (0, None)
    if found is None:
        first = searcher.parameters
        cost = validate(first)
        found = Found(first, cost, [(0, cost)])
    progress(begun, found.cost)
    for generation in range(begun + 1, search.generations + 1):
        searcher.advance(generation)
        due = generation % search.check_every == 0 or generation == search.generations
        if due:
            now = searcher.parameters
            cost = validate(now)
            best = (cost, now) if cost < found.cost else (found.cost, found.parameters)
            found = Found(best[1], best[0], [*found.history, (generation, cost)])
        if kept:
            best_so_far = {"best": found.parameters, "cost": found.cost, "history": found.history}
            kept.save(searcher.state() | best_so_far | {"generation": generation}, due)
        progress(generation, found.cost)
    return found


def restored(
    searcher: Searcher, generation: int, best: np.ndarray, cost: float, history: list[list[float]], **state: Any
) -> tuple[int, Found]:
    """The generation and the best of a kept state, whose rest the searcher becomes."""
    searcher.restore(state)
    return generation, Found(best, cost, [(int(number), float(value)) for number, value in history])

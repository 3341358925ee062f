"""An evolution strategy: parameters that make a measured cost small, without gradients of what is measured.

Candidates in antithetic pairs around the present parameters, costs by rank, steps by Adam (Salimans et al. 2017,
arXiv 1703.03864). Start reading at `evolve`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from common.random_streams import Stream, random_generator


@dataclasses.dataclass(frozen=True)
class Search:
    """How long and how wide a search is: the same for rules' constants and for networks' weights."""

    generations: int = 150
    pairs: int = 16
    sigma: float = 0.1  # standard deviation of candidates
    rate: float = 0.1  # of Adam's first step; it falls to 0 along a cosine
    check_every: int = 10  # generations between two validations
    threads: int = 0  # candidates that are measured at a time; 0: as many as there are cores


@dataclasses.dataclass(frozen=True)
class Found:
    """The best validated parameters [P], their cost, and (generation, cost) of every validation."""

    parameters: np.ndarray
    cost: float
    history: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class State:
    """A search after a generation: all that it goes on from to the same end.

    The parameters `point` [P] and Adam's moments `first` and `second` [P], the best validated parameters [P] and their
    cost, every validation, and the generator's state.
    """

    generation: int
    point: np.ndarray
    first: np.ndarray
    second: np.ndarray
    best: np.ndarray
    cost: float
    history: list[tuple[int, float]]
    generator: dict[str, Any]

    @property
    def validated(self) -> bool:
        """Whether its generation was validated."""
        return self.history[-1][0] == self.generation


def evolve(
    start: np.ndarray,
    costs: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    validate: Callable[[np.ndarray], float],
    search: Search,
    seed: int,
    progress: Callable[[int, float], None] = lambda generation, cost: None,
    state: State | None = None,
    keep: Callable[[State], None] = lambda state: None,
) -> Found:
    """Search from parameters `start` [P].

    costs(candidates [N, P], generator) gives the candidates' costs [N], all measured on the same things, which it may
    draw by the generator. validate(parameters) is the cost that tells which are the best; the start is validated, too.
    progress(generation, cost) gets the least cost at first and after each generation, keep(state) what the search can
    be gone on from: with that `state`, it ends as if it had not stopped.
    """
    generator = random_generator(Stream.TRACE_SEARCH, seed)
    if state is None:
        point = np.array(start, dtype=np.float64)
        zeros, least = np.zeros_like(point), validate(point)
        state = State(0, point, zeros, zeros, point, least, [(0, least)], dict(generator.bit_generator.state))
    generator.bit_generator.state = state.generator
    point, first, second = state.point, state.first, state.second
    best, history = (state.cost, state.best), [(number, value) for number, value in state.history]
    progress(state.generation, state.cost)
    for generation in range(state.generation + 1, search.generations + 1):
        step = generator.standard_normal((search.pairs, point.size))
        cost = costs(np.concatenate([point + search.sigma * step, point - search.sigma * step]), generator)
        rank = cost.argsort().argsort() / (cost.size - 1)  # from 0 to 1
        slope = (rank[: search.pairs] - rank[search.pairs :]) @ step / (search.pairs * search.sigma)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        size = search.rate * (1 + np.cos(np.pi * (generation - 1) / search.generations)) / 2
        mean, spread = first / (1 - 0.9**generation), second / (1 - 0.999**generation)
        point = point - size * mean / (np.sqrt(spread) + 1e-8)
        if generation % search.check_every == 0 or generation == search.generations:
            found = validate(point)
            history = [*history, (generation, found)]
            best = min(best, (found, point), key=lambda pair: pair[0])
        drawn = dict(generator.bit_generator.state)
        keep(State(generation, point, first, second, best[1], best[0], history, drawn))
        progress(generation, best[0])
    return Found(best[1], best[0], history)

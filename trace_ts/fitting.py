"""Fitting on the first half of a trace: rules' constants and networks' weights, by the same search.

Start reading at `fit`.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trace_ts.evolution import Found, Search, State, evolve
from trace_ts.scenario import Scenario
from trace_ts.search_file import Part, digest
from trace_ts.simulation import TracePolicy, simulate
from trace_ts.workload import Requests

TRAINING_DRAWS, VALIDATION_DRAWS, FIRST_DRAW = 8, 3, 10_000  # apart from the draws of evaluations
SEGMENT = 7000
SEGMENTS, MIXED_SEGMENTS = 2, 6  # of a generation; for several scenarios


@dataclasses.dataclass(frozen=True)
class Job:
    """A simulation: its scenario, its draw and the part of the requests."""

    scenario: Scenario
    draw: int
    part: slice


def log_mean_delay(policy: TracePolicy, requests: Requests, job: Job) -> float:
    """The log of the mean delay in s."""
    delay = simulate(policy, requests, job.scenario, job.draw, job.part).delay.mean()
    return float(np.log(delay)) if np.isfinite(delay) else 1e3


def checks(scenarios: Sequence[Scenario]) -> list[Job]:
    """What tells the best of several policies: the whole training requests, on servers that no search sees."""
    draws = VALIDATION_DRAWS if len(scenarios) == 1 else 1
    first = FIRST_DRAW + TRAINING_DRAWS
    return [Job(scenario, first + i, slice(None)) for scenario in scenarios for i in range(draws)]


def identity(
    start: np.ndarray, requests: Requests, scenarios: Sequence[Scenario], search: Search, seed: int
) -> dict[str, Any]:
    """What tells a search from others, of the same policy and start, too; how many threads measure does not count."""
    arrays = (requests.time, requests.user, requests.work, requests.model)
    return {
        "method": "evolution strategy",
        "start": digest([start]),
        "requests": [digest(arrays), requests.num_users, requests.num_models],
        "scenarios": [dataclasses.asdict(scenario) for scenario in scenarios],
        "search": dataclasses.asdict(dataclasses.replace(search, threads=0)),
        "seed": seed,
    }


def fit(
    policy: Callable[[np.ndarray], TracePolicy],
    start: np.ndarray,
    requests: Requests,
    scenarios: Sequence[Scenario],
    search: Search,
    seed: int,
    progress: Callable[[int, float], None] = lambda generation, cost: None,
    kept: Part | None = None,
) -> Found:
    """Parameters [P], of those that policy(parameters) turns into a policy, with the least log of the mean delay.

    The mean is over scenarios. Each generation draws segments of the first half with a scenario and servers each; the
    best is chosen on the whole first half, with other servers. The second half is not looked at.
    The search goes on from the state in `kept`, whose identity tells policies apart, and keeps its own there. Raises
    ParameterError when that file is damaged.
    """
    requests = requests.halves()[0]
    state, keep = None, lambda state: None
    if kept is not None:
        kept = kept.of(**identity(start, requests, scenarios, search, seed))
        state, keep = kept.load(State), lambda state: kept.save(vars(state), state.validated)
    count = len(requests)
    segment = min(SEGMENT, count)
    judged = checks(scenarios)
    with ThreadPoolExecutor(search.threads or os.cpu_count()) as pool:

        def costs(candidates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
            jobs = []
            for _ in range(SEGMENTS if len(scenarios) == 1 else MIXED_SEGMENTS):
                begin = int(generator.integers(count - segment + 1))
                scenario = scenarios[generator.integers(len(scenarios))]
                draw = FIRST_DRAW + int(generator.integers(TRAINING_DRAWS))
                jobs.append(Job(scenario, draw, slice(begin, begin + segment)))
            made = [policy(candidate) for candidate in candidates]
            return np.array(list(pool.map(lambda one: sum(log_mean_delay(one, requests, job) for job in jobs), made)))

        def validate(parameters: np.ndarray) -> float:
            made = policy(parameters)
            return float(np.mean(list(pool.map(lambda job: log_mean_delay(made, requests, job), judged))))

        return evolve(start, costs, validate, search, seed, progress, state, keep)

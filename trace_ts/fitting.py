"""Fitting on the first half of a trace: rules' constants and networks' weights, by the same search.

Start reading at `fit`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from common.threads import cores
from trace_ts.evolution import Evolution
from trace_ts.scenario import Scenario
from trace_ts.search import Found, Search, improve
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


def draw_job(requests: Requests, scenarios: Sequence[Scenario], generator: np.random.Generator, segment: int) -> Job:
    """A segment of so many requests, or of all, with one of the scenarios and servers that searches see."""
    segment = min(segment, len(requests))
    begin = int(generator.integers(len(requests) - segment + 1))
    scenario = scenarios[generator.integers(len(scenarios))]
    return Job(scenario, FIRST_DRAW + int(generator.integers(TRAINING_DRAWS)), slice(begin, begin + segment))


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
    kept = kept and kept.of(**identity(start, requests, scenarios, search, seed))
    with ThreadPoolExecutor(search.threads or cores()) as pool:

        def costs(candidates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
            segments = SEGMENTS if len(scenarios) == 1 else MIXED_SEGMENTS
            jobs = [draw_job(requests, scenarios, generator, SEGMENT) for _ in range(segments)]
            made = [policy(candidate) for candidate in candidates]
            return np.array(list(pool.map(lambda one: sum(log_mean_delay(one, requests, job) for job in jobs), made)))

        validate = lambda x: validated(policy(x), requests, scenarios, pool)  # noqa: E731
        return improve(Evolution(start, costs, search, seed), validate, search, progress, kept)


def validated(policy: TracePolicy, requests: Requests, scenarios: Sequence[Scenario], pool: Executor) -> float:
    """The log of the mean delay, averaged over `checks`."""
    return float(np.mean(list(pool.map(lambda job: log_mean_delay(policy, requests, job), checks(scenarios)))))

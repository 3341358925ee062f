"""Training by gradients on the first half of a trace. Start reading at `ByGradients.advance`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from common.random_streams import Stream, random_generator
from common.threads import cores
from trace_ts.event_loop import new_seen
from trace_ts.fitting import Job, draw_job, identity, validated
from trace_ts.learners import LEARNERS, Experience, Learning
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.rules import mean_service
from trace_ts.scenario import Scenario
from trace_ts.search import Found, Search, improve
from trace_ts.search_file import Part
from trace_ts.simulation import simulate
from trace_ts.workload import Requests

LEARNING = Learning()
LONGEST = 1e5  # mean services that a delay counts at most


def collect(policy: ScorePolicy, requests: Requests, job: Job) -> Experience:
    """The decisions of a policy in a simulation."""
    seen = new_seen(job.part.stop - job.part.start, job.scenario.num_servers)
    outcome = simulate(policy, requests, job.scenario, job.draw, job.part, seen=seen)
    delay = np.minimum(outcome.delay / mean_service(requests, outcome.rate), LONGEST)
    arrays = (seen.on_server, seen.on_task, seen.begin.astype(np.float32), outcome.server, delay.astype(np.float32))
    stale = torch.full((len(delay),), job.scenario.age > 0)
    return Experience(*(torch.from_numpy(values) for values in arrays), stale)


class ByGradients:
    """A search by a learner of `LEARNERS`, from parameters `start` [P] on; a generation is `learning.rounds` rounds."""

    def __init__(
        self,
        kind: str,
        design: Design,
        start: np.ndarray,
        draw: Callable[[np.random.Generator], Job],
        requests: Requests,
        search: Search,
        seed: int,
        learning: Learning,
    ) -> None:
        self.draw, self.requests, self.search, self.learning = draw, requests, search, learning
        self.generator = random_generator(Stream.TRACE_GRADIENTS, seed)
        self.learner = LEARNERS[kind](design, start, learning, self.generator)

    @property
    def parameters(self) -> np.ndarray:
        """Those of the learner's policy [P]."""
        return self.learner.parameters

    def advance(self, generation: int) -> None:
        """Decide, and learn from it."""
        self.learner.slow_down(self.search.slowdown(generation))
        for _ in range(self.learning.rounds):
            policy = ScorePolicy(self.learner.design, self.learner.parameters, self.learning.temperature)
            jobs = [self.draw(self.generator) for _ in range(self.learning.segments)]
            self.learner.learn([collect(policy, self.requests, job) for job in jobs], self.generator)

    def state(self) -> dict[str, Any]:
        """What the search goes on from."""
        return self.learner.state() | {"generator": dict(self.generator.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises LookupError, TypeError or ValueError for one of another kind."""
        self.learner.restore(state)
        self.generator.bit_generator.state = state["generator"]


def fit_by_gradients(
    kind: str,
    design: Design,
    start: np.ndarray,
    requests: Requests,
    scenarios: Sequence[Scenario],
    search: Search,
    seed: int,
    progress: Callable[[int, float], None] = lambda generation, cost: None,
    kept: Part | None = None,
    learning: Learning = LEARNING,
) -> Found:
    """`fitting.fit` by a learner of `LEARNERS`. Of `search`, generations, validations and threads count."""
    requests = requests.halves()[0]
    told = identity(start, requests, scenarios, search, seed) | {"method": kind}
    kept = kept and kept.of(**told, learning=dataclasses.asdict(learning))
    draw = lambda generator: draw_job(requests, scenarios, generator, learning.segment)  # noqa: E731
    searcher = ByGradients(kind, design, start, draw, requests, search, seed, learning)
    policies = searcher.learner.design
    with torch_threads(search.threads), ThreadPoolExecutor(search.threads or cores()) as pool:
        validate = lambda x: validated(ScorePolicy(policies, x), requests, scenarios, pool)  # noqa: E731
        return improve(searcher, validate, search, progress, kept)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads; 0: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Episodes of the trace's world: which requests, which draw, and what agents see. Start at `TraceEpisodes.begin`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.parameters import LARGEST, ParameterError, resolve
from common.random_streams import Stream, random_generator
from mec_env.arguments import whole_number, without_unknown
from trace_ts.scenario import Scenario
from trace_ts.synthetic import generate
from trace_ts.workload import Requests
from trace_ts.world import SERVER_FEATURES, TASK_FEATURES, TraceWorld

MOST_REQUESTS = 10_000_000  # of the synthetic generator


class TraceEpisodes:
    """An episode is a stretch of consecutive requests, as many as `tasks`, on servers that are idle at first.

    Where it begins and its draw are random, by the seed and the episode's number: within the first half of the
    requests, or within the second with `held_out`.
    """

    OPTIONS = ("episode", "held_out")  # of a reset

    def __init__(
        self,
        requests: Requests | None = None,
        scenario: Scenario | None = None,
        *,
        tasks: int = 500,
        num_requests: int = 10_000,
        request_seed: int = 0,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        """Without requests, there are `num_requests` synthetic ones. `changes` are those of the scenario's parameters.

        Raises ParameterError for values out of range.
        """
        stored = {} if scenario is None else dataclasses.asdict(scenario)
        self.scenario = resolve(Scenario, stored | changes)
        self.seed, self.episode, self.held_out = whole_number("seed", seed), 0, False
        if requests is None:
            number = counted("num_requests", num_requests, 2, MOST_REQUESTS)
            requests = generate(number, whole_number("request_seed", request_seed))
        self.requests, self.tasks = requests, counted("tasks", tasks, 1)
        if self.tasks > len(requests) // 2:
            words = f"must be at most {len(requests) // 2}, half of the requests"
            raise ParameterError("tasks", tasks, words)
        self.num_servers = self.scenario.num_servers
        self.width = self.num_servers * SERVER_FEATURES + TASK_FEATURES

    def begin(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> TraceWorld:
        """The world of the next episode, at its first decision.

        With a seed it is the seed's episode 0. Options: `episode`, its number; `held_out`, from now on. Others are left
        out with a warning. Raises ParameterError for values that are not allowed, and then changes nothing.
        """
        known = without_unknown(options, self.OPTIONS)
        held_out = known.get("held_out", self.held_out)
        if not isinstance(held_out, bool | np.bool_):
            raise ParameterError("held_out", held_out, "must be True or False")
        start = self.episode if seed is None else 0
        episode = whole_number("episode", known.get("episode", start))
        self.seed = self.seed if seed is None else whole_number("seed", seed)
        self.episode, self.held_out = (episode + 1) % 2**31, bool(held_out)
        generator = random_generator(Stream.TRACE_EPISODES, self.seed, episode)
        draw, middle = int(generator.integers(2**31)), len(self.requests) // 2
        low, high = (middle, len(self.requests)) if self.held_out else (0, middle)
        first = int(generator.integers(low, high - self.tasks + 1))
        world = TraceWorld(self.requests, self.scenario, slice(first, first + self.tasks))
        world.reset(draw)
        return world


def counted(name: str, value: Any, least: int, most: int = LARGEST) -> int:
    """A whole number that is neither too small nor too large. Raises ParameterError."""
    if not least <= (number := whole_number(name, value)) <= most:
        raise ParameterError(name, value, f"must be at least {least} and at most {most}")
    return number


def seen(world: TraceWorld) -> np.ndarray:
    """What the agent of the task sees [F] float32: the features of server after server, then the task's.

    Where no task is left, zeros.
    """
    if world.over:
        return np.zeros(world.num_servers * SERVER_FEATURES + TASK_FEATURES, np.float32)
    return np.concatenate([world.observe().ravel(), world.observe_task()])


def told(world: TraceWorld) -> dict[str, Any]:
    """The info: `time` in s, `base_station` and `up` [B] of the decision; at the end `time` and `mean_delay` in s."""
    if world.over:
        return {"time": world.time, "mean_delay": float(world.outcome().delay.mean())}
    return {"time": world.time, "base_station": world.base_station, "up": world.known().up}

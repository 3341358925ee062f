"""Gymnasium: one agent sends the trace's tasks to edge servers, one after another. Start reading at `TraceEnv.step`."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from mec_env.trace_episodes import TraceEpisodes, seen, told
from trace_ts.scenario import Scenario
from trace_ts.workload import Requests
from trace_ts.world import TraceWorld


class TraceEnv(gymnasium.Env):
    """A central agent. The action is a server, the observation [F] as in `seen`, the info as in `told`.

    The reward is minus the task-seconds until the next decision, so an episode's add up to minus the sum of its delays
    in s. An episode terminates when all its tasks are served.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        requests: Requests | None = None,
        scenario: Scenario | None = None,
        *,
        render_mode: None = None,
        **given: Any,
    ) -> None:
        """Arguments are those of `TraceEpisodes`. Raises ParameterError."""
        self.render_mode = render_mode
        self.episodes = TraceEpisodes(requests, scenario, **given)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.episodes.width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(self.episodes.num_servers)
        self.world: TraceWorld | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, as `TraceEpisodes.begin` does."""
        super().reset(seed=seed)
        self.world = self.episodes.begin(seed, options)
        return seen(self.world), told(self.world)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send the task. Raises RuntimeError when no episode goes on, ValueError for actions that are none."""
        if self.world is None:
            raise RuntimeError("no episode is going on: call reset() first")
        cost = self.world.send(action)
        return seen(self.world), -cost, self.world.over, False, told(self.world)

"""PettingZoo: every base station (BS) is an agent, and a step is a slot. Start reading at `MECParallel.step`."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from lad_ts.environment_parameters import EnvironmentParameters
from mec_env.arguments import without_unknown
from mec_env.vector import MECVector


class MECParallel(ParallelEnv):
    """One environment with the agents bs_0, bs_1, ..

    An agent's observation is [N, F] float32, its action [N] the edge servers of its tasks, its reward as `reward` of
    `MECVector` says. Its info has `mask` [N], True where there is a task, and after a step `delay` [N] in s. All agents
    are truncated together at the end of the episode.
    """

    metadata = {"name": "dedgeai_mec_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | EnvironmentParameters = "paper",
        *,
        observation: str = "relative",
        reward: str = "mean",
        seed: int = 0,
        **changes: Any,
    ) -> None:
        """Arguments are those of `MECVector`. Raises ParameterError."""
        self.mec = MECVector(1, scenario, observation=observation, reward=reward, autoreset=False, seed=seed, **changes)
        self.render_mode = None
        self.possible_agents = [f"bs_{b}" for b in range(self.mec.num_bs)]
        self.agents: list[str] = []
        tasks, servers = self.mec.num_tasks, self.mec.num_bs
        self.observation_spaces = {
            agent: spaces.Box(-np.inf, np.inf, (tasks, self.mec.width), np.float32) for agent in self.possible_agents
        }
        self.action_spaces = {agent: spaces.MultiDiscrete([servers] * tasks) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Box:
        """The space of an agent's observations, [N, F]."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.MultiDiscrete:
        """The space of an agent's actions, [N]."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Start an episode, as `MECVector.reset` does. Unknown options are left out with a warning."""
        observation, info = self.mec.reset(seed, without_unknown(options))
        self.agents = list(self.possible_agents)
        return self._shared(observation[0]), self._infos(info)

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict[str, Any], ...]:
        """Schedule a slot. Raises RuntimeError when no episode goes on, ValueError for missing or wrong actions."""
        if not self.agents:
            raise RuntimeError("no episode is going on: call reset() first")
        if differing := sorted(set(self.agents) ^ actions.keys()):
            raise ValueError(f"actions: must hold one of every agent and no other; see {', '.join(differing[:3])}")
        shape = (self.mec.num_tasks,)
        for agent, action in actions.items():
            if np.shape(action) != shape:
                raise ValueError(f"action of {agent}: shape {list(np.shape(action))}, must be {list(shape)}")
        together = np.stack([np.asarray(actions[agent]) for agent in self.agents])[None]
        observation, reward, _, truncated, info = self.mec.step(together)
        agents = self.agents
        result = (
            self._shared(observation[0]),
            {agent: float(reward[0, b]) for b, agent in enumerate(agents)},
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, bool(truncated[0])),
            self._infos(info),
        )
        if truncated[0]:
            self.agents = []
        return result

    def state(self) -> np.ndarray:
        """All agents' observations at the episode's present slot, [B, N, F]."""
        if not hasattr(self, "_last"):
            raise RuntimeError("no episode has begun: call reset() first")
        return self._last.copy()

    def _shared(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        self._last = observation
        return {agent: observation[b].copy() for b, agent in enumerate(self.possible_agents)}

    def _infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            agent: {name: values[0, b].copy() for name, values in info.items()}
            for b, agent in enumerate(self.possible_agents)
        }

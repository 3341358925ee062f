"""PettingZoo: the base stations are agents; whose task comes next, acts. Start reading at `TraceAEC.step`."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv

from mec_env.trace_episodes import TraceEpisodes, seen, told
from trace_ts.scenario import Scenario
from trace_ts.workload import Requests


class TraceAEC(AECEnv):
    """The agents bs_0, bs_1, .. act in the order of their tasks, so one may act often and another not at all.

    An action is a server. An agent observes [F], as in `seen`, what it knew at its last decision, zeros before the
    first. Everybody's reward is minus the task-seconds of all tasks, so each agent's add up to minus the sum of all
    delays in s. All terminate together when all tasks are served. The acting agent's info is that of `told`.
    """

    metadata = {"name": "dedgeai_trace_v0", "render_modes": [], "is_parallelizable": False}  # noqa: RUF012

    def __init__(self, requests: Requests | None = None, scenario: Scenario | None = None, **given: Any) -> None:
        """Arguments are those of `TraceEpisodes`. Raises ParameterError."""
        super().__init__()
        self.render_mode = None
        self.episodes = TraceEpisodes(requests, scenario, **given)
        self.possible_agents = [f"bs_{g}" for g in range(self.episodes.scenario.num_base_stations)]
        self.agents: list[str] = []
        self._observations: dict[str, np.ndarray] = {}
        box = spaces.Box(-np.inf, np.inf, (self.episodes.width,), np.float32)
        servers = self.episodes.num_servers
        self.observation_spaces = {agent: box for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Discrete(servers) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Box:
        """The space of an agent's observations, [F]."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        """The space of an agent's actions."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode, as `TraceEpisodes.begin` does."""
        self.world = self.episodes.begin(seed, options)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self._observations = dict.fromkeys(self.agents, np.zeros(self.episodes.width, np.float32))
        self._turn()

    def step(self, action: int | None) -> None:
        """Send the task. Raises RuntimeError when no episode goes on, ValueError for actions that are none."""
        if not self.agents:
            raise RuntimeError("no episode is going on: call reset() first")
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        cost = self.world.send(action)
        self._cumulative_rewards[agent] = 0.0
        self.rewards = dict.fromkeys(self.agents, -cost)
        self._accumulate_rewards()
        self.terminations = dict.fromkeys(self.agents, self.world.over)
        self._turn()

    def observe(self, agent: str) -> np.ndarray:
        """What an agent knew at its last decision, [F]. Raises RuntimeError before the first episode."""
        if not self._observations:
            raise RuntimeError("no episode has begun: call reset() first")
        return self._observations[agent].copy()

    def _turn(self) -> None:
        """Let the agent act whose task is next."""
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        if self.world.over:
            self.infos = {agent: told(self.world) for agent in self.agents}
            return
        self.agent_selection = self.possible_agents[self.world.base_station]
        self._observations[self.agent_selection] = seen(self.world)
        self.infos[self.agent_selection] = told(self.world)

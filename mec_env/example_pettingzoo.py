"""Independent agents on PettingZoo's interface: each base station learns which servers are quick, by itself.

An agent keeps a mean delay for every server, and prefers the quick ones. It shows the loop, and is no good method.
Example: python mec_env/example_pettingzoo.py --episodes 20
"""

import common.quiet_start  # noqa: F401

import dataclasses
from typing import Any

import numpy as np

from common.command_line import command_line
from common.parameters import Parameters, parameter
from common.random_streams import Stream, random_generator
from mec_env.pettingzoo_env import MECParallel


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_pettingzoo.py."""

    episodes: int = parameter(20, "episodes", low=1)
    seed: int = parameter(0, "seed of the arrivals and the actions", low=0)
    scenario: str = parameter("paper", "named scenario, as in docs/environment.md")


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    env = MECParallel(config.scenario, seed=config.seed)
    rng = random_generator(Stream.ACTIONS, config.seed)
    servers, tasks = env.mec.num_bs, env.mec.num_tasks
    quickness = {agent: np.zeros(servers) for agent in env.possible_agents}  # minus the mean delay in s
    for episode in range(config.episodes):
        env.reset(seed=config.seed if episode == 0 else None)
        delays: list[np.ndarray] = []
        while env.agents:
            actions = {}
            for agent in env.agents:
                weight = np.exp(quickness[agent] - quickness[agent].max())
                actions[agent] = rng.choice(servers, tasks, p=weight / weight.sum())
            masks = {agent: env.mec.slot().mask[0, b].numpy() for b, agent in enumerate(env.agents)}
            _, _, _, _, infos = env.step(actions)
            for agent, action in actions.items():
                there = masks[agent]
                delay = infos[agent]["delay"][there]
                np.add.at(quickness[agent], action[there], 0.02 * (-delay - quickness[agent][action[there]]))
                delays.append(delay)
        print(f"episode {episode + 1}: mean delay {np.concatenate(delays).mean():.2f} s")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)

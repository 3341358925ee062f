"""DQN of Stable-Baselines3 through Gymnasium: one agent that decides task after task, seeing every queue.

Example: python mec_env/example_gymnasium.py --decisions 20000 --scenario small
"""

import common.quiet_start  # noqa: F401

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN

import mec_env.registration  # noqa: F401  registers the environments
from common.command_line import command_line
from common.parameters import Parameters, parameter


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_gymnasium.py."""

    decisions: int = parameter(20_000, "decisions of the training", low=1)
    seed: int = parameter(0, "seed of the arrivals, the weights and the actions", low=0)
    scenario: str = parameter("small", "named scenario, as in docs/environment.md")


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    env = gymnasium.make(f"DEdgeAI/Central-{config.scenario}-v0")
    model = DQN("MlpPolicy", env, gamma=0.0, learning_starts=200, seed=config.seed, device="cpu")
    model.learn(config.decisions)
    observation, _ = env.reset(seed=config.seed, options={"held_out": True})
    delays, over = [], False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, _, over, _ = env.step(action)
        delays.append(-reward)
    print(f"mean delay of a held-out episode {np.mean(delays):.2f} s")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)

"""PPO of Stable-Baselines3 in the trace's world, beside rules on the same held-out episodes.

It shows the loop: a short training beats chance, but no good rule.
Example: python mec_env/example_trace.py --decisions 40000
"""

import common.quiet_start  # noqa: F401

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from common.command_line import command_line
from common.parameters import Parameters, parameter
from mec_env.trace_gymnasium import TraceEnv

GAMMA = 0.9  # what a decision costs later shows in the next ten or so


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_trace.py."""

    decisions: int = parameter(40_000, "decisions of the training", low=1)
    episodes: int = parameter(10, "held-out episodes", low=1)
    tasks: int = parameter(500, "tasks of an episode", low=1, high=5000)
    num_servers: int = parameter(4, "edge servers", low=1, high=1000)
    load_time: float = parameter(2.0, "time to load a model", unit="s", low=0, high=1e6)
    seed: int = parameter(0, "seed of the episodes, the weights and the actions", low=0)


def mean_delay(env: TraceEnv, choose: Callable[[np.ndarray], Any], config: ExampleConfig) -> float:
    """Mean delay in s of the held-out episodes; `choose` gives the action of an observation [F]."""
    delays = []
    for episode in range(config.episodes):
        observation, _ = env.reset(seed=config.seed, options={"held_out": True, "episode": episode})
        over = False
        while not over:
            observation, _, over, _, info = env.step(choose(observation))
        delays.append(info["mean_delay"])
    return float(np.mean(delays))


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    env = TraceEnv(tasks=config.tasks, num_servers=config.num_servers, load_time=config.load_time, seed=config.seed)
    scaled = VecNormalize(DummyVecEnv([lambda: env]), norm_obs=False, gamma=GAMMA)
    steps = max(2, min(2000, config.decisions))
    model = PPO(
        "MlpPolicy",
        scaled,
        gamma=GAMMA,
        gae_lambda=0.9,
        n_steps=steps,
        batch_size=min(250, steps),
        n_epochs=8,
        learning_rate=1e-3,
        seed=config.seed,
        device="cpu",
    )
    model.learn(config.decisions)
    policies = {
        "ppo": lambda observation: model.predict(observation, deterministic=True)[0],
        "opt_ts_loading": lambda observation: env.world.advice(),
        "random": lambda observation: env.action_space.sample(),
    }
    env.action_space.seed(config.seed)
    for name, choose in policies.items():
        print(f"{name}: mean delay of {config.episodes} held-out episodes {mean_delay(env, choose, config):.2f} s")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)

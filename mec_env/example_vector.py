"""Gymnasium's vector interface with a learner of a few lines: policy gradients on many environments at once.

Example: python mec_env/example_vector.py --updates 200
"""

import common.quiet_start  # noqa: F401

import dataclasses
from typing import Any

import gymnasium
import torch

import mec_env.registration  # noqa: F401  registers the environments
from common.command_line import command_line
from common.parameters import Parameters, parameter


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_vector.py."""

    updates: int = parameter(200, "updates of the policy", low=1)
    num_envs: int = parameter(64, "environments at once", low=2)
    seed: int = parameter(0, "seed of the arrivals, the weights and the actions", low=0)
    scenario: str = parameter("small", "named scenario, as in docs/environment.md")


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    name = f"DEdgeAI/Central-{config.scenario}-v0"
    env = gymnasium.make_vec(name, config.num_envs, vectorization_mode="vector_entry_point")
    width, servers = env.single_observation_space.shape[0], int(env.single_action_space.n)
    policy = torch.nn.Sequential(torch.nn.Linear(width, 64), torch.nn.Tanh(), torch.nn.Linear(64, servers))
    adam = torch.optim.Adam(policy.parameters(), 3e-3)
    observation, _ = env.reset(seed=config.seed)
    for update in range(config.updates):
        chosen = torch.distributions.Categorical(logits=policy(torch.from_numpy(observation)))
        action = chosen.sample()
        observation, reward, _, _, _ = env.step(action.numpy())
        gain = torch.from_numpy(reward)
        loss = -(chosen.log_prob(action) * (gain - gain.mean())).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if (update + 1) % max(1, config.updates // 10) == 0:
            print(f"update {update + 1}: mean delay of the decisions {-gain.mean():.2f} s")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)

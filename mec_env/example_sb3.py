"""Train one PPO policy of Stable-Baselines3 for all tasks of all base stations, and write it for comparisons.

--policy FILE.zip then decides as mec_env/example_sb3.py:SharedPPO wherever methods are listed, where its path is
results/mec_env/shared_ppo.zip. Example: python mec_env/example_sb3.py --episodes 40
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from stable_baselines3 import PPO

from common.command_line import command_line
from common.parameters import Parameters, parameter
from common.run_folder import RESULTS, made, replace_file
from mec_env.policies import SB3Scheduler
from mec_env.sb3_vec_env import MECVecEnv

PLACE = RESULTS / "mec_env" / "shared_ppo.zip"


class SharedPPO(SB3Scheduler):
    """The policy that this example has trained, as a method: mec_env/example_sb3.py:SharedPPO."""

    path: ClassVar[str] = str(PLACE)


@dataclasses.dataclass(kw_only=True)
class ExampleConfig(Parameters):
    """Every parameter of example_sb3.py."""

    episodes: int = parameter(60, "episodes of training", low=1)
    seed: int = parameter(100, "seed of the arrivals, the weights and the actions", low=0)
    scenario: str = parameter("paper", "named scenario, as in docs/environment.md")
    num_slots: int = parameter(60, "slots of an episode", low=2)
    policy: str = parameter(str(PLACE), "file that the policy is written to", path=True)


def main(config: ExampleConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    env = MECVecEnv(1, config.scenario, scale=10.0, seed=config.seed, num_slots=config.num_slots)
    steps = config.num_slots - 1
    # A task's delay is known at once, so nothing is discounted: gamma 0.
    model = PPO(
        "MlpPolicy",
        env,
        gamma=0.0,
        n_steps=steps,
        batch_size=env.num_envs * steps // 10,
        n_epochs=4,
        learning_rate=lambda left: 2e-3 * left,
        ent_coef=0.0,
        seed=config.seed,
        device="cpu",
    )
    model.learn(config.episodes * steps * env.num_envs, progress_bar=False)
    place = Path(config.policy)
    made(place.parent, "policy")
    replace_file(place, model.save)
    print(f"policy in {place}")


if __name__ == "__main__":
    command_line(ExampleConfig, main, __doc__)

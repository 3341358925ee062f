"""SAC-TS: train, resume or evaluate discrete soft actor-critic on LAD-TS's environment, and plot the delay.

Writes results/sac_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt. Example:
python baselines/main_sac.py --episodes 60 --seeds 2
"""

import dataclasses
from typing import Any

from baselines.model_sac import SACAgents
from common.command_line import command_line
from lad_ts.soft_actor_critic import SACParameters
from lad_ts.training import Method, TrainingParameters, run_method

METHOD = Method("SAC-TS", "sac_ts", SACAgents)


@dataclasses.dataclass(kw_only=True)
class SACConfig(SACParameters, TrainingParameters):
    """Every parameter of main_sac.py."""


def main(config: SACConfig, given: dict[str, Any]) -> None:
    run_method(config, given, METHOD)


if __name__ == "__main__":
    command_line(SACConfig, main, __doc__)

"""SAC-TS: train, resume or evaluate discrete soft actor-critic on LAD-TS's environment, and plot the delay.

Writes results/sac_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt. Example:
python baselines/main_sac.py --episodes 60 --seeds 2
"""

import common.quiet_start  # noqa: F401

from typing import Any

from baselines.model_sac import METHOD, SACConfig
from common.command_line import command_line
from lad_ts.training import run_method


def main(config: SACConfig, given: dict[str, Any]) -> None:
    run_method(config, given, METHOD)


if __name__ == "__main__":
    command_line(SACConfig, main, __doc__)

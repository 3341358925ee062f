"""Cooperative LAD-TS: train, resume or evaluate diffusion agents that minimise everybody's delay, and plot it.

The decisions are decentralised as in LAD-TS, the training is not; it is no part of the LAD-TS paper. Writes
results/coop_lad_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt. Examples:
python coop_lad_ts/main_coop.py --seeds 2
python coop_lad_ts/main_coop.py --objective tail
"""

import common.quiet_start  # noqa: F401

from typing import Any

from common.command_line import command_line
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import METHOD
from lad_ts.training import run_method


def main(config: CoopConfig, given: dict[str, Any]) -> None:
    run_method(config, given, METHOD)


if __name__ == "__main__":
    command_line(CoopConfig, main, __doc__)

"""Opt-TS: the published greedy reference, which knows every queue exactly and gives each task its own best server.

Writes results/opt_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and utilisation.csv. Example:
python baselines/main_opt.py --episodes 60 --seeds 2
"""

import common.quiet_start  # noqa: F401

from typing import Any

from baselines.methods import METHODS
from common.command_line import command_line
from lad_ts.run_parameters import FixedParameters
from lad_ts.training import run_method


def main(config: FixedParameters, given: dict[str, Any]) -> None:
    run_method(config, given, METHODS["opt_ts"])


if __name__ == "__main__":
    command_line(FixedParameters, main, __doc__)

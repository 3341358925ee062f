"""Schedulers without learning on LAD-TS's environment: honest yardsticks for every method, and the lower bound.

Writes results/<method>/<run>/ with config.json, delay.csv, utilisation.csv, delay.png and delay.pdf.
--method also takes a class of your own as FILE.py:ClassName, see docs/methods.md. Example:
python baselines/main_heuristics.py --method water_filling --episodes 60 --seeds 2
"""

import common.quiet_start  # noqa: F401

from typing import Any

from baselines.rules import HeuristicConfig, rule
from common.command_line import command_line
from lad_ts.training import run_method


def main(config: HeuristicConfig, given: dict[str, Any]) -> None:
    run_method(config, given, rule(config.method))


if __name__ == "__main__":
    command_line(HeuristicConfig, main, __doc__)

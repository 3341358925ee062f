"""Opt-TS: the published greedy reference, which knows every queue exactly and gives each task its own best server.

Writes results/opt_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and utilisation.csv. Example:
python baselines/main_opt.py --episodes 60 --seeds 2
"""

from typing import Any

from common.command_line import command_line
from lad_ts.references import OptTS
from lad_ts.training import FixedParameters, Method, run_method


def main(config: FixedParameters, given: dict[str, Any]) -> None:
    run_method(config, given, Method("Opt-TS", "opt_ts", OptTS))


if __name__ == "__main__":
    command_line(FixedParameters, main, __doc__)

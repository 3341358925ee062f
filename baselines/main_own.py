"""A learner of your own, from one file: train, resume or evaluate it on LAD-TS's environment, and plot the delay.

Writes results/<ClassName>/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt; docs/methods.md
tells what the file holds. Example: python baselines/main_own.py --method my_bandit.py:BanditAgents --episodes 60
"""

import common.quiet_start  # noqa: F401

from typing import Any

from baselines.own import FORM, OwnConfig, own_learner
from common.command_line import command_line
from common.parameters import ParameterError
from lad_ts.training import run_method


def main(config: OwnConfig, given: dict[str, Any]) -> None:
    if config.method is None:  # of a stored run of another script
        raise ParameterError("method", None, f"must be given, as {FORM} of a class that learns")
    run_method(config, given, own_learner(config.method))


if __name__ == "__main__":
    command_line(OwnConfig, main, __doc__)

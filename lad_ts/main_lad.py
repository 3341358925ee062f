"""LAD-TS: train, resume or evaluate latent action diffusion task scheduling (arXiv 2412.18212), and plot the delay.

Writes results/lad_ts/<run>/ with config.json, delay.csv, delay.png, delay.pdf and checkpoint.pt. Example:
python lad_ts/main_lad.py --episodes 60 --seeds 2
"""

import common.quiet_start  # noqa: F401

from typing import Any

from common.command_line import command_line
from lad_ts.model_lad import METHOD, LadConfig
from lad_ts.training import run_method


def main(config: LadConfig, given: dict[str, Any]) -> None:
    run_method(config, given, METHOD)


if __name__ == "__main__":
    command_line(LadConfig, main, __doc__)

"""The distributed edge system: edge servers that make images, and a scheduler that says which server makes which.

Starts Ray and the edge servers, has the scheduler place tasks with the dataset's captions, stores the images, and
prints the published table with this run in it. --serve answers HTTP requests instead, --simulate runs on a virtual
clock. Writes into results/dedgeai/<run>/. Examples:
python dedgeai/main_dedgeai.py --num_tasks 100 --num_servers 5 --scheduler lad_ts
python dedgeai/main_dedgeai.py --serve
python dedgeai/main_dedgeai.py --simulate --num_servers 10000 --num_tasks 1000000 --scheduler water_filling --load 0.9
"""

import common.quiet_start  # noqa: F401

import asyncio
import dataclasses
from typing import Any

import torch

from common.command_line import command_line
from common.run_folder import resumed, run_place
from dedgeai.configuration import FOLDER, DedgeParameters
from dedgeai.run_options import run_options
from edge_sim.simulated_run import run_simulation

FREE = ("resume", "host", "port", "token")  # what the command line may change for a stored run


@dataclasses.dataclass(kw_only=True)
class DedgeConfig(DedgeParameters):
    """Every parameter of main_dedgeai.py."""


def main(config: DedgeConfig, given: dict[str, Any]) -> None:
    """Simulate, run or serve, as the parameters say. Raises ParameterError before anything starts."""
    if config.resume:
        config = resumed(config, given, FREE)
        config.check()
    torch.set_num_threads(1)
    options = run_options(config)
    if config.simulate:
        assert options.waiting is not None
        simulated = (options.demand, options.scheduler, options.waiting, config.backlog == "profile")
        run_simulation(*simulated, config.out, FOLDER / options.folder_name, (options.title, options.stored))
        return
    from dedgeai.live import run_live  # it starts with Ray, which takes seconds to import

    default = FOLDER / options.folder_name
    with run_place(config.resume, config.out, default) as folder:
        asyncio.run(run_live(options, folder, resume=bool(config.resume)))


if __name__ == "__main__":
    command_line(DedgeConfig, main, __doc__)

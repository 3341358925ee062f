"""The distributed edge system: edge servers that make images, and a scheduler that says which server makes which.

Starts Ray and the edge servers, sends tasks with the dataset's captions through the policy, stores the images, and
prints the published table with this run in it. --serve answers HTTP requests instead, --simulate runs on a virtual
clock. Writes into results/dedgeai/<run>/. Examples:
python dedgeai/main_dedgeai.py --num_tasks 100 --num_servers 5 --scheduler lad_ts
python dedgeai/main_dedgeai.py --serve
python dedgeai/main_dedgeai.py --simulate --num_servers 10000 --num_tasks 1000000 --scheduler water_filling --load 0.9
"""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import torch

from common.command_line import command_line
from common.run_folder import claimed, create_folder, peak_memory, resumed, write_config
from dedgeai.configuration import (
    FOLDER,
    DedgeParameters,
    arrivals_of,
    parse_counts,
    policy_options,
    read_prompts,
    simulated_profile,
)
from dedgeai.dispatcher import Dispatcher
from dedgeai.policies import check_policy, make_policy
from dedgeai.report import report_simulation
from dedgeai.simulation import simulate

FREE = ("resume", "host", "port", "token")  # what the command line may change for a stored run


@dataclasses.dataclass(kw_only=True)
class DedgeConfig(DedgeParameters):
    """Every parameter of main_dedgeai.py."""


def run_simulation(config: DedgeConfig) -> None:
    """Every number of tasks on the virtual clock; tables and plots of each."""
    profile = simulated_profile(config)
    counts = parse_counts(config.num_tasks)
    prompts = read_prompts(config, sum(counts))
    options = policy_options(config, prompts)
    policies = [make_policy(options, profile, Path(config.policies)) for _ in counts]
    folder = create_folder(config.out, FOLDER / f"simulate_{scheduler_name(config)}")
    with claimed(folder):
        write_config(folder, f"dedgeai, simulated, {config.scheduler}", dataclasses.asdict(config))
        first = 0
        for count, policy in zip(counts, policies, strict=True):
            dispatcher = Dispatcher(policy)
            arrivals = arrivals_of(config, count, prompts[first : first + count], profile)
            first += count
            found = simulate(dispatcher, profile, arrivals, config.link_rate, config.seed, config.backlog == "profile")
            part = folder if len(counts) == 1 else folder / str(count)
            part.mkdir(exist_ok=True)
            print(f"{config.scheduler}: {count} tasks on {config.num_servers} simulated servers")
            report_simulation(part, arrivals, found, dispatcher.seconds)
    print(f"results in {folder}; peak memory {peak_memory()}")


def scheduler_name(config: DedgeConfig) -> str:
    return config.scheduler.rpartition(":")[2]


def main(config: DedgeConfig, given: dict[str, Any]) -> None:
    stored = Path(config.resume) if config.resume else None
    if stored:
        config = resumed(config, given, FREE)
        config.check()
    torch.set_num_threads(1)
    check_policy(policy_options(config, ["a"]), config.num_servers)
    if config.simulate:
        run_simulation(config)
        return
    from dedgeai.live import run_live  # it starts with Ray, which takes seconds to import

    mode = "serve" if config.serve else "run"
    folder = stored or create_folder(config.out, FOLDER / f"{mode}_{scheduler_name(config)}")
    with claimed(folder):
        asyncio.run(run_live(config, folder, resume=stored is not None))


if __name__ == "__main__":
    command_line(DedgeConfig, main, __doc__)

"""The distributed edge system: edge servers that make images, and a scheduler that says which server makes which.

Starts Ray and the edge servers, has the scheduler place tasks with the dataset's captions, stores the images, and
prints the published table with this run in it. --serve answers HTTP requests instead, --simulate runs on a virtual
clock. Writes into results/dedgeai/<run>/. Examples:
python dedgeai/main_dedgeai.py --num_tasks 100 --num_servers 5 --scheduler lad_ts
python dedgeai/main_dedgeai.py --serve
python dedgeai/main_dedgeai.py --simulate --num_servers 10000 --num_tasks 1000000 --scheduler water_filling --load 0.9
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import torch

from common.command_line import command_line
from common.parameters import ParameterError, resolve
from common.run_folder import claimed, locked, read_json, resumed, run_place, with_defaults
from dedgeai.configuration import FOLDER, DedgeParameters
from dedgeai.run_options import run_options
from edge_sim.simulated_run import run_simulation

FREE = ("resume", "host", "port", "token")  # what the command line may change for a stored run
FIXED = ("serve", "simulate", "seed", "out")  # what it may only repeat for a service


@dataclasses.dataclass(kw_only=True)
class DedgeConfig(DedgeParameters):
    """Every parameter of main_dedgeai.py."""


def main(config: DedgeConfig, given: dict[str, Any]) -> None:
    """Simulate, run or serve, as the parameters say. Raises ParameterError before anything starts."""
    for flag in {"resume", "out"} & given.keys():
        check_version(flag, Path(given[flag]))
    if config.resume:
        config = gone_on_with(config, given)
        config.check()
    torch.set_num_threads(1)
    options = run_options(config)
    if options.demand.replay is not None:
        print(*options.demand.replay.told([entry.name for entry in config.entries]), sep="\n")
    if config.simulate:
        assert options.waiting is not None
        simulated = (options.demand, options.scheduler, options.waiting, config.backlog == "profile")
        run_simulation(*simulated, config.out, FOLDER / options.folder_name, (options.title, options.stored))
        return
    from dedgeai.live import run_live  # it starts with Ray, which takes seconds to import

    if config.serve and config.out and not config.resume and serves(Path(config.out)):
        run_live(options, claimed(Path(config.out)))
    else:
        run_live(options, run_place(config.resume, config.out, FOLDER / options.folder_name))


def check_version(flag: str, folder: Path) -> None:
    """Raises ParameterError for a folder of an earlier version, which had no tasks.db."""
    if (folder / "journal.jsonl").exists() and not (folder / "tasks.db").exists():
        words = "must hold tasks.db; its journal.jsonl is of an earlier version, which alone can go on with it"
        with locked(folder, flag):  # that another process works in it comes first
            raise ParameterError(flag, folder, words)


def stored(folder: Path) -> dict[str, Any]:
    """The parameters in a folder's config.json, none where it holds none."""
    try:
        parameters = read_json(folder / "config.json")["parameters"]
        return parameters if isinstance(parameters, dict) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def serves(folder: Path) -> bool:
    """Whether a folder holds the tasks of a service."""
    return (folder / "tasks.db").exists() and stored(folder).get("serve", True) is True


def gone_on_with(config: DedgeConfig, given: dict[str, Any]) -> DedgeConfig:
    """The parameters of what --resume names: a run's as they were, a service's but for those that are given now.

    Raises ParameterError for a folder without them, and for those that cannot change.
    """
    folder = Path(config.resume or "")
    before = stored(folder)
    if before.get("serve") is not True:
        return resumed(config, given, FREE)
    for name in [name for name in FIXED if name in given and given[name] != before.get(name)]:
        raise ParameterError(name, given[name], "must not be combined with --resume")
    return resolve(DedgeConfig, with_defaults(DedgeConfig, before, "resume", folder) | given)


if __name__ == "__main__":
    command_line(DedgeConfig, main, __doc__)

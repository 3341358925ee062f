"""Schedulers by name, ready for a cluster: every method of the registry but the bound, a policy of trace_ts, or a class
of one's own.

A method that learns comes from a checkpoint of its own script, or is trained on a simulated cluster with the profile's
servers by the loop that trains it everywhere. Start reading at `make_scheduler`.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines.methods import METHODS, split
from baselines.rules import rule
from common.parameters import LARGEST, ParameterError, resolve
from common.run_folder import claimed, load_checkpoint
from edge_sim.dispatcher import ClusterScheduler
from edge_sim.server_profile import DENSITY, Profile
from edge_sim.servers import Models
from lad_ts.checkpoints import restore, stored_config
from lad_ts.environment_lad import Scenario, draw_scenario
from lad_ts.method import Method
from lad_ts.run_parameters import training_seeds
from lad_ts.scheduler import LearningScheduler, Scheduler
from lad_ts.training import run_method

LOAD = 1.1  # offered load at which methods are trained: queues grow slowly, as under the paper's
STATE_CELLS = 2**28  # numbers of a round's states, which bound the memory of methods that learn
TRACE = "trace:"  # begins the names of policies of trace_ts, see trace_scheduler.py, which takes time to import
TRAINED_SERVERS = 200  # most servers that agents are trained for here; all but one method have networks for each


@dataclasses.dataclass(frozen=True)
class SchedulerOptions:
    """Who decides, and for what tasks."""

    name: str  # as the user gave it
    method: Method
    checkpoint: Path | None
    folder: Path  # of what is trained here
    episodes: int  # of that training
    num_tasks: int  # most tasks of a base station in a round
    steps: tuple[int, int]  # fewest and most denoising steps
    input_mbit: float  # largest d
    link_rate: float  # v in Mbit/s
    seed: int
    # what policies of trace_ts also know: models, denoising steps of a mean task, and the offered load
    models: Models = dataclasses.field(default_factory=Models)
    mean_steps: float = 1.0
    load: float = 0.8

    @property
    def flags(self) -> dict[str, Any]:
        """The parameters that the variant in the name stands for, as in lad_ts:paper."""
        method, variant = split(self.name, "scheduler")
        return dict(method.variants[variant].flags) if variant else {}


# --- names ---


def schedules(method: Method) -> bool:
    """Whether a method decides where tasks go, which a bound does not."""
    return not isinstance(method.build, type) or issubclass(method.build, Scheduler)


def scheduler_names(learning: bool = False) -> list[str]:
    """The methods of the registry that schedule, or those of them that learn."""
    return [key for key, method in METHODS.items() if schedules(method) and (method.learns or not learning)]


def method_of(name: str) -> Method:
    """The method of --scheduler: of the registry, with a variant or without, or of trace_ts, or FILE.py:ClassName.

    Raises ParameterError when there is none.
    """
    if name.startswith(TRACE):
        from edge_sim.trace_scheduler import trace_method

        return trace_method(name)
    own = f"{TRACE}NAME, {TRACE}FILE, or FILE.py:ClassName of your own"
    allowed = f"must be one of {', '.join(scheduler_names())}, {own}"
    key, colon, variant = name.partition(":")
    if key in METHODS and (not colon or variant in METHODS[key].variants):
        if not schedules(METHODS[key]):
            raise ParameterError("scheduler", name, f"a bound is no scheduler; {allowed}")
        return METHODS[key]
    if not Path(name.rpartition(":")[0]).is_file():
        raise ParameterError("scheduler", name, allowed)
    return rule(name, "scheduler")


# --- what can be refused before the servers' speeds are known ---


def check_scheduler(options: SchedulerOptions, servers: int, by_profile: bool = False) -> None:
    """Raise ParameterError for a checkpoint that does not fit, and for sizes that need too much memory.

    And with `by_profile` for a scheduler that holds tasks back, since a server is idle whatever the profile says.
    """
    if by_profile and getattr(getattr(options.method.build, "func", None), "holds_back", False):
        raise ParameterError("backlog", "profile", f"must be reported with --scheduler={options.name}")
    if options.method.learns:
        check_size(servers, options)
        if options.checkpoint is not None:
            read_checkpoint(options.checkpoint, options, servers)
    elif options.checkpoint is not None:
        raise ParameterError("checkpoint", options.checkpoint, "must come with a scheduler that learns")


def check_size(servers: int, options: SchedulerOptions) -> None:
    """Raise ParameterError when agents of so many servers would need too much memory."""
    if options.checkpoint is None and servers > TRAINED_SERVERS:
        raise ParameterError(
            "num_servers",
            servers,
            f"must be at most {TRAINED_SERVERS} for training {options.name} here; take a method that does not learn, "
            "or give a --checkpoint",
        )
    if servers * servers * options.num_tasks > STATE_CELLS:
        raise ParameterError(
            "num_servers",
            servers,
            f"too many for the states of {options.name}, which have a number for each server and task; take a method "
            "that does not learn",
        )


def read_checkpoint(place: Path, options: SchedulerOptions, servers: int) -> tuple[Any, dict[str, Any]]:
    """Parameters and content of a checkpoint for so many servers. Raises ParameterError when it does not fit."""
    given = {"evaluate": str(place)} | options.flags
    content = load_checkpoint(place, "checkpoint")
    try:
        config = stored_config(resolve(options.method.parameters, given), given, content, options.method, "evaluate")
    except ParameterError as error:
        if error.flag in options.flags:  # of the variant
            stored = content["config"].get(error.flag)
            words = f"must be of --scheduler={options.name}, but has {error.flag}={stored}"
            raise ParameterError("checkpoint", place, words) from None
        raise error.renamed(evaluate="checkpoint") from None
    if config.num_bs != servers and getattr(config, "actor", "") != "shared":  # which takes any number of servers
        raise ParameterError(
            "checkpoint", place, f"must be of --num_servers={servers} servers, but is of {config.num_bs}"
        )
    config = dataclasses.replace(config, device="cpu")  # a round is small, and a GPU belongs to an edge server
    check_size(servers, dataclasses.replace(options, num_tasks=config.num_tasks * config.seeds))
    return config, content


# --- schedulers for a cluster ---


def make_scheduler(options: SchedulerOptions, profile: Profile) -> ClusterScheduler:
    """The scheduler of the options for a profile's servers; what is trained is kept below the options' folder.

    Raises ParameterError for a checkpoint that does not fit, and for a folder that cannot be written.
    """
    method = options.method
    if options.name.startswith(TRACE):
        known = profile, options.models, options.mean_steps + profile.overhead, options.load, options.seed
        scheduler: Any = method.build(*known)
        flags = {"knows_models": True, "holds_back": scheduler.holds_back}
        return ClusterScheduler(options.name, scheduler, None, (), sys.maxsize, 1, 0.0, **flags)
    if not method.learns:
        flags = environment(options, profile) | method.flags | {"seed": options.seed}
        config = resolve(method.parameters, flags)
        scheduler = method.build(config, training_seeds(config), torch.device("cpu"))
        return on_cluster(options, scheduler, config, profile)
    place = trained(options, profile) if options.checkpoint is None else options.checkpoint
    config, content = read_checkpoint(place, options, profile.servers)
    agents = restore(config, content, method, "checkpoint", place)
    ready = on_cluster(options, agents, config, profile)
    kept = {"method": method.name, "config": dataclasses.asdict(config)}
    return dataclasses.replace(ready, first_episode=config.episodes, checkpoint=kept)


def on_cluster(options: SchedulerOptions, scheduler: Any, config: Any, profile: Profile) -> ClusterScheduler:
    """The scheduler with the cluster's capacities in its own unit of time; `config` are its own parameters."""
    assert isinstance(scheduler, Scheduler)
    seeds = training_seeds(config)
    slot = slot_seconds(config.mean_count, profile, options.steps)
    drawn = draw_scenario(config, seeds)
    rows = (len(seeds), 1)
    scenario = Scenario(
        capacity=np.tile(profile.capacity * slot, rows),
        link_rate=np.tile(np.full(profile.servers, options.link_rate * slot), rows),
        density=drawn.density,
        steps=drawn.steps,
        result_size=np.full_like(drawn.result_size, profile.result_mbit),
    )
    return ClusterScheduler(options.name, scheduler, scenario, seeds, config.num_tasks, config.num_slots - 1, slot)


def slot_seconds(mean_count: float, profile: Profile, steps: tuple[int, int]) -> float:
    """The slot in s in which the mean number of a BS's tasks in training offers a load of `LOAD`."""
    tasks = mean_count * profile.servers
    return tasks / (LOAD * profile.task_rate(sum(steps) / 2))


def environment(options: SchedulerOptions, profile: Profile) -> dict[str, Any]:
    """Parameters of the environment that is like the cluster, with a slot as the unit of time.

    Denoising steps and link rates are whole numbers there, so what a task costs besides its steps is rounded.
    """
    slot = slot_seconds((options.num_tasks + 1) / 2, profile, options.steps)
    overhead, rate = round(profile.overhead), min(max(1, round(options.link_rate * slot)), LARGEST)
    return {
        "num_bs": profile.servers,
        "num_tasks": options.num_tasks,
        "input_min": 0.0,
        "input_max": options.input_mbit,
        "quality_min": options.steps[0] + overhead,
        "quality_max": options.steps[1] + overhead,
        "density_min": DENSITY,
        "density_max": DENSITY,
        "result_min": profile.result_mbit,
        "result_max": max(profile.result_mbit, 1e-9),
        "capacities": ",".join(f"{f * slot:.6g}" for f in profile.capacity),
        "rate_min": rate,
        "rate_max": rate,
    }


# --- training, and learning further ---


def trained(options: SchedulerOptions, profile: Profile) -> Path:
    """The checkpoint of a method trained on the profile's servers, now or earlier with the same parameters.

    Raises ParameterError of --policies when its folder cannot be written; exits with 130 when Ctrl-C ended it.
    """
    method = options.method
    flags = environment(options, profile) | options.flags | {"episodes": options.episodes, "seed": options.seed}
    key = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:10]
    out = options.folder / f"{options.name.replace(':', '_')}_{profile.servers}servers_{key}"
    if episodes_done(out) < options.episodes:
        print(f"training {options.name} on the profile's {profile.servers} servers, once; kept in {out}")
        try:
            with claimed(out):
                if not (out / "checkpoint.pt").is_file():  # of a training that was killed before its first checkpoint
                    (out / "config.json").unlink(missing_ok=True)
            again = {"resume": str(out), "episodes": options.episodes} if (out / "checkpoint.pt").is_file() else None
            flags = again or flags | {"out": str(out)}
            run_method(resolve(method.parameters, flags), flags, method)
        except ParameterError as error:
            raise error.renamed(out="policies", resume="policies") from None
        except SystemExit as ended:
            if ended.code in (129, 130, 143):
                print("the same command goes on with the training")
            raise
    return out / "checkpoint.pt"


def episodes_done(folder: Path) -> int:
    """Episodes of the whole run in a folder, 0 when there is none; an interrupted one says how far it came."""
    try:
        return int(json.loads((folder / "summary.json").read_text())["episodes"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def check_learning(ready: ClusterScheduler) -> None:
    """Raise ParameterError for agents that cannot go on learning on the cluster that they are ready for."""
    if len(ready.seeds) != 1:
        raise ParameterError("learn", True, f"must come with agents of one seed, not of {len(ready.seeds)}")
    scheduler, servers = ready.scheduler, ready.scenario.capacity.shape[1]
    assert isinstance(scheduler, LearningScheduler)
    practice = getattr(scheduler.params, "practice", 0)  # in drawn scenarios, which --learn has none of
    if scheduler.params.num_bs != servers or practice:
        raise ParameterError(
            "learn",
            True,
            f"must come with agents trained for {servers} servers without practice, not for "
            f"{scheduler.params.num_bs} with --practice={practice}",
        )

"""Schedulers by name, ready for a cluster: trained agents, Opt-TS, every heuristic, or a class of one's own.

A learner comes from a checkpoint of its own script, or is trained on a simulated cluster with the profile's servers by
the loop that trains it everywhere. Start reading at `make_policy`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from baselines import main_d2sac, main_dqn, main_sac
from baselines.heuristics import HEURISTICS
from baselines.main_heuristics import HeuristicConfig, load_class
from common.parameters import LARGEST, ParameterError, resolve
from common.run_folder import claimed, load_checkpoint, writable
from coop_lad_ts.model_coop import CoopAgents
from dedgeai.dispatcher import Policy
from dedgeai.server_profile import Profile
from dedgeai.tasks import DENSITY
from lad_ts import main_coop, main_lad
from lad_ts.environment_lad import Scenario, draw_scenario
from lad_ts.references import OptTS
from lad_ts.training import restore, run_method, stored_config, training_seeds

LEARNERS = {
    "lad_ts": (main_lad.LadConfig, main_lad.METHOD),
    "d2sac_ts": (main_d2sac.D2SACConfig, main_d2sac.METHOD),
    "sac_ts": (main_sac.SACConfig, main_sac.METHOD),
    "dqn_ts": (main_dqn.DQNConfig, main_dqn.METHOD),
    "coop_lad_ts": (main_coop.CoopConfig, main_coop.METHOD),
}
NAMES = ", ".join([*LEARNERS, "opt_ts", *HEURISTICS])
LOAD = 1.1  # offered load at which policies are trained: queues grow slowly, as under the paper's
STATE_CELLS = 2**28  # numbers of a round's states, which bound the memory of learned policies
TRAINED_SERVERS = 200  # most servers that agents are trained for here; all but one learner have networks for each


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """What the command line says about the policy."""

    scheduler: str
    checkpoint: str | None
    episodes: int
    num_tasks: int  # most tasks of a base station in a round
    steps: tuple[int, int]  # fewest and most denoising steps
    input_mbit: float  # largest d
    link_rate: float  # v in Mbit/s
    seed: int


def make_policy(options: PolicyOptions, profile: Profile, folder: Path) -> Policy:
    """The policy of the options for a profile's servers; what is trained is kept below `folder`.

    Raises ParameterError for a name that is none, and for a checkpoint that does not fit.
    """
    name = options.scheduler
    if name not in LEARNERS:
        config = resolve(HeuristicConfig, environment(options, profile) | {"seed": options.seed})
        make = OptTS if name == "opt_ts" else load_class(name, "scheduler")
        return ready(name, make(config, [options.seed], "cpu"), config, options, profile)
    method = LEARNERS[name][1]
    place = trained(options, profile, folder) if options.checkpoint is None else Path(options.checkpoint)
    config, content = read_checkpoint(place, options, profile.servers)
    learner = restore(config, content, method, f"--checkpoint={place}")
    policy = ready(name, learner, config, options, profile)
    kept = {"method": method.name, "config": dataclasses.asdict(config)}
    return dataclasses.replace(policy, first_episode=config.episodes, checkpoint=kept)


def read_checkpoint(place: Path, options: PolicyOptions, servers: int) -> tuple[Any, dict[str, Any]]:
    """Parameters and content of a learner's checkpoint. Raises ParameterError when it does not fit."""
    cls, method = LEARNERS[options.scheduler]
    given = {"evaluate": str(place)}
    content = load_checkpoint(place, "checkpoint")
    try:
        config = stored_config(resolve(cls, given), given, content, method, "evaluate")
    except ParameterError as error:
        raise error.of("checkpoint") from None
    if config.num_bs != servers and getattr(config, "actor", "") != "shared":
        raise ParameterError(
            "checkpoint", place, f"must be of --num_servers={servers} servers, but is of {config.num_bs}"
        )
    config = dataclasses.replace(config, device="cpu")  # a round is small, and a GPU belongs to an edge server
    check_size(servers, dataclasses.replace(options, num_tasks=config.num_tasks * config.seeds))
    return config, content


def check_learning(policy: Policy) -> None:
    """Raise ParameterError for a learner that cannot go on learning on the policy's cluster."""
    if len(policy.seeds) != 1:
        raise ParameterError("learn", True, f"must come with a policy of one seed, not of {len(policy.seeds)}")
    if isinstance(policy.scheduler, CoopAgents):
        params, servers = policy.scheduler.params, policy.scenario.capacity.shape[1]
        if params.num_bs != servers or params.practice:
            raise ParameterError(
                "learn",
                True,
                f"must come with agents trained for {servers} servers without practice, not for "
                f"{params.num_bs} with --practice={params.practice}",
            )


def check_policy(options: PolicyOptions, servers: int) -> None:
    """Refuse what can be refused before the servers' speeds are known. Raises ParameterError."""
    check_name(options)
    if options.scheduler in LEARNERS:
        check_size(servers, options)
        if options.checkpoint is not None:
            read_checkpoint(Path(options.checkpoint), options, servers)


def check_name(options: PolicyOptions) -> None:
    """Raise ParameterError unless the scheduler exists and takes a checkpoint where one is given."""
    if options.scheduler not in LEARNERS:
        if options.scheduler == "lower_bound":
            raise ParameterError(
                "scheduler", "lower_bound", f"must be a scheduler, which a bound is not; one of {NAMES}"
            )
        if options.scheduler != "opt_ts":
            if ":" not in options.scheduler and options.scheduler not in HEURISTICS:
                raise ParameterError(
                    "scheduler", options.scheduler, f"must be one of {NAMES}, or FILE.py:ClassName of your own"
                )
            load_class(options.scheduler, "scheduler")
        if options.checkpoint is not None:
            raise ParameterError("checkpoint", options.checkpoint, "must come with a scheduler that learns")


def check_size(servers: int, options: PolicyOptions) -> None:
    """Raise ParameterError when agents of so many servers would need too much memory."""
    if options.checkpoint is None and servers > TRAINED_SERVERS:
        raise ParameterError(
            "num_servers",
            servers,
            f"must be at most {TRAINED_SERVERS} for training {options.scheduler} here; take a heuristic, "
            "or give a --checkpoint",
        )
    if servers * servers * options.num_tasks > STATE_CELLS:
        raise ParameterError(
            "num_servers",
            servers,
            f"too many for the states of {options.scheduler}, which have a number for each server and "
            "task; take a heuristic",
        )


def slot_seconds(num_tasks: int, min_tasks: int, profile: Profile, steps: tuple[int, int]) -> float:
    """The slot in which the mean number of tasks of training offers a load of `LOAD`."""
    tasks = (num_tasks + min_tasks) / 2 * profile.servers
    return tasks / (LOAD * profile.task_rate(sum(steps) / 2))


def environment(options: PolicyOptions, profile: Profile) -> dict[str, Any]:
    """Parameters of the environment that is like the cluster, with a slot as the unit of time.

    Denoising steps and link rates are whole numbers there, so what a task costs besides its steps is rounded.
    """
    slot = slot_seconds(options.num_tasks, 1, profile, options.steps)
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


def trained(options: PolicyOptions, profile: Profile, folder: Path) -> Path:
    """The checkpoint of a learner trained on the profile's servers, now or earlier with the same parameters."""
    cls, method = LEARNERS[options.scheduler]
    flags = environment(options, profile) | {"episodes": options.episodes, "seed": options.seed}
    key = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:10]
    out = folder / f"{options.scheduler}_{profile.servers}servers_{key}"
    if episodes_done(out) < options.episodes:
        print(f"training {options.scheduler} on the profile's {profile.servers} servers, once; kept in {out}")
        try:
            with claimed(writable(out)):
                if not (out / "checkpoint.pt").is_file():  # of a training that was killed before its first checkpoint
                    (out / "config.json").unlink(missing_ok=True)
            again = {"resume": str(out), "episodes": options.episodes} if (out / "checkpoint.pt").is_file() else None
            flags = again or flags | {"out": str(out)}
            run_method(resolve(cls, flags), flags, method)
        except ParameterError as error:
            raise error.of("policies") from None
        except SystemExit as ended:
            if ended.code == 130:
                print("the same command goes on with the training")
            raise
    return out / "checkpoint.pt"


def episodes_done(folder: Path) -> int:
    """Episodes of the whole run in a folder, 0 when there is none; an interrupted one says how far it came."""
    try:
        return int(json.loads((folder / "summary.json").read_text())["episodes"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def ready(name: str, scheduler: Any, config: Any, options: PolicyOptions, profile: Profile) -> Policy:
    """The policy with the cluster's capacities in its own unit of time."""
    seeds = training_seeds(config)
    slot = slot_seconds(config.num_tasks, config.min_tasks, profile, options.steps)
    drawn = draw_scenario(config, seeds)
    rows = (len(seeds), 1)
    scenario = Scenario(
        capacity=np.tile(profile.capacity * slot, rows),
        link_rate=np.tile(np.full(profile.servers, options.link_rate * slot), rows),
        density=drawn.density,
        steps=drawn.steps,
        result_size=np.full_like(drawn.result_size, profile.result_mbit),
    )
    return Policy(name, scheduler, scenario, seeds, config.num_tasks, config.num_slots - 1, slot)

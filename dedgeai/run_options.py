"""A run's parameters as typed values: what arrives, who decides, and what every part of the system is told.

Live and simulated runs take these from here, so that the same parameters mean the same tasks for the same servers.
Start reading at `run_options`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dedgeai.configuration import DedgeParameters
from dedgeai.options import ClusterOptions, ModelOptions, ProfileOptions, ServiceOptions, SystemOptions
from dedgeai.schedulers import SchedulerOptions, check_scheduler, method_of
from dedgeai.server_profile import Profile, equal_servers
from dedgeai.task_stream import Demand, sizes_of
from resd3_medium.finding import models_folder
from resd3_medium.folders import POCKET
from resd3_medium.tasks import DATASET, choose_prompts


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Everything that a run is told, and what its config.json keeps."""

    demand: Demand
    scheduler: SchedulerOptions
    cluster: ClusterOptions
    system: SystemOptions
    model: ModelOptions
    waiting: Profile | None  # the profile of servers that wait instead of computing; None: they compute
    measured: ProfileOptions  # of servers that compute
    service: ServiceOptions | None  # None: the run ends with its tasks
    title: str
    stored: dict[str, Any]  # the parameters as they were given, for config.json

    def folder_name(self, mode: str) -> str:
        """The name of a run's folder, where none is given."""
        return f"{mode}_{self.scheduler.method.key}"


def run_options(config: DedgeParameters) -> RunOptions:
    """Typed values of checked parameters; reads prompts, and the profile of servers that wait.

    Raises ParameterError for a scheduler, a checkpoint or a file that there is not, or that does not fit.
    """
    scheduler = SchedulerOptions(
        name=config.scheduler,
        method=method_of(config.scheduler),
        checkpoint=None if config.checkpoint is None else Path(config.checkpoint),
        folder=Path(config.policies),
        episodes=config.policy_episodes,
        num_tasks=config.round_tasks,
        steps=config.step_range,
        input_mbit=8e-6 * config.max_prompt,
        link_rate=config.link_rate,
        seed=config.seed,
    )
    check_scheduler(scheduler, config.num_servers)
    waits = config.simulate or config.compute == "simulated"
    waiting = waiting_profile(config) if waits else None
    pocket = uses_pocket(config.models)
    prompts = read_prompts(config.prompts, pocket, sum(config.counts), config.seed)
    if not config.serve:
        scheduler = dataclasses.replace(scheduler, input_mbit=float(sizes_of(prompts).max()))
    mode = "simulated" if config.simulate else "serve" if config.serve else "run"
    return RunOptions(
        demand=Demand(config.counts, prompts, config.step_range, config.load, config.num_servers, config.seed),
        scheduler=scheduler,
        cluster=ClusterOptions(
            config.num_servers,
            config.address,
            config.gpus_per_server,
            config.batch_size,
            config.job_timeout,
            config.rebalance,
        ),
        system=SystemOptions(config.backlog == "profile", config.attempts, config.learn),
        model=model_options(config, pocket),
        waiting=waiting,
        measured=profile_options(config),
        service=service_options(config) if config.serve else None,
        title=f"dedgeai, {mode}, {config.scheduler}",
        stored=dataclasses.asdict(config) | {"token": None},  # which is a secret
    )


def waiting_profile(config: DedgeParameters) -> Profile:
    """The profile of servers that wait: of a file, or what the parameters say. Raises ParameterError."""
    if config.profile is not None:
        return Profile.read(Path(config.profile), config.num_servers)
    return equal_servers(config.step_seconds, config.base_seconds, config.spread, config.relative_speeds)


def uses_pocket(folder: str | None) -> bool:
    """Whether images come from the pocket model, as they do while no other lies in models; `folder` is --models."""
    return models_folder(folder).resolve() == POCKET


def read_prompts(file: str | None, pocket: bool, count: int, seed: int) -> list[str]:
    """A caption for each of `count` tasks: of the file in turn, or drawn from those that the model knows.

    Raises ParameterError for a file that cannot be read.
    """
    path = file or (str(DATASET / "pocket_captions.txt") if pocket else None)
    if path is None:
        return choose_prompts((), None, count, seed)
    found = choose_prompts((), path, None, seed)
    if file is None:
        found = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    return [found[i % len(found)] for i in range(count)]


def model_options(config: DedgeParameters, pocket: bool) -> ModelOptions:
    """The generator of edge servers that compute."""
    names = ("models", "width", "height", "device", "dtype", "offload", "t5")
    gpu = config.gpus_per_server > 0 or (
        (config.device == "auto" or config.device.startswith("cuda")) and torch.cuda.is_available()
    )
    return ModelOptions(pocket, {name: getattr(config, name) for name in names}, config.threads, gpu)


def profile_options(config: DedgeParameters) -> ProfileOptions:
    """The measured profile: its file, and the parameters that decide about speeds."""
    source = {
        "steps": config.steps,
        "threads": config.threads,
        "batch_size": config.batch_size,
        "servers": config.num_servers,
        "gpus_per_server": config.gpus_per_server,
        **{name: getattr(config, name) for name in ("device", "dtype", "offload", "t5")},
    }
    return ProfileOptions(None if config.profile is None else Path(config.profile), config.profile_repeats, source)


def service_options(config: DedgeParameters) -> ServiceOptions:
    """Where the service listens, and its limits."""
    return ServiceOptions(
        config.host,
        config.port,
        config.token,
        config.max_prompt,
        config.max_steps,
        config.max_queued,
        default_steps=sum(config.step_range) // 2,
        seed=config.seed,
    )

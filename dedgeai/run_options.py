"""A run's parameters as typed values: what arrives, who decides, and what makes the images.

Live and simulated runs take these from here, so that the same parameters mean the same tasks for the same servers.
Start reading at `run_options`.
"""

import contextlib
import dataclasses
import functools
import io
from pathlib import Path

import numpy as np
import torch

from common.parameters import ParameterError
from dedgeai.configuration import DedgeParameters
from dedgeai.edge_server import OpenCompute, SimulatedCompute
from dedgeai.resident import Resident
from edge_sim.catalogue import Entry
from edge_sim.replay import read_replay
from edge_sim.schedulers import SchedulerOptions, check_scheduler, method_of
from edge_sim.server_profile import Profile, equal_servers
from edge_sim.servers import Models
from edge_sim.task_stream import Demand, sizes_of
from resd3_medium.finding import models_folder
from resd3_medium.folders import POCKET
from resd3_medium.lora import parse_lora
from resd3_medium.tasks import DATASET, choose_prompts

POCKET_WORDS = (
    "Emoji, by their names: one thing, maybe red, orange, yellow, green, blue, purple or pink; two or three of it; "
    "small or large; on the left or right; on a background of a colour. It knows no other words."
)
INFERENCE = ("models", "width", "height", "device", "dtype", "offload", "t5")  # what goes to refine_sd3_infer.py's


@dataclasses.dataclass(frozen=True)
class Model:
    """What makes the images: how a server opens it, what it is, and what may be asked of it. Sides are in pixels."""

    compute: OpenCompute
    name: str
    id: str  # in the API
    width: int
    height: int
    largest: int
    cfg_scale: float
    negative_prompt: str
    examples: tuple[str, ...]  # prompts that it can draw
    words: str  # what it can draw
    catalogue: "tuple[Model, ...]" = ()  # of the default model: all models of the catalogue, this one first
    size: float | None = None  # in MB, as the catalogue says

    @functools.cached_property
    def choice(self) -> "dict[str, Model]":
        """The models that a task may name, by their ids; this one, the default, first."""
        return {model.id: model for model in self.catalogue or (self,)}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run's parameters say, beside the parameters themselves."""

    config: DedgeParameters
    demand: Demand
    scheduler: SchedulerOptions
    pocket: bool  # the pocket model makes the images
    waiting: Profile | None  # the profile of servers that wait instead of computing; None: they compute

    @property
    def mode(self) -> str:
        """What kind of run it is, which is also the beginning of its folder's name."""
        return "simulate" if self.config.simulate else "serve" if self.config.serve else "run"

    @property
    def folder_name(self) -> str:
        """The name of the run's folder, where none is given."""
        return f"{self.mode}_{self.scheduler.method.key}"

    @property
    def title(self) -> str:
        """What config.json says that it is."""
        return f"dedgeai, {self.mode}, {self.config.scheduler}"

    @property
    def stored(self) -> dict[str, object]:
        """The parameters for config.json, without the token, which is a secret, and without leave to change it."""
        return dataclasses.asdict(self.config) | {"token": None, "change_token": False}


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
        models=models_of(config),
        mean_steps=sum(config.step_range) / 2,
        load=config.load or SchedulerOptions.load,
    )
    check_scheduler(scheduler, config.num_servers, config.backlog == "profile")
    folder = config.entries[0].folder if config.entries else None
    pocket = models_folder(folder or config.models).resolve() == POCKET
    prompts = read_prompts(config.prompts, pocket, sum(config.counts), config.seed)
    if not config.serve:
        scheduler = dataclasses.replace(scheduler, input_mbit=float(sizes_of(prompts).max()))
    replay = None
    if config.arrivals is not None:
        replay = read_replay(config.arrivals, max(config.counts), config.max_steps, max(1, len(config.entries)))
        scheduler = dataclasses.replace(scheduler, mean_steps=replay.mean_steps)
    demand = Demand(config.counts, prompts, config.step_range, config.load, config.num_servers, config.seed, replay)
    waits = config.simulate or config.compute == "simulated"
    return RunOptions(config, demand, scheduler, pocket, waiting_profile(config) if waits else None)


def models_of(config: DedgeParameters) -> Models:
    """The models of the catalogue; without one there is one that is always there."""
    if not config.entries:
        return Models()
    names, seconds = zip(*((entry.name, entry.seconds) for entry in config.entries), strict=True)
    return Models(np.array(seconds), config.resident_models, names=names)


def waiting_profile(config: DedgeParameters) -> Profile:
    """The profile of servers that wait: of a file, or what the parameters say. Raises ParameterError."""
    if config.profile is not None:
        return Profile.read(Path(config.profile), config.num_servers)
    return equal_servers(config.step_seconds, config.base_seconds, config.spread, config.relative_speeds)


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


def choose_model(options: RunOptions) -> Model:
    """What makes the images, the default model of several. Raises ParameterError when one cannot be loaded, before
    anything is started."""
    config = options.config
    if not config.entries:
        return model_of(options, None)
    models = []
    for entry in config.entries:
        quiet = contextlib.redirect_stdout(io.StringIO()) if models else contextlib.nullcontext()
        try:
            with quiet:  # what folders say of themselves is told once
                models.append(dataclasses.replace(model_of(options, entry), size=entry.size))
        except ParameterError as error:
            raise ParameterError("catalogue", config.catalogue, f"model {entry.name}: {error}") from None
    opened = {model.id: model.compute for model in models}
    waits = {entry.name: entry.seconds for entry in config.entries} if options.waiting else {}
    compute = functools.partial(Resident, opened, waits, config.resident_models)
    largest = max(model.largest for model in models)
    return dataclasses.replace(models[0], compute=compute, largest=largest, catalogue=tuple(models))


def model_of(options: RunOptions, entry: Entry | None) -> Model:
    """A model of the catalogue, or without an entry the one of --models. Raises ParameterError for missing files."""
    config, p = options.config, options.waiting
    folder = (entry and entry.folder) or config.models
    pocket = models_folder(folder).resolve() == POCKET
    examples = tuple(read_prompts(str(DATASET / "pocket_examples.txt") if pocket else None, False, 12, 0))
    if p is not None:
        name, words = "simulated compute", "Nothing: its servers wait instead of computing. Each image is a grey pixel."
        compute: OpenCompute = functools.partial(
            SimulatedCompute, p.seconds_per_step, p.seconds_base, p.spread, config.seed
        )
        width, height, cfg_scale, negative = config.width or 64, config.height or 64, 3.0, ""
    else:
        from dedgeai.generator import Generator, inference_config

        given = {name: getattr(config, name) for name in INFERENCE} | {"models": folder}
        infer = inference_config(**given, lora=[entry.lora] if entry and entry.lora else [])
        for lora in infer.lora:
            parse_lora(lora)
        width, height, cfg_scale, negative = infer.width, infer.height, infer.cfg_scale, infer.negative_prompt
        kind, named = "pocket model" if pocket else "SD3 Medium", entry.name if entry else ""
        name = f"{kind}, {width} x {height}"
        compute = functools.partial(Generator, infer, config.threads, model=named)
        words = POCKET_WORDS if pocket else "Whatever you describe."
    largest = max(config.max_side or (64 if pocket else 1024), width, height)
    known = "simulated" if p is not None else "pocket" if pocket else "sd3-medium"
    known = entry.name if entry else config.model_name or known
    return Model(compute, name, known, width, height, largest, cfg_scale, negative, examples, words)


def computes_on(config: DedgeParameters) -> str:
    """GPU or CPU, as far as the driver can tell."""
    auto = (config.device == "auto" or config.device.startswith("cuda")) and torch.cuda.is_available()
    return "GPU" if config.compute == "real" and (auto or config.gpus_per_server > 0) else "CPU"

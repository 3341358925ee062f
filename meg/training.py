"""The training of MEG's decoders: one learner and one set of parameters for both scripts.

A step sends a batch of reference latents over the channel and compares the received images with the clean ones. The
loop, checkpoints and CSV are common/stages.py's, devices and mixed precision accelerate's. Start reading at
`MEGLearner.loss`.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, claimed, create_folder, describe, peak_memory, writable, write_config, write_text
from common.stages import AveragedLearner, run_stage
from meg.channel import CHANNELS, Channel
from meg.dataset import Pairs, load_dataset
from meg.decoders import Description, save_model
from meg.models import RANGE_DB, MergingModel, SplitModel
from resd3_medium.refine_sd3_infer import choose_device

SHOWN_DB = (-20, -10, 0, 10, 20)  # SNRs of the validation
EPOCH = 20  # samples of a published epoch
WARM_UP = 0.05  # of a stage
FACTOR = 8  # pixels along a latent's cell, in all formats that are used here


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the schedule: a warm-up to the rate, then half a cosine down to 0."""

    steps: int
    rate: float


def stages_of(ends: Sequence[int], rates: Sequence[float]) -> tuple[Stage, ...]:
    """Stages from the published epochs at which they end."""
    starts = (0, *ends[:-1])
    return tuple(Stage((end - start) * EPOCH, r) for start, end, r in zip(starts, ends, rates, strict=True))


PUBLISHED_SPLIT = stages_of((200, 300, 400, 500, 600, 800), (1e-4, 5e-5, 1e-5, 5e-6, 1e-6, 1e-6))
# Published: up to 1,800 epochs, from 1e-4 down to 5e-8; where the stages end is not known.
PUBLISHED_MERGING = stages_of((400, 800, 1200, 1500, 1700, 1800), (1e-4, 5e-5, 1e-5, 1e-6, 1e-7, 5e-8))


def rate_at(stages: Sequence[Stage], number: int) -> float:
    """The learning rate of a step, from 0. Beyond the last stage it is 0."""
    for stage in stages:
        if number < stage.steps:
            warm = max(1, round(WARM_UP * stage.steps))
            fall = 0.5 * (1 + math.cos(math.pi * number / stage.steps))
            return stage.rate * min(1, (number + 1) / warm) * fall
        number -= stage.steps
    return 0.0


@dataclasses.dataclass(kw_only=True)
class TrainingConfig(Parameters):
    """The parameters that both trainings have."""

    data: str = parameter(str(RESULTS / "meg" / "data_pocket"), "folder of latents and images by make_dataset.py")
    schedule: str = parameter(
        "short",
        "short: one stage of --steps at --rate. published: six stages of one image a step, as in the published code",
        choices=("short", "published"),
    )
    steps: int = parameter(6000, "training steps of the short schedule", unit="steps", low=1)
    batch: int = parameter(16, "images of a step of the short schedule", low=1, high=4096)
    rate: float = parameter(1e-3, "highest learning rate of the short schedule", above=0)
    channel: str = parameter("awgn", "channel of the training", choices=CHANNELS)
    snr_db: float = parameter(0.0, "SNR of the training; its middle, with a spread", unit="dB", low=-60, high=60)
    spread_db: float | None = parameter(
        None, "SNRs are drawn evenly so far from the middle; default 0, with --told_snr 20", unit="dB", low=0, high=60
    )
    told_snr: bool = parameter(False, "tell the decoder the SNR, through a network that estimates the clean latent")
    jitter: bool | None = parameter(
        None, "multiply the noise's power by a number from 0.5 to 2.5; default True, with --told_snr False"
    )
    loss: str | None = parameter(
        None,
        "mse: mean square error, as published; log_mse: the mean of its logarithm over images, which is the PSNR's; "
        "default mse, with --told_snr log_mse",
        choices=("mse", "log_mse"),
    )
    validation: int = parameter(64, "last images of the data that are measured on instead of trained on", low=1)
    seed: int = parameter(0, "seed of batches, noise and new weights", low=0)
    every: int = parameter(500, "steps between checkpoints, with CSV and sample sheet", unit="steps", low=1)
    device: str = parameter("auto", "where the model is trained", choices=("auto", "cuda", "mps", "cpu"))
    precision: str = parameter("no", "mixed precision, by accelerate", choices=("no", "bf16", "fp16"))
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the run; default results/meg/<scheme>")
    resume: str | None = parameter(None, "go on with the run in this folder")


FREE = ("device", "threads", "every", "resume", "out")  # what --resume may change


def filled(config: TrainingConfig) -> TrainingConfig:
    """The parameters with the defaults that depend on others."""
    told = config.told_snr
    own = {"spread_db": float(RANGE_DB) if told else 0.0, "jitter": not told, "loss": "log_mse" if told else "mse"}
    return dataclasses.replace(config, **{n: v for n, v in own.items() if getattr(config, n) is None})


def accelerator_for(config: TrainingConfig) -> Accelerator:
    """accelerate's view of the device. Raises ParameterError when there is none, or it lacks the precision."""
    choose_device(config)
    try:
        return Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)
    except ValueError as error:
        raise ParameterError(
            "precision", config.precision, f"must be one that the device has ({describe(error)})"
        ) from None


class MEGLearner(AveragedLearner):
    """A model, the moving average of its weights, and one training step after the other."""

    measure = "psnr_db"
    rate_flag = "rate"

    def __init__(
        self,
        name: str,
        model: SplitModel | MergingModel,
        pairs: Pairs,
        stages: Sequence[Stage],
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        self.name, self.config, self.seed, self.stages = name, config, config.seed, stages
        self.accelerator, self.device = accelerator, accelerator.device
        self.steps = sum(stage.steps for stage in stages)
        self.size = 1 if config.schedule == "published" else config.batch
        self.pairs, self.trained = pairs, len(pairs) - config.validation
        if self.trained < 1:
            raise ParameterError("validation", config.validation, f"must be less than the data's {len(pairs)} images")
        self.channel = Channel(config.channel)
        self.model = model.to(self.device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimiser = accelerator.prepare(torch.optim.AdamW(self.model.parameters(), lr=config.rate))

    def generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def chosen(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(self.trained, (self.size,), generator=generator)

    def batch_words(self, number: int) -> str:
        numbers = self.chosen(self.generator(number)).tolist()
        return f"images {', '.join(map(str, numbers[:16]))}{' ..' if len(numbers) > 16 else ''}"

    def loss(self, number: int) -> torch.Tensor:
        """The error of a batch's received images: everything that is drawn depends on seed and step number only."""
        generator, c = self.generator(number), self.config
        latents, images = self.pairs.batch(self.chosen(generator), self.device)
        snr_db = c.snr_db + c.spread_db * (2 * torch.rand(self.size, generator=generator, dtype=torch.float64) - 1)
        factor = 0.5 + 2 * torch.rand(self.size, generator=generator, dtype=torch.float64) if c.jitter else 1.0
        with self.accelerator.autocast():
            made = self.model.through(latents, self.channel, snr_db, generator, factor)
        error = (made.float() - images).square().flatten(1).mean(1)
        return error.mean() if c.loss == "mse" else (error + 1e-5).log().mean()

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)

    def step(self, number: int) -> float:
        """Train on one batch. Returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.stages, number)
        return self.update(self.loss(number), min(0.999, (number + 1) / (number + 10)))

    @torch.no_grad()
    def evaluate(self) -> tuple[float, torch.Tensor]:
        """Mean PSNR in dB over SNRs and validation images, and a sheet: clean images over those of each SNR."""
        numbers = torch.arange(self.trained, len(self.pairs))[:64]
        latents, images = self.pairs.batch(numbers, self.device)
        sheet, found = [images[:16]], []
        for snr_db in SHOWN_DB:
            generator = torch.Generator().manual_seed(self.seed)
            made = torch.cat([self.average.through(x, self.channel, snr_db, generator) for x in latents.split(16)])
            error = (made.clamp(0, 1) - images).square().flatten(1).mean(1)
            found.append(float((-10 * torch.log10(error.clamp(min=1e-10))).mean()))
            sheet.append(made[:16])
        padded = [torch.cat([s, torch.ones(16 - len(s), *s.shape[1:], device=s.device)]) for s in sheet]
        return sum(found) / len(found), torch.cat(padded).clamp(0, 1) * 2 - 1


def train(
    config: TrainingConfig,
    model: SplitModel | MergingModel,
    description: Description,
    pairs: Pairs,
    stages: Sequence[Stage],
) -> None:
    """Train the model in its run's folder, and write it there as <scheme>.safetensors."""
    accelerator = accelerator_for(config)
    name = description.name
    fixed = {n: v for n, v in dataclasses.asdict(config).items() if n not in FREE}
    learner = MEGLearner(name, model, pairs, stages, config, accelerator)
    folder = writable(Path(config.resume)) if config.resume else create_folder(config.out, RESULTS / "meg" / name)
    with claimed(folder):
        if not config.resume:
            write_config(folder, name, dataclasses.asdict(config))
        seconds = run_stage(learner, fixed, folder, config.every)
        path = folder / f"{name}.safetensors"
        save_model(path, learner.average, dataclasses.replace(description, training=fixed))
        write_text(folder / "summary.json", json.dumps({"seconds": round(seconds, 1)}) + "\n")
    rate = learner.steps / max(seconds, 1e-3)
    print(f"{path}: {learner.steps} steps in {seconds / 60:.1f} min, {rate:.1f} a second")
    print(f"peak memory {peak_memory(accelerator.device)}")


def data_for(config: TrainingConfig, description: Description) -> Pairs:
    """The data of --data. Raises ParameterError when they are not what the decoder is for."""
    pairs = load_dataset(Path(config.data))
    if pairs.latents.shape[1] != description.channels:
        raise ParameterError(
            "data",
            config.data,
            f"must hold latents of {description.channels} channels, the decoder's, not {pairs.latents.shape[1]}",
        )
    sides = [side * FACTOR for side in pairs.latents.shape[2:]]
    if list(pairs.diffusion.shape[2:]) != sides:
        raise ParameterError("data", config.data, f"must hold images of {sides[0]} x {sides[1]} pixels")
    return pairs

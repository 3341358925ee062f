"""The training of MEG's decoders: one stage for both scripts, with a schedule of phases.

A step sends a batch of reference latents over the channel and compares the received images with the clean ones. The
loop, checkpoints and CSV are common/stages.py's, devices and mixed precision accelerate's. Start reading at
`MEGStage.loss`.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from common.device import choose_device
from common.parameters import ParameterError
from common.run_folder import RESULTS, describe, peak_memory, run_place, write_config, write_text
from common.stages import AveragedStage, run_stage
from meg.channel import Channel
from meg.dataset import Pairs, fitted_to, load_dataset
from meg.decoders import Description, save_model
from meg.meg_shift import ShiftModel
from meg.models import MergingModel, SplitModel
from meg.training_parameters import FREE, TrainingConfig

SHOWN_DB = (-20, -10, 0, 10, 20)  # SNRs of the validation
EPOCH = 20  # samples of a published epoch
WARM_UP = 0.05  # of a phase
FACTOR = 8  # pixels along a latent's cell, in all formats that are used here


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the schedule: a warm-up to the rate, then half a cosine down to 0."""

    steps: int
    rate: float


def phases_of(ends: Sequence[int], rates: Sequence[float]) -> tuple[Phase, ...]:
    """Phases from the published epochs at which they end, and their rates."""
    starts = (0, *ends[:-1])
    return tuple(Phase((end - start) * EPOCH, r) for start, end, r in zip(starts, ends, rates, strict=True))


PUBLISHED_SPLIT = phases_of((200, 300, 400, 500, 600, 800), (1e-4, 5e-5, 1e-5, 5e-6, 1e-6, 1e-6))
# Published: up to 1,800 epochs, from 1e-4 down to 5e-8; where the phases end is not known.
PUBLISHED_MERGING = phases_of((400, 800, 1200, 1500, 1700, 1800), (1e-4, 5e-5, 1e-5, 1e-6, 1e-7, 5e-8))


def rate_at(phases: Sequence[Phase], number: int) -> float:
    """The learning rate of a step, from 0. Beyond the last phase it is 0."""
    for phase in phases:
        if number < phase.steps:
            warm = max(1, round(WARM_UP * phase.steps))
            fall = 0.5 * (1 + math.cos(math.pi * number / phase.steps))
            return phase.rate * min(1, (number + 1) / warm) * fall
        number -= phase.steps
    return 0.0


def accelerator_for(config: TrainingConfig) -> Accelerator:
    """accelerate's view of the device. Raises ParameterError when there is none, or it lacks the precision."""
    device = choose_device(config.device)
    if device.index is not None:  # accelerate takes the current one
        torch.cuda.set_device(device)
    try:
        return Accelerator(cpu=config.device == "cpu", mixed_precision=config.precision)
    except ValueError as error:
        raise ParameterError(
            "precision", config.precision, f"must be one that the device has ({describe(error)})"
        ) from None


class MEGStage(AveragedStage):
    """A decoder, the moving average of its weights, and one training step after the other.

    Raises ParameterError when the data has no more images than are kept for the validation.
    """

    measure = "psnr_db"
    rate_flag = "rate"

    def __init__(
        self,
        name: str,
        model: SplitModel | MergingModel | ShiftModel,
        pairs: Pairs,
        phases: Sequence[Phase],
        config: TrainingConfig,
        accelerator: Accelerator,
    ) -> None:
        self.name, self.config, self.seed, self.phases = name, config, config.seed, phases
        self.accelerator, self.device = accelerator, accelerator.device
        self.steps = sum(phase.steps for phase in phases)
        self.size = 1 if config.schedule == "published" else config.batch
        self.pairs, self.trained = pairs, fitted_to(pairs, config.validation)
        self.channel = Channel(config.channel)
        self.model = model.to(self.device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimiser = accelerator.prepare(torch.optim.AdamW(self.model.parameters(), lr=config.rate))

    def generator(self, number: int) -> torch.Generator:
        """All randomness of a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def chosen(self, generator: torch.Generator) -> torch.Tensor:
        """Numbers [B] of the images of a batch; the first that a step draws."""
        return torch.randint(self.trained, (self.size,), generator=generator)

    def batch_words(self, number: int) -> str:
        """Which images that step trains on, the first 16 of them."""
        numbers = self.chosen(self.generator(number)).tolist()
        return f"images {', '.join(map(str, numbers[:16]))}{' ..' if len(numbers) > 16 else ''}"

    def loss(self, number: int) -> torch.Tensor:
        """The error of a batch's received images, a scalar; what is drawn depends on seed and step number only."""
        generator, c = self.generator(number), self.config
        latents, images = self.pairs.batch(self.chosen(generator), self.device)
        snr_db = c.snr_db + c.spread_db * (2 * torch.rand(self.size, generator=generator, dtype=torch.float64) - 1)
        factor = 0.5 + 2 * torch.rand(self.size, generator=generator, dtype=torch.float64) if c.jitter else 1.0
        with self.accelerator.autocast():
            made = self.model.through(latents, self.channel, snr_db, generator, factor)
        error = (made.float() - images).square().flatten(1).mean(1)
        return error.mean() if c.loss == "mse" else (error + 1e-5).log().mean()

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss, with a norm of at most 1, at accelerate's precision."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)

    def step(self, number: int) -> float:
        """Train on one batch. Returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.phases, number)
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
    model: SplitModel | MergingModel | ShiftModel,
    description: Description,
    pairs: Pairs,
    phases: Sequence[Phase],
) -> None:
    """Train the model in its run's folder, and write it there as <scheme>.safetensors.

    Raises ParameterError when the folder is not to be used, or the loss is no longer finite.
    """
    accelerator = accelerator_for(config)
    name = description.name
    fixed = {n: v for n, v in dataclasses.asdict(config).items() if n not in FREE}
    stage = MEGStage(name, model, pairs, phases, config, accelerator)
    with run_place(config.resume, config.out, RESULTS / "meg" / name) as folder:
        if not config.resume:
            write_config(folder, name, dataclasses.asdict(config))
        seconds = run_stage(stage, fixed, folder, config.every)
        path = folder / f"{name}.safetensors"
        kept = stage.average.split if isinstance(stage.average, ShiftModel) else stage.average
        save_model(path, kept, dataclasses.replace(description, training=fixed))
        write_text(folder / "summary.json", json.dumps({"seconds": round(seconds, 1)}) + "\n")
    rate = stage.steps / max(seconds, 1e-3)
    print(f"{path}: {stage.steps} steps in {seconds / 60:.1f} min, {rate:.1f} a second")
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

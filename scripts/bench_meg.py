"""Time and memory of a MEG training step against the same decoder in a plain loop.

The plain loop adds noise to latents, decodes, compares and steps the optimiser, and nothing else. Both sides take turns
in one process for the time, of which the median counts, and run alone in processes of their own for the memory.
Example:
python scripts/bench_meg.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.command_line import command_line
from common.parameters import Parameters, parameter
from common.progress import Progress
from common.run_folder import peak_mebibytes
from meg.dataset import Pairs
from meg.decoders import model_of
from meg.generators import open_generator
from meg.image_generator import ImageOptions
from meg.models import SplitModel
from meg.training import MEGStage, Phase, accelerator_for
from meg.training_parameters import TrainingConfig, filled


@dataclasses.dataclass(kw_only=True)
class BenchConfig(Parameters):
    """Every parameter of bench_meg.py."""

    steps: int = parameter(20, "steps of a turn", unit="steps", low=1)
    turns: int = parameter(7, "turns of each side", low=1)
    batch: int = parameter(16, "images of a step", low=1)
    device: str = parameter("cpu", "where both run", choices=("cpu", "cuda", "cuda:N"))
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    one: str | None = parameter(
        None, "used by the script itself: run this side for its memory", choices=("meg", "plain")
    )


def sides(config: BenchConfig) -> dict[str, Callable[[int], float]]:
    """A function that trains on a batch, for each side."""
    base = open_generator(ImageOptions(device="cpu", dtype="float32")).base()
    generator = torch.Generator().manual_seed(0)
    count = 8 * config.batch
    latents = torch.randn(count, 16, 8, 8, generator=generator).half()
    images = torch.randint(256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    settings = filled(TrainingConfig(batch=config.batch, validation=1, device=config.device))

    def meg_side() -> Callable[[int], float]:
        model = model_of(base.description, base.decoder)
        accelerator = accelerator_for(settings)
        phases = (Phase(1_000_000, 1e-3),)
        return MEGStage("meg_dt", model, Pairs(latents, images), phases, settings, accelerator).step

    def plain_side() -> Callable[[int], float]:
        model = SplitModel(base.decoder, 16, base.description.latents).to(config.device).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step(number: int) -> float:
            chosen = torch.randint(count, (config.batch,))
            clean, image = (x[chosen].to(config.device).float() for x in (latents, images))
            noisy = clean + clean.square().mean().sqrt() * torch.randn_like(clean)
            made = (model.decoder(model.post_quant_conv(noisy)) + 1) / 2
            loss = (made - image / 255).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            return loss.item()

        return step

    makers = {"meg": meg_side, "plain": plain_side}
    return {name: make() for name, make in makers.items() if config.one in (None, name)}


def memory_of(config: BenchConfig, side: str) -> float:
    """Peak memory in MiB of a process that runs one side."""
    flags = [f"--{name}={getattr(config, name)}" for name in ("steps", "batch", "device", "threads")]
    command = [sys.executable, str(Path(__file__)), f"--one={side}", *flags]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    """Let both sides take turns, and print their times and memory."""
    torch.set_num_threads(config.threads)
    running = sides(config)
    for step in running.values():
        step(0)
    if config.one:
        for number in range(config.steps):
            running[config.one](number)
        cuda = config.device.startswith("cuda")
        print(torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mebibytes())
        return
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in Progress(range(config.turns), unit="turn"):
        for name, step in running.items():
            start = time.perf_counter()
            for number in range(config.steps):
                step(turn * config.steps + number)
            seconds[name].append((time.perf_counter() - start) / config.steps)
    meg, plain = (median(seconds[name]) for name in ("meg", "plain"))
    print(
        f"a step of {config.batch} images: {1e3 * meg:.1f} ms, plain loop {1e3 * plain:.1f} ms: {meg / plain:.2f} times"
    )
    meg, plain = (memory_of(config, name) for name in ("meg", "plain"))
    print(f"peak memory: {meg:.0f} MiB, plain loop {plain:.0f} MiB: {meg / plain:.2f} times")


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)

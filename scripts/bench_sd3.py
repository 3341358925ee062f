"""Memory and time of Stable Diffusion 3 per memory level, and the time per denoising step against diffusers.

Needs model files; random ones of full size do (scripts/make_random_models.py --size full). Each level runs in a process
of its own; both sides of the comparison run alternately in one process, on the same weights, at the same dtype, and the
least time counts. On the CPU, memory is the anonymous part of the process: the mapped weights are the page cache's.
Example:
python scripts/bench_sd3.py --models models/random --dtype float16 --sizes 512,1024
"""

import common.quiet_start  # noqa: F401

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.device import DEVICE_CHOICES, choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from resd3_medium.building import build
from resd3_medium.dtypes import DTYPES, choose_dtype
from resd3_medium.finding import find_part
from resd3_medium.folders import MODELS
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.text import Conditioning


@dataclasses.dataclass(kw_only=True)
class ModelParameters(Parameters):
    """What is measured."""

    GROUP: ClassVar[str] = "model"

    models: str = parameter(str(MODELS), "folder of the model files", path=True)
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)
    dtype: str = parameter("auto", "dtype of the weights; auto: float16, on the CPU float32", choices=("auto", *DTYPES))


@dataclasses.dataclass(kw_only=True)
class BenchConfig(ModelParameters):
    """Every parameter of bench_sd3.py."""

    GROUP: ClassVar[str] = "measurement"

    sizes: str = parameter("512", "sides of the square images, separated by commas", unit="pixels")
    steps: int = parameter(2, "denoising steps of each measured image", unit="steps", low=1)
    repeats: int = parameter(3, "times that a denoising step is measured on each side", low=1)
    compare: bool = parameter(True, "compare a denoising step with diffusers'")
    levels: str = parameter("none,model,block", "memory levels to measure, separated by commas")
    one: str | None = parameter(None, "used by the script itself: measure this level and size, as in block:512")


class AnonymousMemory:
    """The most anonymous memory in MiB that the process has while it is watched; Linux only."""

    def __enter__(self) -> "AnonymousMemory":
        self.peak, self.stop = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Look every 20 ms, until the end."""
        while not self.stop.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, kibibytes / 1024)

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.thread.join()


def settings(side: int, steps: int) -> Settings:
    """A square image of that side in pixels."""
    return Settings(steps=steps, width=side, height=side)


def measure(config: BenchConfig, level: str, side: int) -> dict[str, float]:
    """Seconds of each stage and peak memory in MiB of one image."""
    device = choose_device(config.device)
    times = {}
    with AnonymousMemory() as memory:
        start = time.perf_counter()
        pipeline = Pipeline(Path(config.models), device, choose_dtype(config.dtype, device), level)
        times["load"] = time.perf_counter() - start
        texts = pipeline.encode(["a lighthouse above the sea", ""])
        times["text"] = time.perf_counter() - start - times["load"]
        began = time.perf_counter()
        pipeline.bring("MMDiT")
        times["load"] += time.perf_counter() - began
        began = time.perf_counter()
        latents = pipeline.denoise(*([text] for text in texts.values()), [0], settings(side, config.steps))
        times["denoise"] = time.perf_counter() - began
        began = time.perf_counter()
        pipeline.decode(latents)
        times["decode"] = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else memory.peak
    return times | {"peak_mib": peak}


def random_conditioning(pipeline: Pipeline) -> Conditioning:
    """What stands for a prompt: 77 rows of noise."""
    generator = torch.Generator().manual_seed(0)
    width, pooled = pipeline.config.context_width, pipeline.config.pooled_width
    return Conditioning(torch.randn(1, 77, width, generator=generator), torch.randn(1, pooled, generator=generator))


def diffusers_transformer(config: BenchConfig, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The same weights in diffusers' transformer."""
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    weights = find_part(Path(config.models), "MMDiT")
    sizes = weights.config
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128,
            num_layers=sizes.depth,
            num_attention_heads=sizes.width // 64,
            joint_attention_dim=sizes.context_width,
            caption_projection_dim=sizes.width,
            pooled_projection_dim=sizes.pooled_width,
            pos_embed_max_size=sizes.grid,
        )
    tensors = {name: weights.weight(name).dense(dtype) for name in weights.wanted}
    converted = convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    model.load_state_dict({name: value.to(device, dtype) for name, value in converted.items()}, assign=True)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def compare_step(config: BenchConfig, side: int) -> tuple[float, float, float]:
    """Least seconds of a guided step here and with diffusers, and how far the velocities differ, relatively."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    pipeline = Pipeline(Path(config.models), device, dtype, "model")
    ours, theirs = build(pipeline.weights["MMDiT"], device, dtype), diffusers_transformer(config, device, dtype)
    condition = random_conditioning(pipeline)
    context, pooled = (x.expand(2, *x.shape[1:]).to(device, dtype) for x in (condition.context, condition.pooled))
    cells = side // pipeline.factor
    latent = torch.randn(2, 16, cells, cells, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    timestep = torch.full((2,), 500.0, device=device)
    positions = ours.positions(cells, cells).to(device, dtype)
    runs = (
        lambda: ours(latent, timestep, context, pooled, positions),
        lambda: theirs(latent, context, pooled, timestep, return_dict=False)[0],
    )
    times, results = ([], []), [None, None]
    for repeat in Progress(range(config.repeats + 1), unit="pair", desc=f"step at {side}"):  # the first warms up
        for k, run in enumerate(runs):
            began = time.perf_counter()
            results[k] = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                times[k].append(time.perf_counter() - began)
    difference = (results[0] - results[1]).abs().max() / results[1].abs().max()
    return min(times[0]), min(times[1]), difference.item()


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    """Print both tables, level by level and size by size. Raises ParameterError."""
    if config.one:
        level, _, side = config.one.partition(":")
        if level not in ("none", "model", "block") or not side.isdigit():
            raise ParameterError("one", config.one, "must be a level and a size, as in block:512")
        print(json.dumps(measure(config, level, int(side))))
        return
    try:
        sides = [int(text) for text in config.sizes.split(",")]
    except ValueError:
        raise ParameterError("sizes", config.sizes, "must be numbers separated by commas") from None
    largest = 8 * 2 * find_part(Path(config.models), "MMDiT").config.grid
    if any(not 16 <= side <= largest or side % 16 for side in sides):
        raise ParameterError("sizes", config.sizes, f"must be multiples of 16, at most {largest}")
    levels = [level.strip() for level in config.levels.split(",")]
    if unknown := set(levels) - {"none", "model", "block"}:
        raise ParameterError(
            "levels", config.levels, f"must be of none, model, block, not {', '.join(sorted(unknown))}"
        )
    device = choose_device(config.device)
    print(f"device {device}, {choose_dtype(config.dtype, device)}, {torch.get_num_threads()} threads, T5 off\n")
    start = time.perf_counter()
    build(find_part(Path(config.models), "MMDiT"), device, choose_dtype(config.dtype, device))
    print(f"MMDiT loads in {time.perf_counter() - start:.2f} s\n")
    print("| level | size | load s | text s | s per step | decode s | peak GiB |\n|---|---|---|---|---|---|---|")
    script = [sys.executable, __file__, f"--models={config.models}", f"--device={config.device}"]
    script += [f"--dtype={config.dtype}", f"--steps={config.steps}"]
    for level in levels:
        for side in sides:
            output = subprocess.run([*script, f"--one={level}:{side}"], check=True, stdout=subprocess.PIPE, text=True)
            m = json.loads(output.stdout.splitlines()[-1])
            cells = [level, side, *(f"{m[name]:.2f}" for name in ("load", "text"))]
            cells += [f"{m['denoise'] / config.steps:.2f}", f"{m['decode']:.2f}", f"{m['peak_mib'] / 1024:.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if config.compare:
        print("\n| size | s per step here | diffusers | diffusers / here | largest relative difference |")
        print("|---|---|---|---|---|")
        for side in sides:
            here, there, difference = compare_step(config, side)
            print(f"| {side} | {here:.3f} | {there:.3f} | {there / here:.2f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)

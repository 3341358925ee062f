"""Memory and time of Stable Diffusion 3 per memory level, and the time per denoising step against other programs.

Needs model files; random ones of full size do (scripts/make_random_models.py --size full). Each level runs in a process
of its own, and the least time of a step counts. Against diffusers, both sides run alternately in one process, on the
same weights, at the same dtype. stable-diffusion.cpp, where pip has installed stable-diffusion-cpp-python, makes whole
images of the same files, as this project does, in a process each. On the CPU, memory is the anonymous part of the
process: mapped weights are the page cache's.
Example:
python scripts/bench_sd3.py --models models/random --dtype float16 --sizes 512,1024
"""

import common.quiet_start  # noqa: F401

import dataclasses
import importlib.util
import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.device import DEVICE_CHOICES, choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from resd3_medium.building import build
from resd3_medium.dtypes import DTYPES, choose_dtype
from resd3_medium.finding import find_part, find_weights
from resd3_medium.folders import MODELS
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.text import Conditioning

PROMPT = "a lighthouse above the sea"
LEVELS = ("none", "model", "block")
SDCPP_KINDS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k")  # as it names them


@dataclasses.dataclass(kw_only=True)
class ModelParameters(Parameters):
    """What is measured."""

    GROUP: ClassVar[str] = "model"

    models: str = parameter(str(MODELS), "folder of the model files", path=True)
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)
    dtype: str = parameter("auto", "dtype of the weights; auto: float16, on the CPU float32", choices=("auto", *DTYPES))
    weights: str = parameter(
        "stored", "how large matrices are kept in memory at each level", choices=("stored", "full", "int8", "fp8")
    )


@dataclasses.dataclass(kw_only=True)
class BenchConfig(ModelParameters):
    """Every parameter of bench_sd3.py."""

    GROUP: ClassVar[str] = "measurement"

    sizes: str = parameter("512", "sides of the square images, separated by commas", unit="pixels")
    steps: int = parameter(2, "denoising steps of each measured image", unit="steps", low=1)
    repeats: int = parameter(3, "times that a denoising step is measured on each side", low=1)
    compare: bool = parameter(True, "compare with diffusers, and with stable-diffusion.cpp")
    levels: str = parameter("none,model,block", "memory levels to measure, separated by commas")
    sdcpp: str = parameter(
        "f16,q8_0", "types of weights at which stable-diffusion.cpp is measured, if it is installed; none: not at all"
    )
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
    """Seconds of each stage and of the fastest step, and peak memory in MiB, of one image."""
    device = choose_device(config.device)
    times = {}
    with AnonymousMemory() as memory:
        start = time.perf_counter()
        dtype = choose_dtype(config.dtype, device)
        pipeline = Pipeline(Path(config.models), device, dtype, level, keep=config.weights)
        times["load"] = time.perf_counter() - start
        texts = pipeline.encode([PROMPT, ""])
        times["text"] = time.perf_counter() - start - times["load"]
        began = time.perf_counter()
        pipeline.bring("MMDiT")
        times["load"] += time.perf_counter() - began
        ends = [time.perf_counter()]

        def step_done() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append(time.perf_counter())

        latents = pipeline.denoise(*([text] for text in texts.values()), [0], settings(side, config.steps), step_done)
        times["step"] = min(after - before for before, after in pairwise(ends))
        began = time.perf_counter()
        pipeline.decode(latents)
        times["decode"] = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else memory.peak
    return times | {"peak_mib": peak}


def sdcpp_files(models: Path) -> dict[str, str]:
    """The files of the models as stable-diffusion.cpp's arguments.

    Raises ParameterError for files that it does not read: those in diffusers' layout.
    """
    weights = find_weights(models, "off")
    if others := [name for name, part in weights.parts.items() if part.layout != "ours"]:
        raise ParameterError("models", models, f"must be in the released layout for it, not {', '.join(others)}")
    main = weights["MMDiT"].file.path
    found = {"model_path" if weights["MMDiT"].prefix else "diffusion_model_path": str(main)}
    for name, argument in (("VAE", "vae_path"), ("CLIP-L", "clip_l_path"), ("CLIP-G", "clip_g_path")):
        if weights[name].file.path != main:
            found[argument] = str(weights[name].file.path)
    return found


def measure_sdcpp(config: BenchConfig, kind: str, side: int) -> dict[str, float]:
    """The same as `measure`, of stable-diffusion.cpp at a type of weights such as q8_0, with as many threads."""
    from stable_diffusion_cpp import StableDiffusion

    ends: dict[int, float] = {}  # the last by step; 0 is the start of the first

    def step_done(step: int, steps: int, seconds: float) -> None:
        if steps == config.steps:
            ends.setdefault(step, time.perf_counter())

    with AnonymousMemory() as memory:
        start = time.perf_counter()
        options = {"n_threads": torch.get_num_threads(), "vae_decode_only": True, "verbose": False}
        model = StableDiffusion(**sdcpp_files(Path(config.models)), wtype=kind, **options)
        loaded = time.perf_counter()
        options = {"width": side, "height": side, "sample_steps": config.steps, "sample_method": "euler", "seed": 0}
        model.generate_image(PROMPT, cfg_scale=Settings.cfg_scale, progress_callback=step_done, **options)
        end = time.perf_counter()
    steps = [ends[i + 1] - ends[i] for i in range(config.steps)]
    times = {"load": loaded - start, "text": ends[0] - loaded, "step": min(steps), "decode": end - ends[config.steps]}
    return times | {"peak_mib": memory.peak}


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
            qk_norm="rms_norm" if sizes.qk_norm else None,
            dual_attention_layers=tuple(sizes.dual),
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


def process(config: BenchConfig, one: str, **others: str) -> dict[str, float] | None:
    """What a process of its own measures, with other parameters; None if it fails. Only ours may show progress."""
    flags = {name: getattr(config, name) for name in ("models", "device", "dtype", "weights", "steps")} | others
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items()), f"--one={one}"]
    errors = subprocess.DEVNULL if one.startswith("sdcpp-") else None
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=errors, text=True)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def row(names: list[Any], found: dict[str, float] | None) -> str:
    """A row of the tables of whole images."""
    if found is None:
        cells = ["failed", *["-"] * 4]
    else:
        cells = [f"{found[name]:.2f}" for name in ("load", "text", "step", "decode")]
        cells.append(f"{found['peak_mib'] / 1024:.2f}")
    return "| " + " | ".join(map(str, [*names, *cells])) + " |"


COLUMNS = "size | load s | text s | s per step | decode s | peak GiB |"


def compare_sdcpp(config: BenchConfig, device: torch.device, sides: list[int]) -> None:
    """Print the table of whole images here and with stable-diffusion.cpp, or in words why there is none."""
    kinds = [kind.strip() for kind in config.sdcpp.split(",")]
    reason = None
    if importlib.util.find_spec("stable_diffusion_cpp") is None:
        reason = "pip install stable-diffusion-cpp-python adds it, and compiles for some minutes"
    elif device.type != "cpu":
        reason = "it is compared on the CPU only"
    else:
        try:
            sdcpp_files(Path(config.models))
        except ParameterError as error:
            reason = str(error)
    if reason:
        print(f"\nstable-diffusion.cpp is left out: {reason}", flush=True)
        return
    print(f"\n| program | weights | {COLUMNS}\n|{'---|' * 8}")
    for side in sides:
        dtype = str(choose_dtype(config.dtype, device)).removeprefix("torch.")
        for weights in ("full", "int8"):
            name = dtype if weights == "full" else f"int8, {dtype}"
            print(row(["here", name, side], process(config, f"none:{side}", weights=weights)), flush=True)
        for kind in kinds:
            print(row(["stable-diffusion.cpp", kind, side], process(config, f"sdcpp-{kind}:{side}")), flush=True)


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    """Print the tables, level by level and size by size. Raises ParameterError."""
    if config.one:
        level, _, side = config.one.partition(":")
        kind = level.removeprefix("sdcpp-")
        if (level not in LEVELS and kind == level) or not side.isdigit():
            raise ParameterError("one", config.one, "must be a level and a size, as in block:512")
        print(
            json.dumps(measure(config, level, int(side)) if kind == level else measure_sdcpp(config, kind, int(side)))
        )
        return
    try:
        sides = [int(text) for text in config.sizes.split(",")]
    except ValueError:
        raise ParameterError("sizes", config.sizes, "must be numbers separated by commas") from None
    largest = 8 * 2 * find_part(Path(config.models), "MMDiT").config.grid
    if any(not 16 <= side <= largest or side % 16 for side in sides):
        raise ParameterError("sizes", config.sizes, f"must be multiples of 16, at most {largest}")
    levels = [level.strip() for level in config.levels.split(",")]
    if unknown := set(levels) - set(LEVELS):
        raise ParameterError(
            "levels", config.levels, f"must be of {', '.join(LEVELS)}, not {', '.join(sorted(unknown))}"
        )
    if unknown := {kind.strip() for kind in config.sdcpp.split(",")} - {*SDCPP_KINDS, "none"}:
        raise ParameterError("sdcpp", config.sdcpp, f"must be of {', '.join(SDCPP_KINDS)}, or none")
    device = choose_device(config.device)
    print(f"device {device}, {choose_dtype(config.dtype, device)}, {torch.get_num_threads()} threads, T5 off\n")
    start = time.perf_counter()
    build(find_part(Path(config.models), "MMDiT"), device, choose_dtype(config.dtype, device), config.weights)
    print(f"MMDiT loads in {time.perf_counter() - start:.2f} s\n")
    print(f"| level | {COLUMNS}\n|{'---|' * 7}")
    for level in levels:
        for side in sides:
            if (found := process(config, f"{level}:{side}")) is None:
                raise ParameterError("models", config.models, "must hold models that can be measured, see above")
            print(row([level, side], found), flush=True)
    if config.compare:
        print("\n| size | s per step here | diffusers | diffusers / here | largest relative difference |")
        print("|---|---|---|---|---|")
        for side in sides:
            here, there, difference = compare_step(config, side)
            print(f"| {side} | {here:.3f} | {there:.3f} | {there / here:.2f} | {difference:.1e} |", flush=True)
        if config.sdcpp.strip() != "none":
            compare_sdcpp(config, device, sides)


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)

"""The part `step`: a step of Stable Diffusion 3 medium's transformer, with random weights made on the device.

It needs no files, so it comes before what does. Start reading at `measure`.
"""

import time

import torch
from torch import nn

from common.command_line import ROOT
from common.entry_scripts import load_module
from gpu_check.results import Conditions, Results, SkipError
from resd3_medium.mmdit import MMDiT
from resd3_medium.packed import PackedLinear, quantised

FORMS = ("float16", "bfloat16", "fp8", "int8")  # the last two are kept so, and computed with in float16
REPEATS = 5


def random_transformer(size: str, device: torch.device, dtype: torch.dtype) -> MMDiT:
    """SD3 medium's transformer of `full` or `tiny` sizes with seeded random weights, drawn on the device."""
    random_models = load_module(ROOT / "scripts/make_random_models.py")
    with torch.device("meta"):
        model = MMDiT(random_models.MMDIT["sd3_medium"][size]).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    sizes = model.config

    def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return random_models.draw(name, shape, generator).to(dtype)

    state = {name: drawn(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.pos_embed = drawn("pos_embed", (1, sizes.grid**2, sizes.width))
    return model.eval().requires_grad_(False)


def keep_packed(blocks: nn.Module, kind: str) -> None:
    """Keep the matrices of all linear layers at 8 bits: int8 or fp8."""
    for path, layer in list(blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, last = path.rpartition(".")
            packed = PackedLinear.of(quantised(layer.weight, kind), layer.bias)
            setattr(blocks.get_submodule(parent), last, packed)


@torch.inference_mode()
def step_seconds(model: MMDiT, side: int, device: torch.device) -> float:
    """Least seconds of a guided step, two latents of a square image of `side` pixels, with 77 rows of text."""
    sizes, cells, dtype = model.config, side // 8, model.context_embedder.weight.dtype
    generator = torch.Generator().manual_seed(1)
    shapes = (2, sizes.channels, cells, cells), (2, 77, sizes.context_width), (2, sizes.pooled_width)
    latent, context, pooled = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    timestep, positions = torch.full((2,), 500.0, device=device), model.positions(cells, cells)
    times = []
    for _ in range(REPEATS + 1):  # the first warms up
        synchronise(device)
        began = time.perf_counter()
        velocity = model(latent, timestep, context, pooled, positions)
        synchronise(device)
        times.append(time.perf_counter() - began)
    if not bool(velocity.isfinite().all()):
        raise RuntimeError(f"the velocity at {side} is not finite")
    return min(times[1:])


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_peak(device: torch.device) -> None:
    """Count the peak memory of the device from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def add_peak(results: Results, case: str, device: torch.device) -> None:
    """Add the peak memory of the device since `start_peak`; there is none on the CPU."""
    if device.type == "cuda":
        results.add(case, "peak", torch.cuda.max_memory_allocated(device) / 2**30, "GiB")
    else:
        results.add(case, "peak", "", "GiB", "counted on CUDA only")


def measure(given: Conditions, results: Results) -> None:
    """Add seconds and peak memory of a step by form of the weights and size of the image."""
    for form in FORMS:
        with results.case(form):
            measure_form(form, given, results)


def measure_form(form: str, given: Conditions, results: Results) -> None:
    """The same for one form of the weights."""
    device, eight = torch.device(given.device), form in ("fp8", "int8")
    dtype = torch.float16 if eight else getattr(torch, form)
    model = random_transformer("tiny" if given.dry else "full", device, dtype)
    if eight:
        keep_packed(model.joint_blocks, form)
    for side in (32,) if given.dry else (512, 1024):
        if given.left() < 10:
            raise SkipError("no time was left")
        start_peak(device)
        results.add(f"{side} {form}", "step", step_seconds(model, side, device), "s")
        add_peak(results, f"{side} {form}", device)

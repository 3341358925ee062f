"""What weights of few bits cost: error of a transformer block, of a whole latent, and of pictures.

Every form rounds the large matrices of the transformer's blocks and nothing else, and everything is computed in
float32, so that the differences are the weights' own. Prints two tables, and writes precision.csv and a sheet of
pictures: a row for each caption, a column for each form. Without --models, pictures are the pocket model's. Example:
python scripts/bench_precision.py --captions 4
"""

import common.quiet_start  # noqa: F401

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from PIL import Image, ImageDraw
from torch import nn

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import RESULTS, claimed, replace_file
from common.tables import write_csv
from resd3_medium.finding import find_weights
from resd3_medium.folders import POCKET
from resd3_medium.ggml import BLOCKS
from resd3_medium.infer_parameters import InferConfig, with_model
from resd3_medium.mmdit import HEAD_WIDTH, JointBlock
from resd3_medium.packed import Packed, PackedLinear, from_ggml, quantised
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.tasks import DATASET, parse_steps, read_lines


@dataclasses.dataclass(kw_only=True)
class PrecisionConfig(Parameters):
    """Every parameter of bench_precision.py."""

    models: str = parameter(str(POCKET), "folder of the model files, or one file", path=True)
    prompts: str = parameter(str(DATASET / "pocket_test_captions.txt"), "file with a prompt on each line", path=True)
    captions: int = parameter(4, "pictures of each form: the file's first prompts", low=1, high=100)
    width: int = parameter(1536, "width of the random block", low=64)
    rows: int = parameter(1024, "image rows that the random block works on, beside 77 of text", low=1)
    tails: bool = parameter(False, "draw the random block's weights with heavy tails, as trained ones may have")
    seed: int = parameter(0, "seed of the random block, and of the first picture", low=0)
    out: str = parameter(str(RESULTS / "precision"), "folder of the table and the pictures", path=True)


# --- forms ------------------------------------------------------------------------------------------------------------


def dense(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounding to a dtype."""
    return lambda weight: weight.to(dtype).float()


def by_gguf(kind: str) -> Callable[[torch.Tensor], Packed]:
    """The gguf package's own quantisation."""
    type_ = GGMLQuantizationType[kind]
    return lambda w: from_ggml(kind, torch.from_numpy(quantize(w.numpy(), type_)), (w.shape[0], w.shape[1]))


def q4_k(weight: torch.Tensor) -> Packed:
    """Q4_K in the plain way: each group of 32 from its least to its largest number, scale and minimum at six bits.

    llama.cpp's own packer searches for scales that give less error.
    """
    x = weight.reshape(-1, 8, 32).numpy().astype(np.float64)
    low = -np.minimum(x.min(2), 0)
    scale = (x.max(2) + low) / 15
    d, d_low = (np.maximum(v.max(1, keepdims=True) / 63, 1e-12).astype(np.float16) for v in (scale, low))
    scales, lows = (
        np.clip(np.round(v / s.astype(float)), 0, 63).astype(np.uint8) for v, s in ((scale, d), (low, d_low))
    )
    step = np.maximum(d.astype(float) * scales, 1e-30)[:, :, None]
    q = np.clip(np.round((x + (d_low.astype(float) * lows)[:, :, None]) / step), 0, 15).astype(np.uint8)
    first, last = (slice(0, 4), slice(4, 8))
    packed = [v[:, first] | (v[:, last] >> 4) << 6 for v in (scales, lows)]
    packed.append((scales[:, last] & 15) | (lows[:, last] & 15) << 4)
    nibbles = q.reshape(-1, 4, 2, 32)
    parts = [
        d.view(np.uint8),
        d_low.view(np.uint8),
        *packed,
        (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(-1, 128),
    ]
    return from_ggml("Q4_K", torch.from_numpy(np.concatenate(parts, 1)), (weight.shape[0], weight.shape[1]))


Form = Callable[[torch.Tensor], torch.Tensor | Packed]
FORMS: dict[str, Form] = {
    "float32": dense(torch.float32),
    "bfloat16": dense(torch.bfloat16),
    "float16": dense(torch.float16),
    "int8": lambda w: quantised(w, "int8"),
    "fp8, scaled": lambda w: quantised(w, "fp8"),
    "fp8, plain": lambda w: Packed("F8_E4M3", w.to(torch.float8_e4m3fn), None, (w.shape[0], w.shape[1])),
    "Q8_0": by_gguf("Q8_0"),
    "Q4_0": by_gguf("Q4_0"),
    "Q4_K": q4_k,
}
BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "fp8, scaled": 8.0, "fp8, plain": 8.0}
BITS |= {kind: 8 * BLOCKS[kind].bytes / BLOCKS[kind].size for kind in ("Q8_0", "Q4_0", "Q4_K")}


def fits(name: str, weight: torch.Tensor) -> bool:
    """Whether a matrix can have a form: rows of block formats are cut into whole blocks."""
    return name not in BLOCKS or weight.shape[1] % BLOCKS[name].size == 0


def rounded(model: nn.Module, name: str) -> tuple[nn.Module, float]:
    """A copy of a module whose linear layers have their matrices in a form, and the share of weights that do."""
    found, whole, taken = copy.deepcopy(model), 0, 0
    for path, layer in list(found.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        whole += layer.weight.numel()
        if not fits(name, layer.weight):
            continue
        taken += layer.weight.numel()
        form = FORMS[name](layer.weight.detach().float())
        if isinstance(form, Packed):
            parent, _, last = path.rpartition(".")
            setattr(found.get_submodule(parent), last, PackedLinear.of(form, layer.bias))
        else:
            layer.weight = nn.Parameter(form, requires_grad=False)
    return found, taken / whole


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return values.double().square().mean().sqrt().item()


# --- a random block ---------------------------------------------------------------------------------------------------


def random_block(config: PrecisionConfig) -> tuple[JointBlock, list[torch.Tensor]]:
    """A block of SD3.5 medium's form with a second attention, and its inputs: text, image, condition."""
    generator = torch.Generator().manual_seed(config.seed)
    block = JointBlock(config.width, last=False, qk_norm=True, dual=True).eval().requires_grad_(False)
    for name, tensor in block.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2:
            if config.tails:  # of Student's t with four degrees of freedom, brought to the same variance
                chi = torch.randn(4, *tensor.shape, generator=generator).square().mean(0)
                drawn = drawn / chi.sqrt() / 2**0.5
            tensor.copy_(drawn * tensor.shape[1] ** -0.5)
        else:
            tensor.copy_(1 + 0.1 * drawn if "ln_" in name else 0.1 * drawn)
    shapes = (1, 77, config.width), (1, config.rows, config.width), (1, config.width)
    return block, [torch.randn(shape, generator=generator) for shape in shapes]


@torch.inference_mode()
def block_rows(config: PrecisionConfig) -> dict[str, list[float]]:
    """For each form: rms error of the weights, of the block's change of the image rows, and seconds of the block."""
    block, inputs = random_block(config)
    exact = block(*inputs)[1] - inputs[1]
    weights = torch.cat([layer.weight.flatten() for layer in block.modules() if isinstance(layer, nn.Linear)])
    rows = {}
    for name in Progress(FORMS, unit="form", desc="block"):
        found, _ = rounded(block, name)
        layers = [m for m in found.modules() if isinstance(m, nn.Linear | PackedLinear)]
        floats = [m.matrix().floats() if isinstance(m, PackedLinear) else m.weight for m in layers]
        off = torch.cat([f.flatten() for f in floats]) - weights
        times = []
        for _ in range(3):
            began = time.perf_counter()
            change = found(*inputs)[1] - inputs[1]
            times.append(time.perf_counter() - began)
        rows[name] = [rms(off) / rms(weights), rms(change - exact) / rms(exact), min(times)]
    return rows


# --- whole latents and pictures ---------------------------------------------------------------------------------------


@torch.inference_mode()
def picture_rows(config: PrecisionConfig) -> tuple[dict[str, list[float]], dict[str, list[Image.Image]], list[str]]:
    """For each form: the latent's rms error, the pictures' mean and largest difference in levels, and the share of the
    blocks' weights that have the form; the pictures, and their captions."""
    defaults = with_model(InferConfig(models=config.models))
    steps = parse_steps(defaults.steps)[1]
    size = {"width": defaults.width, "height": defaults.height, "cfg_scale": defaults.cfg_scale}
    settings = Settings(steps=steps, shift=defaults.shift, sampler=defaults.sampler, **size)
    pipeline = Pipeline(find_weights(Path(config.models), "off"), torch.device("cpu"), torch.float32, keep="full")
    captions = read_lines(Path(config.prompts), "prompts")[: config.captions]
    texts = pipeline.encode([*captions, ""])
    model: Any = pipeline.bring("MMDiT")
    blocks, exact, rows, pictures = model.joint_blocks, torch.zeros(0), {}, {}
    for name in Progress(FORMS, unit="form", desc="pictures"):
        model.joint_blocks, share = rounded(blocks, name)
        latents = torch.cat(
            [
                pipeline.denoise([texts[caption]], [texts[""]], [config.seed + i], settings)
                for i, caption in enumerate(captions)
            ]
        )
        pictures[name] = pipeline.decode(latents)
        exact = latents if name == "float32" else exact
        off = np.abs(levels(pictures[name]) - levels(pictures["float32"]))
        rows[name] = [rms(latents - exact) / rms(exact), float(off.mean()), float(off.max()), share]
    return rows, pictures, captions


def levels(pictures: list[Image.Image]) -> np.ndarray:
    """Pictures as numbers from 0 to 255."""
    return np.stack([np.asarray(picture) for picture in pictures]).astype(float)


def sheet(pictures: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """A column for each form and a row for each caption, both named."""
    side, edge, above = max(96, pictures["float32"][0].width), 220, 24
    whole = Image.new("RGB", (edge + len(pictures) * (side + 4), above + len(captions) * (side + 4)), "white")
    draw = ImageDraw.Draw(whole)
    for row, caption in enumerate(captions):
        words = "\n".join(caption[k : k + 34] for k in range(0, min(len(caption), 136), 34))
        draw.multiline_text((4, above + row * (side + 4) + side // 3), words, fill="black")
    for column, (name, found) in enumerate(pictures.items()):
        left = edge + column * (side + 4)
        draw.text((left + 4, 6), name, fill="black")
        for row, picture in enumerate(found):
            shown = picture.resize((side, side), Image.Resampling.NEAREST) if picture.width < side else picture
            whole.paste(shown, (left, above + row * (side + 4)))
    return whole


def main(config: PrecisionConfig, given: dict[str, Any]) -> None:
    """Print both tables, and write them and the pictures. Raises ParameterError."""
    if config.width % HEAD_WIDTH:
        raise ParameterError("width", config.width, f"must be a multiple of {HEAD_WIDTH}, the width of a head")
    with claimed(Path(config.out)) as out:
        blocks = block_rows(config)
        found, pictures, captions = picture_rows(config)
        header = ["form", "bits_per_weight", "weight_error", "block_error", "block_s"]
        header += ["latent_error", "mean_levels", "largest_levels", "share"]
        write_csv(out / "precision.csv", header, [[n, BITS[n], *blocks[n], *found[n]] for n in FORMS])
        replace_file(out / "pictures.png", lambda path: sheet(pictures, captions).save(path))
        print(f"random block of width {config.width}, {config.rows} image rows, {torch.get_num_threads()} threads\n")
        print("| form | bits per weight | error of weights | of the block's change | s |\n|---|---|---|---|---|")
        for name, (weight, block, seconds) in blocks.items():
            print(f"| {name} | {BITS[name]:g} | {weight:.4f} | {block:.4f} | {seconds:.2f} |")
        print(f"\n{len(captions)} pictures of {Path(config.models).name}\n")
        print(
            "| form | error of the latent | picture, mean levels | largest | share of weights |\n|---|---|---|---|---|"
        )
        for name, (latent, mean, largest, share) in found.items():
            print(f"| {name} | {latent:.4f} | {mean:.2f} | {largest:.0f} | {100 * share:.0f} % |")
        print(f"\nprecision.csv and pictures.png in {out}")


if __name__ == "__main__":
    command_line(PrecisionConfig, main, __doc__)

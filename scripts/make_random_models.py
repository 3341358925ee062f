"""Write model files with seeded random weights in the released layout: for tests, and for measuring at full size.

Writes clip_l, clip_g, t5xxl (with --t5 True) and the --model .safetensors into --out, or all of them as one file.
Images made with them are noise; memory and time are those of the real weights. Examples:
python scripts/make_random_models.py --size full --dtype float16 --out models/random
python scripts/make_random_models.py --model sd3.5_medium --all_in_one True --out models/random
"""

import common.quiet_start  # noqa: F401

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.command_line import command_line
from common.device import DEVICE_CHOICES, choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import claimed, replace_file
from resd3_medium.mmdit import MMDiT, MMDiTConfig
from resd3_medium.refine_other_impls import ClipConfig, ClipTextModel, T5Config, T5Encoder
from resd3_medium.vae import VAE, VAEConfig

DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}

# Sizes by name. `full` are the released ones, `tiny` has the same parts with little in them.
CLIP_L = {"full": ClipConfig(12, 768, 3072, 49408, False), "tiny": ClipConfig(2, 64, 128, 49408, False)}
CLIP_G = {"full": ClipConfig(32, 1280, 5120, 49408, True), "tiny": ClipConfig(3, 128, 256, 49408, True)}
T5 = {
    "full": T5Config(24, 4096, 10240, 64, 64, 32, 32128),
    "tiny": T5Config(2, 256, 384, 4, 48, 32, 32128),
}
MMDIT = {
    "sd3_medium": {
        "full": MMDiTConfig(24, 1536, 2, 16, 4096, 2048, 256, 192),
        "tiny": MMDiTConfig(3, 192, 2, 16, 256, 192, 256, 192),
    },
    "sd3.5_medium": {
        "full": MMDiTConfig(24, 1536, 2, 16, 4096, 2048, 256, 384, qk_norm=True, dual=tuple(range(13))),
        "tiny": MMDiTConfig(3, 192, 2, 16, 256, 192, 256, 32, qk_norm=True, dual=(0, 1)),
    },
    "sd3.5_large": {
        "full": MMDiTConfig(38, 2432, 2, 16, 4096, 2048, 256, 192, qk_norm=True),
        "tiny": MMDiTConfig(4, 256, 2, 16, 256, 192, 256, 32, qk_norm=True),
    },
}
VAES = {"full": VAEConfig((128, 256, 512, 512), 2, 16), "tiny": VAEConfig((32, 64, 64, 64), 2, 16)}
# Prefixes of the encoders' tensors in a file that holds all models.
PREFIXES = {f"{name}.safetensors": f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl")}


@dataclasses.dataclass(kw_only=True)
class RandomConfig(Parameters):
    """Every parameter of make_random_models.py."""

    model: str = parameter("sd3_medium", "which transformer", choices=tuple(MMDIT))
    size: str = parameter("tiny", "sizes of the models: the released ones, or tiny", choices=tuple(VAES))
    dtype: str = parameter("float32", "dtype of the weights", choices=tuple(DTYPES))
    t5: bool = parameter(False, "also write the T5 encoder (9.5 GB at full size in float16)")
    all_in_one: bool = parameter(False, "write one file with all models, which have the same numbers in it")
    seed: int = parameter(0, "seed of the weights", low=0)
    device: str = parameter(
        "cpu", "where the weights are drawn; another device draws other numbers, faster", choices=DEVICE_CHOICES
    )
    out: str = parameter("models/random", "folder of the files; must not hold them already", path=True)


Named = dict[str, tuple[int, ...]]
Seeded = dict[str, tuple[tuple[int, ...], int]]


def named(model: nn.Module, prefix: str = "") -> Named:
    """The shapes of a model's tensors by their names in a file."""
    return {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def files(model: str, size: str, t5: bool) -> dict[str, Named]:
    """Names and shapes of the tensors of every file: the transformer's own, and those that all models share."""
    with torch.device("meta"):
        mmdit = MMDIT[model][size]
        table = {"model.diffusion_model.pos_embed": (1, mmdit.grid**2, mmdit.width)}
        found = {
            "clip_l.safetensors": named(ClipTextModel(CLIP_L[size], quick=True)),
            "clip_g.safetensors": named(ClipTextModel(CLIP_G[size], quick=False)),
            f"{model}.safetensors": named(MMDiT(mmdit), "model.diffusion_model.")
            | table
            | named(VAE(VAES[size]), "first_stage_model."),
        }
        if t5:
            tensors = named(T5Encoder(T5[size]))
            found["t5xxl.safetensors"] = tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    return found


def seeded(tensors: Named, seed: int) -> Seeded:
    """The shapes with the seed that each tensor is drawn with."""
    found = {}
    for k, (name, shape) in enumerate(tensors.items()):
        # T5's token table stands twice in its file, and must be drawn alike.
        number = 0 if name in ("shared.weight", "encoder.embed_tokens.weight") else k + 1
        found[name] = shape, seed * 100_003 + number
    return found


def merged(wanted: dict[str, Seeded], model: str) -> dict[str, Seeded]:
    """One file with the tensors of all files, each under its file's prefix."""
    tensors = {PREFIXES.get(file, "") + name: value for file, found in wanted.items() for name, value in found.items()}
    t5 = "_t5xxl" if "t5xxl.safetensors" in wanted else ""
    return {f"{model}_incl_clips{t5}.safetensors": tensors}


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random weights in float32 that keep activations near 1: norms around 1, the rest over the root of the fan in.

    They lie on the generator's device.
    """
    values = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) == 1:
        is_norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
        return 1 + 0.1 * values if is_norm else 0.1 * values
    if name.endswith(("embedding.weight", "shared.weight", "embed_tokens.weight", "pos_embed", "bias.weight")):
        return 0.5 * values
    return values * (values[0].numel() ** -0.5)


def write_file(path: Path, tensors: Seeded, dtype: str, device: torch.device) -> None:
    """A safetensors file, tensor by tensor, so that the memory of one tensor is enough."""
    code, kind = DTYPES[dtype]
    header, place = {}, 0
    for name, (shape, _) in tensors.items():
        length = torch.Size(shape).numel() * kind.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, place + length]}
        place += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes]:
        yield struct.pack("<Q", len(text)) + text
        for name, (shape, seed) in Progress(tensors.items(), unit="tensor", desc=path.name):
            generator = torch.Generator(device).manual_seed(seed)
            yield draw(name, shape, generator).to(kind).cpu().flatten().view(torch.uint8).numpy().tobytes()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for chunk in chunks():
                file.write(chunk)

    replace_file(path, write)


def main(config: RandomConfig, given: dict[str, Any]) -> None:
    """Write all files, if none is there. Raises ParameterError."""
    with claimed(Path(config.out)) as out:
        write_all(config, out)


def write_all(config: RandomConfig, out: Path) -> None:
    """Write all files into a folder of this process. Raises ParameterError when one is there."""
    device = choose_device(config.device)
    parts = files(config.model, config.size, config.t5)
    wanted = {name: seeded(tensors, config.seed + k) for k, (name, tensors) in enumerate(parts.items())}
    if config.all_in_one:
        wanted = merged(wanted, config.model)
    for name in wanted:
        if (out / name).exists():
            raise ParameterError("out", out, f"must not hold {name} already, to overwrite nothing")
    for name, tensors in wanted.items():
        write_file(out / name, tensors, config.dtype, device)
    total = sum((out / name).stat().st_size for name in wanted)
    print(f"{len(wanted)} files, {total / 2**30:.2f} GiB, in {out}")


if __name__ == "__main__":
    command_line(RandomConfig, main, __doc__)

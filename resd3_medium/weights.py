"""Weights from safetensors files into models: what each file must hold, and one clear line when it does not.

Models are built without memory for their weights (on torch's meta device) and then get the tensors of the
memory-mapped file, straight at the wanted dtype and on the wanted device. Nothing is ever unpickled. Start reading at
`build`.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from common.parameters import ParameterError
from resd3_medium.mmdit import MMDiT, MMDiTConfig
from resd3_medium.refine_other_impls import ClipConfig, ClipTextModel, T5Config, T5Encoder
from resd3_medium.vae import GROUPS, VAE, LatentFormat, VAEConfig

Shapes = Mapping[str, tuple[int, ...]]
KEY = "dedgeai"  # in the metadata of a file


@dataclasses.dataclass(frozen=True)
class Extras:
    """What shapes do not tell about a model; a small one says it as JSON under KEY in its file's metadata.

    `known_tokens` are those that a text encoder has rows for, `defaults` and `note` are for the entry script.
    """

    known_tokens: tuple[int, ...] | None = None
    group_norm_groups: int = GROUPS
    latent_scale: float = LatentFormat.scale
    latent_shift: float = LatentFormat.shift
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Extras":
        """Raises ValueError or TypeError for what is no such JSON."""
        content = json.loads(metadata.get(KEY, "{}"))
        known = content.pop("known_tokens", None)
        found = cls(known_tokens=None if known is None else tuple(int(i) for i in known), **content)
        if not (found.group_norm_groups > 0 < found.latent_scale and isinstance(found.defaults, dict)):
            raise ValueError(f"{KEY} has values out of range")
        return found

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a file, from which `from_metadata` gives the same again."""
        content = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return {KEY: json.dumps(content)}


@dataclasses.dataclass(frozen=True)
class Part:
    """One model: its file, where its tensors are in it, and how it is built from their shapes and the file's extras.

    `spare` matches tensors that files may hold besides and that have no use here.
    """

    name: str
    file: str
    prefix: str
    sizes: Callable[[Shapes, Extras], Any]
    model: Callable[[Any], nn.Module]
    spare: str = "$^"


PARTS = {
    part.name: part
    for part in (
        Part(
            "CLIP-L",
            "clip_l.safetensors",
            "",
            # The released model projects nothing; some files hold an identity for it.
            lambda shapes, more: dataclasses.replace(
                ClipConfig.from_shapes(shapes, more.known_tokens), projection=False
            ),
            lambda config: ClipTextModel(config, quick=True),
            r"text_projection\.weight|logit_scale|.*position_ids",
        ),
        Part(
            "CLIP-G",
            "clip_g.safetensors",
            "",
            lambda shapes, more: dataclasses.replace(
                ClipConfig.from_shapes(shapes, more.known_tokens), projection=True
            ),
            lambda config: ClipTextModel(config, quick=False),
            r"logit_scale|.*position_ids",
        ),
        Part(
            "T5",
            "t5xxl.safetensors",
            "",
            lambda shapes, more: T5Config.from_shapes(shapes),
            T5Encoder,
            r"encoder\.embed_tokens\.weight",
        ),
        Part(
            "MMDiT",
            "sd3_medium.safetensors",
            "model.diffusion_model.",
            lambda shapes, more: MMDiTConfig.from_shapes(shapes),
            MMDiT,
        ),
        Part(
            "VAE",
            "sd3_medium.safetensors",
            "first_stage_model.",
            lambda shapes, more: VAEConfig.from_shapes(shapes, more.group_norm_groups),
            VAE,
        ),
    )
}


class WeightsFile:
    """An open safetensors file. Raises ParameterError when it is none, or not whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ParameterError(
                "models", path.parent, f"{path.name} must be a whole safetensors file ({first_line(error)})"
            ) from None
        try:
            self.extras = Extras.from_metadata(self.file.metadata() or {})
        except (ValueError, TypeError, AttributeError) as error:
            raise ParameterError(
                "models", path.parent, f"{path.name} must have sound metadata ({first_line(error)})"
            ) from None

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors whose names start with `prefix`, by the rest of their names."""
        names = [name for name in self.file.keys() if name.startswith(prefix)]  # noqa: SIM118, it is no dict
        return {name[len(prefix) :]: tuple(self.file.get_slice(name).get_shape()) for name in names}

    def is_floating(self, name: str) -> bool:
        """Whether a tensor's numbers are floating-point."""
        return self.file.get_slice(name).get_dtype().startswith(("F", "BF"))

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that shares the file's memory map."""
        return self.file.get_tensor(name)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__


def described(shapes: Shapes) -> str:
    """What a file seems to hold, in words, for telling a user that it is the wrong one."""
    prefixes = {
        "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 transformer",
        "model.diffusion_model.input_blocks.": "a Stable Diffusion 1, 2 or XL model",
        "model.diffusion_model.double_blocks.": "a FLUX model",
        "double_blocks.": "a FLUX model",
        "transformer_blocks.": "a transformer in diffusers' layout",
        "text_model.": "a CLIP text model",
        "encoder.block.": "a T5 encoder",
        "first_stage_model.": "an autoencoder",
    }
    for prefix, words in prefixes.items():
        if any(name.startswith(prefix) for name in shapes):
            return words
    return f"{len(shapes)} tensors, such as {', '.join(sorted(shapes)[:2])}" if shapes else "no tensor"


def structure(part: Part, file: WeightsFile) -> nn.Module:
    """The part's model with sizes as in the file, on the meta device, after checking every tensor's name and shape.

    Raises ParameterError when the file holds another model, lacks tensors, or has some of other shapes.
    """
    folder, name = file.path.parent, file.path.name
    shapes = file.shapes(part.prefix)
    if part.name == "MMDiT" and any(".ln_q." in name or ".attn2." in name for name in shapes):
        raise ParameterError(
            "models", folder, f"{name} holds a Stable Diffusion 3.5 transformer; must be Stable Diffusion 3 Medium"
        )
    try:
        with torch.device("meta"):
            model = part.model(part.sizes(shapes, file.extras))
    except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError, TypeError) as error:
        found = described(file.shapes(""))
        raise ParameterError(
            "models",
            folder,
            f"{name} must hold {part.name}, but holds {found} ({type(error).__name__} {first_line(error)})",
        ) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if isinstance(model, MMDiT):
        wanted["pos_embed"] = (1, model.config.grid**2, model.config.width)
    whole_numbers = sorted(n for n in wanted.keys() & shapes.keys() if not file.is_floating(part.prefix + n))
    if whole_numbers:
        raise ParameterError(
            "models", folder, f"{name} must hold floating-point weights; {listed(part.prefix, whole_numbers)} are not"
        )
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise ParameterError(
            "models", folder, f"{name} lacks {len(missing)} tensors of {part.name}: {listed(part.prefix, missing)}"
        )
    off = [
        f"{part.prefix}{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if shapes[name] != shape
    ]
    if off:
        raise ParameterError(
            "models", folder, f"{name} has {len(off)} tensors of the wrong shape: {'; '.join(off[:3])}"
        )
    extra = sorted(n for n in shapes.keys() - wanted.keys() if not re.fullmatch(part.spare, n) and belongs(part, n))
    if extra:
        raise ParameterError(
            "models", folder, f"{name} has {len(extra)} tensors that {part.name} lacks: {listed(part.prefix, extra)}"
        )
    return model.eval().requires_grad_(False)


def belongs(part: Part, name: str) -> bool:
    """Whether a tensor lies in the part's own name space; a file without prefix may hold other models besides."""
    return bool(part.prefix) or name.startswith(("text_model.", "text_projection", "encoder.", "shared."))


def listed(prefix: str, names: list[str]) -> str:
    """The first three names, with their prefix."""
    return ", ".join(prefix + name for name in names[:3]) + (" .." if len(names) > 3 else "")


def build(part: Part, models: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The part's model with its weights from the folder `models`. Raises ParameterError, see `structure`.

    Where neither dtype nor device change, the weights stay in the file's memory map.
    """
    file = WeightsFile(models / part.file)
    model = structure(part, file)
    names = model.state_dict().keys()
    model.load_state_dict({n: file.tensor(part.prefix + n).to(device, dtype) for n in names}, assign=True)
    finish(model, file)
    return model.requires_grad_(False)


def finish(model: nn.Module, file: WeightsFile) -> None:
    """What a model needs besides its parameters: the position table, the known tokens, or where the latents lie."""
    if isinstance(model, ClipTextModel) and model.config.known is not None:
        device = model.text_model.embeddings.token_embedding.weight.device
        model.known = torch.tensor(model.config.known, device=device)
    if isinstance(model, MMDiT):
        model.pos_embed = file.tensor("model.diffusion_model.pos_embed")
    if isinstance(model, VAE):
        model.latents = LatentFormat(file.extras.latent_scale, file.extras.latent_shift)


def file_dtype(file: WeightsFile, prefix: str) -> torch.dtype:
    """The dtype of the part's first tensor."""
    name = next(name for name in file.file.keys() if name.startswith(prefix))  # noqa: SIM118, it is no dict
    return file.tensor(name).dtype


def missing_files(models: Path, names: list[str]) -> list[str]:
    """The files of the named parts that are not in the folder."""
    return sorted({PARTS[name].file for name in names if not (models / PARTS[name].file).is_file()})

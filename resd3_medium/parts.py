"""The five models of Stable Diffusion 3: how each is built from its tensors' shapes, and where its layers lie.

Start reading at `PARTS`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

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
        """Raises ValueError, TypeError or RecursionError for what is no such JSON."""
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
    """One model: how it is built from its tensors' shapes and the file's extras.

    `usual` is the file that it is fetched as. `layers` is where the layers lie that level `block` streams, and whose
    matrices may be kept at few bits. `spare` matches tensors that files may hold besides and that have no use here.
    """

    name: str
    usual: str
    sizes: Callable[[Shapes, Extras], Any]
    model: Callable[[Any], nn.Module]
    layers: str = "$^"
    spare: str = "$^"


CLIP_LAYERS = "text_model.encoder.layers"
PARTS = {
    part.name: part
    for part in (
        Part(
            "CLIP-L",
            "clip_l.safetensors",
            # The released model projects nothing; some files hold an identity for it.
            lambda shapes, more: dataclasses.replace(
                ClipConfig.from_shapes(shapes, more.known_tokens), projection=False
            ),
            lambda config: ClipTextModel(config, quick=True),
            CLIP_LAYERS,
            r"text_projection\.weight|.*position_ids",
        ),
        Part(
            "CLIP-G",
            "clip_g.safetensors",
            lambda shapes, more: dataclasses.replace(
                ClipConfig.from_shapes(shapes, more.known_tokens), projection=True
            ),
            lambda config: ClipTextModel(config, quick=False),
            CLIP_LAYERS,
            r".*position_ids",
        ),
        Part(
            "T5",
            "t5xxl.safetensors",
            lambda shapes, more: T5Config.from_shapes(shapes),
            T5Encoder,
            "encoder.block",
            r"encoder\.embed_tokens\.weight|decoder\..*|lm_head\..*",
        ),
        Part(
            "MMDiT",
            "sd3_medium.safetensors",
            lambda shapes, more: MMDiTConfig.from_shapes(shapes),
            MMDiT,
            "joint_blocks",
        ),
        Part(
            "VAE",
            "sd3_medium.safetensors",
            lambda shapes, more: VAEConfig.from_shapes(shapes, more.group_norm_groups),
            VAE,
        ),
    )
}

"""Which matrix of ours the keys of a LoRA file change, and what a file holds that is no LoRA for our models.

Keys are looked up among the names that the base really has, ours and diffusers', with points and with underscores;
nothing is guessed from a key's form. Start reading at `Names`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from resd3_medium.layouts import diffusers_transformer

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # of the base: part, our name, shape

MEDIUM, MEDIUM_35, LARGE_35 = (f"Stable Diffusion {name}" for name in ("3 medium", "3.5 medium", "3.5 large"))
WIDTHS = {1536: f"{MEDIUM} or 3.5 medium", 2432: LARGE_35, 3072: "FLUX"}  # of a transformer

# Beginnings of keys, and the part that they speak of; None where the rest of the key tells.
PREFIXES = {
    "lora_unet_": "MMDiT",  # kohya
    "lora_transformer_": "MMDiT",  # OneTrainer
    "lycoris_": "MMDiT",  # SimpleTuner
    "transformer.": "MMDiT",  # diffusers
    "model.diffusion_model.": "MMDiT",
    "diffusion_model.": "MMDiT",
    "lora_te1_": "CLIP-L",
    "lora_te2_": "CLIP-G",
    "lora_te3_": "T5",
    "text_encoder.": "CLIP-L",
    "text_encoder_2.": "CLIP-G",
    "text_encoder_3.": "T5",
    "text_encoders.clip_l.transformer.": "CLIP-L",
    "text_encoders.clip_g.transformer.": "CLIP-G",
    "text_encoders.t5xxl.transformer.": "T5",
    "base_model.model.": None,  # PEFT
    "": None,
}

DOWN = r"lora_A|lora_down|lora\.down|lora_linear_layer\.down"
UP = r"lora_B|lora_up|lora\.up|lora_linear_layer\.up"
KEY = re.compile(rf"(?P<module>.+)\.(?:(?P<down>{DOWN})|(?P<up>{UP}))(?:\.default(?:_\d+)?)?(?:\.weight)?", re.DOTALL)

# Other ways of changing a model, by what their keys have in them.
METHODS = {
    r"dora_scale|lora_magnitude_vector": "DoRA, which scales the rows of the sum",
    r"\bhada_": "LoHa, which multiplies two low-rank matrices",
    r"\blokr_": "LoKr, which builds on Kronecker products",
    r"lora_mid\b": "LoCon in Tucker form, with a third matrix between the two",
    r"\boft_|\bboft_": "OFT, which turns the weights",
    r"\bia3_|on_input\b": "IA3, which scales the weights",
    r"\.[ab][12](\.weight)?$": "GLoRA",
    r"vera_lambda_": "VeRA",
    r"lora_embedding_": "a LoRA of a token table",
    r"bundle_emb|emb_params|\bstring_to_param": "a textual inversion",
    r"modules_to_save": "whole matrices beside the LoRA",
    r"lora_bias|lora_(A|B|down|up)(\.default)?\.bias$": "changes of biases",
    r"\.(diff|diff_b|set_weight|reshape_weight|w_norm|b_norm)$": "differences of whole tensors",
}

# Other models that a LoRA may be made for, by names of theirs.
FAMILIES = {
    r"single_transformer_blocks|(double|single)_blocks": "a FLUX model",
    r"(down|up|input|output)_blocks|(mid|middle)_block\b|mid_block_": "a Stable Diffusion 1, 2 or XL model",
    r"img_mlp|txt_mlp|img_mod\b": "a Qwen-Image model",
    r"cross_attn|adaln_single": "another model (Wan, PixArt or one like them)",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Rows of a matrix of ours; `swapped` tells that a LoRA has the two halves of its rows the other way round."""

    part: str
    name: str
    start: int
    rows: int
    columns: int
    swapped: bool = False


class Names:
    """The matrices of a base by every name that a LoRA may have for them."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.targets = {part: targets(part, named) for part, named in shapes.items()}

    def part(self, key: str) -> tuple[str, str, tuple[str, ...]]:
        """A module's prefix, the rest of its name, and the parts that it may belong to."""
        prefix = max((prefix for prefix in PREFIXES if key.startswith(prefix)), key=len)
        rest = key[len(prefix) :]
        if part := PREFIXES[prefix]:
            return prefix, rest, (part,)
        if rest.startswith("text_"):
            return prefix, rest, ("CLIP-L", "CLIP-G")
        return prefix, rest, ("T5",) if rest.startswith("encoder.block.") else ("MMDiT",)

    def find(self, key: str, rows: int, columns: int) -> Target | None:
        """What a module with a change of [rows, columns] stands for; where two would do, the one that it fits."""
        _, rest, parts = self.part(key)
        found = [self.targets[part][rest] for part in parts if rest in self.targets.get(part, {})]
        fitting = [target for target in found if (target.rows, target.columns) == (rows, columns)]
        return next(iter(fitting or found), None)

    def is_absent(self, key: str) -> bool:
        """Whether a module belongs to a part that the base was built without."""
        return all(part not in self.shapes for part in self.part(key)[2])


def targets(part: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Target]:
    """The matrices of one part by their names, ours and diffusers', with points and with underscores."""
    depth, found = blocks(shapes), {}
    for name, shape in shapes.items():
        if (
            len(shape) < 2
            or not name.endswith(".weight")
            or re.search(r"embedding\.|shared\.|embed_tokens|_bias", name)
        ):
            continue
        columns = math.prod(shape[1:])
        known = {name: Target(part, name, 0, shape[0], columns)}
        if part == "MMDiT":
            origin = diffusers_transformer(name, depth)
            rows = shape[0] // len(origin.names)
            known |= {
                other: Target(part, name, i * rows, rows, columns, origin.swapped)
                for i, other in enumerate(origin.names)
                if other != name
            }
        elif name.startswith("text_model."):  # newer versions of transformers leave that out
            known[name.removeprefix("text_model.")] = known[name]
        for other, target in known.items():
            module = other.removesuffix(".weight")
            found[module] = found[module.replace(".", "_")] = target
    return found


def blocks(names: Iterable[str]) -> int:
    """How many blocks our transformer of these names has."""
    return len({m[1] for name in names if (m := re.match(r"joint_blocks\.(\d+)\.", name))})


def other_method(keys: Iterable[str]) -> tuple[str, str] | None:
    """The first key that speaks of a method that is none of ours, and that method in words."""
    for pattern, words in METHODS.items():
        if key := next((key for key in keys if re.search(pattern, key)), None):
            return key, words
    return None


def family(keys: Iterable[str]) -> str | None:
    """The other model that keys speak of, in words."""
    text = "\n".join(keys)
    return next((words for pattern, words in FAMILIES.items() if re.search(pattern, text)), None)


def base_name(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The name of the transformer that has these tensors."""
    if any(".attn2." in name for name in shapes):
        return MEDIUM_35
    return LARGE_35 if any(".ln_q." in name for name in shapes) else MEDIUM


def model_name(text: str) -> str | None:
    """The model that a text of some metadata names, None where it names none."""
    text = re.sub("[^a-z0-9]", "", text.lower())
    if "flux" in text:
        return "FLUX"
    if "sdxl" in text or "xlv1" in text or "xlbase" in text:
        return "Stable Diffusion XL"
    if re.search(r"(sd|stablediffusion)v?[12]", text):
        return "Stable Diffusion 1 or 2"
    if re.search(r"35?(large|turbo)|^5large", text):
        return LARGE_35
    if re.search(r"35m|^5m", text):
        return MEDIUM_35
    return MEDIUM if re.search(r"(sd|stablediffusion)v?3m|^3m|^m$", text) else None

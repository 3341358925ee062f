"""The tensors of one model, whatever file, layout and precision they lie in: checked, and read under our names.

Nothing is ever unpickled. Start reading at `PartWeights`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from common.parameters import ParameterError
from resd3_medium.file_kinds import other_model
from resd3_medium.layouts import Origin, diffusers_transformer, diffusers_vae, llama_t5, shapes_as_ours
from resd3_medium.lora import Delta
from resd3_medium.parts import Extras, Part
from resd3_medium.stored_weight import Weight
from resd3_medium.weight_files import DENSE, FLOAT8, Entry, WeightsFile, first_line

SCALES = (".scale_weight", ".weight_scale")  # of X.weight, in the older and the newer form
SPARE = r"(.*\.)?(logit_scale|scaled_fp8|scale_input|input_scale|comfy_quant)"  # has no use in any model here
TABLES = r"embedding\.|embed_tokens|pos_embed|attention_bias|^shared\."  # matrices that no linear layer has
EIGHT_BITS = ("MMDiT", "T5")  # the models that int8 and fp8 take up on request: most of all weights
FORMATS = ("float8_e4m3fn", "float8_e5m2")  # of the newer form


class PartWeights:
    """A model's tensors: those of a file whose names start with `prefix`, in `layout`: ours, diffusers or llama.

    Raises ParameterError when the file holds another model, lacks tensors, or has some of other shapes.
    """

    def __init__(self, part: Part, file: WeightsFile, prefix: str = "", layout: str = "ours") -> None:
        self.part, self.file, self.prefix, self.layout = part, file, prefix, layout
        self.deltas: Mapping[str, tuple[Delta, ...]] = {}  # of LoRAs, by our names
        try:
            self.extras = Extras.from_metadata(file.metadata)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise file.error(f"must have sound metadata ({first_line(error)})") from None
        names = [name for name in file.entries if name.startswith(prefix)]
        self.stored: dict[str, Entry] = {name[len(prefix) :]: file.entries[name] for name in names}
        self.scales = self.read_scales()
        used = {n: e for n, e in self.stored.items() if n not in self.scales.values() and not re.fullmatch(SPARE, n)}
        shapes = {name: entry.shape for name, entry in used.items()}
        try:
            self.shapes = self.ours(shapes)
            sizes = part.sizes(self.shapes, self.extras)
            if part.name == "CLIP-L" and self.projects():
                sizes = dataclasses.replace(sizes, projection=True)
            self.config: Any = sizes
            self.check()
        except (KeyError, ValueError, IndexError, RuntimeError, ZeroDivisionError, TypeError) as error:
            if isinstance(error, ParameterError):
                raise
            found = other_model(file.entries)
            words = f"must hold {part.name}, but holds {found} ({type(error).__name__} {first_line(error)})"
            raise file.error(words) from None

    def projects(self) -> bool:
        """Whether a CLIP-L in diffusers' folder has a projection that does something; the released one's does not."""
        if self.layout != "diffusers" or "text_projection.weight" not in self.shapes:
            return False
        matrix = self.weight("text_projection.weight").floats()
        return not torch.equal(matrix, torch.eye(*matrix.shape))

    def ours(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes under our names."""
        if self.layout == "diffusers" and self.part.name in ("MMDiT", "VAE"):
            return shapes_as_ours(shapes, "transformer" if self.part.name == "MMDiT" else "vae")
        if self.layout == "llama":
            return shapes_as_ours(shapes, "t5")
        found = dict(shapes)
        if self.part.name == "T5" and "shared.weight" not in found and "encoder.embed_tokens.weight" in found:
            found["shared.weight"] = found["encoder.embed_tokens.weight"]
        if len(table := found.get("pos_embed", ())) == 2:  # GGUF leaves out what is 1
            found["pos_embed"] = (1, *table)
        return found

    def origin(self, name: str) -> Origin:
        """Where our tensor comes from."""
        if self.layout == "diffusers" and self.part.name == "MMDiT":
            return diffusers_transformer(name, self.config.depth)
        if self.layout == "diffusers" and self.part.name == "VAE":
            return diffusers_vae(name, len(self.config.widths))
        if self.layout == "llama":
            return llama_t5(name)
        if name == "shared.weight" and name not in self.stored:
            return Origin(("encoder.embed_tokens.weight",))
        return Origin((name,))

    def read_scales(self) -> dict[str, str]:
        """The scale of each tensor that has one, after refusing what is not known."""
        found, entries = {}, self.stored
        for name in entries:
            for ending in SCALES:
                if name.endswith(ending) and (owner := name.removesuffix(ending) + ".weight") in entries:
                    found[owner] = name
        for owner, name in found.items():
            self.check_scale(owner, name)
        known = set(found.values())
        odd = [n for n in entries if re.search(r"scale|quant|absmax|zero_point", n) and n not in known]
        odd = [n for n in odd if not re.fullmatch(SPARE, n) and not re.fullmatch(r"quant_conv\..*", n)]
        if odd:
            raise self.file.error(
                f"holds numbers of an unknown kind of quantisation: {listed(self.prefix, sorted(odd))}; "
                "must be plain, or fp8 with one scale for each matrix"
            )
        formats = [self.quantisation(n) for n in entries if n.endswith(".comfy_quant")]
        try:
            layers = json.loads(self.file.metadata.get("_quantization_metadata", "{}")).get("layers", {})
            formats += [str(layer.get("format")) for layer in layers.values()]
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.file.error(f"must have sound metadata ({first_line(error)})") from None
        if other := sorted(set(formats) - set(FORMATS)):
            raise self.file.error(f"is quantised as {', '.join(other)}; must be plain, or one of {', '.join(FORMATS)}")
        marks = (n.removesuffix("scaled_fp8") for n in self.file.entries if n.endswith("scaled_fp8"))
        marked = formats or any(self.prefix.startswith(start) for start in marks)
        bare = [n for n, e in entries.items() if e.kind in FLOAT8 and n.endswith(".weight") and n not in found]
        if marked and (bare := [n for n in bare if len(entries[n].shape) == 2 and not re.search(TABLES, n)]):
            raise self.file.error(f"lacks {len(bare)} scales, such as that of {listed(self.prefix, sorted(bare))}")
        return found

    def check_scale(self, owner: str, name: str) -> None:
        """Raise ParameterError unless `name` is one scale of the tensor `owner`, or one for each of its rows."""
        scale, shape = self.stored[name], self.stored[owner].shape
        count = torch.Size(scale.shape).numel()
        if not floating(scale.kind):
            raise self.file.error(f"must hold floating-point scales; {self.prefix}{name} is {scale.kind}")
        if count not in (1, *shape[:1]):
            words = "must be one, or one for each row"
            raise self.file.error(f"has {count} scales for {self.prefix}{owner}; {words}")

    def quantisation(self, name: str) -> str:
        """The format that a tensor X.comfy_quant tells."""
        try:
            return str(json.loads(bytes(self.file.raw(self.prefix + name).tolist()))["format"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return "an unknown format"

    def weight(self, name: str) -> Weight:
        """The tensor of that name of ours."""
        origin = self.origin(name)
        scales = tuple(self.prefix + self.scales[n] if n in self.scales else None for n in origin.names)
        pieces = tuple(self.prefix + n for n in origin.names)
        return Weight(self.file, self.shapes[name], pieces, scales, origin.swapped, self.deltas.get(name, ()))

    @cached_property
    def wanted(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that the model has."""
        found = {name: tuple(tensor.shape) for name, tensor in self.structure().state_dict().items()}
        if self.part.name == "MMDiT":
            found["pos_embed"] = (1, self.config.grid**2, self.config.width)
        return found

    def structure(self) -> nn.Module:
        """The model without memory for its weights, on the meta device."""
        with torch.device("meta"):
            return self.part.model(self.config).eval().requires_grad_(False)

    def check(self) -> None:
        """Compare every tensor's name, shape and kind with the model's. Raises ParameterError."""
        wanted, shapes, name = self.wanted, self.shapes, self.part.name
        missing = sorted(wanted.keys() - shapes.keys())
        if missing:
            raise self.file.error(f"lacks {len(missing)} tensors of {name}: {listed(self.prefix, missing)}")
        origins = {n: self.origin(n).names for n in wanted}
        whole = sorted(n for n in wanted if any(not floating(self.stored[o].kind) for o in origins[n]))
        if whole:
            kinds = ", ".join(sorted({self.stored[o].kind for n in whole for o in origins[n]}))
            words = f"must hold floating-point weights; {listed(self.prefix, whole)} are not ({kinds})"
            raise self.file.error(words)
        off = [
            f"{self.prefix}{n} is {list(shapes[n])}, not {list(shape)}"
            for n, shape in wanted.items()
            if shapes[n] != shape
        ]
        if off:
            raise self.file.error(f"has {len(off)} tensors of the wrong shape: {'; '.join(off[:3])}")
        roots = {n.split(".")[0] for n in wanted}
        extra = sorted(
            n
            for n in shapes.keys() - wanted.keys()
            if not re.fullmatch(self.part.spare, n) and (self.prefix or n.split(".")[0] in roots)
        )
        if extra:
            raise self.file.error(f"has {len(extra)} tensors that {name} lacks: {listed(self.prefix, extra)}")

    def eight_bits(self, keep: str) -> bool:
        """Whether large matrices of a dense file are rounded to 8 bits by `keep`, int8 or fp8."""
        return keep in ("int8", "fp8") and self.part.name in EIGHT_BITS

    def kept(self, keep: str) -> str:
        """What `keep` makes of the file's large matrices, in words; empty where that is nothing and need not be told.

        Matrices that are stored at few bits are not rounded again.
        """
        if not self.eight_bits(keep):
            return ""
        inside = [n for n in self.wanted if n.startswith(self.part.layers + ".") and n.endswith(".weight")]
        matrices = [n for n in inside if len(self.wanted[n]) == 2 and not re.search(TABLES, n)]
        dense = {self.weight(name).is_dense for name in matrices}
        if dense == {False}:
            return f"not rounded to {keep}"
        return f"the rest kept at {keep}" if False in dense else f"kept at {keep}"

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model has, its position table left out."""
        return sum(torch.Size(shape).numel() for name, shape in self.wanted.items() if name != "pos_embed")

    @cached_property
    def precision(self) -> str:
        """How most of the numbers are stored, in words. Tables of tokens and positions do not count."""
        counts: dict[str, int] = {}
        for name in (n for n in self.wanted if not re.search(TABLES, n)):
            weight = self.weight(name)
            words = WORDS.get(weight.kind, weight.kind) + (" scaled" if any(weight.scales) else "")
            counts[words] = counts.get(words, 0) + torch.Size(weight.shape).numel()
        return max(counts, key=lambda words: counts[words])


WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WORDS |= {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2"}


def floating(kind: str) -> bool:
    """Whether numbers of that kind are fractions: whole numbers are no weights, and Q8_1 and Q8_K have no reader."""
    if kind in ("Q8_1", "Q8_K"):
        return False
    return kind in DENSE or kind in FLOAT8 or re.match(r"I?Q\d|TQ|MXFP", kind) is not None


def listed(prefix: str, names: list[str]) -> str:
    """The first three names, with their prefix."""
    return ", ".join(prefix + name for name in names[:3]) + (" .." if len(names) > 3 else "")

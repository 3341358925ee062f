"""Which file gives which model: looked for by usual names and places, and by what is inside.

A folder, one file with everything, separate encoders beside it, and a folder in diffusers' layout are all taken. What
lies there and is not used is named. Start reading at `find_weights`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.parameters import ParameterError
from resd3_medium.file_kinds import other_model
from resd3_medium.folders import MODELS, POCKET
from resd3_medium.lora import Lora, read_lora
from resd3_medium.parts import PARTS
from resd3_medium.places import COMPONENTS, SHARD, holders, holds_weights, promised, strange, weight_files
from resd3_medium.weight_files import WeightsFile, open_weights
from resd3_medium.weights import SPARE, PartWeights

WORD = r"(?<![a-z])"  # where a word begins: t5, but not umt5 or concept5

# Names of files by part, the preferred ones first.
NAMES = {
    "MMDiT": (r"sd3\.?5.*large.*turbo", r"sd3\.?5.*large", r"sd3\.?5.*medium", r"sd3.*medium", r"sd3"),
    "CLIP-L": (r"clip_?l\b", r"clip_?l", r"vit-?l", r"text_encoder/"),
    "CLIP-G": (r"clip_?g\b", r"clip_?g", r"big-?g", r"text_encoder_2/"),
    "T5": (
        rf"{WORD}t5xxl\.",
        rf"{WORD}t5.*(fp16|f16)",
        rf"{WORD}t5.*(bf16|fp32)",
        rf"{WORD}t5.*fp8.*scaled",
        rf"{WORD}t5.*fp8",
        rf"{WORD}t5",
        r"text_encoder_3/",
    ),
    "VAE": (r"sd3.*vae", r"vae.*sd3", r"vae/", r"vae"),
}


@dataclasses.dataclass(frozen=True)
class Space:
    """A model's tensors in a file: those whose names start with `prefix`. The part of a lone CLIP may be open."""

    part: str
    prefix: str
    layout: str = "ours"


SIGNS = (  # part, prefixes, layout, and how names of its tensors begin
    ("MMDiT", ("model.diffusion_model.", "diffusion_model.", ""), "ours", "joint_blocks."),
    ("MMDiT", ("transformer.", ""), "diffusers", "transformer_blocks.0.attn.add_"),
    ("VAE", ("first_stage_model.", "vae.", ""), "ours", "decoder.up."),
    ("VAE", ("vae.", ""), "diffusers", "decoder.up_blocks."),
    ("CLIP-L", ("text_encoders.clip_l.transformer.", "text_encoders.clip_l."), "ours", "text_model."),
    ("CLIP-G", ("text_encoders.clip_g.transformer.", "text_encoders.clip_g."), "ours", "text_model."),
    ("CLIP", ("",), "ours", "text_model."),
    ("T5", ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", ""), "ours", "encoder.block."),
    ("T5", ("",), "llama", "enc.blk."),
)  # fmt: skip
OTHERS = (
    r"single_transformer_blocks|double_blocks|input_blocks|conditioner\.|cond_stage_model|lora_|vision_model"
    r"|control_model|controlnet|ip_adapter|image_proj|encoder\.block\.1\..*relative_attention_bias"
)


def spaces(names: Iterable[str]) -> list[Space]:
    """The models of Stable Diffusion 3 that a file with tensors of these names holds."""
    listed = set(names)
    if any(re.search(OTHERS, name) for name in listed):
        return []
    found: dict[str, Space] = {}
    for part, prefixes, layout, sign in SIGNS:
        for prefix in prefixes:
            if any(name.startswith(prefix + sign) for name in listed):
                found.setdefault(part, Space(part, prefix, layout))
    return list(found.values())


@dataclasses.dataclass
class Candidate:
    """A file that may give models: its path, its name below the folder that was given, and what it holds."""

    path: Path
    name: str
    file: WeightsFile | None = None
    spaces: list[Space] = dataclasses.field(default_factory=list)
    reason: str = ""  # why it gives nothing
    error: ParameterError | None = None

    def open(self, given: Path) -> None:
        """Read its header."""
        if SHARD.search(self.path.name):
            self.reason = "it is a shard, and the index file that names it is missing"
            return
        try:
            self.file = open_weights(self.path, given)
        except ParameterError as error:
            self.error, self.reason = error, error.reason.removeprefix(f"{self.path.name} ")
            return
        self.spaces = spaces(self.file.entries)
        component = COMPONENTS.get(self.path.parent.name, "")
        told = any(usual(part, self.path.name) for part in ("CLIP-L", "CLIP-G"))
        if component in ("CLIP-L", "CLIP-G") and not told:
            clips = [
                dataclasses.replace(s, part=component, layout="diffusers") for s in self.spaces if s.part == "CLIP"
            ]
            self.spaces = clips or self.spaces
        # its encoders are those of SD3
        if [s.part for s in self.spaces] == ["VAE"] and re.search(r"^ae\.|flux", self.path.name.lower()):
            self.spaces, self.reason = [], "it is a part of FLUX"
        if not self.spaces and not self.reason:
            self.reason = f"it holds {other_model(self.file.entries)}"


Chosen = dict[str, tuple[Candidate, Space]]  # the file, and the place in it, of each model by its name


def rank(part: str, name: str) -> int:
    """How usual a name is for a part, 0 first; names that tell nothing come last."""
    return next((k for k, pattern in enumerate(NAMES[part]) if re.search(pattern, name.lower())), len(NAMES[part]))


def order(part: str, name: str) -> tuple[int, bool, str]:
    """What files that hold the same part are sorted by. A variant, such as model.fp16, comes after the plain file."""
    return rank(part, name), re.search(r"\.(fp16|bf16|fp32|non_ema)\.", name) is not None, name


def usual(part: str, name: str) -> bool:
    """Whether a name is one that the part's files have."""
    return rank(part, name) < len(NAMES[part])


class Weights:
    """The models that were found, by the names of PARTS; T5 may be left out.

    `notes` tells which files lie there and are not used, and why.
    """

    def __init__(self, given: Path, parts: dict[str, PartWeights], names: dict[str, str], notes: list[str]) -> None:
        self.given, self.parts, self.names, self.notes = given, parts, names, notes
        self.loras: list[Lora] = []

    def __getitem__(self, name: str) -> PartWeights:
        return self.parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    @property
    def turbo(self) -> bool:
        """Whether the transformer's file, or a folder that it lies in, says that it needs few steps."""
        file = self["MMDiT"].file
        return "turbo" in "/".join((*file.path.parts[-3:], *map(str, file.metadata.values()))).lower()

    @property
    def kind(self) -> str:
        """The model that the transformer is, by its shapes and the file's name."""
        config = self["MMDiT"].config
        if not config.qk_norm:
            return "SD3 medium"
        return "SD3.5 medium" if config.dual else "SD3.5 large turbo" if self.turbo else "SD3.5 large"

    def lines(self, keep: str = "stored") -> list[str]:
        """A line for each model: its file, which model it is, and its precision; then LoRAs and notes."""
        found = []
        for name, weights in self.parts.items():
            kind = f"{self.kind}, " if name == "MMDiT" else ""
            words = ", ".join(filter(None, (weights.precision, weights.kept(keep))))
            found.append(f"{name:7s} {self.names[name]} ({kind}{words})")
        found += [f"LoRA    {lora.path.name} (strength {lora.strength:g})" for lora in self.loras]
        found += [f"note: {note}" for lora in self.loras for note in lora.notes]
        return found + [f"not used: {note}" for note in self.notes]

    def record(self, keep: str = "stored") -> dict[str, dict[str, str]]:
        """File, precision and fingerprint of each model, and at how many bits it is kept where `keep` says so.

        Files are named below the folder that was given.
        """
        return {
            name: {
                "file": self.names[name],
                "precision": weights.precision,
                "sha256": weights.file.fingerprint,
                **({"kept": keep} if "kept" in weights.kept(keep) else {}),
            }
            for name, weights in self.parts.items()
        }


def find_weights(given: Path, t5: str = "auto") -> Weights:
    """The models that a folder, or one file and what lies beside it, gives.

    `t5` is `on`, `off` or `auto`: if it is there. Raises ParameterError when a model is missing, or its file is not
    whole, holds another model, or lacks something.
    """
    found = survey(given)
    chosen = choose(given, found)
    if t5 == "off":
        chosen.pop("T5", None)
    refuse_missing(given, [p for p in PARTS if p not in chosen and (p != "T5" or t5 != "off")], found, t5)
    parts = {name: opened(name, *chosen[name]) for name in PARTS if name in chosen}
    names = {name: chosen[name][0].name for name in parts}
    return Weights(given, parts, names, list(unused(given, found, chosen)))


def find_part(given: Path, name: str) -> PartWeights:
    """One model alone, wherever it lies there. Raises ParameterError, as `find_weights` does."""
    found = survey(given)
    best = pick(name, found, given if given.is_file() else None)
    if best is None:
        refuse_missing(given, [name], found, "on")
    assert best is not None
    return opened(name, *best)


def survey(given: Path) -> list[Candidate]:
    """The files of weights that may be meant, and what they hold."""
    found = [Candidate(path, name) for path, name in weight_files(given).items()]
    for candidate in found:
        candidate.open(given)
    name_clips(found)
    return found


def choose(given: Path, found: list[Candidate]) -> Chosen:
    """The file that gives each model. The transformer's own come first, then those with the most usual names."""
    first = pick("MMDiT", found, given if given.is_file() else None)
    own = {} if first is None else {space.part: (first[0], space) for space in first[0].spaces}
    picked = {part: own.get(part) or pick(part, found, None) for part in PARTS if part != "MMDiT" or first is not None}
    return {part: best for part, best in picked.items() if best is not None}


def add_loras(weights: Weights, texts: Sequence[str]) -> None:
    """Add LoRAs, given as FILE or FILE:strength, to the models. Raises ParameterError for those that do not fit."""
    shapes = {name: part.wanted for name, part in weights.parts.items() if name != "VAE"}
    for text in texts:
        lora = read_lora(text, shapes)
        weights.loras.append(lora)
        for name, deltas in lora.deltas.items():
            merged = dict(weights[name].deltas)
            for tensor, added in deltas.items():
                merged[tensor] = merged.get(tensor, ()) + added
            weights[name].deltas = merged


def opened(name: str, candidate: Candidate, space: Space) -> PartWeights:
    """The tensors of a model that was chosen."""
    assert candidate.file is not None
    return PartWeights(PARTS[name], candidate.file, space.prefix, space.layout)


def pick(part: str, found: list[Candidate], wanted: Path | None) -> tuple[Candidate, Space] | None:
    """The file with the most usual name among those that hold a part, or the `wanted` one."""
    holding = [(c, s) for c in found for s in c.spaces if s.part == part and (wanted is None or c.path == wanted)]
    return min(holding, key=lambda pair: order(part, pair[0].name), default=None)


def name_clips(found: list[Candidate]) -> None:
    """Say which CLIP a file with a lone one holds: by its width where that is a released one's, by its name, or, of
    several, the narrower is CLIP-L. Others beside known ones are of other models."""
    open_ones = []
    for candidate in found:
        for k, space in enumerate(candidate.spaces):
            if space.part == "CLIP":
                assert candidate.file is not None
                norm = candidate.file.entries.get(space.prefix + "text_model.final_layer_norm.weight")
                width = norm.shape[0] if norm else 0
                name = {768: "CLIP-L", 1280: "CLIP-G"}.get(width, "")
                by_name = [part for part in ("CLIP-L", "CLIP-G") if usual(part, candidate.name)]
                name = name or (by_name[0] if len(by_name) == 1 else "")
                if name:
                    candidate.spaces[k] = dataclasses.replace(space, part=name)
                else:
                    open_ones.append((width, candidate, k))
    taken = {s.part for c in found for s in c.spaces}
    if {"CLIP-L", "CLIP-G"} <= taken:
        for width, candidate, _ in open_ones:
            candidate.spaces, candidate.reason = [], f"it holds a CLIP text model of another width, {width}"
        return
    for place, (_, candidate, k) in enumerate(sorted(open_ones, key=lambda one: (one[0], one[1].name))):
        name = "CLIP-L" if "CLIP-L" not in taken and (place == 0) else "CLIP-G"
        candidate.spaces[k] = dataclasses.replace(candidate.spaces[k], part=name)


# --- what lies there ---


def models_folder(given: str | None) -> Path:
    """Where models are looked for: as given, or `models`, or the pocket model while nothing like weights lies there."""
    if given is not None:
        return Path(given)
    beside = {str(path.relative_to(MODELS)) for path in holders(MODELS)}
    meant = [line for line in strange(MODELS) if line.partition("/:")[0] not in beside]
    return MODELS if holds_weights(MODELS) or meant else POCKET


def passed_over() -> list[str]:
    """A line for each folder with weights in `models`, for users that get the pocket model."""
    return [f"{path} holds weights, which are not used; give it with --models" for path in holders(MODELS)]


def refuse_missing(given: Path, missing: list[str], found: list[Candidate], t5: str) -> None:
    """Raise ParameterError for models that no file gives. A damaged file with the name of one is not passed over."""
    needed = [part for part in missing if part != "T5" or t5 == "on"]
    for candidate in found:
        meant = any(usual(part, candidate.name) for part in missing) or candidate.path == given
        if meant and candidate.error is not None:
            raise candidate.error
        if meant and candidate.reason:
            raise ParameterError("models", given, f"{candidate.name}: {candidate.reason}; must hold weights of SD3")
    if not needed:
        return
    if not given.exists():
        reason = "it is a link to nothing" if given.is_symlink() else "it does not exist"
    elif not (given.is_file() or given.is_dir()):
        reason = "it is neither a file nor a folder"
    else:
        there = [f"{c.name}: {c.reason}" for c in found if c.reason] + list(strange(given))
        there += [f"{c.name} holds {', '.join(s.part for s in c.spaces)}" for c in found if c.spaces]
        reason = "; ".join(there[:4]) if there else "no file of weights lies there"
    files = ", ".join(sorted({PARTS[part].usual for part in needed}))
    command = "python scripts/download_models.py"
    command += " --t5 fp8, or leave it out with --t5 off" if needed == ["T5"] else ""
    raise ParameterError(
        "models",
        given,
        f"no {', '.join(needed)}: {files} missing ({reason}); get the files with {command}",
    )


def unused(given: Path, found: list[Candidate], chosen: Chosen) -> Iterator[str]:
    """A line for each file, or model in a file, that is not used, and why."""
    for candidate in found:
        if candidate.reason:
            yield f"{candidate.name}: {candidate.reason}"
        for space in candidate.spaces:
            if space.part not in chosen:
                why = "by --t5=off" if space.part == "T5" else f"since {given.name} was given"
                yield f"{candidate.name}: {space.part}, {why}"
            elif chosen[space.part][0] is not candidate:
                yield f"{candidate.name}: {space.part}, which {chosen[space.part][0].name} gives"
        if candidate.file is not None and any(best[0] is candidate for best in chosen.values()):
            yield from strays(candidate)
    if "T5" not in chosen and "text_encoder_3" in promised(given):
        yield "T5: model_index.json names text_encoder_3, which is not there"
    yield from strange(given)


def strays(candidate: Candidate) -> Iterator[str]:
    """A line about tensors that belong to none of a file's models, where all have a prefix."""
    assert candidate.file is not None
    prefixes = tuple(space.prefix for space in candidate.spaces)
    odd = [n for n in candidate.file.entries if not n.startswith(prefixes) and not re.fullmatch(SPARE, n)]
    if odd:
        some = ", ".join(sorted(odd)[:2]) + (" .." if len(odd) > 2 else "")
        yield f"{candidate.name}: {len(odd)} tensors of no model here: {some}"

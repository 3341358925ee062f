"""LoRA files (Hu et al. 2021, arXiv 2106.09685): low-rank changes of a model's matrices, as additions to ours.

Understood are the layouts of diffusers and PEFT, of kohya's scripts, and of OneTrainer. A matrix becomes
W + strength * scale * up @ down, in float32, whatever it is stored in. What a file holds and cannot be added is refused
or told, never left out in silence. Start reading at `read_lora`.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from common.parameters import ParameterError
from resd3_medium.file_kinds import gguf_words, not_weights, other_model
from resd3_medium.lora_names import (
    KEY,
    LARGE_35,
    MEDIUM,
    MEDIUM_35,
    WIDTHS,
    Names,
    Shapes,
    Target,
    base_name,
    blocks,
    family,
    model_name,
    other_method,
)
from resd3_medium.weight_files import first_line

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # as safetensors calls them


@dataclasses.dataclass(frozen=True, eq=False)
class Delta:
    """An addition to some rows of a matrix: factor * up @ down.

    `start` is the first row of ours, up is [rows, rank], down [rank, columns], both as the file stores them; `factor`
    is the strength times the scale.
    """

    start: int
    up: torch.Tensor
    down: torch.Tensor
    factor: float

    def add_to(self, weight: torch.Tensor) -> None:
        """Add it to a float32 matrix [out, in], or a kernel [out, in, h, w], in place and on its device."""
        rows = weight.view(len(weight), -1)[self.start : self.start + len(self.up)]
        rows.addmm_(self.up.to(weight), self.down.to(weight), alpha=self.factor)


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """A file's additions by part and by our tensor's name; `notes` are lines for the user."""

    path: Path
    strength: float
    sha256: str  # of the whole file
    deltas: dict[str, dict[str, tuple[Delta, ...]]]
    notes: tuple[str, ...]


def parse_lora(text: str) -> tuple[Path, float]:
    """The file and the strength of FILE or FILE:strength; a strength of 0 is allowed, for comparison.

    Raises ParameterError for a file that is not there and a strength that is none.
    """
    path, strength = placed(text), 1.0
    head, _, tail = text.rpartition(":")
    if not is_there(path, Path.is_file) and head and (is_there(placed(head), Path.is_file) or is_number(tail)):
        if not is_number(tail) or not abs(float(tail)) <= 10:
            raise ParameterError("lora", text, "must be FILE or FILE:strength with a number from -10 to 10")
        path, strength = placed(head), float(tail)
    if not is_there(path, Path.is_file):
        words = "that is a folder" if is_there(path, Path.is_dir) else f"there is no file {path}"
        raise ParameterError("lora", text, f"must be a LoRA file, or FILE:strength; {words}")
    return path, strength


def placed(text: str) -> Path:
    """The path of a text, with ~ for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def is_there(path: Path, check: Callable[[Path], bool]) -> bool:
    """Whether there is a file, or a folder, by `check`; nothing is at a path that is too long for one."""
    try:
        return check(path)
    except OSError:
        return False


def is_number(text: str) -> bool:
    """Whether a text is a number, finite or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_lora(text: str, shapes: Shapes) -> Lora:
    """The additions of FILE or FILE:strength to a base of the given shapes: part, our name, shape.

    Parts that are not in use, such as T5, are absent from `shapes`; a note tells what the file has for them. Raises
    ParameterError for a file that is no LoRA for this base, or has numbers or shapes that do not fit.
    """
    path, strength = parse_lora(text)
    return Reader(text, path, strength, Names(shapes)).read()


class Reader:
    """One file while it is read."""

    def __init__(self, text: str, path: Path, strength: float, names: Names) -> None:
        self.text, self.path, self.strength, self.names = text, path, strength, names
        try:
            if words := not_weights(path) or gguf_words(path):
                self.refuse(f"must be a LoRA in a safetensors file; {path.name} is {words}")
            self.file = safe_open(path, framework="pt", device="cpu")
            self.metadata: dict[str, str] = self.file.metadata() or {}
            self.keys = sorted(self.file.keys())
        except (SafetensorError, OSError) as error:
            self.refuse(f"must be a whole safetensors file ({first_line(error)})")
        self.shapes = {key: tuple(self.file.get_slice(key).get_shape()) for key in self.keys}
        self.configs = self.read_configs()

    def refuse(self, reason: str) -> NoReturn:
        """Raise ParameterError, in one line whatever a file's names hold."""
        raise ParameterError("lora", self.text, " ".join(reason.split()))

    def read(self) -> Lora:
        """The file's additions. Raises ParameterError."""
        modules = self.modules()
        used = {name: keys for name, keys in modules.items() if not self.names.is_absent(name)}
        absent = [name for name in modules if name not in used]
        found = {}
        for name, keys in used.items():
            if target := self.names.find(name, *self.size(keys)):
                found[name] = target
        if unknown := [name for name in used if name not in found]:
            self.refuse_unknown(unknown)
        deltas: dict[str, dict[str, tuple[Delta, ...]]] = {}
        seen: set[Target] = set()
        for name, target in found.items():
            if target in seen:
                self.refuse(f"must change each matrix once; {name} stands for one that has been changed before")
            seen.add(target)
            of_part = deltas.setdefault(target.part, {})
            of_part[target.name] = (*of_part.get(target.name, ()), self.delta(name, used[name], target))
        notes = [*self.absent_notes(absent), *self.base_notes(seen)]
        if not deltas:
            self.refuse(f"must change a part that is in use; {'; '.join(notes)}")
        if self.strength == 0:
            notes.append(f"{self.path.name} has a strength of 0, so it changes nothing")
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Lora(self.path, self.strength, digest, deltas, tuple(notes))

    def modules(self) -> dict[str, dict[str, str]]:
        """The keys of each module by what they are: down, up, alpha. Raises ParameterError for others."""
        if found := other_method(self.keys):
            self.refuse(f"must be a plain LoRA; {self.path.name} holds {found[1]} ({found[0]})")
        modules: dict[str, dict[str, str]] = {}
        strays = []
        for key in self.keys:
            match = KEY.fullmatch(key)
            if match is None and not key.endswith(".alpha"):
                strays.append(key)
                continue
            name = match["module"] if match else key.removesuffix(".alpha")
            kind = "alpha" if match is None else "down" if match["down"] else "up"
            if modules.setdefault(name, {}).setdefault(kind, key) != key:
                self.refuse(f"must hold each matrix once; {key} and {modules[name][kind]} are the same")
        if not modules:
            self.refuse(f"must be a LoRA; {self.path.name} holds {other_model(self.shapes)}")
        if strays:
            self.refuse(f"must be a plain LoRA; {self.path.name} holds {len(strays)} other tensors: {some(strays)}")
        for name, keys in modules.items():
            if missing := {"down", "up"} - keys.keys():
                self.refuse(f"must hold two matrices for each change; {name} lacks {' and '.join(sorted(missing))}")
        return modules

    def size(self, keys: Mapping[str, str]) -> tuple[int, int]:
        """Rows and columns of a module's change. Raises ParameterError for shapes that no product has."""
        down, up = self.shapes[keys["down"]], self.shapes[keys["up"]]
        if len(down) < 2 or len(up) < 2:
            self.refuse(f"must hold matrices; {keys['down']} is {list(down)}, {keys['up']} {list(up)}")
        if down[0] != math.prod(up[1:]):
            self.refuse(f"must have equal ranks; {keys['down']} is {list(down)}, {keys['up']} {list(up)}")
        if down[0] == 0:
            self.refuse(f"must have ranks above 0; {keys['down']} is {list(down)}")
        return up[0], math.prod(down[1:])

    def delta(self, name: str, keys: Mapping[str, str], target: Target) -> Delta:
        """One module's addition to its rows. Raises ParameterError for what does not fit."""
        size, rank = self.size(keys), self.shapes[keys["down"]][0]
        if size != (target.rows, target.columns):
            self.refuse_size(name, size, target)
        up, down = self.values(keys["up"]).flatten(1), self.values(keys["down"]).flatten(1)
        if target.swapped:
            up = torch.cat(up.chunk(2)[::-1])
        return Delta(target.start, up, down, self.strength * self.scale(name, keys, rank))

    def values(self, key: str) -> torch.Tensor:
        """A tensor as it is stored. Raises ParameterError for numbers that are none."""
        kind = self.file.get_slice(key).get_dtype()
        if kind not in FLOATS:
            self.refuse(f"must hold floating-point numbers; {key} is {kind}")
        tensor = self.file.get_tensor(key)
        if not tensor.float().isfinite().all():
            self.refuse(f"must hold finite numbers; {key} has others")
        return tensor

    def scale(self, name: str, keys: Mapping[str, str], rank: int) -> float:
        """The scale of a module: its alpha over its rank, or as PEFT's metadata say, or 1."""
        if key := keys.get("alpha"):
            if math.prod(self.shapes[key]) != 1:
                self.refuse(f"must have one number as alpha; {key} is {list(self.shapes[key])}")
            alpha = self.file.get_tensor(key).double().item()
            if not math.isfinite(alpha):
                self.refuse(f"must have finite numbers as alpha; {key} is {alpha}")
            return alpha / rank
        prefix, module, _ = self.names.part(name)
        config = self.configs.get(prefix.removesuffix(".") if prefix != "base_model.model." else "", {})
        try:
            told = number(patterned(config, "rank_pattern", module, config.get("r", rank)))
            alpha = number(patterned(config, "alpha_pattern", module, config.get("lora_alpha", told)))
        except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
            self.refuse(f"must have sound metadata ({first_line(error)})")
        if told != rank:
            self.refuse(f"must have the ranks of its metadata; {name} has {rank}, not {told:g}")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def read_configs(self) -> dict[str, dict[str, Any]]:
        """PEFT's settings by component, "" where a file is for one model only. Raises ParameterError."""
        beside = self.path.with_name("adapter_config.json")
        try:
            settings = json.loads(self.metadata.get("lora_adapter_metadata", "{}"))
            if not settings and self.path.name == "adapter_model.safetensors" and beside.is_file():
                settings = json.loads(beside.read_text())
            found: dict[str, dict[str, Any]] = {"": dict(settings)}
            for key, value in settings.items():
                component, _, name = key.partition(".")
                found.setdefault(component, {})[name] = value
        except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
            self.refuse(f"must have sound metadata ({first_line(error)})")
        if any(config.get("use_dora") for config in found.values()):
            self.refuse(f"must be a plain LoRA; the metadata of {self.path.name} say that it is DoRA")
        return found

    def refuse_unknown(self, names: list[str]) -> NoReturn:
        """Refuse modules that the base has not, with what they seem to be for."""
        base, words = self.names.shapes.get("MMDiT", {}), family(names)
        highest = max((int(m[1]) for name in names if (m := re.search(r"blocks[._](\d+)[._]", name))), default=-1)
        if words is None and any("attn2" in name for name in names):
            words = MEDIUM_35
        elif words is None and highest >= blocks(base):
            words = f"a transformer of {highest + 1} blocks, and the base has {blocks(base)}"
        words = f"is made for {words}" if words else "is made for another model"
        self.refuse(
            f"must fit the base, {base_name(base)}; {self.path.name} {words}: "
            f"{len(names)} of its modules are not there, such as {some(names)}"
        )

    def refuse_size(self, name: str, size: tuple[int, int], target: Target) -> NoReturn:
        """Refuse a change of another size than its matrix, with what it seems to be for."""
        width, words = target.columns, ""
        both = ((6 * width, width), (9 * width, width))
        if target.name.endswith("x_block.adaLN_modulation.1.weight") and size in both:
            words = f", as in {MEDIUM_35 if size[0] > 6 * width else MEDIUM}"
        elif target.part == "MMDiT" and size[1] != width and size[1] in WIDTHS:
            words = f", as in {WIDTHS[size[1]]}"
        self.refuse(
            f"must fit the base, {base_name(self.names.shapes.get('MMDiT', {}))}; {name} is for {list(size)}{words}, "
            f"but {target.name} has {[target.rows, target.columns]}"
        )

    def absent_notes(self, absent: list[str]) -> list[str]:
        """A line for each part that the file changes and that is not in use."""
        parts = [" or ".join(self.names.part(name)[2]) for name in absent]
        return [
            f"{self.path.name} also changes {parts.count(part)} matrices of {part}, which is not in use: left out"
            for part in sorted(set(parts))
        ]

    def base_notes(self, targets: Iterable[Target]) -> list[str]:
        """A line where nothing, or only the metadata, tells that the file is for another base."""
        base, names = self.names.shapes.get("MMDiT", {}), {t.name for t in targets if t.part == "MMDiT"}
        ours = base_name(base)
        told = next((name for text in self.model_names() if (name := model_name(text))), None)
        if told and told != ours:
            return [f"{self.path.name} says that it is made for {told}; the model here is {ours}"]
        # The two medium models differ in the first blocks only, by a second attention and the norm that goes with it.
        shown = any(".attn2." in name or name.startswith("joint_blocks.0.x_block.adaLN") for name in names)
        if told or shown or not names or ours == LARGE_35:
            return []
        other = MEDIUM if ours == MEDIUM_35 else MEDIUM_35
        return [f"{self.path.name} does not say whether it is made for {ours}, as the model here, or for {other}"]

    def model_names(self) -> list[str]:
        """What the metadata say of the base model."""
        texts = [self.metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture")]
        texts += [str(config.get("base_model_name_or_path") or "") for config in self.configs.values()]
        return [*texts, self.metadata.get("ss_sd_model_name", "")]


def some(names: list[str]) -> str:
    """The first two names."""
    return ", ".join(names[:2]) + (" .." if len(names) > 2 else "")


def number(value: Any) -> float:
    """A finite number of some settings. Raises ValueError or OverflowError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def patterned(config: Mapping[str, Any], kind: str, module: str, default: Any) -> Any:
    """A module's entry among PEFT's patterns, which match the end of its name. Raises re.error, AttributeError."""
    patterns = config.get(kind) or {}
    return next((v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)

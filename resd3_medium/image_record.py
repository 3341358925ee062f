"""config.json of a folder of images: what its last run was to make, so that --resume makes what is missing of it.

It holds every parameter and the prompt of every image, whatever has become of the files that they came from; the number
of the first image, by which the others' names follow; and hashes of weights and initial image. Start reading at
`read_record`.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe, read_json, replace_file, resumed, write_config
from resd3_medium.finding import Weights
from resd3_medium.image_folder import ImageFolder
from resd3_medium.infer_parameters import InferConfig
from resd3_medium.initial_image import file_sha256
from resd3_medium.png import differing_weights, read_stored

METHOD = "images"  # what config.json calls the run
FREE = ("resume", "models", "device", "offload", "batch_size", "preview")  # what --resume may change
PATHS = tuple(field.name for field in dataclasses.fields(InferConfig) if field.metadata["path"])


@dataclasses.dataclass(frozen=True)
class Record:
    """The prompt of each image, the number of the first one's file, and what weights and initial image were like.

    `weights` has file, precision and sha256 by the part's name, `lora` file, strength and sha256 of each LoRA.
    """

    prompts: list[str]
    first: int
    weights: dict[str, dict[str, str]]
    lora: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    init_image_sha256: str = ""

    @classmethod
    def of(cls, prompts: list[str], first: int, weights: Weights, keep: str, init_image: str | None) -> "Record":
        """The record of a run with these weights and this initial image. Raises ParameterError."""
        start = file_sha256(init_image) if init_image else ""
        return cls(prompts, first, weights.record(keep), lora_record(weights), start)

    def check_image(self, config: InferConfig) -> None:
        """Raise ParameterError of `init_image` unless the initial image is that of the record."""
        if config.init_image and file_sha256(config.init_image) != self.init_image_sha256:
            raise ParameterError("init_image", config.init_image, "must be the image that the run was begun with")

    def check_weights(self, config: InferConfig, weights: Weights) -> None:
        """Raise ParameterError of `models` or `lora` unless the weights are those of the record."""
        both = self.weights, weights.record(config.weights)
        before, now = ({name: part["sha256"] for name, part in parts.items()} for parts in both)
        if changed := [name for name in before | now if before.get(name) != now.get(name)]:
            reason = f"must be the weights that the run was begun with; {', '.join(changed)} differ"
            raise ParameterError("models", config.models, reason)
        for text, old, new in zip(config.lora, self.lora, lora_record(weights), strict=True):
            if old != new:
                raise ParameterError("lora", text, "must be the file that the run was begun with")

    def cells(self) -> tuple[str, str]:
        """What tasks.csv says of weights and LoRAs: names, precisions, strengths, and how the hashes begin."""
        kept = {name: f" kept at {w['kept']}" if "kept" in w else "" for name, w in self.weights.items()}
        parts = (f"{n}={w['file']}:{w['precision']}{kept[n]}:{w['sha256'][:10]}" for n, w in self.weights.items())
        loras = (f"{w['file']}:{w['strength']:g}:{w['sha256'][:10]}" for w in self.lora)
        return "; ".join(parts), "; ".join(loras)


def warn_of_weights(image: str, record: Record) -> None:
    """Say which weights differ from those that the image of --from_image was made with."""
    stored = read_stored(image).more
    lines = differing_weights(stored.get("weights"), record.weights)
    loras = [
        {f"LoRA {lora['file']}": lora for lora in found if isinstance(lora, dict) and "file" in lora}
        for found in (stored.get("lora", []), record.lora)
        if isinstance(found, list)
    ]
    if len(loras) == 2 and any(loras):
        lines += differing_weights(loras[0] or {"LoRA": None}, loras[1])
    for line in lines:
        print(f"warning: {image}: {line}", file=sys.stderr)
    if any(line.startswith("MMDiT") for line in lines):
        print(f"warning: {image}: --models takes the folder or file that it was made with", file=sys.stderr)


def lora_record(weights: Weights) -> list[dict[str, Any]]:
    """File, strength and hash of each LoRA."""
    return [{"file": lora.path.name, "strength": lora.strength, "sha256": lora.sha256} for lora in weights.loras]


def whole_paths(given: str | Sequence[str]) -> str | list[str]:
    """A path, or several, from the root on; a strength may follow a name."""
    return os.path.abspath(given) if isinstance(given, str) else [os.path.abspath(one) for one in given]  # noqa: PTH100


@contextmanager
def recorded(folder: Path, config: InferConfig, record: Record, names: Sequence[str]) -> Iterator[None]:
    """Have the run's config.json meanwhile and afterwards; after an error that came before any image, what was there.

    Paths in it hold from everywhere.
    """
    path = folder / "config.json"
    before = path.read_bytes() if path.exists() else None
    parameters = dataclasses.asdict(config) | {"resume": None}
    parameters |= {name: whole_paths(parameters[name]) for name in PATHS if parameters[name]}
    write_config(folder, METHOD, parameters, more=dataclasses.asdict(record))
    try:
        yield
    except Exception:
        if not any((folder / name).exists() for name in names):
            if before is None:
                path.unlink()
            else:
                replace_file(path, lambda temporary: temporary.write_bytes(before))
        raise


def check_config(folder: Path) -> None:
    """Raise ParameterError of `out` when a folder's config.json is not of this script, which would write over it."""
    path = folder / "config.json"
    try:
        own = not path.exists() or read_json(path)["method"] == METHOD
    except (OSError, ValueError, LookupError, TypeError):
        own = False
    if not own:
        reason = "must be a folder of images; its config.json is of something else, and would be overwritten"
        raise ParameterError("out", folder, reason)


def warn_of_unfinished(images: ImageFolder) -> None:
    """Say that the last run in a folder lacks images, before another one takes its place in config.json."""
    try:
        content = read_json(images.folder / "config.json")
        numbers = range(content["first"], content["first"] + len(content["prompts"]))
    except (OSError, ValueError, LookupError, TypeError):
        return
    if missing := len(set(numbers) - images.numbers()):
        words = f"{missing} images of the run before are missing, and --resume goes on with the last run only"
        print(f"warning: {images.folder}: {words}", file=sys.stderr)


def read_record(config: InferConfig, given: dict[str, Any]) -> tuple[InferConfig, Record]:
    """Parameters and record of the run in `config.resume`, with the parameters of the command line that are FREE.

    Raises ParameterError when there is none, and when others are given.
    """
    folder = Path(config.resume or "")
    try:
        content = read_json(folder / "config.json")
        if content["method"] != METHOD:
            raise ValueError("it is of another script")
        record = Record(**{field.name: content[field.name] for field in dataclasses.fields(Record)})
        whole = isinstance(record.prompts, list) and all(isinstance(prompt, str) for prompt in record.prompts)
        if not (whole and record.prompts and isinstance(record.first, int) and record.first > 0):
            raise TypeError("values of the wrong type")
        record.cells()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"must be a folder of images, with a whole config.json ({describe(error)})"
        raise ParameterError("resume", folder, reason) from None
    return resumed(config, given, FREE), record

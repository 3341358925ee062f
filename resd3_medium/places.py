"""Where files of weights lie: in a folder, in the folders that programs make in it, and what lies there besides.

Start reading at `weight_files`.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from resd3_medium.file_kinds import PICKLES, UNFINISHED, WEIGHTS, other_name
from resd3_medium.folders import OWN

# Folders beside or below each other in which other programs keep weights.
PLACES = ("text_encoders", "text_encoder", "clip", "checkpoints", "diffusion_models", "unet", "vae")
COMPONENTS = {"transformer": "MMDiT", "text_encoder": "CLIP-L", "text_encoder_2": "CLIP-G"}
COMPONENTS |= {"text_encoder_3": "T5", "vae": "VAE"}  # of a diffusers folder
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.")
DOWNLOADS = (".download", ".cache")  # in which downloads from Hugging Face lie until they are whole
DEPTH = 3  # levels of folders below the given one in which weights are noticed, though not used


def bases(given: Path) -> Iterator[tuple[Path, str]]:
    """Folders to look in, and how their files are called below what was given."""
    if not (given.is_file() or given.is_dir()):
        return
    folder = given if given.is_dir() else given.parent
    around = [folder, *([folder.parent] if folder.name in (*PLACES, *COMPONENTS) else [])]
    for base in around:
        up = "" if base == folder else "../"
        yield base, up
        for place in dict.fromkeys((*PLACES, *COMPONENTS)):
            if (base / place).is_dir() and base / place != folder and os.access(base / place, os.R_OK):
                yield base / place, f"{up}{place}/"


def weight_files(given: Path) -> dict[Path, str]:
    """The files of weights that may be meant, links to nothing too, and their names below what was given.

    Shards count as one, by their index; those that no index names count by themselves.
    """
    found = {given: given.name} if given.is_file() else {}
    for folder, prefix in bases(given):
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files = [path for path in paths if path.is_file() or (path.is_symlink() and not path.exists())]
        indices = [path for path in files if re.search(r"\.safetensors\.index.*\.json$", path.name)]
        named = {name for path in indices for name in shards(path)}
        for path in indices + [p for p in files if p.suffix.lower() in WEIGHTS and p.name not in named]:
            found.setdefault(path, prefix + path.name)
    return found


def shards(index: Path) -> set[str]:
    """The files that an index names; none if it is damaged."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def holds_weights(folder: Path) -> bool:
    """Whether a folder has any file of weights in a usual place."""
    return folder.is_dir() and bool(weight_files(folder))


def holders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders below one that hold weights and are not looked in: one of them may be meant. The project's own are not.

    Of folders in each other, the upper one.
    """
    for path in folders(folder):
        looked_in = path.name in (*PLACES, *COMPONENTS) and depth == DEPTH
        if not looked_in and holds_weights(path):
            yield path
        elif depth > 1:
            yield from holders(path, depth - 1)


def folders(folder: Path) -> list[Path]:
    """The folders in one that may be read, but for hidden ones and the project's own."""
    try:
        inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
    return sorted(path for path in inside if path.resolve() not in OWN and os.access(path, os.R_OK | os.X_OK))


def strange(given: Path) -> Iterator[str]:
    """Files that may be meant as weights by their names, and are none; and folders that hold some."""
    for folder, prefix in bases(given):
        for path in sorted(folder.iterdir()):
            if path.is_file() and (words := other_name(path)):
                weighty = path.suffix.lower() in PICKLES or any(w in path.name for w in WEIGHTS)
                if weighty or path.suffix.lower() in UNFINISHED:
                    yield f"{prefix}{path.name}: it is {words}"
            elif path.is_dir() and path.suffix.lower() in WEIGHTS:
                yield f"{prefix}{path.name}: it is a folder"
    if given.is_dir():
        for hidden in DOWNLOADS:
            if any((given / hidden).rglob("*.incomplete")):
                yield f"{hidden}: it holds an unfinished download"
        for path in holders(given):
            words = "a folder with weights, which is not looked in; give it with --models if it is meant"
            yield f"{path.relative_to(given)}/: {words}"


def promised(given: Path) -> set[str]:
    """The components that model_index.json of a diffusers folder names, and that are not there."""
    try:
        content = json.loads((given / "model_index.json").read_text(encoding="utf-8"))
        named = {name for name in COMPONENTS if any(content.get(name) or ())}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()
    return {name for name in named if not (given / name).is_dir()}

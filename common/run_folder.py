"""Run folders: where a run writes, so that nothing is left half written and no run overwrites another.

A run's folder holds config.json, delay.csv, delay.png, delay.pdf and, for learners, checkpoint.pt. Every file is
written under a temporary name and then renamed. Start reading at `create_folder`.
"""

import csv
import json
import os
import platform
import resource
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.parameters import ParameterError

RESULTS = Path(__file__).resolve().parents[1] / "results"


def create_folder(out: str | None, default: Path) -> Path:
    """A new folder: `out`, which must be empty or absent, or `default`, numbered when it is taken.

    Raises ParameterError when `out` already holds files or cannot be written.
    """
    if out is None:
        folder, number = default, 2
        while folder.exists() and any(folder.iterdir()):
            folder, number = default.with_name(f"{default.name}_{number}"), number + 1
    else:
        folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ParameterError(f"--out={folder}: must be a new or empty folder, to overwrite nothing")
        if not os.access(folder, os.W_OK):
            raise PermissionError("no write permission")
    except OSError as error:
        raise ParameterError(f"--out={folder}: must be a folder that can be written ({error})") from None
    return folder


def replace_file(path: Path, write: Any) -> None:
    """Call `write(temporary path)` and rename the result to `path`, so that `path` is always whole."""
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(temporary)
    temporary.replace(path)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file; floats are written so that reading gives the same number."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    replace_file(path, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text))


def write_config(folder: Path, method: str, config: dict[str, Any]) -> None:
    """config.json: the method, every resolved parameter, and the versions that computed the run."""
    versions = {name: version(name) for name in ("torch", "numpy", "matplotlib", "fire")}
    content = {
        "method": method,
        "parameters": config,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"processor": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
    }
    write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """A checkpoint's content, read with weights_only. Raises ParameterError when it is none of ours."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise ParameterError(f"--{flag}={path}: must be a checkpoint written by this script ({reason})") from None
    if not isinstance(content, dict) or not {"method", "config", "learner", "history"} <= content.keys():
        raise ParameterError(f"--{flag}={path}: must be a checkpoint written by this script (other content)")
    return content


def peak_memory(device: torch.device | str = "cpu") -> str:
    """The most memory that the process has held, in words; on CUDA also the device's."""
    unit = 1 if sys.platform == "darwin" else 1024
    words = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    if torch.device(device).type == "cuda":
        words += f" + {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on the GPU"
    return words

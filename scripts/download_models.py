"""Fetch the weights of Stable Diffusion 3 or 3.5 from Hugging Face: resumable, and checked by their SHA-256.

The weights are Stability AI's, under the Stability AI Community License: free for research, personal use, and for
businesses below one million dollars of revenue a year; accept it on the model's own page and log in with
`hf auth login` (or set HF_TOKEN) first. Example:
python scripts/download_models.py --model sd3.5_medium --t5 fp8
"""

import common.quiet_start  # noqa: F401

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import claimed, describe
from resd3_medium.finding import opened, survey
from resd3_medium.folders import MODELS
from resd3_medium.weight_files import sha256

MODEL_FILES = {  # our name of the model: (repository, about how many GB its file has); the file has the same name
    "sd3_medium": ("stabilityai/stable-diffusion-3-medium", 4.34),
    "sd3.5_medium": ("stabilityai/stable-diffusion-3.5-medium", 5.11),
    "sd3.5_large": ("stabilityai/stable-diffusion-3.5-large", 16.46),
    "sd3.5_large_turbo": ("stabilityai/stable-diffusion-3.5-large-turbo", 16.46),
}
ENCODERS = {"clip_l.safetensors": 0.25, "clip_g.safetensors": 1.39}  # in text_encoders/ of every repository
T5_FILES = {"fp16": ("t5xxl_fp16.safetensors", 9.79), "fp8": ("t5xxl_fp8_e4m3fn.safetensors", 4.89)}


@dataclasses.dataclass(kw_only=True)
class DownloadConfig(Parameters):
    """Every parameter of download_models.py."""

    model: str = parameter("sd3_medium", "model to fetch, with its encoders", choices=tuple(MODEL_FILES))
    t5: str = parameter("off", "also fetch the T5 encoder: fp16 has 9.8 GB, fp8 4.9 GB", choices=("off", *T5_FILES))
    out: str = parameter(str(MODELS), "folder of the files", path=True)


def wanted_files(config: DownloadConfig) -> dict[str, tuple[str, float]]:
    """The files to have: our name to the name in the repository, and about how many GB."""
    files = {name: (f"text_encoders/{name}", size) for name, size in ENCODERS.items()}
    if config.t5 != "off":
        name, size = T5_FILES[config.t5]
        files[name] = (f"text_encoders/{name}", size)
    name = f"{config.model}.safetensors"
    return files | {name: (name, MODEL_FILES[config.model][1])}


def fetch(name: str, remote: str, repository: str, folder: Path) -> None:
    """Download one file under its own name, unless it is there. Raises ParameterError when that fails."""
    target = folder / name
    if not target.is_file():
        try:
            expected = get_hf_file_metadata(hf_hub_url(repository, remote)).etag
            fetched = Path(hf_hub_download(repository, remote, local_dir=folder / ".download"))
        except Exception as error:  # the hub's client raises many kinds, and so do those below it
            raise ParameterError(
                "out",
                folder,
                f"{name} could not be fetched; accept the licence at huggingface.co/{repository}, run `hf "
                f"auth login`, and try again, it goes on where it stopped ({describe(error)})",
            ) from None
        if expected and len(expected) == 64 and sha256(fetched) != expected:
            fetched.unlink()
            raise ParameterError("out", folder, f"{name} arrived damaged and was deleted; must be fetched again")
        fetched.replace(target)
    check(target, folder)
    print(f"{name} is right")


def check(path: Path, folder: Path) -> None:
    """Raise ParameterError unless a file holds whole models."""
    try:
        found = [c for c in survey(path) if c.path == path]
        for candidate in found:
            if candidate.error is not None:
                raise candidate.error
            if not candidate.spaces:
                raise ParameterError("out", folder, f"{path.name}: {candidate.reason}")
            for space in candidate.spaces:
                opened(space.part, candidate, space)
    except ParameterError as error:
        raise ParameterError("out", folder, f"delete {path.name} to fetch it anew; {error.reason}") from None


def main(config: DownloadConfig, given: dict[str, Any]) -> None:
    """Fetch what is missing, if there is room for it. Raises ParameterError."""
    with claimed(Path(config.out)) as folder:
        fetch_all(config, folder)


def fetch_all(config: DownloadConfig, folder: Path) -> None:
    """Fetch what is missing into a folder of this process. Raises ParameterError."""
    repository, files = MODEL_FILES[config.model][0], wanted_files(config)
    gigabytes = sum(size for name, (_, size) in files.items() if not (folder / name).is_file())
    free = shutil.disk_usage(folder).free / 1e9
    print(f"{gigabytes:.2f} GB to fetch from huggingface.co/{repository}, {free:.0f} GB free")
    if free < gigabytes:
        raise ParameterError("out", folder, f"must have {gigabytes:.2f} GB free, has {free:.2f}")
    for name, (remote, _) in files.items():
        fetch(name, remote, repository, folder)
    shutil.rmtree(folder / ".download", ignore_errors=True)


if __name__ == "__main__":
    command_line(DownloadConfig, main, __doc__)

"""Fetch the weights of Stable Diffusion 3 Medium from Hugging Face: resumable, and checked by their SHA-256.

The weights are Stability AI's, under the Stability AI Community License: free for research, personal use, and for
businesses below one million dollars of revenue a year; accept it on the model's page and log in with
`hf auth login` (or set HF_TOKEN) first. Example:
python scripts/download_models.py --t5 True
"""

import common.quiet_start  # noqa: F401

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import describe, made
from resd3_medium.folders import MODELS
from resd3_medium.weights import PARTS, WeightsFile, structure

REPOSITORY = "stabilityai/stable-diffusion-3-medium"
FILES = {  # our name: (name in the repository, about how many GB)
    "clip_l.safetensors": ("text_encoders/clip_l.safetensors", 0.25),
    "clip_g.safetensors": ("text_encoders/clip_g.safetensors", 1.39),
    "sd3_medium.safetensors": ("sd3_medium.safetensors", 4.34),
    "t5xxl.safetensors": ("text_encoders/t5xxl_fp16.safetensors", 9.79),
}


@dataclasses.dataclass(kw_only=True)
class DownloadConfig(Parameters):
    """Every parameter of download_models.py."""

    out: str = parameter(str(MODELS), "folder of the files", path=True)
    t5: bool = parameter(False, "also fetch the T5 encoder (9.8 GB)")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        Progress(total=path.stat().st_size, unit="B", unit_scale=True, desc="checking") as bar,
    ):
        while chunk := file.read(2**24):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def fetch(name: str, folder: Path) -> None:
    """Download one file under its own name, unless it is there. Raises ParameterError when that fails."""
    target, (remote, _) = folder / name, FILES[name]
    if not target.is_file():
        try:
            expected = get_hf_file_metadata(hf_hub_url(REPOSITORY, remote)).etag
            fetched = Path(hf_hub_download(REPOSITORY, remote, local_dir=folder / ".download"))
        except Exception as error:  # the hub's client raises many kinds, and so do those below it
            raise ParameterError(
                "out",
                folder,
                f"{name} could not be fetched; accept the licence at huggingface.co/{REPOSITORY}, run `hf "
                f"auth login`, and try again, it goes on where it stopped ({describe(error)})",
            ) from None
        if expected and len(expected) == 64 and sha256(fetched) != expected:
            fetched.unlink()
            raise ParameterError("out", folder, f"{name} arrived damaged and was deleted; must be fetched again")
        fetched.replace(target)
    try:
        for part in PARTS.values():
            if part.file == name:
                structure(part, WeightsFile(target))
    except ParameterError as error:
        raise ParameterError("out", folder, f"delete {name} to fetch it anew; {error.reason}") from None
    print(f"{name} is right")


def main(config: DownloadConfig, given: dict[str, Any]) -> None:
    """Fetch what is missing, if there is room for it. Raises ParameterError."""
    folder = made(Path(config.out))
    names = [name for name in FILES if name != "t5xxl.safetensors" or config.t5]
    gigabytes = sum(FILES[name][1] for name in names if not (folder / name).is_file())
    free = shutil.disk_usage(folder).free / 1e9
    print(f"{gigabytes:.2f} GB to fetch from huggingface.co/{REPOSITORY}, {free:.0f} GB free")
    if free < gigabytes:
        raise ParameterError("out", folder, f"must have {gigabytes:.2f} GB free, has {free:.2f}")
    for name in names:
        fetch(name, folder)
    shutil.rmtree(folder / ".download", ignore_errors=True)


if __name__ == "__main__":
    command_line(DownloadConfig, main, __doc__)

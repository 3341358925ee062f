"""Fit to training data what digital schemes need: the mean image, which the device shows for what is lost.

Reads the data that make_dataset.py wrote, and writes mean.png into the folder of trained models. Example:
python meg/fit_digital.py --data results/meg/data_pocket --out results/meg/fitted
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, new_folder, replace_file, write_config
from meg.competitors import MEAN_IMAGE
from meg.dataset import load_dataset
from meg.digital import pixels


@dataclasses.dataclass(kw_only=True)
class FitConfig(Parameters):
    """Every parameter of fit_digital.py."""

    GROUP: ClassVar[str] = "data"

    data: str = parameter(
        str(RESULTS / "meg" / "data_pocket"), "folder of latents and images by make_dataset.py", path=True
    )
    validation: int = parameter(64, "last images of the data that are left out", low=0)
    out: str | None = parameter(None, "folder of what is fitted; default results/meg/fitted", path=True)


def fitted_mean(images: torch.Tensor) -> torch.Tensor:
    """The mean [3, H, W] in 0..1 of images [N, 3, H, W] in bytes."""
    total = sum(part.double().sum(0) for part in images.split(64))
    return (total / (255 * len(images))).float()


def main(config: FitConfig, given: dict[str, Any]) -> None:
    """Read the data, and write what is fitted to them. Raises ParameterError."""
    images = load_dataset(Path(config.data)).diffusion
    if config.validation >= len(images):
        raise ParameterError("validation", config.validation, f"must be less than the {len(images)} images of --data")
    images = images[: len(images) - config.validation]
    picture = Image.fromarray(pixels(fitted_mean(images)[None])[0])
    with new_folder(config.out, RESULTS / "meg" / "fitted") as folder:
        write_config(folder, "meg fit", dataclasses.asdict(config))
        replace_file(folder / MEAN_IMAGE, lambda temporary: picture.save(temporary))
        print(f"{MEAN_IMAGE} of {len(images)} images in {folder}")


if __name__ == "__main__":
    command_line(FitConfig, main, __doc__)

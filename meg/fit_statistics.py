"""Fit to training data what schemes need beside decoders: the mean image, and the transform into components.

The device shows the mean image for what digital schemes lose; MEG with shift maps and coded latents send components.
Reads the data that make_dataset.py wrote, and writes mean.png and transform.safetensors into a folder. Example:
python meg/fit_statistics.py --data results/meg/data_pocket --out results/meg/fitted
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.run_folder import RESULTS, new_folder, replace_file, write_config
from meg.competitors import MEAN_IMAGE
from meg.dataset import fitted_to, load_dataset
from meg.decoders import model_of
from meg.digital import pixels
from meg.generators import open_generator
from meg.image_generator import GENERATORS, ImageOptions
from meg.training_parameters import DataParameters
from meg.transform import TRANSFORM, pixel_weights, save_transform, transform_of

LARGEST_LATENT = 4096  # values of a latent whose covariance is taken


@dataclasses.dataclass(kw_only=True)
class FitConfig(DataParameters):
    """Every parameter of fit_statistics.py."""

    GROUP: ClassVar[str] = "fit"

    generator: str = parameter("pocket", "whose decoder says how pixels see latents", choices=GENERATORS)
    models: str | None = parameter(None, "folder of the generator's files; default that of the generator", path=True)
    probes: int = parameter(4, "random directions of pixels for each image; 0: no transform", low=0, high=1000)
    seed: int = parameter(0, "seed of these directions", low=0)
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of what is fitted; default results/meg/fitted", path=True)


def fitted_mean(images: torch.Tensor) -> torch.Tensor:
    """The mean [3, H, W] in 0..1 of images [N, 3, H, W] in bytes."""
    total = sum(part.double().sum(0) for part in images.split(64))
    return (total / (255 * len(images))).float()


def main(config: FitConfig, given: dict[str, Any]) -> None:
    """Read the data, and write what is fitted to them. Raises ParameterError."""
    torch.set_num_threads(config.threads)
    pairs = load_dataset(Path(config.data))
    count = fitted_to(pairs, config.validation)
    picture = Image.fromarray(pixels(fitted_mean(pairs.diffusion[:count])[None])[0])
    latents, decode = pairs.latents[:count].float(), None
    if config.probes:
        if latents[0].numel() > LARGEST_LATENT:
            words = f"must be 0 for latents of more than {LARGEST_LATENT} values, whose covariance is too large"
            raise ParameterError("probes", config.probes, words)
        base = open_generator(ImageOptions(config.generator, config.models, device="cpu", dtype="float32")).base()
        if base.description.channels != latents.shape[1]:
            raise ParameterError(
                "generator", config.generator, f"must be that of --data, of {latents.shape[1]} channels"
            )
        own = model_of(base.description, base.decoder, base.post).eval().requires_grad_(False)
        decode = lambda latent: own.images(latent, torch.zeros(len(latent)))  # noqa: E731
    with new_folder(config.out, RESULTS / "meg" / "fitted") as folder:
        if decode:  # before anything is written, so that what is refused leaves the folder empty
            weights = pixel_weights(decode, latents, config.probes, config.seed)
            transform = transform_of(latents, weights, config.data)
        write_config(folder, "meg fit", dataclasses.asdict(config))
        replace_file(folder / MEAN_IMAGE, lambda temporary: picture.save(temporary))
        if decode:
            save_transform(folder / TRANSFORM, transform)
        print(f"{MEAN_IMAGE}{f' and {TRANSFORM}' if decode else ''} of {count} images in {folder}")


if __name__ == "__main__":
    command_line(FitConfig, main, __doc__)

"""Make the latents and images that MEG's decoders are trained on, once, from a file of captions.

Writes parts of 64 into --out, with captions.txt and config.json; an interrupted run goes on with --resume, and nothing
is ever made again. Examples:
python meg/make_dataset.py
python meg/make_dataset.py --generator sdxl --captions captions.txt --images 20
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.parameters import LARGEST, ParameterError, parameter
from common.progress import Progress
from common.run_folder import (
    RESULTS,
    peak_memory,
    resumed,
    run_place,
    write_config,
    write_text,
)
from meg.dataset import PART, part_path, save_part
from meg.generators import open_generator
from meg.image_generator import GeneratorParameters, ImageGenerator
from resd3_medium.tasks import DATASET, prompt_lines, read_lines

CAPTIONS = DATASET / "pocket_captions.txt"


@dataclasses.dataclass(kw_only=True)
class DatasetConfig(GeneratorParameters):
    """Every parameter of make_dataset.py."""

    GROUP: ClassVar[str] = "data"

    captions: str = parameter(str(CAPTIONS), "file with a caption on each line", path=True)
    images: int | None = parameter(
        None, "images to make; captions are gone through again and again; default one each", low=1
    )
    seed: int = parameter(0, "seed of the first image; image i has seed + i", low=0)
    batch_size: int = parameter(64, "images that are made together", low=1, high=PART)
    out: str | None = parameter(None, "folder of the data; default results/meg/data_<generator>", path=True)
    resume: str | None = parameter(None, "go on with the data in this folder", path=True)


FREE = ("device", "batch_size", "resume", "out")  # what --resume may change


def main(config: DatasetConfig, given: dict[str, Any]) -> None:
    """Captions, generator, and every part that is not there yet. Raises ParameterError."""
    if config.resume:
        config = resumed(config, given, FREE)
    captions = read_lines(Path(config.captions), "captions")
    count = config.images or len(captions)
    if config.seed + count - 1 > LARGEST:
        raise ParameterError("seed", config.seed, f"must be at most {LARGEST} for the last of the {count} images")
    generator = open_generator(config.image_options())
    prompts = [captions[i % len(captions)] for i in range(count)]
    place = run_place(config.resume, config.out, RESULTS / "meg" / f"data_{config.generator}")
    with place as folder, Progress(total=count, unit="image", desc="images") as bar:
        if config.resume:
            if read_lines(folder / "captions.txt", "resume") != prompts:
                raise ParameterError("captions", config.captions, "must be the captions that the data were begun with")
        else:
            write_text(folder / "captions.txt", prompt_lines(prompts))
            write_config(folder, "meg data", dataclasses.asdict(config))
        for part, start in enumerate(range(0, count, PART)):
            end = min(start + PART, count)
            if not part_path(folder, part).exists():
                make_part(generator, config, folder, part, prompts[start:end], start)
            bar.update(end - start)
    print(f"{count} latents and images in {folder}; peak memory {peak_memory(generator.device)}")


def make_part(
    generator: ImageGenerator, config: DatasetConfig, folder: Path, part: int, prompts: list[str], first: int
) -> None:
    """Make the images of one part, whose first has that number."""
    latents, images = [], []
    for start in range(0, len(prompts), config.batch_size):
        few = prompts[start : start + config.batch_size]
        seeds = [config.seed + first + start + i for i in range(len(few))]
        latents.append(generator.latents(few, seeds).cpu())
        images.append(generator.images(latents[-1].half().float()).cpu())  # of the latents as they are stored
    save_part(folder, part, torch.cat(latents), torch.cat(images))


if __name__ == "__main__":
    command_line(DatasetConfig, main, __doc__)

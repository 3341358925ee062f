"""Make the latents and images that MEG's decoders are trained on, once, from captions or from pictures of one's own.

Writes parts of 64 into --out, with captions.txt or pictures.csv, and config.json; an interrupted run goes on with
--resume, and nothing is ever made again. Examples:
python meg/make_dataset.py
python meg/make_dataset.py --generator sdxl --captions captions.txt --images 20
python meg/make_dataset.py --generator sd3 --pictures photos
"""

import common.quiet_start  # noqa: F401

import dataclasses
from collections.abc import Sequence
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
from meg.pictures import Pictures, captions_of
from meg.sources import Source, SourceParameters, check_one_source, pictures_of, recorded, source_of
from resd3_medium.tasks import DATASET

CAPTIONS = DATASET / "pocket_captions.txt"


@dataclasses.dataclass(kw_only=True)
class DatasetConfig(SourceParameters):
    """Every parameter of make_dataset.py."""

    GROUP: ClassVar[str] = "data"

    captions: str = parameter(
        str(CAPTIONS), "file with a caption on each line, or folder of pictures with captions", path=True
    )
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
    check_one_source(config, given)
    found = found_by(config)
    generator = open_generator(config.image_options())
    source = source_of(found, generator, config.seed, config.clean)
    count = len(source.captions)
    place = run_place(config.resume, config.out, RESULTS / "meg" / f"data_{config.generator}")
    with place as folder, Progress(total=count, unit="image", desc="images") as bar:
        if config.resume:
            if not recorded(folder, source):
                name = "pictures" if config.pictures else "captions"
                raise ParameterError(name, getattr(config, name), f"must be the {name} that the data were begun with")
        else:
            name, text = source.record()
            write_text(folder / name, text)
            write_config(folder, "meg data", dataclasses.asdict(config))
        for part, start in enumerate(range(0, count, PART)):
            numbers = range(start, min(start + PART, count))
            if not part_path(folder, part).exists():
                make_part(source, folder, part, numbers, config.batch_size)
            bar.update(len(numbers))
    print(f"{count} latents and images in {folder}; peak memory {peak_memory(generator.device)}")


def found_by(config: DatasetConfig) -> Pictures | list[str]:
    """The pictures, or the captions gone through until there are enough. Raises ParameterError."""
    split = config.split or "train"
    if config.pictures:
        return pictures_of(config, split, config.images)
    captions = captions_of(Path(config.captions), "captions", split, config.test_share)
    count = config.images or len(captions)
    if config.seed + count - 1 > LARGEST:
        raise ParameterError("seed", config.seed, f"must be at most {LARGEST} for the last of the {count} images")
    return [captions[i % len(captions)] for i in range(count)]


def make_part(source: Source, folder: Path, part: int, numbers: Sequence[int], size: int) -> None:
    """Make the images of one part, so many at a time."""
    latents, images = [], []
    for start in range(0, len(numbers), size):
        few = numbers[start : start + size]
        latents.append(source.latents(few))
        images.append(source.images(latents[-1].half().float(), few))  # of the latents as they are stored
    save_part(folder, part, torch.cat(latents), torch.cat(images))


if __name__ == "__main__":
    command_line(DatasetConfig, main, __doc__)

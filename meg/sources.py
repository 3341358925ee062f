"""What latents and clean images come from: prompts that a generator makes images of, or pictures of one's own.

Start reading at `Source`.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch

from common.parameters import ParameterError
from common.tables import lines
from meg.image_generator import GeneratorParameters, ImageGenerator
from meg.pictures import PictureParameters, Pictures, open_pictures
from resd3_medium.tasks import prompt_lines

HEADER = ("picture", "sha256", "caption")


@dataclasses.dataclass(kw_only=True)
class SourceParameters(PictureParameters, GeneratorParameters):
    """The generator, and the pictures in the place of what it makes."""


class Source(Protocol):
    """Latents and clean images, by number."""

    captions: list[str]  # one of each image, empty where there is none

    def latents(self, numbers: Sequence[int]) -> torch.Tensor:
        """Scaled latents [B, C, H/8, W/8] in float32. Raises ParameterError when they are not finite."""

    def images(self, latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Clean images [B, 3, H, W] in 0..1 that belong to scaled latents."""

    def record(self) -> tuple[str, str]:
        """Name and text of the file that says what the images are."""


class Prompted:
    """Images that a generator makes of prompts; image i has that seed + i."""

    def __init__(self, generator: ImageGenerator, prompts: list[str], seed: int) -> None:
        self.generator, self.captions, self.seed = generator, prompts, seed

    def latents(self, numbers: Sequence[int]) -> torch.Tensor:
        """The generator's latents."""
        return self.generator.latents([self.captions[i] for i in numbers], [self.seed + i for i in numbers]).cpu()

    def images(self, latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """What the generator's decoder makes of them."""
        return self.generator.images(latents).cpu()

    def record(self) -> tuple[str, str]:
        """The prompts, one on each line."""
        return "captions.txt", prompt_lines(self.captions)


class Shown:
    """Pictures through the generator's autoencoder.

    With `decoded` the clean image of a picture is what the decoder makes of its latent, as for a generated one; else it
    is the picture itself. Raises ParameterError that names the first picture that cannot be read.
    """

    def __init__(self, generator: ImageGenerator, pictures: Pictures, decoded: bool) -> None:
        self.generator, self.pictures, self.decoded = generator, pictures, decoded
        self.captions = pictures.captions
        pictures.check(generator.side)

    def latents(self, numbers: Sequence[int]) -> torch.Tensor:
        """The means of the latents that the generator's encoder gives."""
        made = self.generator.encoded(self.pictures.load(numbers, self.generator.side)).cpu()
        if not bool(made.isfinite().all()):
            raise ParameterError("dtype", None, "must be one in which the encoder's latents are finite, as float32")
        return made

    def images(self, latents: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """What the generator's decoder makes of them, or the pictures themselves."""
        if self.decoded:
            return self.generator.images(latents).cpu()
        return self.pictures.load(numbers, self.generator.side)

    def record(self) -> tuple[str, str]:
        """Names, hashes and captions."""
        rows = [(p.name, d, p.caption) for p, d in zip(self.pictures.pictures, self.pictures.digests, strict=True)]
        return "pictures.csv", b"".join(lines(HEADER, [HEADER, *rows])).decode()


def check_one_source(config: SourceParameters, given: Collection[str]) -> None:
    """Raise ParameterError for parameters that are given, and that the source of the images has no use for."""
    if config.pictures:
        reasons = dict.fromkeys(("captions", "prompts"), "must not be combined with --pictures")
        unused = ["steps", "cfg_scale"]
        if hasattr(config, "captions"):  # in a figure it is that of the noise, too
            unused.append("seed")
        reasons |= dict.fromkeys(unused, "must not be combined with --pictures, which no prompt makes")
    else:
        reasons = dict.fromkeys(("clean", "fit"), "must be combined with --pictures")
        name = "captions" if hasattr(config, "captions") else "prompts"
        if not Path(getattr(config, name)).is_dir():
            words = f"must be combined with --pictures, or with a folder as --{name}"
            reasons |= dict.fromkeys(("split", "test_share"), words)
    for name, reason in reasons.items():
        if name in given:
            raise ParameterError(name, getattr(config, name), reason)


def pictures_of(config: SourceParameters, split: str, count: int | None, fewer: bool = False) -> Pictures:
    """The pictures of --pictures, so many or all; with `fewer`, as many as there are will do. Raises ParameterError."""
    found = open_pictures(Path(config.pictures), config.split or split, config.test_share, config.fit)
    if count is not None and count > len(found) and not fewer:
        words = f"must be at most {len(found)}, the pictures of that split"
        raise ParameterError("images", count, words)
    return found.first(count or len(found))


def source_of(found: Pictures | list[str], generator: ImageGenerator, seed: int, clean: str) -> Source:
    """Where images come from: pictures, or prompts with the seed of the first. Raises ParameterError as `Shown`."""
    if isinstance(found, Pictures):
        return Shown(generator, found, clean == "decoded")
    return Prompted(generator, found, seed)


def recorded(folder: Path, source: Source) -> bool:
    """Whether the data in a folder were begun with these prompts or pictures. Raises ParameterError of resume."""
    name, text = source.record()
    try:
        return (folder / name).read_text(encoding="utf-8") == text
    except (OSError, ValueError) as error:
        raise ParameterError("resume", folder, f"must hold {name} of the data ({error})") from None


def picture_note(source: Source) -> str:
    """What the images are, to go on with in a report's note; empty for generated ones."""
    if not isinstance(source, Shown):
        return ""
    kind = "what the decoder makes of their latents" if source.decoded else "the pictures themselves"
    return f"; pictures of one's own, clean images are {kind}"

"""Pictures of one's own in the place of generated images: which of a dataset folder, and as tensors.

Every picture belongs to the training or to the test, never to both: as the folder says, or else by the hash of its
file, so that more pictures move none from one to the other, and equal files stay together. Start reading at
`open_pictures`.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import describe
from meg.picture import Picture
from meg.picture_folder import find_pictures
from resd3_medium.initial_image import file_sha256, load_image
from resd3_medium.tasks import read_lines

SPLITS = ("train", "test", "all")


@dataclasses.dataclass(kw_only=True)
class PictureParameters(Parameters):
    """Which pictures take the place of generated images."""

    GROUP: ClassVar[str] = "pictures"

    pictures: str | None = parameter(
        None,
        "folder of pictures that are used instead of generated images",
        more="Captions lie beside the pictures, in text files of the same name, metadata.jsonl or metadata.csv. A data "
        "set saved by Hugging Face's datasets is read, too, where the package pyarrow is.",
        path=True,
    )
    split: str | None = parameter(
        None,
        "which pictures or captions of a folder; default train in make_dataset.py, test in test_MEG.py",
        choices=SPLITS,
        more="They are apart as folders train and test say, or else by the SHA-256 of the picture's file.",
    )
    test_share: float = parameter(
        0.1, "share of a folder's pictures that are to test on, where the folder does not say", above=0, high=0.9
    )
    fit: str = parameter(
        "crop",
        "crop: take the middle of a picture; pad: add white on two sides; stretch",
        choices=("crop", "pad", "stretch"),
    )
    clean: str = parameter(
        "decoded",
        "clean image of a picture: decoded from its latent, as a generated one is, or the picture itself",
        choices=("decoded", "picture"),
    )


@contextmanager
def naming(picture: Picture, flag: str) -> Iterator[None]:
    """Mistakes of a picture's file become errors of the flag that name it."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(flag, picture.shown, error.reason) from None
    except (ValueError, OSError) as error:
        raise ParameterError(flag, picture.shown, f"must be an image that can be read ({describe(error)})") from None


def loaded(
    picture: Picture, side: int, fit: str, flag: str, tell: Callable[[str], None] = lambda line: None
) -> torch.Tensor:
    """A picture as [1, 3, side, side] in 0..1: upright, its first frame, in sRGB on white. Raises ParameterError."""
    with naming(picture, flag), picture.file() as path:
        return (load_image(path, side, side, fit, tell) + 1) / 2


def digest(picture: Picture, flag: str) -> str:
    """The SHA-256 of a picture's file. Raises ParameterError."""
    with naming(picture, flag), picture.file() as path:
        return file_sha256(path)


def is_test(sha256: str, share: float) -> bool:
    """Whether a picture is to test on, where the folder does not say: its hash is below that share of all hashes."""
    return int(sha256[:13], 16) < share * 16**13


def chosen(pictures: Sequence[Picture], digests: Sequence[str], split: str, share: float) -> list[int]:
    """The numbers of the pictures of a split, in their order.

    Where all lie in parts named train and test (or validation), these are taken; of the pictures to train on those are
    left out whose files are also to test on. Else `is_test` decides.
    """
    parts = {picture.part for picture in pictures}
    numbers = range(len(pictures))
    if split == "all":
        return list(numbers)
    if "" in parts or "train" not in parts or len(parts) < 2:
        return [i for i in numbers if is_test(digests[i], share) == (split == "test")]
    other = "test" if "test" in parts else "validation"
    held_out = [i for i in numbers if pictures[i].part == other]
    known = {digests[i] for i in held_out}
    train = [i for i in numbers if pictures[i].part == "train" and digests[i] not in known]
    return held_out if split == "test" else train


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of a split and the SHA-256 of their files, in the folder's order, and how they are loaded."""

    pictures: list[Picture]
    digests: list[str]
    fit: str
    flag: str

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def captions(self) -> list[str]:
        """A caption for each, empty where there is none."""
        return [picture.caption for picture in self.pictures]

    def first(self, count: int) -> "Pictures":
        """So many of them, by their hashes: those of fewer are among those of more. They stay in their order."""
        kept = sorted(sorted(range(len(self)), key=lambda i: (self.digests[i], i))[:count])
        return dataclasses.replace(
            self, pictures=[self.pictures[i] for i in kept], digests=[self.digests[i] for i in kept]
        )

    def check(self, side: int) -> None:
        """Decode every picture, and tell how many lack a caption.

        Raises ParameterError that names the first one that cannot be read.
        """
        if bare := [picture for picture in self.pictures if not picture.caption]:
            words = f"{len(bare)} of {len(self)} pictures have no caption, such as {bare[0].shown}"
            print(f"note: {words}; they are used without", file=sys.stderr)
        for picture in Progress(self.pictures, unit="picture", desc="checking pictures"):
            told = f"note: {picture.shown}: "
            loaded(picture, side, self.fit, self.flag, lambda line, told=told: print(told + line, file=sys.stderr))

    def load(self, numbers: Sequence[int], side: int) -> torch.Tensor:
        """Pictures [B, 3, side, side] in 0..1. Raises ParameterError."""
        return torch.cat([loaded(self.pictures[i], side, self.fit, self.flag) for i in numbers])


def open_pictures(folder: Path, split: str, share: float, fit: str = "crop", flag: str = "pictures") -> Pictures:
    """A folder's pictures of a split. Raises ParameterError of the flag when there are none, and as `find_pictures`."""
    pictures = find_pictures(folder, flag)
    digests = [digest(picture, flag) for picture in pictures]
    numbers = chosen(pictures, digests, split, share)
    if not numbers:
        words = f"none of its {len(pictures)} pictures is to {split} on; add pictures, or give --split all"
        raise ParameterError(flag, folder, f"{words} or another --test_share")
    return Pictures([pictures[i] for i in numbers], [digests[i] for i in numbers], fit, flag)


def captions_of(path: Path, flag: str, split: str, share: float) -> list[str]:
    """The captions of a file, one on each line, or those of a dataset folder's split. Raises ParameterError."""
    if not path.is_dir():
        return read_lines(path, flag)
    found = open_pictures(path, split, share, flag=flag)
    if bare := [picture for picture in found.pictures if not picture.caption]:
        words = f"has no caption, as {len(bare)} of {len(found)} pictures; write one into a text file of its name"
        raise ParameterError(flag, bare[0].shown, words)
    return found.captions

"""A picture of a dataset folder with its caption. Start reading at `Picture`."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CAPTIONS = ("text", "caption", "prompt", "captions")  # columns, the first that is there
PARTS = {  # names that Hugging Face's datasets knows for the parts of a data set
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a dataset folder: its name there, its caption in one line, and the image file.

    The caption is empty where there is none. `part` is train, test, validation, or empty where the folder does not say.
    `shown` is how mistakes name it. `content` gives the bytes of an image that is no file of its own.
    """

    name: str
    caption: str
    part: str
    shown: str
    path: Path | None = None
    content: Callable[[], bytes] | None = None

    @contextlib.contextmanager
    def file(self) -> Iterator[str]:
        """The path of the image file, for a while. Raises ParameterError of init_image, as load_image does."""
        if self.path is not None:
            yield str(self.path)
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.content())
            file.flush()
            yield file.name


def part_of(name: str) -> str:
    """The part of a data set that a name stands for; empty for other names."""
    return next((part for part, names in PARTS.items() if name.lower() in names), "")


def one_line(caption: Any) -> str:
    """A caption in one line: of several the first, of None none. Raises ValueError for what is no text."""
    if isinstance(caption, list | tuple):
        caption = caption[0] if caption else None
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"the caption must be text, not {str(caption)[:50]!r}")
    whole = (caption or "").encode(errors="replace").decode()  # without half of a surrogate pair
    return " ".join(whole.split())

"""The folder of a run's images: their names, and the list of them in tasks.csv. Start reading at `ImageFolder`."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.parameters import ParameterError
from common.run_folder import describe, replace_file
from common.tables import Table, lines, named, scan, torn_line, write_csv
from resd3_medium.tasks import ImageTask, Measured

NAME = re.compile(r"([0-9]{4,7})_[a-z0-9-]{1,40}_s[0-9]{1,19}\.png")  # what this script calls an image
END = b"\0\0\0\0IEND\xaeB`\x82"  # the last bytes of every PNG
PREVIEW = "preview.png"  # of the images in work; the last one stays
HEADER = (
    *("image", "prompt", "negative_prompt", "steps", "seed", "width", "height", "cfg_scale", "shift", "sampler"),
    *("text_s", "denoise_s", "decode_s", "peak_memory_mib"),
    *("weights", "lora", "init_image", "denoise"),
)


def image_names(tasks: Sequence[ImageTask], first: int) -> list[str]:
    """The files of a run's images, numbered in the order of its tasks from `first` on, with as many digits each."""
    digits = max(4, len(str(first + len(tasks) - 1)))
    names = []
    for number, task in enumerate(tasks, first):
        words = re.sub(r"[^a-z0-9]+", "-", task.prompt[:1000].lower()).strip("-")[:40].strip("-") or "image"
        names.append(f"{number:0{digits}d}_{words}_s{task.seed}.png")
    return names


class ImageFolder:
    """A folder of images that is this process's, and its tasks.csv.

    A tasks.csv of an older version gets the columns that it lacks. Raises ParameterError of `flag` when it is not this
    script's.
    """

    def __init__(self, folder: Path, flag: str = "out") -> None:
        self.folder, self.table = folder, Table(folder / "tasks.csv", HEADER)
        try:
            add_columns(self.table.path)
            self.listed = {row["image"] for row in self.table.rows()}
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or describe(error)
            reason = f"its tasks.csv must be one of this script ({words})"
            raise ParameterError(flag, folder, reason) from None

    def whole(self, name: str) -> bool:
        """Whether an image lies here to its end, which a copy to a full disk or a power failure may have cut off."""
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(-len(END), os.SEEK_END)
                return file.read() == END
        except OSError:
            return False

    def numbers(self) -> set[int]:
        """The numbers of the images that lie here; other people's files do not count."""
        return {int(m[1]) for path in self.folder.iterdir() if (m := NAME.fullmatch(path.name))}

    def next_number(self) -> int:
        """A number above those of all images that lie here or are listed."""
        listed = {int(m[1]) for name in self.listed if (m := NAME.fullmatch(name))}
        return max(self.numbers() | listed, default=0) + 1

    def save(self, name: str, content: bytes) -> None:
        """Write an image's file. Raises OSError."""
        replace_file(self.folder / name, lambda temporary: temporary.write_bytes(content))

    def list(self, name: str, task: ImageTask, took: Measured | None, models: Sequence[str]) -> None:
        """Add the image's row to tasks.csv, unless it is there; `models` are the cells of weights and lora."""
        if name in self.listed:
            return
        s = task.settings
        seconds = [f"{value:.3f}" for value in (took.text, took.denoise, took.decode)] if took else [""] * 3
        self.table.append(
            [
                *(name, task.prompt, task.negative_prompt, s.steps, task.seed),
                *(s.width, s.height, s.cfg_scale, s.shift, s.sampler),
                *(*seconds, f"{took.peak_memory:.0f}" if took else ""),
                *(*models, s.init_image or "", s.denoise if s.init_image else ""),
            ]
        )
        self.listed.add(name)


def add_columns(table: Path) -> None:
    """Give a tasks.csv of an older version the columns that it lacks. Raises OSError, or ValueError for other files."""
    if not table.exists():
        return
    rows, _, torn = scan(table)
    header = rows[0] if rows else []
    if not rows and torn and not next(lines(HEADER, [HEADER])).startswith(table.read_bytes()):
        raise ValueError("it has other columns")
    if rows and not {"image", "prompt", "seed"} <= set(header) <= set(HEADER):
        raise ValueError("it has other columns")
    if rows and tuple(header) != HEADER:
        if torn:
            print(torn_line(table, torn), file=sys.stderr)
        write_csv(table, HEADER, [[row.get(name, "") for name in HEADER] for row in named(rows)])


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a folder that was made meanwhile and is empty, when a mistake or Ctrl-C ends what goes on."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (ParameterError, KeyboardInterrupt):
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise

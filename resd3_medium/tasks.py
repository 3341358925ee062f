"""Generation tasks: their prompts and demanded steps, and how images carry their settings and are listed.

A task is one image. Its settings stand in the PNG's text chunks, from which the image can be made again, and in a row
of tasks.csv. Start reading at `draw_tasks`.
"""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from common.parameters import ParameterError
from common.run_folder import describe, read_csv, replace_file, write_csv
from resd3_medium.pipeline import Settings

DATASET = Path(__file__).resolve().parents[1] / "dataset"
CAPTIONS = ("Flickr8k_text.txt", "prompts.txt")  # the first that is there is drawn from
CHUNK = "dedgeai"  # the PNG text chunk that holds the task as JSON


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """One image to make."""

    prompt: str
    negative_prompt: str
    seed: int
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a task took: seconds for each stage, and the process's peak memory in MiB."""

    text: float
    denoise: float
    decode: float
    peak_memory: float


def parse_steps(text: str) -> tuple[int, int]:
    """`28` as (28, 28), `10-19` as (10, 19). Raises ParameterError otherwise."""
    match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 1000:
        raise ParameterError("steps", text, "must be a number from 1 to 1000, or a range as in 10-19")
    return low, high


def read_lines(path: Path, flag: str) -> list[str]:
    """The prompts of a file, one per line; blank lines do not count. Raises ParameterError when there is none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ParameterError(flag, path, f"must be a text file with a prompt on each line ({reason})") from None
    lines = [line for line in lines if line]
    if not lines:
        raise ParameterError(flag, path, "must hold at least one prompt; it is empty")
    return lines


def choose_prompts(prompt: Sequence[str], file: str | None, number: int | None, seed: int) -> list[str]:
    """The prompts of all tasks: those given, or captions of the dataset drawn with a seed.

    With a `number`, given prompts are repeated in turn until there are so many.
    """
    if file is not None:
        found = read_lines(Path(file), "prompts")
    elif prompt:
        found = list(prompt)
    else:
        path = next(DATASET / name for name in CAPTIONS if (DATASET / name).is_file())
        captions = read_lines(path, "prompts")
        index = np.random.default_rng(seed).choice(len(captions), number or 1, replace=(number or 1) > len(captions))
        return [captions[i] for i in index]
    return [found[i % len(found)] for i in range(number or len(found))]


def draw_tasks(
    prompts: Sequence[str], negative_prompt: str, seed: int, steps: tuple[int, int], settings: Settings
) -> list[ImageTask]:
    """A task for each prompt: image i has seed + i, and its own number of steps, drawn with that seed."""
    tasks = []
    for i, prompt in enumerate(prompts):
        demand = int(np.random.default_rng(seed + i).integers(steps[0], steps[1], endpoint=True))
        tasks.append(ImageTask(prompt, negative_prompt, seed + i, dataclasses.replace(settings, steps=demand)))
    return tasks


# --- images and their list ---


def png_bytes(image: Image.Image, task: ImageTask, more: dict[str, Any]) -> bytes:
    """The image as a PNG file, with the task and `more` in its text chunks."""
    content = dataclasses.asdict(task) | more
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, json.dumps(content, ensure_ascii=False))
    for name, value in (content.pop("settings") | content).items():  # for other programs, one by one
        chunks.add_itxt(name, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def save_image(image: Image.Image, folder: Path, task: ImageTask, more: dict[str, Any]) -> Path:
    """Write the image as `png_bytes` gives it under a new name."""
    content = png_bytes(image, task, more)
    words = re.sub(r"[^a-z0-9]+", "-", task.prompt.lower()).strip("-")[:40].strip("-") or "image"
    numbers = [int(m[1]) for path in folder.glob("*.png") if (m := re.match(r"(\d+)_", path.name))]
    path = folder / f"{max(numbers, default=0) + 1:04d}_{words}_s{task.seed}.png"
    replace_file(path, lambda temporary: temporary.write_bytes(content))
    return path


def read_task(path: str) -> tuple[ImageTask, dict[str, Any]]:
    """The task that made an image, and what else its text chunks say. Raises ParameterError when it has none."""
    try:
        with Image.open(path) as image:
            image.load()
            content = json.loads(image.text[CHUNK])
        settings = Settings(**content.pop("settings"))
        names = [field.name for field in dataclasses.fields(ImageTask) if field.name != "settings"]
        task = ImageTask(**{name: content.pop(name) for name in names}, settings=settings)
        if not (isinstance(task.prompt, str) and isinstance(task.negative_prompt, str)):
            raise TypeError("a prompt that is no text")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ParameterError(
            "from_image", path, f"must be a PNG made by this script ({type(error).__name__}: {error})"
        ) from None
    return task, content


HEADER = (
    *("image", "prompt", "negative_prompt", "steps", "seed", "width", "height", "cfg_scale", "shift", "sampler"),
    *("text_s", "denoise_s", "decode_s", "peak_memory_mib"),
)


def check_table(folder: Path) -> None:
    """Raise ParameterError when the folder has a tasks.csv that is not this script's."""
    table = folder / "tasks.csv"
    try:
        rows = read_csv(table) if table.exists() else []
        if rows and tuple(rows[0]) != HEADER:
            raise ValueError("it has other columns")
    except (OSError, ValueError) as error:
        raise ParameterError("out", folder, f"its tasks.csv must be one of this script ({describe(error)})") from None


def list_task(folder: Path, image: Path, task: ImageTask, took: Measured) -> None:
    """Add the task's row to the folder's tasks.csv."""
    table = folder / "tasks.csv"
    rows = [[row.get(name, "") for name in HEADER] for row in read_csv(table)] if table.is_file() else []
    s = task.settings
    rows.append(
        [
            *(image.name, task.prompt, task.negative_prompt, s.steps, task.seed),
            *(s.width, s.height, s.cfg_scale, s.shift, s.sampler),
            *(f"{seconds:.3f}" for seconds in (took.text, took.denoise, took.decode)),
            f"{took.peak_memory:.0f}",
        ]
    )
    write_csv(table, HEADER, rows)

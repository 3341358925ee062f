"""Generation tasks: their prompts, seeds and demanded steps. A task is one image. Start reading at `draw_tasks`."""

import codecs
import dataclasses
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.parameters import ParameterError
from resd3_medium.pipeline import Settings

DATASET = Path(__file__).resolve().parents[1] / "dataset"
CAPTIONS = ("Flickr8k_text.txt", "prompts.txt")  # the first that is there is drawn from

LARGEST_FILE = 2**28  # bytes of a file of prompts
LARGEST_SEED = 2**63  # of an image; torch takes larger ones, other programs do not


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
    match = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 1000:
        raise ParameterError("steps", text, "must be a number from 1 to 1000, or a range as in 10-19")
    return low, high


def parse_seed(text: str) -> int:
    """The seed that a text is; a drawn one for `random`. Raises ParameterError otherwise."""
    if text == "random":
        return secrets.randbelow(2**53)  # which every program that reads JSON keeps exactly
    if not re.fullmatch(r"\s*[0-9]{1,19}\s*", text) or int(text) > LARGEST_SEED:
        raise ParameterError("seed", text, "must be a whole number from 0 to 2^63 (9223372036854775808), or random")
    return int(text)


MARKS = {"utf-8-sig": codecs.BOM_UTF8, "utf-32": codecs.BOM_UTF32_LE, "utf-16": codecs.BOM_UTF16_LE}
MARKS |= {"utf-32-be": codecs.BOM_UTF32_BE, "utf-16-be": codecs.BOM_UTF16_BE}  # in an order that none hides another


def decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or what the mark at its start says, as Windows writes it. Raises ValueError."""
    encoding = next((name for name, mark in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 4 * content.count(0) > len(content):
        raise ValueError("it is not UTF-8 text, and UTF-16 lacks its mark; save it as UTF-8")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(f"it is not {encoding.removesuffix('-sig').removesuffix('-be').upper()} text") from None


def file_content(path: Path) -> bytes:
    """The bytes of a file or pipe; none of a named pipe that nobody writes to, which would be waited for for ever.

    Raises OSError, or ValueError when there are more than LARGEST_FILE.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        os.set_blocking(file.fileno(), True)
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE // 2**20} MiB")
    return content


def read_lines(path: Path, flag: str) -> list[str]:
    """The prompts of a file, one per line. Blank lines and those that start with # do not count; \\# is # there.

    Raises ParameterError of `flag` when the file cannot be read, or has no prompt.
    """
    try:
        text = decoded(file_content(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError(flag, path, f"must be a text file with a prompt on each line ({reason})") from None
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    prompts = [re.sub(r"^\\(?=\\*#)", "", line) for line in lines if line[:1] not in ("", "#")]
    if not prompts:
        found = "comments and blank lines only" if any(lines) else "it is empty"
        raise ParameterError(flag, path, f"must hold at least one prompt; {found}")
    return prompts


def prompt_lines(prompts: Sequence[str]) -> str:
    """The text of a file that `read_lines` reads these prompts from."""
    return "".join(re.sub(r"^(?=\\*#)", r"\\", prompt) + "\n" for prompt in prompts)


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

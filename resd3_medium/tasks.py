"""Generation tasks: their prompts, seeds and demanded steps. A task is one image. Start reading at `draw_tasks`."""

import dataclasses
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.parameters import ParameterError
from resd3_medium.pipeline import Settings

DATASET = Path(__file__).resolve().parents[1] / "dataset"
CAPTIONS = ("Flickr8k_text.txt", "prompts.txt")  # the first that is there is drawn from

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
    match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 1000:
        raise ParameterError("steps", text, "must be a number from 1 to 1000, or a range as in 10-19")
    return low, high


def parse_seed(text: str) -> int:
    """The seed that a text is; a drawn one for `random`. Raises ParameterError otherwise."""
    if text == "random":
        return secrets.randbelow(2**53)  # which every program that reads JSON keeps exactly
    if not re.fullmatch(r"\s*\d{1,19}\s*", text) or int(text) > LARGEST_SEED:
        raise ParameterError("seed", text, "must be a whole number from 0 to 2^63 (9223372036854775808), or random")
    return int(text)


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

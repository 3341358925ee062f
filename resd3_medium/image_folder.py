"""The folder of a run's images: their names, and the list of them in tasks.csv. Start reading at `save_image`."""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from common.parameters import ParameterError
from common.run_folder import describe, replace_file
from common.tables import read_csv, write_csv
from resd3_medium.png import png_bytes
from resd3_medium.tasks import ImageTask, Measured


def save_image(image: Image.Image, folder: Path, task: ImageTask, more: dict[str, Any]) -> Path:
    """Write the image as `png_bytes` gives it under a new name."""
    content = png_bytes(image, task, more)
    words = re.sub(r"[^a-z0-9]+", "-", task.prompt.lower()).strip("-")[:40].strip("-") or "image"
    numbers = [int(m[1]) for path in folder.glob("*.png") if (m := re.match(r"(\d+)_", path.name))]
    path = folder / f"{max(numbers, default=0) + 1:04d}_{words}_s{task.seed}.png"
    replace_file(path, lambda temporary: temporary.write_bytes(content))
    return path


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

"""Folders of pictures and captions for tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.parameters import ParameterError


def picture(seed: int = 0, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, files: dict[str, bytes | str | Image.Image]) -> Path:
    """Write files by their names; the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def numbered(folder: Path, count: int, prefix: str = "") -> Path:
    """Pictures whose captions are their numbers."""
    for i in range(count):
        write(folder, {f"{prefix}{i:03}.png": picture(i), f"{prefix}{i:03}.txt": f"number {i}"})
    return folder


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ParameterError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)

"""How a PNG carries what it was made of, and what is read from it again. Start reading at `png_bytes`."""

import dataclasses
import io
import json
from typing import Any

from PIL import Image, PngImagePlugin

from common.parameters import ParameterError
from resd3_medium.pipeline import Settings
from resd3_medium.tasks import ImageTask

CHUNK = "dedgeai"  # the PNG text chunk that holds the task as JSON


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

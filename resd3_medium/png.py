"""How a PNG carries what it was made of, and what is read from it again. Start reading at `png_bytes`."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from common.parameters import ParameterError
from common.run_folder import describe
from resd3_medium.initial_image import checked_path, pillow
from resd3_medium.parameters_text import parameters_text, read_parameters, short
from resd3_medium.pipeline import Settings
from resd3_medium.tasks import ImageTask

CHUNK = "dedgeai"  # the PNG text chunk that holds the task as JSON
PARAMETERS = "parameters"  # the one that other programs read
FOLDERS = ("models", "out")  # what is about this computer only
FILES = ("init_image", "file")  # of which only the file's name is kept
OTHERS = {  # texts by which programs are known that write another kind
    "InvokeAI": {"invokeai_metadata", "invokeai_graph", "sd-metadata", "Dream"},
    "ComfyUI": {"workflow", "prompt"},
    "NovelAI": {"Comment"},
}
LATE = 2**26  # pixels of an image up to which it is decoded for text that stands behind them


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a picture says of how it was made.

    `parameters` are by the names of refine_sd3_infer.py's, those that it gives. `more` is what png_bytes got besides;
    `told` has a line for each thing that the picture of another program says and that is not used.
    """

    parameters: dict[str, Any]
    more: dict[str, Any]
    told: list[str]
    ours: bool


def png_bytes(image: Image.Image, task: ImageTask, more: dict[str, Any], metadata: str = "full") -> bytes:
    """The image as a PNG file, with the task and `more` in its text chunks. No folder is named in them.

    `metadata` full: as JSON, one by one, and as `parameters`; plain: as `parameters` only; off: no text. `more` may
    hold `weights`, file, precision and sha256 by the part's name; `lora`, a list of file, strength and sha256; and
    `init_image_sha256`.
    """
    chunks = PngImagePlugin.PngInfo()
    if metadata == "full":
        content = without_folders(dataclasses.asdict(task) | more)
        chunks.add_itxt(CHUNK, json.dumps(content, ensure_ascii=False))
        for name, value in (content.pop("settings") | content).items():  # for other programs, one by one
            chunks.add_itxt(name, json.dumps(value) if isinstance(value, dict | list) else str(value))
    if metadata != "off":
        chunks.add_text(PARAMETERS, parameters_text(task, more))  # in Latin-1, or else UTF-8
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def without_folders(content: Any) -> Any:
    """The same content, with names of files instead of their paths."""
    if isinstance(content, list | tuple):
        return [without_folders(value) for value in content]
    if not isinstance(content, dict):
        return content
    return {
        name: Path(value).name if name in FILES and isinstance(value, str) else without_folders(value)
        for name, value in content.items()
        if name not in FOLDERS
    }


def read_stored(path: str) -> Stored:
    """What a picture says of how it was made, by our own chunk or else by that of others. Raises ParameterError."""
    try:
        texts, others = read_texts(path)
    except ParameterError as error:
        raise error.renamed(init_image="from_image") from None
    try:
        if CHUNK in texts:
            return own(texts[CHUNK])
        if PARAMETERS in texts:
            found, told = read_parameters(texts[PARAMETERS])
            return Stored(found, {}, told, ours=False)
        raise ValueError(f"its texts are of another kind: {others}" if others else "it has no such text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ParameterError(
            "from_image", path, f"must be an image that says how it was made ({describe(error)})"
        ) from None


def read_task(path: str) -> tuple[ImageTask, dict[str, Any]]:
    """The task that made an image, and what else it says. What it leaves out has the defaults of `Settings`.

    Raises ParameterError when it does not say how it was made.
    """
    stored = read_stored(path)
    values = dict(stored.parameters)
    prompt, negative_prompt, seed = values.pop("prompt"), values.pop("negative_prompt"), values.pop("seed", 0)
    return ImageTask(prompt, negative_prompt, seed, Settings(**values)), stored.more


def own(text: str) -> Stored:
    """What our own chunk says. Raises ValueError, KeyError or TypeError when it is not whole."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise TypeError(f"its {CHUNK} text is not of this project")
    settings = content.pop("settings")
    Settings(**settings)  # which knows no others
    values = settings | {name: content.pop(name) for name in ("prompt", "negative_prompt", "seed")}
    for name, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"its {name} is no number and no text")
    if not (isinstance(values["prompt"], str) and isinstance(values["negative_prompt"], str)):
        raise TypeError("a prompt that is no text")
    return Stored(values, content, [], ours=True)


def read_texts(path: str) -> tuple[dict[str, str], str]:
    """The texts of a picture that say how it was made: of a PNG, or in the EXIF data of another format.

    Besides, the names of the texts of a PNG without them, in words. Raises ParameterError of `init_image`.
    """
    others = ""
    with pillow(path), checked_path(path).open("rb") as file, Image.open(file) as image:
        found = {name: image.info[name] for name in (CHUNK, PARAMETERS) if name in image.info}
        if not found and image.format == "PNG" and image.width * image.height <= LATE:
            found = {name: image.text[name] for name in (CHUNK, PARAMETERS) if name in image.text}
            others = "" if found else kind_of_texts(list(image.text))
        elif not found and image.format != "PNG":
            found = {PARAMETERS: comment} if (comment := user_comment(image)) else {}
    return {name: text for name, text in found.items() if isinstance(text, str)}, others


def kind_of_texts(names: list[str]) -> str:
    """The names of a PNG's texts, with the program that writes such ones where it is known; empty where there are none.

    What these programs write is a graph, or has words of their own, and is not read.
    """
    program = next((f", as {program} writes them" for program, its in OTHERS.items() if its & set(names)), "")
    return f"{short(', '.join(names))}{program}" if names else ""


def user_comment(image: Image.Image) -> str:
    """The comment in the EXIF data of an image, where other programs write their parameters in a JPEG or WebP."""
    content = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if isinstance(content, str):
        return content
    kind, text = content[:8], content[8:]
    if kind != b"UNICODE\0":
        return text.decode("utf-8", "replace").strip("\0 ")
    return text.decode("utf-16-le" if text[1:2] == b"\0" else "utf-16-be", "replace").strip("\0 ")


def differing_weights(stored: Any, now: dict[str, Any]) -> list[str]:
    """A line for each part whose weights are not those that an image was made with, as `more["weights"]` has them."""
    if not isinstance(stored, dict) or not stored:
        return []  # of an image that does not say
    lines = []
    for part in dict.fromkeys([*stored, *now]):
        before, after = stored.get(part), now.get(part)
        if identity(before) != identity(after):
            lines.append(f"{str(part)[:40]}: the image was made {described(before)}, this run is {described(after)}")
    return lines


def identity(weights: Any) -> Any:
    """What tells weights apart: their hash if there is one, else the file's name; and the precision."""
    if not isinstance(weights, dict):
        return None if weights is None else str(weights)
    return weights.get("sha256") or weights.get("file"), *(weights.get(n) for n in ("precision", "kept", "strength"))


def described(weights: Any) -> str:
    """Weights in words."""
    if not isinstance(weights, dict):
        return "without" if weights is None else f"with {str(weights)[:60]}"
    facts = [str(weights[name])[:20] for name in ("precision", "kept", "strength") if name in weights]
    facts += [str(weights["sha256"])[:10]] if "sha256" in weights else []
    return f"with {str(weights.get('file', 'another file'))[:60]}" + (f" ({', '.join(facts)})" if facts else "")

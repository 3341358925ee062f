"""Initial images: whatever Pillow opens, as the autoencoder takes it. Start reading at `load_image`."""

import contextlib
import hashlib
import logging
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from common.parameters import ParameterError
from common.run_folder import describe
from resd3_medium.picture_colours import TILE, Colours, tiles

HUNGRY = {"WEBP": 80_000_000}  # formats whose decoders take 17 bytes a pixel, and how many pixels are read
LARGE = 2**24  # pixels above which an image is made smaller by whole factors before it is resampled
GAP = 4  # how much larger than wanted it stays then along a side
TURNS = {  # by the orientation that EXIF data give
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def silent(line: str) -> None:
    """Tell nobody."""


def load_image(
    path: str, width: int, height: int, fit: str | None = "crop", tell: Callable[[str], None] = silent
) -> torch.Tensor:
    """An image file as [1, 3, height, width] in -1..1: its first frame, upright, in sRGB, on white, resampled.

    `fit` is what happens to other proportions. crop (and None): the middle of the image is taken; pad: white is added
    on two sides; stretch: nothing is kept of the proportions. `tell` gets a line for metadata that cannot be used.
    Raises ParameterError when the file is no image, damaged, or has more pixels than Pillow takes (about 179 million).
    """
    with opened(path) as image:
        turn, fit = orientation(image, path, tell), fit or "crop"
        with pillow(path):
            spare = min(spare_factors(upright(image.size, turn), width, height, fit))
            if image.format in ("JPEG", "MPO") and spare > 1:  # which can be decoded at an eighth of their size
                image.draft(None, (-(-image.width // spare), -(-image.height // spare)))
            image.load()
            colours = Colours(image, tell)

        def rgb(tile: tuple[int, int, int, int]) -> Image.Image:
            with pillow(path):
                return colours.rgb(image.crop(tile))

        whole = upright(image.size, turn)
        box, size = placed(whole, width, height, fit)
        if image.width * image.height <= LARGE:
            part = rgb((0, 0, *image.size))
        else:
            ready = image.mode == "RGB" and colours.plain and not image.has_transparency_data
            # A box lies around the middle, so that only a turn by a quarter moves it.
            lying, factors = turned(box, whole, 5 if turn > 4 else 1), spare_factors(whole, width, height, fit)
            part, lying = reduced(image, lying, upright(factors, turn), None if ready else rgb)
            box = turned(lying, part.size, turn)
    if turn in TURNS:
        part = part.transpose(TURNS[turn])
    made = part.resize(size, Image.Resampling.LANCZOS, box)
    if made.size != (width, height):
        page = Image.new("RGB", (width, height), "white")
        page.paste(made, (round((width - made.width) / 2), round((height - made.height) / 2)))
        made = page
    return torch.from_numpy(np.array(made, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file when it stands upright; nothing is decoded. Raises ParameterError."""
    with opened(path) as image, pillow(path):
        width, height = image.size
        return (height, width) if orientation(image, path, silent) > 4 else (width, height)


def file_sha256(path: str) -> str:
    """The SHA-256 of an image file. Raises ParameterError when it cannot be read."""
    with pillow(path), checked_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- sizes ---


def size_from_image(
    size: tuple[int, int], width: int | None, height: int | None, side: int, unit: int, largest: int
) -> tuple[int, int]:
    """Width and height of what is made from an image of `size`, where one of them or both are None.

    Both are multiples of `unit` up to `largest`. One that is missing follows from the other and the proportions. If
    both are, the image's own size is taken, or one of its proportions with at most side * side pixels.
    """
    proportion = size[0] / size[1]
    if width is None and height is None:
        scale = min(1.0, side / math.sqrt(size[0] * size[1]))
        exact = [min(max(n * scale, unit), largest) for n in size]
        made = rounded(exact[0], unit, largest), rounded(exact[1], unit, largest)
        if scale == 1 and made[0] * made[1] <= side**2:
            return made
        around = [{int(n // unit) * unit, min(-int(-n // unit) * unit, largest)} for n in exact]
        pairs = [(w, h) for w in around[0] for h in around[1] if w * h <= max(side, unit) ** 2]
        return min(pairs, key=lambda pair: (abs(math.log(pair[0] / pair[1] / proportion)), -pair[0] * pair[1]))
    if width is None:
        return rounded(height * proportion, unit, largest), height
    return width, rounded(width / proportion, unit, largest) if height is None else height


def rounded(length: float, unit: int, largest: int) -> int:
    """The multiple of `unit` from `unit` to `largest` that is nearest to a length."""
    return min(max(math.floor(length / unit + 0.5), 1), largest // unit) * unit


def cropped(size: tuple[int, int], width: int, height: int) -> str:
    """A line for the user on what the middle of an image of `size` leaves out; empty when that is not a pixel."""
    box, _ = placed(size, width, height, "crop")
    kept = round(box[2] - box[0]), round(box[3] - box[1])
    if kept == tuple(size):
        return ""
    lost = "left and right" if kept[0] < size[0] else "top and bottom"
    before, after = ("x".join(map(str, n)) for n in (size, kept))
    return f"the initial image, {before}, is cropped to {after} at {lost}; --fit pad or stretch keeps all of it"


def placed(size: tuple[int, int], width: int, height: int, fit: str) -> tuple[Box, tuple[int, int]]:
    """The part of an image of `size` that is shown in width x height pixels, and how large it is there."""
    whole, proportion, wanted = (0.0, 0.0, float(size[0]), float(size[1])), size[0] / size[1], width / height
    if fit == "stretch" or proportion == wanted:
        return whole, (width, height)
    if fit == "pad":
        if proportion > wanted:
            return whole, (width, max(1, round(size[1] / size[0] * width)))
        return whole, (max(1, round(proportion * height)), height)
    kept = (wanted * size[1], size[1]) if proportion > wanted else (size[0], size[0] / wanted)
    left, top = ((n - k) * 0.5 for n, k in zip(size, kept, strict=True))
    return (left, top, left + kept[0], top + kept[1]), (width, height)


# --- reading ---


def checked_path(path: str) -> Path:
    """The path of a plain file, ~ expanded: opening a pipe would wait for ever. Raises ParameterError."""
    with pillow(path):
        place = Path(path).expanduser()
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise OSError("it is a folder")
        if not stat.S_ISREG(mode):
            raise OSError("it is no file")
        if not os.access(place, os.R_OK):
            raise OSError("no permission to read it")
    return place


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and log lines of Pillow's, which a user could not use."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def pillow(path: str) -> Iterator[None]:
    """Whatever Pillow and its plugins raise becomes a ParameterError; only calls of theirs belong here."""
    try:
        with quiet():
            yield
    except ParameterError:
        raise
    except Image.UnidentifiedImageError:
        reason = "it is of no known format"
    except Image.DecompressionBombError:
        reason = f"it has more than {2 * Image.MAX_IMAGE_PIXELS} pixels"
    except Exception as error:  # plugins raise nearly every kind for a damaged file
        reason = getattr(error, "strerror", None) or describe(error).removeprefix("OSError: ")
    else:
        return
    raise ParameterError("init_image", path, f"must be an image that can be read ({reason})")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The image of a file, not yet decoded. Raises ParameterError."""
    with contextlib.ExitStack() as stack:
        with pillow(path):  # a file, since Pillow maps that of a path into memory, where it turns some TIFFs wrongly
            file = stack.enter_context(checked_path(path).open("rb"))
            image = stack.enter_context(Image.open(file))
        if image.format == "EPS":  # for which Pillow would start another program
            raise ParameterError("init_image", path, "must be an image that can be read (EPS files are programs)")
        if image.format in HUNGRY and image.width * image.height > HUNGRY[image.format]:
            words = f"{image.format} of more than {HUNGRY[image.format]:,} pixels needs too much memory"
            raise ParameterError("init_image", path, f"must be a PNG or JPEG at this size ({words})")
        if min(image.size) < 1:
            raise ParameterError("init_image", path, "must be an image that can be read (it has no pixels)")
        yield image


def orientation(image: Image.Image, path: str, tell: Callable[[str], None]) -> int:
    """How an image has to be turned, a key of TURNS or 1; nothing is decoded, unlike by Pillow for a PNG."""
    if image.format == "TIFF":  # Pillow turns it by itself
        return 1
    try:
        with quiet():
            if image.format == "PNG" and "exif" not in image.info and (late := late_exif(Path(path).expanduser())):
                image.info["exif"] = b"Exif\0\0" + late
            turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # of a damaged part that the picture does without
        tell(f"the EXIF data of the initial image cannot be read, it is taken as it lies ({describe(error)})")
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def late_exif(path: Path) -> bytes:
    """The EXIF data of a PNG, wherever they stand; empty if there are none."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4])
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)  # the chunk and its checksum
    return b""


# --- large images, and turned ones ---


def upright(pair: tuple[int, int], turn: int) -> tuple[int, int]:
    """Width and height of an image, or factors for them, once it is turned; and back."""
    return (pair[1], pair[0]) if turn > 4 else pair


def turned(box: Box, size: tuple[int, int], turn: int) -> Box:
    """Where a box of an image of `size` lies once the image is turned."""
    left, top, right, bottom = box
    width, height = upright(size, turn)
    if turn > 4:
        left, top, right, bottom = top, left, bottom, right
    if turn in (2, 3, 6, 7):
        left, right = width - right, width - left
    if turn in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def spare_factors(whole: tuple[int, int], width: int, height: int, fit: str) -> tuple[int, int]:
    """By which whole factors an image may be made smaller before it is resampled; 1 for images that are not large."""
    box, size = placed(whole, width, height, fit)
    if whole[0] * whole[1] <= LARGE:
        return 1, 1
    return tuple(max(1, int((box[i + 2] - box[i]) / (GAP * size[i]))) for i in range(2))


def reduced(
    image: Image.Image,
    box: Box,
    factors: tuple[int, int],
    rgb: Callable[[tuple[int, int, int, int]], Image.Image] | None,
) -> tuple[Image.Image, Box]:
    """The box of a decoded image and its surroundings in RGB, smaller by whole factors, and the box there.

    `rgb` gives a tile of the image, so that no second copy of a large one is made; None: it is in RGB already.
    """
    if rgb is None and factors == (1, 1):
        return image, box
    # The filter reaches 3 pixels of the result to either side, each below 2 GAP of those that `part` has.
    first = [max(0, int(box[i] / f) - 6 * GAP - 1) * f for i, f in enumerate(factors)]
    last = [min(image.size[i], math.ceil(box[i + 2]) + (6 * GAP + 1) * f) for i, f in enumerate(factors)]
    lengths = [-(-(b - a) // f) for a, b, f in zip(first, last, factors, strict=True)]
    part = Image.new("RGB", lengths)
    for tile in tiles((*first, *last), *(max(1, TILE // f) * f for f in factors)):
        piece = image.crop(tile) if rgb is None else rgb(tile)
        piece = piece if factors == (1, 1) else piece.reduce(factors)
        part.paste(piece, tuple((tile[i] - first[i]) // factors[i] for i in range(2)))
    inside = [(box[i] - first[i % 2]) / factors[i % 2] for i in range(4)]
    return part, (*inside[:2], *(min(a, b) for a, b in zip(inside[2:], lengths, strict=True)))

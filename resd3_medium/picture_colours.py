"""Pictures of any mode, part by part, as 8-bit RGB on white. Start reading at `Colours.rgb`."""

import io
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

TILE = 1024  # pixels along a side of what is converted at once
WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # one number a pixel, of more than 8 bits
SIXTEEN = ("PNG", "PPM", "JPEG2000")  # formats whose mode I is 16 bits scaled to the full range
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a colour profile, and the mode that it describes


def tiles(box: tuple[int, int, int, int], width: int = TILE, height: int = TILE) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of at most width x height pixels that cover a box: left, top, right, bottom."""
    left, top, right, bottom = box
    for y, x in itertools.product(range(top, bottom, height), range(left, right, width)):
        yield x, y, min(x + width, right), min(y + height, bottom)


class Colours:
    """Turns parts of one decoded image into RGB. Transparent parts lie on white.

    Of more than 8 bits: 16 bits are scaled by their full range, 32-bit integers and floats by the range of the image's
    own finite values, where NaN is shown as the lowest; a range of 0 is middle grey. Colours go from the image's own
    profile to sRGB; one that is damaged or of other colours is left aside, and `tell` gets a line. Raises ValueError
    when no value is finite, and whatever Pillow raises.
    """

    def __init__(self, image: Image.Image, tell: Callable[[str], None]) -> None:
        self.tags = getattr(image, "tag_v2", {})  # of a TIFF
        self.wide = image.mode in WIDE
        self.range = self.value_range(image) if self.wide else (0.0, 255.0)
        # Pillow turns the levels of a TIFF around whose 0 is white, but not those of more than 8 bits.
        self.white_first = self.wide and self.tags.get(262) == 0
        grey = image.mode in ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
        self.mode = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
        self.profile: ImageCms.ImageCmsTransform | None = None
        data = image.info.get("icc_profile")
        if data and image.mode not in ("I", "F", "LAB"):
            try:
                self.use_profile(data)
            except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
                tell(f"the colour profile of the initial image is not used ({error})")

    @property
    def plain(self) -> bool:
        """Whether all there is to do is what Pillow does by itself."""
        return not self.wide and self.profile is None

    def use_profile(self, data: bytes) -> None:
        """Raises ValueError, or what ImageCms does, when the profile is damaged or does not fit the image's mode."""
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        mode = SPACES.get(space, "")
        if mode != self.mode and (self.mode, mode) != ("L", "RGB"):
            raise ValueError(f"it is for {space}, the image is {self.mode}")
        self.profile = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        self.mode = mode

    def values(self, part: Image.Image) -> np.ndarray:
        """The numbers of a part of more than 8 bits, [H, W]."""
        values = np.asarray(part)
        unsigned = part.mode == "I" and self.tags.get(258) == (32,) and self.tags.get(339, (1,)) == (1,)
        return values.view(np.uint32) if unsigned else values

    def value_range(self, image: Image.Image) -> tuple[float, float]:
        """The numbers that are black and white. Raises ValueError when none is finite."""
        if image.mode.startswith("I;16"):
            bits = self.tags.get(258, (16,))
            return 0.0, 2.0 ** (bits[0] if bits in ((12,), (16,)) else 16) - 1
        if image.mode == "I" and image.format in SIXTEEN:
            return 0.0, 65535.0
        low, high = math.inf, -math.inf
        for box in tiles((0, 0, *image.size)):
            values = self.values(image.crop(box))
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if low > high:
            raise ValueError("none of its values is finite")
        return low, high

    def grey(self, part: Image.Image) -> Image.Image:
        """A part of more than 8 bits as L, or as LA where one of its values stands for transparency."""
        low, high = self.range
        values = self.values(part)
        shares = (values.astype(np.float64) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
        levels = (np.nan_to_num(shares, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
        grey = Image.fromarray(255 - levels if self.white_first else levels)
        clear = part.info.get("transparency")
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return grey

    def rgb(self, part: Image.Image) -> Image.Image:
        """A part of the image, as it was cropped, in RGB on white."""
        if self.wide:
            part = self.grey(part)
        elif part.mode == "La":
            part = part.convert("LA")  # the only mode that Pillow takes it to
        alpha = None
        if part.has_transparency_data:
            part = part.convert("LA" if part.mode == "LA" else "RGBA")
            alpha = part.getchannel("A")
        if self.profile is None:
            colours = part.convert("RGB")
        else:
            colours = ImageCms.applyTransform(part.convert(self.mode), self.profile)
        if alpha is None:
            return colours
        colours.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")

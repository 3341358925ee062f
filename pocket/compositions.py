"""Emoji put into pictures with attributes: a colour, a background, and how many there are, how large and where.

A picture and its caption come from the same `Compositions`, so the pocket model can learn what the words do, and a
tenth of the pairs of emoji and attribute is held out to see whether it did. Start reading at `Renderer.__call__`.
"""

import dataclasses

import torch
from torch.nn.functional import interpolate, pad

from pocket.emoji import SIDE, EmojiSet

COLOURS = {"red": 0, "orange": 28, "yellow": 52, "green": 125, "blue": 215, "purple": 272, "pink": 325}  # hue, degrees
BACKGROUNDS = {  # red, green and blue in 0..255; pictures are on white unless another one is said
    "white": (255, 255, 255),
    "black": (25, 25, 25),
    "gray": (150, 150, 150),
    "blue": (120, 180, 255),
    "green": (150, 215, 150),
    "yellow": (255, 232, 130),
    "pink": (255, 185, 210),
}
LAYOUTS = ("alone", "two", "three", "small", "large", "left", "right")
HALF, THIRD, LARGE = SIDE // 2, SIDE // 3 + 1, SIDE * 7 // 5
PLACES = {  # side of each copy in pixels, and its left and top
    "alone": (SIDE, [(0, 0)]),
    "two": (HALF, [(0, HALF // 2), (HALF, HALF // 2)]),
    "three": (THIRD, [(k * (SIDE - THIRD) // 2, (SIDE - THIRD) // 2) for k in range(3)]),
    "small": (HALF, [(HALF // 2, HALF // 2)]),
    "large": (LARGE, [((SIDE - LARGE) // 2, (SIDE - LARGE) // 2)]),
    "left": (HALF, [(0, HALF // 2)]),
    "right": (HALF, [(HALF, HALF // 2)]),
}
ATTRIBUTES = (*(f"{c} colour" for c in COLOURS), *(f"{b} background" for b in list(BACKGROUNDS)[1:]), *LAYOUTS[1:])


@dataclasses.dataclass(frozen=True)
class Compositions:
    """A batch of pictures to be: numbers [B] of the emoji, its colour (-1: its own), background and layout."""

    emoji: torch.Tensor
    colour: torch.Tensor
    background: torch.Tensor
    layout: torch.Tensor

    def __len__(self) -> int:
        return len(self.emoji)

    def __getitem__(self, index: torch.Tensor | slice) -> "Compositions":
        return Compositions(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    @classmethod
    def plain(cls, emoji: torch.Tensor) -> "Compositions":
        """The emoji [B] as they are."""
        zeros = torch.zeros_like(emoji)
        return cls(emoji, zeros - 1, zeros, zeros)

    @classmethod
    def single(cls, emoji: torch.Tensor, attribute: torch.Tensor) -> "Compositions":
        """The emoji [B], each with the one attribute [B] of that number in ATTRIBUTES."""
        colours, backgrounds = len(COLOURS), len(BACKGROUNDS) - 1
        background, layout = attribute - colours + 1, attribute - colours - backgrounds + 1
        return cls(
            emoji,
            torch.where(attribute < colours, attribute, -1),
            torch.where((background > 0) & (layout <= 0), background, 0),
            layout.clamp(min=0),
        )

    @classmethod
    def joined(cls, parts: list["Compositions"]) -> "Compositions":
        """Several batches as one, in order."""
        return cls(*(torch.cat([getattr(p, field.name) for p in parts]) for field in dataclasses.fields(cls)))


def hue_of(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue in degrees, chroma and value, each [B, H, W], of colours [B, 3, H, W] in 0..1."""
    value, chroma = rgb.amax(1), rgb.amax(1) - rgb.amin(1)
    red, green, blue = rgb.unbind(1)
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return hue % 6 * 60, chroma, value


def with_hue_turned(rgb: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Colours [B, 3, H, W] with hues turned by degrees [B]; saturation and value stay.

    Colours may be weighed by an opacity: that is a factor of value and chroma.
    """
    hue, chroma, value = hue_of(rgb)
    turned = (hue + degrees[:, None, None]) / 60
    k = (torch.tensor([5.0, 3.0, 1.0], device=rgb.device)[:, None, None] + turned[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def main_hue(rgb: torch.Tensor, opacity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hue in degrees [B] that most of a picture's colour has, and its share [B] of the opaque area.

    rgb [B, 3, H, W] in 0..1 is weighed by opacity [B, H, W]. Of the pixels with a clear colour, the most frequent hue
    is looked for in bins of 10 degrees; its mean is over the 30 degrees to either side.
    """
    hue, chroma, value = hue_of(rgb)
    clear = (chroma > 0.3 * value) & (value > 0.25 * opacity)
    weight = (chroma * clear).flatten(1)
    bins = (hue / 10).long().clamp(max=35).flatten(1)
    histogram = weight.new_zeros(len(rgb), 36).scatter_add(1, bins, weight)
    smooth = sum(histogram.roll(shift, 1) * (2 - abs(shift)) for shift in (-1, 0, 1))
    centre = smooth.argmax(1)[:, None] * 10.0 + 5
    away = (hue.flatten(1) - centre + 180) % 360 - 180
    near = weight * (away.abs() <= 30)
    mean = centre[:, 0] + (near * away).sum(1) / near.sum(1).clamp(min=1e-6)
    share = (opacity.flatten(1) * clear.flatten(1) * (away.abs() <= 30)).sum(1) / opacity.sum((1, 2)).clamp(min=1e-6)
    return mean % 360, share


class Renderer:
    """Draws compositions, on a device.

    `hue` [N] is each emoji's main hue in degrees, `colourful` [N] tells where turning it makes a colour.
    """

    def __init__(self, emoji: EmojiSet, device: torch.device | str = "cpu") -> None:
        pictures = torch.from_numpy(emoji.pictures).to(device).permute(0, 3, 1, 2).float() / 255
        self.pictures = torch.cat([pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]], 1)  # weighed by opacity
        self.hue, share = main_hue(self.pictures[:, :3], self.pictures[:, 3])
        self.colourful = share > 0.4
        self.colours = torch.tensor(list(COLOURS.values()), device=device)
        self.backgrounds = torch.tensor(list(BACKGROUNDS.values()), device=device) / 255

    def __call__(self, wanted: Compositions) -> torch.Tensor:
        """Pictures [B, 3, SIDE, SIDE] in -1..1."""
        device = self.pictures.device
        emoji, colour, background, layout = (
            getattr(wanted, field.name).to(device) for field in dataclasses.fields(wanted)
        )
        pictures = self.pictures[emoji]
        turned = (colour >= 0).nonzero()[:, 0]
        degrees = self.colours[colour[turned]] - self.hue[emoji[turned]]
        pictures[turned, :3] = with_hue_turned(pictures[turned, :3], degrees)
        for number, name in enumerate(LAYOUTS[1:], 1):
            chosen = (layout == number).nonzero()[:, 0]
            if len(chosen):
                pictures[chosen] = placed(pictures[chosen], *PLACES[name])
        ground = self.backgrounds[background][:, :, None, None]
        return (pictures[:, :3] + ground * (1 - pictures[:, 3:])) * 2 - 1


def placed(pictures: torch.Tensor, side: int, places: list[tuple[int, int]]) -> torch.Tensor:
    """Copies of pictures [B, 4, SIDE, SIDE], scaled to `side`, at their left and top on an empty ground."""
    scaled = interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    ground = torch.zeros_like(pictures)
    for left, top in places:  # what would stick out is cut off by negative padding
        ground = ground + pad(scaled, (left, SIDE - left - side, top, SIDE - top - side))
    return ground


def held_out(renderer: Renderer, seed: int, share: float = 0.1) -> torch.Tensor:
    """Which pairs [N, attributes] of emoji and attribute are never trained on. Colours only where they show."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(renderer.hue), len(ATTRIBUTES), generator=generator) < share
    chosen[:, : len(COLOURS)] &= renderer.colourful.cpu()[:, None]
    return chosen


def draw(count: int, renderer: Renderer, out: torch.Tensor, generator: torch.Generator, plain: float) -> Compositions:
    """Random compositions without any pair that is held `out`, on the host.

    A share of `plain` has no attribute; of the others, most have one and a third has two of different kinds.
    """

    def chance(probability: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) < probability

    def choice(number: int) -> torch.Tensor:
        return torch.randint(number, (count,), generator=generator)

    emoji, colourful = choice(len(out)), renderer.colourful.cpu()
    kind, second = choice(3), chance(1 / 3)
    other = (kind + 1 + choice(2)) % 3
    with_attribute = ~chance(plain)
    has = [with_attribute & ((kind == k) | (second & (other == k))) for k in range(3)]
    backgrounds, layouts = len(BACKGROUNDS) - 1, len(LAYOUTS) - 1
    numbers = [choice(len(COLOURS)), choice(backgrounds), choice(layouts)]
    firsts = [0, len(COLOURS), len(COLOURS) + backgrounds]
    has[0] &= colourful[emoji]
    has = [h & ~out[emoji, first + number] for h, first, number in zip(has, firsts, numbers, strict=True)]
    return Compositions(
        emoji,
        torch.where(has[0], numbers[0], -1),
        torch.where(has[1], numbers[1] + 1, 0),
        torch.where(has[2], numbers[2] + 1, 0),
    )

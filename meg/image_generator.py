"""What MEG wants of the model that makes the images, and what the command line says about it.

A generator gives scaled latents [B, C, H/8, W/8] and their clean images [B, 3, H, W] in 0..1, and hands out the decoder
that the schemes start from. generators.py opens one. Start reading at `ImageGenerator`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch

from common.device import DEVICE_CHOICES
from common.parameters import Parameters, parameter
from meg.decoders import Base
from resd3_medium.dtypes import DTYPES

GENERATORS = ("pocket", "sd3", "sdxl")


class ImageGenerator(Protocol):
    """A text-to-image model of which latent and image are wanted."""

    device: torch.device
    side: int  # of the square images, in pixels

    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], step_done: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """Scaled latents [B, C, H/8, W/8] in float32; each depends on its own prompt and seed.

        `step_done` is called after each denoising step. Raises ParameterError when latents are not finite.
        """

    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean images [B, 3, H, W] in 0..1 of scaled latents [B, C, H/8, W/8]."""

    def encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, H/8, W/8] in float32, the encoder's means, of images [B, 3, H, W] in 0..1."""

    def base(self) -> Base:
        """The generator's own decoder, a copy of its own in float32."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How a generator is opened; None is the model's own default."""

    name: str = "pocket"
    models: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    side: int | None = None  # of the square image, in pixels
    device: str = "auto"
    dtype: str = "auto"


@dataclasses.dataclass(kw_only=True)
class GeneratorParameters(Parameters):
    """What the scripts that make images take."""

    GROUP: ClassVar[str] = "generator"

    generator: str = parameter("pocket", "what makes the images", choices=GENERATORS)
    models: str | None = parameter(None, "folder of the generator's files; default that of the generator", path=True)
    steps: int | None = parameter(None, "denoising steps; default the generator's", unit="steps", low=1, high=1000)
    cfg_scale: float | None = parameter(
        None, "scale of the classifier-free guidance; default the generator's", low=0, high=100
    )
    side: int | None = parameter(None, "side of the images; default the generator's", unit="pixels", low=16)
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)
    dtype: str = parameter("auto", "dtype of the generator's weights", choices=("auto", *DTYPES))

    def image_options(self) -> ImageOptions:
        """What these parameters say, as the generator takes it."""
        return ImageOptions(self.generator, self.models, self.steps, self.cfg_scale, self.side, self.device, self.dtype)

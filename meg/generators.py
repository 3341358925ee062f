"""Opens what makes the latents that are sent: the pocket model, Stable Diffusion 3, or SDXL in its PeRFlow form.

Start reading at `open_generator`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.parameters import ParameterError
from meg.decoders import Base, Description
from meg.image_generator import ImageGenerator, ImageOptions
from resd3_medium.folders import MODELS, POCKET
from resd3_medium.infer_parameters import InferConfig, with_model
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Settings
from resd3_medium.tasks import parse_steps
from resd3_medium.vae import VAE


class SD3Generator:
    """Stable Diffusion 3's architecture through resd3_medium: the released weights, or the pocket model's.

    Raises ParameterError for files that are missing or not whole, and sizes that do not fit.
    """

    def __init__(self, options: ImageOptions, models: Path) -> None:
        config = InferConfig(
            models=str(models),
            steps=None if options.steps is None else str(options.steps),
            cfg_scale=options.cfg_scale,
            width=options.side,
            height=options.side,
            device=options.device,
            dtype=options.dtype,
        )
        try:
            config = with_model(config)
            self.pipeline = open_pipeline(config)
        except ParameterError as error:
            raise error.renamed(width="side", height="side") from None
        self.device, self.models, self.side = self.pipeline.device, models, config.width
        self.settings = Settings(
            parse_steps(config.steps)[1], config.width, config.height, config.cfg_scale, config.shift
        )

    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], step_done: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """Scaled latents [B, C, H/8, W/8] in float32, denoised together, without a negative prompt.

        Raises ParameterError when they are not finite.
        """
        texts = self.pipeline.encode([*prompts, ""])
        wanted = [texts[prompt] for prompt in prompts]
        return self.pipeline.denoise(wanted, [texts[""]] * len(prompts), seeds, self.settings, step_done)

    @property
    def together(self) -> int:
        """Images that the autoencoder takes at once."""
        return 64 if self.side <= 128 else 1

    @torch.inference_mode()
    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean images [B, 3, H, W] in 0..1 of scaled latents, small ones 64 at a time, others one by one."""
        vae: VAE = self.pipeline.bring("VAE")
        parts = latents.to(self.device).split(self.together)
        return ((torch.cat([vae.decode(part) for part in parts]) + 1) / 2).clamp(0, 1)

    @torch.inference_mode()
    def encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, H/8, W/8] in float32, the encoder's means, of images [B, 3, H, W] in 0..1."""
        vae: VAE = self.pipeline.bring("VAE")
        return torch.cat([vae.encode(part * 2 - 1) for part in images.to(self.device).split(self.together)])

    def base(self) -> Base:
        """The autoencoder's decoder, a copy in float32."""
        vae: VAE = self.pipeline.bring("VAE")
        decoder = type(vae.decoder)(vae.config)
        decoder.load_state_dict({name: t.float() for name, t in vae.decoder.state_dict().items()})
        sizes: dict[str, Any] = dataclasses.asdict(vae.config)
        description = Description("sd3", sizes, vae.config.channels, vae.latents.scale, vae.latents.shift)
        return Base(decoder, None, description)


def open_generator(options: ImageOptions) -> ImageGenerator:
    """The generator of that name. Raises ParameterError when its weights are missing, or something does not fit."""
    if options.name == "sdxl":
        from meg.perflow import SDXLGenerator  # diffusers' pipelines take seconds to import

        return SDXLGenerator(options)
    models = Path(options.models or (POCKET if options.name == "pocket" else MODELS))
    if not models.is_dir():
        raise ParameterError("models", models, "must be a folder with the model's files")
    return SD3Generator(options, models)

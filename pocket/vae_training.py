"""Training of the pocket model's autoencoder on compositions of emoji.

Stable Diffusion 3's autoencoder (resd3_medium/vae.py) with small widths: absolute and squared error of the pixels, the
absolute error of their means over squares, which weighs colours, and a small Kullback-Leibler term that keeps latents
smooth. Start reading at `VAEStage.loss`.
"""

import math

import torch
from torch.nn.functional import avg_pool2d

from common.stages import AveragedStage
from pocket.compositions import Compositions, Renderer, draw
from resd3_medium.vae import VAE, VAEConfig

SIZES = VAEConfig(widths=(16, 32, 64, 128), blocks=1, channels=16, groups=4)
KL_WEIGHT = 2e-4


def psnr(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio [B] in dB of images [B, 3, H, W] in -1..1, clipped as they are when shown."""
    error = (images.clamp(-1, 1) - truth).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


class VAEStage(AveragedStage):
    """The autoencoder, its moving average, and one training step after the other. Pairs held `out` are not seen."""

    name = "vae"
    measure = "psnr_db"

    def __init__(self, renderer: Renderer, out: torch.Tensor, seed: int, steps: int, batch: int, rate: float) -> None:
        torch.manual_seed(seed)  # for the initial weights, which torch draws from its global generator
        self.renderer, self.out, self.seed, self.steps, self.batch, self.rate = renderer, out, seed, steps, batch, rate
        device = renderer.pictures.device
        self.model, self.average = VAE(SIZES).to(device), VAE(SIZES).to(device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
        self.shown = renderer(Compositions.plain(torch.arange(0, len(out), max(1, len(out) // 128))))

    def loss(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The error, a scalar, of images [B, 3, H, W] in -1..1 that come back from latents drawn with noise."""
        with torch.autocast(images.device.type, torch.bfloat16):
            mean, log_variance = self.model.encoder(images).float().chunk(2, 1)
            log_variance = log_variance.clamp(-12, 6)
            made = self.model.decoder(mean + (0.5 * log_variance).exp() * noise).float()
        error = made - images
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        pools = sum(avg_pool2d(error, side).abs().mean() for side in (4, 16))
        return error.abs().mean() + error.square().mean() + 0.25 * pools + KL_WEIGHT * divergence

    def step(self, number: int) -> float:
        """Train on one batch; it depends on seed and step number only. Returns the loss."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        images = self.renderer(draw(self.batch, self.renderer, self.out, generator, plain=0.6))
        side = images.shape[2] // self.model.config.factor
        noise = torch.randn(self.batch, self.model.config.channels, side, side, generator=generator)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (number + 1) / 200) * 0.5 * (1 + math.cos(math.pi * number / self.steps))
        return self.update(self.loss(images, noise.to(images.device)), min(0.999, (number + 1) / (number + 10)))

    @torch.no_grad()
    def reconstructed(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] through encoder and decoder of the average model."""
        return torch.cat([self.average.decode(self.average.encode(part)) for part in images.split(64)])

    def evaluate(self) -> tuple[float, torch.Tensor]:
        """Mean PSNR in dB of about 128 emoji, and a sheet's pictures: originals over reconstructions."""
        made = self.reconstructed(self.shown)
        return float(psnr(made, self.shown).mean()), torch.cat([self.shown[:32], made[:32]])

"""The user equipment's decoders: MEG-DT (`SplitModel`) and E2E-MEG-DT (`MergingModel`).

Latents are those that the transformer works on, [B, C, H, W] scaled to about zero mean and unit variance; images are
[B, 3, H', W'] in 0..1, not clipped. Both models work on any latent format whose decoder maps raw latents to images in
-1..1. A model can be told the SNR: then a small network estimates the clean latent first. Start reading at
`SplitModel.forward`, then `MergingModel.forward`.
"""

import math

import torch
from torch import nn
from torch.nn.functional import silu

from meg.channel import Channel, Received, per_image, power, ratio
from meg.merging import Tokens, matching, merged_away, side_information_bits
from resd3_medium.vae import LatentFormat

FREQUENCIES = 16  # sines and cosines of the SNR
RANGE_DB = 20  # SNRs that a decoder can be told, either way of 0


class SNREmbedding(nn.Module):
    """SNRs [B] in dB as vectors [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, snr_db: torch.Tensor) -> torch.Tensor:
        """Vectors [B, width] of SNRs [B] in dB; what lies beyond RANGE_DB, which is trained on, is taken as its end."""
        place = (snr_db.clamp(-RANGE_DB, RANGE_DB) / RANGE_DB)[:, None]
        waves = place * torch.arange(1, FREQUENCIES + 1, device=snr_db.device) * (math.pi / 6)
        return self.mlp(torch.cat([place, waves.sin(), waves.cos()], 1))


class ModulatedBlock(nn.Module):
    """Two convolutions around a shortcut, scaled and shifted by the SNR's vector in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Features [B, width, H, W] of x [B, width, H, W] and the SNR's vector [B, width]."""
        scale, shift = (part[:, :, None, None] for part in self.modulation(vector).chunk(2, 1))
        h = self.conv1(silu(self.norm1(x)))
        return x + self.conv2(silu(self.norm2(h) * (1 + scale) + shift))


class LatentEstimate(nn.Module):
    """The clean latent from a received one and its SNR: the linear estimate, corrected by a small network."""

    def __init__(self, channels: int, width: int, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = SNREmbedding(width)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, linear: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
        """The estimate [B, C, H, W], of the linear one and SNRs [B] in dB."""
        x, vector = self.conv_in(linear), self.embedding(snr_db)
        for block in self.blocks:
            x = block(x, vector)
        return linear + self.conv_out(silu(x))


class SplitModel(nn.Module):
    """MEG-DT: a received latent through a 1 x 1 convolution and the decoder (arXiv 2407.02804).

    The convolution starts as the latent format's way back to raw latents, followed by the generator's own
    post-quantisation convolution where it has one. `estimate` is the width of a network that is told the SNR; 0: none,
    as published.
    """

    def __init__(
        self, decoder: nn.Module, channels: int, latents: LatentFormat, post: nn.Conv2d | None = None, estimate: int = 0
    ) -> None:
        super().__init__()
        self.estimate = LatentEstimate(channels, estimate) if estimate else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            matrix = torch.eye(channels) if post is None else post.weight[:, :, 0, 0].float().cpu()
            bias = torch.zeros(channels) if post is None else post.bias.float().cpu()
            self.post_quant_conv.weight.copy_(matrix[:, :, None, None] / latents.scale)
            self.post_quant_conv.bias.copy_(bias + latents.shift * matrix.sum(1))
        self.decoder = decoder

    def forward(self, received: Received) -> torch.Tensor:
        """Images [B, 3, H', W'] of a received latent [B, C, H, W]."""
        return self.images(received.symbols if self.estimate is None else received.mmse(), received.snr_db)

    def images(self, latent: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H', W'] of a latent [B, C, H, W] at SNRs [B] in dB.

        The latent is as it was received or, for a model that is told the SNR, its linear estimate.
        """
        latent = latent if self.estimate is None else self.estimate(latent, snr_db)
        return (self.decoder(self.post_quant_conv(latent)) + 1) / 2

    def through(
        self,
        latent: torch.Tensor,
        channel: Channel,
        snr_db: torch.Tensor | float,
        generator: torch.Generator,
        noise_factor: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Images [B, 3, H', W'] of a clean latent [B, C, H, W] that is sent at mean SNRs [B] in dB, see `Channel`."""
        return self(channel(latent, snr_db, generator, noise_factor))

    def symbols(self, latent: torch.Size) -> int:
        """Real symbols that an image's latent [C, H, W] takes."""
        return math.prod(latent)

    def side_bits(self, latent: torch.Size) -> int:
        """Bits that the receiver needs besides."""
        return 0


class Precoder(nn.Module):
    """How the power is shared among a token's independent values, and the linear estimate behind the channel.

    The gains are those of the least total square error at a given power: a value of variance v gets the power
    sqrt(v) c - N where that is positive, and is not sent elsewhere (linear precoding, water-filling). Both ends know
    the mean SNR. Variances are learned, and start as those of the data (`MergingModel.fit`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(channels))

    def gains(self, snr_db: torch.Tensor) -> torch.Tensor:
        """Factors [B, C] of the values at mean SNRs [B] in dB. They keep the mean power of a token."""
        variance = self.log_variance.exp()
        root, order = variance.sqrt().sort(descending=True)
        noise = variance.mean() / ratio(snr_db.float())[:, None]  # [B, 1]
        count = torch.arange(1, len(root) + 1, device=root.device)
        levels = (variance.sum() + count * noise) / root.cumsum(0)  # [B, C]: c if that many values are sent
        sent = (root * levels > noise).sum(1, keepdim=True).clamp(min=1)  # the condition fails from some value on
        power = (root * levels.gather(1, sent - 1) - noise).clamp(min=0)
        gains = (power / root.square()).clamp(min=1e-12).sqrt()  # the root of 0 has no gradient
        return gains.gather(1, order.argsort().expand_as(gains))

    def linear(self, symbols: torch.Tensor, noise: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
        """The linear estimate [B, N, C] of the values behind the channel, for a noise power [B] and gains [B, C]."""
        variance = self.log_variance.exp()
        return symbols * (gains * variance / (gains.square() * variance + noise[:, None]))[:, None]


class MergingModel(nn.Module):
    """E2E-MEG-DT: a 1 x 1 convolution and feature merging before the channel, and the split model behind it.

    Around a split model that is told the SNR, the sender is told the mean SNR, too: a precoder shares out the power of
    the convolution's channels, and a second convolution behind its linear estimate leads back to latents.
    """

    def __init__(self, split: SplitModel, channels: int, tokens: Tokens, share: float) -> None:
        super().__init__()
        self.tokens, self.share, self.split = tokens, share, split
        self.encoder = nn.Conv2d(channels, channels, 1)
        told = split.estimate is not None
        self.precoder = Precoder(channels * tokens.rows * tokens.columns) if told else None
        self.back = nn.Conv2d(channels, channels, 1) if told else None
        with torch.no_grad():  # starts as the split model
            for layer in (self.encoder, self.back) if told else (self.encoder,):
                layer.weight.copy_(torch.eye(channels)[:, :, None, None])
                layer.bias.zero_()

    @torch.no_grad()
    def fit(self, latents: torch.Tensor) -> None:
        """Start encoder, precoder and the way back from the moments of latents [B, C, H, W]."""
        values = latents.movedim(1, -1).flatten(0, -2).double()
        mean = values.mean(0)
        basis = torch.linalg.eigh((values - mean).T @ (values - mean)).eigenvectors  # [C, C], a column each
        self.encoder.weight.copy_(basis.T[:, :, None, None])
        self.encoder.bias.copy_(-basis.T @ mean)
        self.back.weight.copy_(basis[:, :, None, None])
        self.back.bias.copy_(mean)
        tokens = self.tokens.of(((latents.double().movedim(1, -1) - mean) @ basis).movedim(-1, 1))
        self.precoder.log_variance.copy_(tokens.square().flatten(0, -2).mean(0).log())

    def through(
        self,
        latent: torch.Tensor,
        channel: Channel,
        snr_db: torch.Tensor | float,
        generator: torch.Generator,
        noise_factor: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Images [B, 3, H', W'] of a clean latent [B, C, H, W]: encoded, merged, sent, put back and decoded.

        It is sent at mean SNRs [B] in dB, see `Channel`.
        """
        size = latent.shape[2:]
        tokens = self.tokens.of(self.encoder(latent))
        merge, unmerge = matching(tokens, self.tokens.grid(*size), self.share)
        if self.precoder is None:
            received = channel(merge(tokens), snr_db, generator, noise_factor)
            return self.split.images(self.tokens.back(unmerge(received.symbols), *size), received.snr_db)
        gains = self.precoder.gains(torch.as_tensor(snr_db).expand(len(latent)).to(latent.device))
        received = channel(merge(tokens * gains[:, None]), snr_db, generator, noise_factor)
        noise = power(received.symbols) / (1 + ratio(received.snr_db))  # as the receiver can measure it
        linear = self.precoder.linear(received.symbols, noise, gains)
        return self.split.images(self.back(self.tokens.back(unmerge(linear), *size)), received.snr_db)

    def symbols(self, latent: torch.Size) -> int:
        """Real symbols that an image's latent [C, H, W] takes: those of the tokens that are left."""
        values = latent[0] * self.tokens.rows * self.tokens.columns
        count = math.prod(latent) // values
        return (count - merged_away(count, self.share)) * values

    def side_bits(self, latent: torch.Size) -> int:
        """Bits that tell the receiver which tokens were merged, and into which."""
        count = math.prod(latent) // (latent[0] * self.tokens.rows * self.tokens.columns)
        return side_information_bits(count, self.share)


def image_estimate(received: Received, mean: float, variance: float) -> torch.Tensor:
    """The linear estimate with the least mean square error of received pixels [B, 3, H, W] in 0..1.

    `mean` and `variance` are those of pixels; the SNR is that of the pixels' mean square, mean^2 + variance.
    """
    noise = (mean**2 + variance) / ratio(received.snr_db)
    gain = per_image(variance / (variance + noise), received.symbols)
    return mean + gain * (received.symbols - mean)

"""The 16-channel autoencoder of Stable Diffusion 3: images to latents an eighth of their size, and back.

A convolutional encoder and decoder with one attention in the middle (Rombach et al. 2022), without the quantisation
layers of earlier models. Module names follow the released checkpoint, sizes are read off its tensors' shapes. Images
are [B, 3, H, W] in -1..1; latents [B, 16, H/8, W/8], raw, as the autoencoder has them, or scaled, as the transformer
wants them: `LatentFormat` converts. Start reading at `VAE.decode`.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import (
    conv2d,
    conv_transpose2d,
    group_norm,
    interpolate,
    pad,
    scaled_dot_product_attention,
    silu,
)

LARGE = 2**24  # numbers of an image's features from which convolutions go in strips
STRIP = 2**21  # numbers of a strip
MET = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # see doubled_convolved
GROUPS = 32  # of every group norm, where a model does not say otherwise


@dataclasses.dataclass(frozen=True)
class LatentFormat:
    """Where the raw latents lie: scaled = (raw - shift) * scale. The defaults are Stable Diffusion 3's."""

    scale: float = 1.5305
    shift: float = 0.0609

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """Latents as the transformer wants them, of raw ones of any shape."""
        return (raw - self.shift) * self.scale

    def raw(self, scaled: torch.Tensor) -> torch.Tensor:
        """Latents as the autoencoder has them, of scaled ones of any shape."""
        return scaled / self.scale + self.shift


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Widths of the levels, full size first; residual blocks per level of the encoder (the decoder has one more)."""

    widths: tuple[int, ...]
    blocks: int
    channels: int  # of the latent
    groups: int = GROUPS  # of every group norm; shapes do not tell

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.widths) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], groups: int = GROUPS) -> "VAEConfig":
        """The sizes of a checkpoint's tensors. Raises KeyError for a tensor that is missing."""
        found = [m for name in shapes if (m := re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.", name))]
        levels = 1 + max((int(m[1]) for m in found), default=0)
        widths = tuple(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
        return cls(widths, 1 + max(int(m[2]) for m in found), shapes["decoder.conv_in.weight"][1], groups)


def norm(width: int, groups: int) -> nn.GroupNorm:
    """The group norm of every layer here."""
    return nn.GroupNorm(groups, width, eps=1e-6)


def activated(x: torch.Tensor) -> torch.Tensor:
    """SiLU, in the memory of x where no gradients are asked for: the widest features are most of a decoder's memory."""
    return silu(x, inplace=not torch.is_grad_enabled())


def is_large(x: torch.Tensor, doubled: bool = False) -> bool:
    """Whether features on a CPU are so large that memory counts; `doubled` along both sides, where they are to be."""
    numbers = x[0].numel() * (4 if doubled else 1)
    return x.device.type == "cpu" and numbers >= LARGE and not torch.is_grad_enabled()


def normalised(norm: nn.GroupNorm, x: torch.Tensor, spare: bool) -> torch.Tensor:
    """x after a group norm; to `spare` memory, large features are normalised in their own, group by group."""
    if not (spare and is_large(x)):
        return norm(x)
    parts = (t.chunk(norm.num_groups, -3) for t in (x, norm.weight[:, None, None], norm.bias[:, None, None]))
    for part, weight, bias in zip(*parts, strict=True):
        part.copy_(group_norm(part, 1, weight.flatten(), bias.flatten(), norm.eps))
    return x


def doubled_convolved(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of 3 x 3 over x [B, C, H, W] after doubling its size, from x itself, in 4/9 of the products.

    Of the three rows of weights that meet a row of the result, two meet the same row of x: their sum will do. So the
    result [B, C', 2H, 2W] is that of a transposed convolution of 4 x 4 and stride 2, row k of whose weights adds up the
    rows of MET[k].
    """
    met = conv.weight.new_tensor(MET)
    weight = torch.einsum("ky,lx,oiyx->iokl", met, met, conv.weight)
    kind = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return conv_transpose2d(x, weight.contiguous(memory_format=kind), conv.bias, stride=2, padding=1)


def convolved(conv: nn.Conv2d, x: torch.Tensor, doubled: bool = False) -> torch.Tensor:
    """A convolution of 3 x 3 over x, which is `doubled` in size before; large ones on a CPU in strips of rows.

    There, libraries bring whole feature maps into other layouts and back, which takes as much memory again.
    """
    if not is_large(x, doubled):
        if doubled and x.device.type == "cpu" and x.dtype != torch.float16 and not torch.is_grad_enabled():
            return doubled_convolved(conv, x)
        return conv(interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x)
    factor, height = (2 if doubled else 1), x.shape[2]
    found = x.new_empty(len(x), conv.out_channels, factor * height, factor * x.shape[3])
    step = max(1, height * STRIP // (x[0].numel() * factor**2))
    for start in range(0, height, step):
        end = min(start + step, height)
        strip = x[:, :, max(start - 1, 0) : end + 1]
        strip = interpolate(strip, scale_factor=2.0, mode="nearest") if doubled else strip
        strip = strip[:, :, (factor - 1) * (start > 0) : strip.shape[2] - (factor - 1) * (end < height)]
        strip = pad(strip, (1, 1, int(start == 0), int(end == height)))
        found[:, :, factor * start : factor * end] = conv2d(strip, conv.weight, conv.bias)
    return found


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs, groups), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, outputs, H, W] of x [B, inputs, H, W]."""
        shortcut = self.nin_shortcut(x)
        h = convolved(self.conv1, activated(normalised(self.norm1, x, spare=shortcut is not x)))
        if shortcut is not x and is_large(x):
            x.untyped_storage().resize_(0)  # nobody reads it again, though the frames above still name it
        return shortcut + convolved(self.conv2, activated(normalised(self.norm2, h, spare=True)))


class PixelAttention(nn.Module):
    """Attention of one head over all cells of a feature map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, width, H, W] of x [B, width, H, W]."""
        h = self.norm(x)
        # Fused attention wants each cell's numbers beside each other; without it, memory grows with the cells squared.
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None].contiguous() for layer in (self.q, self.k, self.v))
        attended = scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(attended)


class Middle(nn.Module):
    """The coarsest level: attention between two residual blocks."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (ResidualBlock(width, width, groups) for _ in range(2))
        self.attn_1 = PixelAttention(width, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, width, H, W] of x [B, width, H, W]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    """Half the size, by a convolution with stride 2, or twice, by doubling and a convolution."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, padding=1) if up else nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, width, 2 H, 2 W] or [B, width, H/2, W/2] of x [B, width, H, W]."""
        if self.up:
            return convolved(self.conv, x, doubled=True)
        return self.conv(pad(x, (0, 1, 0, 1)))  # the released model pads right and below only


class Level(nn.Module):
    """Residual blocks of one size and, but at the end, the way to the next size."""

    def __init__(self, inputs: int, outputs: int, blocks: int, resample: str | None, groups: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in itertools.pairwise(widths))
        if resample:
            setattr(self, resample, Resample(outputs, up=resample == "upsample"))
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, outputs, H', W'] of x [B, inputs, H, W], where H' and W' are those of the next level."""
        for block in self.block:
            x = block(x)
        return getattr(self, self.resample)(x) if self.resample else x


class Encoder(nn.Module):
    """Images [B, 3, H, W] to mean and log-variance of the raw latent, [B, 2 * channels, H/8, W/8]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(
            Level(a, b, config.blocks, "downsample" if i + 1 < len(widths) else None, config.groups)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Moments [B, 2 * channels, H/8, W/8]: means, then log-variances, of images [B, 3, H, W] in -1..1."""
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(activated(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Raw latents [B, channels, H/8, W/8] to images [B, 3, H, W]. `up` is stored with the full size first."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            Level(a, b, config.blocks + 1, "upsample" if i > 0 else None, config.groups)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out, self.conv_out = norm(widths[0], config.groups), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], about -1..1, of raw latents [B, channels, H/8, W/8]."""
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(activated(self.norm_out(x)))


class VAE(nn.Module):
    """Encoder and decoder; `latents` says how raw latents are scaled for the transformer."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config, self.latents = config, LatentFormat()
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode(self, image: torch.Tensor, generators: Sequence[torch.Generator] = ()) -> torch.Tensor:
        """Scaled latents [B, channels, H/8, W/8] in float32 of images [B, 3, H, W] in -1..1: their means.

        With B CPU `generators`, they are as many draws for one image instead, one with each.
        """
        moments = self.encoder(image.to(self.encoder.conv_in.weight.dtype)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        if generators:
            noise = torch.cat([torch.randn(mean.shape, generator=generator) for generator in generators])
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise.to(mean.device)
        return self.latents.scaled(mean)

    def decode(self, latent: torch.Tensor, tile: int = 0) -> torch.Tensor:
        """Images [B, 3, H, W] in float32, about -1..1, of scaled latents [B, channels, H/8, W/8].

        With `tile`, latents larger than `tile` cells along a side are decoded in overlapping tiles of that size, which
        bounds the memory. Tiles are not exact: each one's norms and attention see that tile only.
        """
        raw = self.latents.raw(latent.float()).to(self.decoder.conv_in.weight.dtype)
        if tile and max(raw.shape[2:]) > tile:
            return decode_tiled(self.decoder, raw, tile, self.config.factor)
        return self.decoder(raw).float()


def tile_starts(size: int, tile: int) -> list[int]:
    """First cells of tiles that cover `size` cells and overlap by at least a quarter."""
    if size <= tile:
        return [0]
    count = 1 + -(-(size - tile) // max(1, tile * 3 // 4))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def decode_tiled(decoder: nn.Module, raw: torch.Tensor, tile: int, factor: int) -> torch.Tensor:
    """The image [B, 3, H, W] in float32, blended from tiles with weights that fall linearly towards their edges."""
    batch, _, height, width = raw.shape
    image = raw.new_zeros(batch, 3, height * factor, width * factor, dtype=torch.float32)
    total = image.new_zeros(1, 1, *image.shape[2:])
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            part = decoder(raw[:, :, top : top + tile, left : left + tile]).float()
            rows, columns = (ramp(n, tile * factor // 4, part.device) for n in part.shape[2:])
            weight = rows[:, None] * columns
            window = (
                ...,
                slice(top * factor, top * factor + len(rows)),
                slice(left * factor, left * factor + len(columns)),
            )
            image[window] += part * weight
            total[window] += weight
    return image / total


def ramp(length: int, slope: int, device: torch.device) -> torch.Tensor:
    """Weights [length] that rise over the first `slope` cells, stay at 1, and fall over the last ones."""
    place = torch.arange(length, device=device)
    return (torch.minimum(place, length - 1 - place) + 1).div(max(slope, 1)).clamp(max=1)

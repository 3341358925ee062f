"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206).

Text rows and image patches run through joint blocks: each keeps its own weights, and both attend to all rows together.
3.5 also normalises queries and keys, and in the first blocks of its medium size (MMDiT-X) the image has a second
attention of its own. Module names follow the released checkpoints, so their tensors load without renaming, and every
size is read off the tensors' shapes. Start reading at `MMDiT.forward`, then `JointBlock.forward`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from resd3_medium.cpu_kernels import attention, dense
from resd3_medium.refine_other_impls import RMSNorm

HEAD_WIDTH = 64  # of every attention head, in all released sizes

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Sizes of an MMDiT. `grid` is the side of the square of positions, in patches; the largest image is
    `grid * patch * 8` pixels high and wide. `qk_norm` tells whether queries and keys are normalised, `dual` are the
    numbers of the blocks in which the image has a second attention."""

    depth: int
    width: int
    patch: int
    channels: int
    context_width: int
    pooled_width: int
    frequencies: int
    grid: int
    qk_norm: bool = False
    dual: tuple[int, ...] = ()

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> "MMDiTConfig":
        """The sizes of a checkpoint's tensors. Raises KeyError for a tensor that is missing."""
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        blocks = {int(m[1]) for name in shapes if (m := re.match(r"joint_blocks\.(\d+)\.", name))}
        dual = {int(m[1]) for name in shapes if (m := re.match(r"joint_blocks\.(\d+)\.x_block\.attn2\.", name))}
        return cls(
            depth=len(blocks),
            width=width,
            patch=patch,
            channels=channels,
            context_width=shapes["context_embedder.weight"][1],
            pooled_width=shapes["y_embedder.mlp.0.weight"][1],
            frequencies=shapes["t_embedder.mlp.0.weight"][1],
            grid=math.isqrt(shapes["pos_embed"][1]),
            qk_norm=any(".attn.ln_q." in name for name in shapes),
            dual=tuple(sorted(dual)),
        )


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x * (1 + scale) + shift, for x [B, L, width] and shift, scale [B, width]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def sinusoid(timestep: torch.Tensor, width: int) -> torch.Tensor:
    """Embedding [B, width] in float32 of timesteps [B] in 0..1000: cosines first, then sines."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device) / half)
    angle = timestep.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class VectorEmbedder(nn.Module):
    """A vector [B, in] to the width of the transformer."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Vectors [B, width] of x [B, in]."""
        return self.mlp(x)


class PatchEmbed(nn.Module):
    """Patches of a latent [B, channels, H, W] as rows [B, H/patch * W/patch, width]."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Rows [B, H/patch * W/patch, width] of a latent [B, channels, H, W]."""
        return self.proj(latent).flatten(2).transpose(1, 2)


def attend(rows: torch.Tensor) -> torch.Tensor:
    """What every row takes from all rows [B, L, width], of their queries, keys and values [B, L, 3, heads, 64]."""
    return attention(*rows.permute(2, 0, 3, 1, 4).contiguous()).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The projections of one stream into an attention and, but for the last context block, back out."""

    def __init__(self, width: int, last: bool, qk_norm: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        if not last:
            self.proj = nn.Linear(width, width)
        self.qk_norm = qk_norm
        if qk_norm:
            self.ln_q, self.ln_k = RMSNorm(HEAD_WIDTH), RMSNorm(HEAD_WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values [B, L, 3, heads, 64] of rows x [B, L, width]; each head's are normalised alone."""
        rows = dense(self.qkv, x).unflatten(2, (3, -1, HEAD_WIDTH))
        if not self.qk_norm:
            return rows
        queries, keys, values = rows.unbind(2)
        return torch.stack([self.ln_q(queries), self.ln_k(keys), values], 2)


class MLP(nn.Module):
    """Two layers with a GELU (tanh form) between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B, L, width] of rows [B, L, width]."""
        return dense(self.fc2, dense(self.fc1, x, gelu=True))


class StreamBlock(nn.Module):
    """One stream's half of a joint block, text or image, with adaptive layer norm (AdaLN).

    The context half of the last block only feeds the attention: it has no way back and two modulations, not six. A
    `dual` half has nine, for its second attention, in which its rows see each other only.
    """

    def __init__(self, width: int, last: bool = False, qk_norm: bool = False, dual: bool = False) -> None:
        super().__init__()
        self.last, self.dual = last, dual
        self.modulations = 2 if last else 9 if dual else 6
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, last, qk_norm)
        if dual:
            self.attn2 = Attention(width, False, qk_norm)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.modulations * width))
        if not last:
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
            self.mlp = MLP(width, 4 * width)

    def before(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Queries, keys and values [B, L, 3, heads, 64] of the stream's rows x [B, L, width], and what `after` needs.

        That is the other modulations [B, width], none in the last context block; condition is [B, width].
        """
        shift, scale, *rest = self.adaLN_modulation(condition).chunk(self.modulations, dim=1)
        return self.attn(modulate(self.norm1(x), shift, scale)), rest

    def after(self, x: torch.Tensor, attended: torch.Tensor, modulation: list[torch.Tensor]) -> torch.Tensor:
        """The stream's rows once the attention's result [B, L, width] is added and the MLP has run.

        x [B, L, width] are the rows that `before` got, and those that a second attention reads, too.
        """
        gate_attention, shift, scale, gate_mlp, *second = modulation
        rows = torch.addcmul(x, gate_attention[:, None], dense(self.attn.proj, attended))
        if self.dual:
            rows = rows + self.second(x, *second)
        return torch.addcmul(rows, gate_mlp[:, None], self.mlp(modulate(self.norm2(rows), shift, scale)))

    def second(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """What the second attention adds to its rows x [B, L, width]; shift, scale and gate are [B, width]."""
        return gate[:, None] * self.attn2.proj(attend(self.attn2(modulate(self.norm1(x), shift, scale))))


class JointBlock(nn.Module):
    """A context half and an image half that attend to each other's rows."""

    def __init__(self, width: int, last: bool, qk_norm: bool = False, dual: bool = False) -> None:
        super().__init__()
        self.context_block, self.x_block = StreamBlock(width, last, qk_norm), StreamBlock(width, False, qk_norm, dual)

    def forward(
        self, context: torch.Tensor, x: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """context [B, T, width] and image rows x [B, L, width], after the block; condition is [B, width]."""
        text, text_modulation = self.context_block.before(context, condition)
        image, image_modulation = self.x_block.before(x, condition)
        rows = torch.cat([text, image], dim=1)
        del text, image  # the attention needs their memory
        attended = attend(rows)
        del rows
        for_text, for_image = attended.split([context.shape[1], x.shape[1]], dim=1)
        x = self.x_block.after(x, for_image.contiguous(), image_modulation)
        if not self.context_block.last:
            context = self.context_block.after(context, for_text.contiguous(), text_modulation)
        return context, x


class FinalLayer(nn.Module):
    """The last norm and the projection of every row to the pixels of its patch."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(config.width, config.patch**2 * config.channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Patches [B, L, patch * patch * channels] of rows x [B, L, width]; condition is [B, width]."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class MMDiT(nn.Module):
    """The velocity field of the rectified flow: latent, timestep and text to the direction of the noise.

    `pos_embed` [1, grid * grid, width] is no parameter: it may stay in the host's memory, since a run needs only the
    crop that `positions` returns.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = VectorEmbedder(config.frequencies, config.width)
        self.y_embedder = VectorEmbedder(config.pooled_width, config.width)
        self.context_embedder = nn.Linear(config.context_width, config.width)
        self.joint_blocks = nn.ModuleList(
            JointBlock(config.width, i + 1 == config.depth, config.qk_norm, i in config.dual)
            for i in range(config.depth)
        )
        self.final_layer = FinalLayer(config)
        self.pos_embed: torch.Tensor | None = None
        self.stream: Iterable[JointBlock] | None = None  # brings the blocks in one by one where not all are resident

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings [1, H/patch * W/patch, width] for a latent H x W: the centre of the square table.

        Raises ValueError for a latent beyond the table.
        """
        grid, rows, columns = self.config.grid, height // self.config.patch, width // self.config.patch
        if max(rows, columns) > grid:
            raise ValueError(
                f"a latent of {height} x {width} lies beyond the position table of {grid} x {grid} patches"
            )
        top, left = (grid - rows) // 2, (grid - columns) // 2
        table = self.pos_embed.view(grid, grid, -1)
        return table[top : top + rows, left : left + columns].reshape(1, rows * columns, -1)

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        pooled: torch.Tensor,
        positions: torch.Tensor,
        skip: frozenset[int] = frozenset(),
    ) -> torch.Tensor:
        """The velocity [B, channels, H, W] in the weights' dtype.

        latent [B, channels, H, W]; timestep [B] = 1000 sigma, in float32 whatever the weights are; context
        [B, T, context_width] and pooled [B, pooled_width] from the text encoders; positions from `positions`. The
        blocks whose numbers are in `skip` are left out for text and image.
        """
        dtype = self.context_embedder.weight.dtype
        x = self.x_embedder(latent.to(dtype)) + positions.to(latent.device, dtype)
        condition = self.t_embedder(sinusoid(timestep, self.config.frequencies).to(dtype))
        condition = condition + self.y_embedder(pooled.to(dtype))
        context = self.context_embedder(context.to(dtype))
        for i, block in enumerate(self.stream or self.joint_blocks):
            if i not in skip:
                context, x = block(context, x, condition)
        return self.unpatchify(self.final_layer(x, condition), *latent.shape[2:])

    def unpatchify(self, rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Rows [B, L, patch * patch * channels] back to a latent [B, channels, height, width]."""
        p = self.config.patch
        x = rows.view(rows.shape[0], height // p, width // p, p, p, self.config.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(rows.shape[0], self.config.channels, height, width)

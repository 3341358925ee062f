"""The text encoders of Stable Diffusion 3: CLIP-L, CLIP-G and, where its file is there, T5.

CLIP is a causal transformer over 77 tokens (Radford et al. 2021), T5 an encoder with relative positions (Raffel et al.
2020, version 1.1). Module names follow the released files, and sizes are read off the tensors' shapes. `joined` puts
their outputs together as the transformer wants them. The file has the name of the published code's, and holds the text
encoders only. Start reading at `joined`, then `ClipTextModel.forward`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of CLIP's attention heads, in both sizes


# --- CLIP -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP text model; `projection` tells whether the pooled output is projected.

    `rows` is the length of its prompts. A small model may have rows for the `known` tokens only, in ascending order;
    row 0 of its token table is then for all others.
    """

    depth: int
    width: int
    hidden: int
    vocabulary: int
    projection: bool
    rows: int = 77
    known: tuple[int, ...] | None = None

    @classmethod
    def from_shapes(cls, shapes: Shapes, known: Sequence[int] | None = None) -> "ClipConfig":
        """The sizes of a checkpoint's tensors.

        Raises KeyError for a tensor that is missing, ValueError for `known` tokens that are not those of the table.
        """
        vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
        rows = shapes["text_model.embeddings.position_embedding.weight"][0]
        if known is not None and (len(known) != vocabulary - 1 or list(known) != sorted({int(i) for i in known})):
            raise ValueError(f"known_tokens must be {vocabulary - 1} ascending numbers")
        layers = {m[1] for name in shapes if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
        hidden = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
        projection = "text_projection.weight" in shapes
        return cls(len(layers), width, hidden, vocabulary, projection, rows, None if known is None else tuple(known))


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """CLIP-L's activation, near to a GELU, for x of any shape."""
    return x * torch.sigmoid(1.702 * x)


class ClipAttention(nn.Module):
    """Causal self-attention: a token sees those before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, width] of rows [B, T, width]."""
        heads = (
            layer(x).unflatten(2, (-1, min(HEAD_WIDTH, x.shape[2]))).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


class ClipMLP(nn.Module):
    """The weights of a layer's MLP; `ClipLayer` applies the activation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)


class ClipLayer(nn.Module):
    """One layer: attention, then the MLP, each after a norm and added to its input."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(config.width), ClipAttention(config.width)
        self.layer_norm2, self.mlp = nn.LayerNorm(config.width), ClipMLP(config.width, config.hidden)

    def forward(self, x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Rows [B, T, width] of rows [B, T, width]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp.fc2(activation(self.mlp.fc1(self.layer_norm2(x))))


class ClipTextModel(nn.Module):
    """A CLIP text model. CLIP-L has quick_gelu and no projection, CLIP-G gelu and one."""

    def __init__(self, config: ClipConfig, quick: bool) -> None:
        super().__init__()
        self.config, self.activation = config, quick_gelu if quick else gelu
        self.text_model = nn.Module()
        self.text_model.embeddings = nn.Module()
        self.text_model.embeddings.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.text_model.embeddings.position_embedding = nn.Embedding(config.rows, config.width)
        self.text_model.encoder = nn.Module()
        self.text_model.encoder.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.depth))
        self.text_model.final_layer_norm = nn.LayerNorm(config.width)
        self.text_projection = nn.Linear(config.width, config.width, bias=False) if config.projection else None
        self.known: torch.Tensor | None = None  # tokens that have a row of their own, where not all do
        self.stream: Iterable[nn.Module] | None = None  # brings the layers in one by one where not all are resident

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens' rows [B, T] in the token table, of ids [B, T]."""
        if self.known is None:
            return ids
        place = torch.searchsorted(self.known, ids).clamp(max=len(self.known) - 1)
        return torch.where(self.known[place] == ids, place + 1, 0)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [B, T, width] and pooled [B, width] of ids [B, T]; T is 77 in the released models.

        The rows are those that enter the last layer, without the final norm; the pooled vector is the final norm's row
        at the end token, which is the first with the greatest id.
        """
        table = self.text_model.embeddings
        x = table.token_embedding(self.places(ids)) + table.position_embedding.weight[: ids.shape[1]]
        for layer in self.stream or self.text_model.encoder.layers:
            rows, x = x, layer(x, self.activation)
        last = self.text_model.final_layer_norm(x)
        pooled = last[torch.arange(len(ids), device=ids.device), ids.argmax(1)]
        return rows, pooled if self.text_projection is None else self.text_projection(pooled)


# --- T5 ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder of version 1.1."""

    depth: int
    width: int
    hidden: int
    heads: int
    head_width: int
    buckets: int
    vocabulary: int

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> "T5Config":
        """The sizes of a checkpoint's tensors. Raises KeyError for a tensor that is missing."""
        vocabulary, width = shapes["shared.weight"]
        blocks = {m[1] for name in shapes if (m := re.match(r"encoder\.block\.(\d+)\.", name))}
        buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return cls(
            depth=len(blocks),
            width=width,
            hidden=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
            heads=heads,
            head_width=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
            buckets=buckets,
            vocabulary=vocabulary,
        )


class RMSNorm(nn.Module):
    """x over its root mean square, without mean or bias, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., width] normalised, in the weights' dtype."""
        x = x.float()
        return (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(self.weight.dtype) * self.weight


class T5Attention(nn.Module):
    """Self-attention without scaling, with a bias by distance that only the first layer holds."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_width
        self.q, self.k, self.v = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, width] of rows [B, T, width], with a bias [1, heads, T, T]."""
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(attended.transpose(1, 2).flatten(2))


class T5Gate(nn.Module):
    """The gated MLP. Its product may exceed float16, so the way out is computed in float32."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.width, config.hidden, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, width] in float32 of rows [B, T, width]."""
        product = gelu(self.wi_0(x).float(), approximate="tanh") * self.wi_1(x).float()
        if isinstance(self.wo, nn.Linear):
            return linear(product, self.wo.weight.float())
        return self.wo(product)  # kept at few bits, and brought up to its input's float32


class T5Encoder(nn.Module):
    """The encoder of T5; the sums along its depth are kept in float32, since they exceed float16."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(self.block(config, first=i == 0) for i in range(config.depth))
        self.encoder.final_layer_norm = RMSNorm(config.width)
        self.stream: Iterable[nn.Module] | None = None  # brings the blocks in one by one where not all are resident

    @staticmethod
    def block(config: T5Config, first: bool) -> nn.Module:
        """The two layers of a block under their names in the checkpoint."""
        attention, gate, block = nn.Module(), nn.Module(), nn.Module()
        attention.SelfAttention, attention.layer_norm = T5Attention(config, first), RMSNorm(config.width)
        gate.DenseReluDense, gate.layer_norm = T5Gate(config), RMSNorm(config.width)
        block.layer = nn.ModuleList([attention, gate])
        return block

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, width] of ids [B, T]. Padding is not masked: the model was used so in training."""
        x, bias = self.shared(ids).float(), None
        buckets = distance_buckets(ids.shape[1], self.config.buckets).to(ids.device)
        for block in self.stream or self.encoder.block:
            attention, gate = block.layer
            if bias is None:  # the first block's, for all of them
                bias = attention.SelfAttention.relative_attention_bias(buckets).permute(2, 0, 1)[None]
            x = x + attention.SelfAttention(attention.layer_norm(x), bias)
            x = x + gate.DenseReluDense(gate.layer_norm(x))
        return self.encoder.final_layer_norm(x)


def distance_buckets(length: int, buckets: int, furthest: int = 128) -> torch.Tensor:
    """The bucket [length, length] of every distance from a query (row) to a key (column).

    Half of the buckets are for keys to the right. In each half, the first half is exact, and the rest grow
    logarithmically up to `furthest`; what is further shares the last one.
    """
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    grown = (far.clamp(min=1) / exact).log() / math.log(furthest / exact) * (half - exact)
    bucket = torch.where(far < exact, far, (exact + grown.long()).clamp(max=half - 1))
    return bucket + half * (distance > 0)


# --- together ---------------------------------------------------------------------------------------------------------


def joined(
    clip_l: tuple[torch.Tensor, torch.Tensor],
    clip_g: tuple[torch.Tensor, torch.Tensor],
    t5: torch.Tensor | None,
    context_width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The transformer's context [B, rows, context_width] and pooled vector [B, width L + width G].

    CLIP's rows stand beside each other, L then G, filled up with zeros; T5's rows [B, T, context_width] come after.
    """
    rows = torch.cat([clip_l[0], clip_g[0]], dim=2)
    context = nn.functional.pad(rows, (0, context_width - rows.shape[2]))
    if t5 is not None:
        context = torch.cat([context, t5.to(context.dtype)], dim=1)
    return context, torch.cat([clip_l[1], clip_g[1]], dim=1)

"""Names of tensors in other layouts: diffusers' folders, and T5 as llama.cpp names it in GGUF files.

Each table has our module on the left and the other layout's on the right, with * for a number. Where the other layout
splits a matrix, its parts stand in the order in which ours has their rows. Start reading at `diffusers_transformer`,
then `shapes_as_ours`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

Shapes = Mapping[str, tuple[int, ...]]
Table = Mapping[str, tuple[str, ...]]  # with * for a number


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a tensor of ours comes from in another layout.

    The tensors `names` stand below each other, row-wise. With `swapped`, the two halves of the rows change places; with
    `reshaped`, a matrix [c, c] becomes [c, c, 1, 1].
    """

    names: tuple[str, ...]
    swapped: bool = False
    reshaped: bool = False


def attention(ours: str, other: str, parts: tuple[str, ...], out: str, norms: tuple[str, ...]) -> dict:
    """The rows of the table for one attention: its fused projection, the way out, and the norms of SD3.5."""
    block, other_block = f"joint_blocks.*.{ours}", f"transformer_blocks.*.{other}"
    return {
        f"{block}.qkv": tuple(f"{other_block}.{part}" for part in parts),
        f"{block}.proj": (f"{other_block}.{out}",),
        f"{block}.ln_q": (f"{other_block}.{norms[0]}",),
        f"{block}.ln_k": (f"{other_block}.{norms[1]}",),
    }


IMAGE = (("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"))
TEXT = (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k"))

TRANSFORMER: Table = MappingProxyType(
    {
        "pos_embed": ("pos_embed.pos_embed",),
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        **attention("x_block.attn", "attn", *IMAGE),
        **attention("x_block.attn2", "attn2", *IMAGE),
        **attention("context_block.attn", "attn", *TEXT),
        "joint_blocks.*.x_block.mlp.fc1": ("transformer_blocks.*.ff.net.0.proj",),
        "joint_blocks.*.x_block.mlp.fc2": ("transformer_blocks.*.ff.net.2",),
        "joint_blocks.*.context_block.mlp.fc1": ("transformer_blocks.*.ff_context.net.0.proj",),
        "joint_blocks.*.context_block.mlp.fc2": ("transformer_blocks.*.ff_context.net.2",),
        "joint_blocks.*.x_block.adaLN_modulation.1": ("transformer_blocks.*.norm1.linear",),
        "joint_blocks.*.context_block.adaLN_modulation.1": ("transformer_blocks.*.norm1_context.linear",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    }
)

RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
MIDDLE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

# The decoder's levels count from the other end there; `diffusers_vae` and `shapes_as_ours` turn them round.
AUTOENCODER: Table = MappingProxyType(
    {
        **{
            f"{half}.{name}": (f"{half}.{name}",) for half in ("encoder", "decoder") for name in ("conv_in", "conv_out")
        },
        **{f"{half}.norm_out": (f"{half}.conv_norm_out",) for half in ("encoder", "decoder")},
        **{
            f"{ours}.{name}": (f"{other}.{renamed}",)
            for name, renamed in RESIDUAL.items()
            for ours, other in (
                ("encoder.down.*.block.*", "encoder.down_blocks.*.resnets.*"),
                ("decoder.up.*.block.*", "decoder.up_blocks.*.resnets.*"),
                ("encoder.mid.block_1", "encoder.mid_block.resnets.0"),
                ("encoder.mid.block_2", "encoder.mid_block.resnets.1"),
                ("decoder.mid.block_1", "decoder.mid_block.resnets.0"),
                ("decoder.mid.block_2", "decoder.mid_block.resnets.1"),
            )
        },
        **{
            f"{half}.mid.attn_1.{name}": (f"{half}.mid_block.attentions.0.{renamed}",)
            for half in ("encoder", "decoder")
            for name, renamed in MIDDLE_ATTENTION.items()
        },
        "encoder.down.*.downsample.conv": ("encoder.down_blocks.*.downsamplers.0.conv",),
        "decoder.up.*.upsample.conv": ("decoder.up_blocks.*.upsamplers.0.conv",),
    }
)

T5: Table = MappingProxyType(
    {
        "shared": ("token_embd",),
        "encoder.final_layer_norm": ("enc.output_norm",),
        **{
            f"encoder.block.*.layer.{name}": (f"enc.blk.*.{renamed}",)
            for name, renamed in {
                "0.layer_norm": "attn_norm",
                "0.SelfAttention.q": "attn_q",
                "0.SelfAttention.k": "attn_k",
                "0.SelfAttention.v": "attn_v",
                "0.SelfAttention.o": "attn_o",
                "0.SelfAttention.relative_attention_bias": "attn_rel_b",
                "1.layer_norm": "ffn_norm",
                "1.DenseReluDense.wi_0": "ffn_gate",
                "1.DenseReluDense.wi_1": "ffn_up",
                "1.DenseReluDense.wo": "ffn_down",
            }.items()
        },
    }
)

TABLES = MappingProxyType({"transformer": TRANSFORMER, "vae": AUTOENCODER, "t5": T5})


def diffusers_transformer(name: str, depth: int) -> Origin:
    """A tensor of our transformer of `depth` blocks in diffusers' layout. Raises KeyError for a name that is none."""
    last = f"joint_blocks.{depth - 1}.context_block.adaLN_modulation."
    swapped = name.startswith((last, "final_layer.adaLN_modulation."))
    return Origin(names_there(name, "transformer"), swapped)


def diffusers_vae(name: str, levels: int) -> Origin:
    """A tensor of our autoencoder of `levels` sizes in diffusers' layout. Raises KeyError for a name that is none."""
    matrix = re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
    return Origin(tuple(turned(other, levels) for other in names_there(name, "vae")), reshaped=matrix)


def llama_t5(name: str) -> Origin:
    """A tensor of our T5 under llama.cpp's name. Raises KeyError for a name that is none."""
    return Origin(names_there(name, "t5"))


def origin(name: str, kind: str, count: int) -> Origin:
    """A tensor of ours in the other layout of a `kind`: transformer, vae or t5.

    `count` is what `counted` says of the file. Raises KeyError for a name that is none.
    """
    if kind == "transformer":
        return diffusers_transformer(name, count)
    return diffusers_vae(name, count) if kind == "vae" else llama_t5(name)


def counted(names: Iterable[str]) -> int:
    """The transformer's blocks, or the autoencoder's levels, in names of the other layout; 0 where there are none."""
    numbered = re.compile(r"(?:transformer_blocks|encoder\.down_blocks)\.(\d+)\.")
    return 1 + max((int(m[1]) for name in names if (m := numbered.match(name))), default=-1)


def shapes_as_ours(shapes: Shapes, kind: str) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of a whole model in the other layout; `kind` is transformer, vae or t5.

    A tensor of ours of which the file lacks a part is left out. Raises KeyError with the name of a tensor that the
    layout does not know, ValueError for parts that cannot stand below each other.
    """
    count, found = counted(shapes), {}
    for name in dict.fromkeys(name_here(turned(other, count) if kind == "vae" else other, kind) for other in shapes):
        source = origin(name, kind, count)
        if not shapes.keys() >= set(source.names):
            continue
        parts = [shapes[other] for other in source.names]
        if len({part[1:] for part in parts}) > 1 or not all(parts):
            raise ValueError(f"{', '.join(source.names)} of shapes {', '.join(str(list(part)) for part in parts)}")
        shape = (sum(part[0] for part in parts), *parts[0][1:])
        found[name] = (*shape, 1, 1) if source.reshaped and len(shape) == 2 else shape
    return found


def names_there(name: str, kind: str) -> tuple[str, ...]:
    """A tensor of ours in the other layout. Raises KeyError for a name that is none."""
    module, leaf = parted(name)
    for ours, others in TABLES[kind].items():
        if numbers := matching(ours).fullmatch(module):
            return tuple(filled(other, numbers.groups()) + leaf for other in others)
    raise KeyError(name)


def name_here(name: str, kind: str) -> str:
    """The tensor of ours that a tensor of the other layout is, or is a part of. Raises KeyError for one unknown."""
    module, leaf = parted(name)
    for ours, others in TABLES[kind].items():
        for other in others:
            if numbers := matching(other).fullmatch(module):
                return filled(ours, numbers.groups()) + leaf
    raise KeyError(name)


def parted(name: str) -> tuple[str, str]:
    """A tensor's module, and the rest of its name with the point."""
    module, point, leaf = name.rpartition(".")
    return (module, point + leaf) if leaf in ("weight", "bias") else (name, "")


@cache
def matching(template: str) -> re.Pattern[str]:
    """The names that a name with * stands for; the numbers are its groups."""
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)"))


def filled(template: str, numbers: tuple[str, ...]) -> str:
    """A name with numbers in the places of *."""
    for number in numbers:
        template = template.replace("*", number, 1)
    return template


def turned(name: str, levels: int) -> str:
    """A name of diffusers' autoencoder with the decoder's levels counted from the other end.

    Raises KeyError for a level that is none.
    """
    found = re.match(r"(decoder\.up_blocks\.)(\d+)(\..*)", name)
    if found is None:
        return name
    start, level, rest = found.groups()
    if int(level) >= levels:
        raise KeyError(name)
    return f"{start}{levels - 1 - int(level)}{rest}"

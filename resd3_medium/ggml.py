"""The block formats of GGUF files, brought up to float32 by torch, on any device.

A row of a matrix is a run of blocks, each with its own scale; names are those of the `gguf` package. The bytes of the
small numbers are taken apart eight at a time, as int64: that is several times as fast as byte by byte. Every value is
the same, bit for bit, as the package's. Start reading at `BLOCKS`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType


@dataclasses.dataclass(frozen=True)
class Block:
    """A format: how many weights a block holds in how many bytes, and what writes the weights.

    `unpack` gets blocks, uint8 [B, bytes], and fills a contiguous float32 [B, size].
    """

    size: int
    bytes: int
    unpack: Callable[[torch.Tensor, torch.Tensor], None]


def halves(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 numbers at byte `start` of each block, as float32 [B, 1]."""
    return blocks[:, start : start + 2].clone().view(torch.float16).float()


def eights(blocks: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Bytes start..stop of each block, as int64 [B, (stop - start) / 8]."""
    return blocks[:, start:stop].clone().view(torch.int64)


def each(byte: int) -> int:
    """The int64 whose eight bytes are all `byte`, which is below 128."""
    return byte * 0x0101010101010101


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Low, then high halves of bytes: int64 [..., n] to int64 [..., 2, n], where each byte is 0..15."""
    out = packed.new_empty(*packed.shape[:-1], 2, packed.shape[-1])
    torch.bitwise_and(packed, each(15), out=out[..., 0, :])
    torch.bitwise_and(packed >> 4, each(15), out=out[..., 1, :])
    return out


@functools.cache
def spread_bits(device: torch.device) -> torch.Tensor:
    """For each byte, as int64 [256]: eight bytes, each 16 where the byte has that bit, and 0 elsewhere."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return (bits * 16).to(device, torch.uint8).view(torch.int64)[:, 0]


def fifth_bits(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The 32 bits at byte `start` of each block, each as the fifth bit of a byte: int64 [B, 4]."""
    bits = blocks[:, start : start + 4].int().flatten()
    return spread_bits(blocks.device).index_select(0, bits).view(-1, 4)


def q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, 32 int8: w = d * q."""
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(halves(blocks, 0))


def q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, 32 nibbles: w = d * (q - 8)."""
    q = nibbles(eights(blocks, 2, 18)).view(torch.int8).view_as(out)
    out.copy_(q.sub_(8)).mul_(halves(blocks, 0))


def q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, m, 32 nibbles: w = d * q + m."""
    q = nibbles(eights(blocks, 4, 20)).view(torch.int8).view_as(out)
    out.copy_(q).mul_(halves(blocks, 0)).add_(halves(blocks, 2))


def q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, 32 fifth bits, 32 nibbles: w = d * (q - 16)."""
    q = nibbles(eights(blocks, 6, 22)).view(-1, 4).bitwise_or_(fifth_bits(blocks, 2)).view(torch.int8)
    out.copy_(q.sub_(16)).mul_(halves(blocks, 0))


def q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, m, 32 fifth bits, 32 nibbles: w = d * q + m."""
    q = nibbles(eights(blocks, 8, 24)).view(-1, 4).bitwise_or_(fifth_bits(blocks, 4)).view(torch.int8)
    out.copy_(q).mul_(halves(blocks, 0)).add_(halves(blocks, 2))


def scales_and_mins(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the eight groups of 32 are multiplied by, and what is then taken off: each float32 [B, 8, 1].

    Blocks begin with d and dmin, and twelve bytes with the six bits that each group has for either: four scales, four
    minima, and four bytes with the low halves of the others, whose high bits top the bytes before.
    """
    scales, mins, rest = blocks[:, 4:16].clone().split(4, dim=1)
    scales = torch.cat([scales & 63, (rest & 15) | (scales >> 2 & 48)], dim=1)
    mins = torch.cat([mins & 63, (rest >> 4) | (mins >> 2 & 48)], dim=1)
    return (halves(blocks, 0) * scales)[..., None], (halves(blocks, 2) * mins)[..., None]


def q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """d, dmin, scales and minima, 4 x 32 bytes with the nibbles of two groups: w = d * scale * q - dmin * min."""
    q = nibbles(eights(blocks, 16, 144).view(-1, 4, 4)).view(torch.int8).view(-1, 8, 32)
    scale, low = scales_and_mins(blocks)
    out.view_as(q).copy_(q).mul_(scale).sub_(low)


def q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """As `q4_k`, with 32 bytes before the nibbles: bit g of byte i is the fifth bit of value i of group g."""
    q = nibbles(eights(blocks, 48, 176).view(-1, 4, 4)).view(-1, 8, 4)
    bits = eights(blocks, 16, 48)
    for group in range(8):
        q[:, group].bitwise_or_((bits >> group & each(1)) << 4)
    q = q.view(torch.int8)
    scale, low = scales_and_mins(blocks)
    out.view_as(q).copy_(q).mul_(scale).sub_(low)


def q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """2 x 64 bytes of nibbles, 2 x 32 bytes with the two bits above of 4 x 32 values, 16 int8 scales for 16 values
    each, d: w = d * scale * (q - 32)."""
    q = nibbles(eights(blocks, 0, 128).view(-1, 2, 8)).view(-1, 2, 4, 4)
    bits = eights(blocks, 128, 192).view(-1, 2, 4)
    for quarter in range(4):
        q[:, :, quarter].bitwise_or_((bits >> 2 * quarter & each(3)) << 4)
    q = q.view(torch.int8).sub_(32).view(-1, 16, 16)
    scale = halves(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    out.view_as(q).copy_(q).mul_(scale[..., None])


BLOCKS = {
    "Q8_0": Block(32, 34, q8_0),
    "Q4_0": Block(32, 18, q4_0),
    "Q4_1": Block(32, 20, q4_1),
    "Q5_0": Block(32, 22, q5_0),
    "Q5_1": Block(32, 24, q5_1),
    "Q4_K": Block(256, 144, q4_k),
    "Q5_K": Block(256, 176, q5_k),
    "Q6_K": Block(256, 210, q6_k),
}


def ggml_kind(ggml_type: "GGMLQuantizationType") -> str | None:
    """The name in BLOCKS of a type of tensors in GGUF files; None for types that are not kept packed."""
    return ggml_type.name if ggml_type.name in BLOCKS else None


def floats_by_gguf(raw: torch.Tensor, ggml_type: "GGMLQuantizationType", shape: tuple[int, ...]) -> torch.Tensor:
    """float32 of `shape` from uint8 data of any type that the package reads, on the CPU and slowly.

    Raises ValueError for a type that it does not read, and for data of another size.
    """
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(raw.contiguous().numpy(), ggml_type).reshape(shape))
    except NotImplementedError:
        raise ValueError(f"weights of GGUF's type {ggml_type.name} cannot be read") from None

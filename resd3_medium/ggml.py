"""Matrices in the block formats of GGUF files, brought up in tensors.

A row is cut into blocks of 32 or 256 numbers, each with its own scale; all formats here are those of ggml. Every
function takes blocks [n, bytes of a block] as they are stored and gives float32 [n, numbers of a block]. Formats that
are not here go through the gguf package. Start reading at `FORMATS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


def half(blocks: torch.Tensor, place: int) -> torch.Tensor:
    """The float16 at a byte of each block, as float32 [n, 1]."""
    return blocks[:, place : place + 2].contiguous().view(torch.float16).float()


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Bytes [.., k] as their low four bits, then their high ones, [.., 2 k]."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """The 32 bits of [n, 4] bytes, as 0 or 16, [n, 32]."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> places) & 1).flatten(1) << 4


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """d * q, with q in int8."""
    return half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """d * (q - 8), with q of four bits."""
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).float() - 8)


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """d * q + m, with q of four bits."""
    return half(blocks, 0) * nibbles(blocks[:, 4:]) + half(blocks, 2)


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """d * (q - 16), with q of five bits, the highest of all q apart."""
    return half(blocks, 0) * ((nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])).float() - 16)


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """d * q + m, with q of five bits, the highest of all q apart."""
    return half(blocks, 0) * (nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])) + half(blocks, 2)


def scales_and_minima(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight scales and eight minima of six bits [n, 8] in the 12 bytes that Q4_K and Q5_K have for them."""
    low, mid, high = packed.split(4, dim=1)
    scales = torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], dim=1)
    minima = torch.cat([mid & 63, (high >> 4) | ((mid >> 6) << 4)], dim=1)
    return scales, minima


def k_values(blocks: torch.Tensor, quants: torch.Tensor) -> torch.Tensor:
    """d * sc * q - dmin * m of eight groups [n, 8, 32] in a block of Q4_K or Q5_K."""
    scales, minima = scales_and_minima(blocks[:, 4:16])
    d, m = half(blocks, 0) * scales, half(blocks, 2) * minima
    return (d[:, :, None] * quants - m[:, :, None]).flatten(1)


def groups_of(packed: torch.Tensor) -> torch.Tensor:
    """128 bytes [n, 128] as eight groups of 32 four-bit numbers: each 32 bytes hold two groups."""
    return nibbles(packed.view(-1, 4, 32)).view(-1, 8, 32)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Eight groups of 32 with a scale and a minimum of six bits each."""
    return k_values(blocks, groups_of(blocks[:, 16:].contiguous()))


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """As Q4_K, with a fifth bit of each number: bit g of byte i is that of number i in group g."""
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = ((blocks[:, None, 16:48] >> places) & 1) << 4
    return k_values(blocks, groups_of(blocks[:, 48:].contiguous()) | fifth)


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Sixteen groups of 16 numbers of six bits, less 32, with scales in int8."""
    low = nibbles(blocks[:, :128].contiguous().view(-1, 2, 1, 64)).view(-1, 2, 4, 32)
    places = 2 * torch.arange(4, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> places) & 3
    quants = (low | (high << 4)).float().view(-1, 16, 16) - 32
    scales = half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    return (scales[:, :, None] * quants).flatten(1)


@dataclasses.dataclass(frozen=True)
class Format:
    """Numbers and bytes of a block, and what brings blocks up."""

    numbers: int
    bytes: int
    floats: Callable[[torch.Tensor], torch.Tensor]


FORMATS = {
    "Q8_0": Format(32, 34, q8_0),
    "Q4_0": Format(32, 18, q4_0),
    "Q4_1": Format(32, 20, q4_1),
    "Q5_0": Format(32, 22, q5_0),
    "Q5_1": Format(32, 24, q5_1),
    "Q4_K": Format(256, 144, q4_k),
    "Q5_K": Format(256, 176, q5_k),
    "Q6_K": Format(256, 210, q6_k),
}


def floats_by_gguf(raw: torch.Tensor, kind: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor in any format of the gguf package's, brought up by it in float32 and in `shape`."""
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(raw.numpy(), kind)).reshape(shape)

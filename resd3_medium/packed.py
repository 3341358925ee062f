"""Matrices kept at few bits, and linear layers that bring them up as they are used.

Kinds are fp8, int8 with a scale for each row, and the block formats of GGUF. Start reading at `PackedLinear.forward`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from resd3_medium.ggml import FORMATS, floats_by_gguf

__all__ = [
    "Packed",
    "PackedLinear",
    "floats_by_gguf",
    "from_ggml",
    "ggml_kind",
    "quantised",
    "row_halves_swapped",
    "stacked",
]

CHUNK = 2**18  # numbers that are brought up together, which stay in a core's cache
FEW_ROWS = 16  # inputs of so many rows are multiplied chunk by chunk, without the whole matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A matrix [rows, columns] at few bits.

    `kind` is F8_E4M3, F8_E5M2, INT8, or one of GGUF's block formats. `data` [rows, ..] is as stored: fp8 and int8 have
    [rows, columns] of that dtype, block formats the bytes of each row. `scale` in float32 is [rows, 1], [1, 1] or None.
    """

    kind: str
    data: torch.Tensor
    scale: torch.Tensor | None
    shape: tuple[int, int]

    def floats(self) -> torch.Tensor:
        """The matrix in float32."""
        return brought_up(self.kind, self.data, self.scale, self.shape[1], torch.float32)


def values(kind: str, data: torch.Tensor, scale: torch.Tensor | None, columns: int) -> torch.Tensor:
    """Rows of a packed matrix in float32."""
    if kind in FORMATS:
        form = FORMATS[kind]
        return form.floats(data.reshape(-1, form.bytes)).view(-1, columns)
    floats = fp8_floats(data) if kind == "F8_E4M3" else data.float()
    return floats if scale is None else floats.mul_(scale)


def fp8_floats(data: torch.Tensor) -> torch.Tensor:
    """Numbers in e4m3 as float32, by the bits that they have in float16, which is much faster on a CPU.

    e4m3 has an exponent of four bits with bias 7, float16 one of five with bias 15: moved by seven places, a number is
    2^8 times too small, subnormal ones too. The two codes of e4m3 that are no number are handled apart.
    """
    codes = data.view(torch.uint8).to(torch.int16)
    halves = ((codes & 0x80) << 8) | ((codes & 0x7F) << 7)
    floats = halves.view(torch.float16).float().mul_(256.0)
    return floats.masked_fill_(floats.abs() == 480, torch.nan)


def brought_up(
    kind: str, data: torch.Tensor, scale: torch.Tensor | None, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """A packed matrix [rows, columns] at a dtype, rounded once."""
    rows = len(data)
    out = torch.empty(rows, columns, dtype=dtype, device=data.device)
    for start, end in spans(rows, columns):
        out[start:end] = values(kind, data[start:end], cut(scale, start, end), columns)
    return out


def spans(rows: int, columns: int) -> list[tuple[int, int]]:
    """First and last row of each chunk."""
    size = max(1, CHUNK // columns)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def cut(scale: torch.Tensor | None, start: int, end: int) -> torch.Tensor | None:
    """The scales of some rows."""
    return scale if scale is None or len(scale) == 1 else scale[start:end]


def stacked(parts: Sequence[Packed]) -> Packed:
    """Matrices of one kind below each other."""
    rows = sum(part.shape[0] for part in parts)
    scale = None
    if any(part.scale is not None for part in parts):
        ones = [torch.ones(1, 1) if part.scale is None else part.scale for part in parts]
        scale = torch.cat([s.expand(part.shape[0], 1) for s, part in zip(ones, parts, strict=True)])
    data = torch.cat([part.data.view(torch.uint8) for part in parts]).view(parts[0].data.dtype)
    return Packed(parts[0].kind, data, scale, (rows, parts[0].shape[1]))


def row_halves_swapped(packed: Packed) -> Packed:
    """The second half of the rows first."""
    half = packed.shape[0] // 2
    data = packed.data.view(torch.uint8).roll(half, 0).view(packed.data.dtype)
    scale = packed.scale if packed.scale is None or len(packed.scale) == 1 else packed.scale.roll(half, 0)
    return dataclasses.replace(packed, data=data, scale=scale)


def quantised(weight: torch.Tensor, kind: str) -> Packed:
    """A float matrix [rows, columns] at 8 bits: `int8` with a scale for each row, or `fp8` (e4m3) with one for all.

    The largest number of a row, or of the matrix, becomes 127, or 448.
    """
    rows, columns = weight.shape
    if kind == "int8":
        scale = weight.abs().amax(1, keepdim=True).float() / 127
    else:
        scale = weight.abs().amax().float().view(1, 1) / 448
    scale = torch.where(scale > 0, scale, 1.0)
    data = torch.empty(rows, columns, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    for start, end in spans(rows, columns):
        scaled = weight[start:end].float() / cut(scale, start, end)
        data[start:end] = scaled.round_().to(torch.int8) if kind == "int8" else scaled.to(torch.float8_e4m3fn)
    return Packed("INT8" if kind == "int8" else "F8_E4M3", data, scale, (rows, columns))


def ggml_kind(kind: Any) -> str | None:
    """Our name for a type of the gguf package's; None for those that are not kept packed."""
    return kind.name if kind.name in FORMATS else None


def from_ggml(kind: str, raw: torch.Tensor, shape: tuple[int, ...]) -> Packed:
    """A matrix as a GGUF file stores it, bytes in any shape."""
    return Packed(kind, raw.reshape(shape[0], -1), None, (shape[0], shape[1]))


class PackedLinear(nn.Module):
    """A linear layer whose matrix stays packed, and is brought up in float32 and rounded to its input's dtype at use.

    `lora` holds what is added before rounding: the first row, up [rows, rank], down [rank, columns], and a factor.
    """

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        data_shape: tuple[int, ...],
        scale_shape: tuple[int, ...] | None,
        bias: bool,
    ) -> None:
        super().__init__()
        dtypes = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "INT8": torch.int8}
        self.kind, self.shape = kind, shape
        self.register_buffer("packed", torch.empty(data_shape, dtype=dtypes.get(kind, torch.uint8)))
        if scale_shape is not None:
            self.register_buffer("scale", torch.empty(scale_shape))
        else:
            self.scale = None
        self.bias = nn.Parameter(torch.empty(shape[0]), requires_grad=False) if bias else None
        self.lora: list[tuple[int, torch.Tensor, torch.Tensor, float]] = []

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Some rows of the matrix in float32, with what is added."""
        found = values(self.kind, self.packed[start:end], cut(self.scale, start, end), self.shape[1])
        for first, up, down, factor in self.lora:
            a, b = max(first, start), min(first + len(up), end)
            if a < b:
                found[a - start : b - start].addmm_(up[a - first : b - first], down, alpha=factor)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [.., out] of rows [.., in], in their dtype."""
        chunks = spans(*self.shape)
        if x.numel() // x.shape[-1] <= FEW_ROWS:
            parts = [
                linear(x, self.rows(a, b).to(x.dtype), None if self.bias is None else self.bias[a:b]) for a, b in chunks
            ]
            return torch.cat(parts, dim=-1)
        matrix = torch.empty(self.shape, dtype=x.dtype, device=x.device)
        for start, end in chunks:
            matrix[start:end] = self.rows(start, end)
        return linear(x, matrix, self.bias)

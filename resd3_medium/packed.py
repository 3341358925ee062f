"""Matrices at few bits, in memory as in the file, and the linear layer that brings them up as it is used.

Kinds are 8-bit floating point (F8_E4M3, F8_E5M2), 8-bit integers with a scale for each row (INT8), and the block
formats of GGUF files (`ggml.BLOCKS`). Rows are brought up a few at a time, so that what is written and read again stays
in the processor's cache: in float32, with what LoRA adds, then rounded to the dtype of the product. Start reading at
`PackedLinear.forward`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from resd3_medium.ggml import BLOCKS

DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "INT8": torch.int8}
LARGEST = {"int8": 127.0, "fp8": 448.0}  # numbers of the forms that `quantised` makes
Lora = tuple[int, torch.Tensor, torch.Tensor, float]  # first row, up [out, r], down [r, in] in float32, factor


@dataclasses.dataclass(frozen=True)
class Packed:
    """A matrix [rows, columns] at few bits.

    `data` is as stored: [rows, columns] of the kind's dtype, or for GGUF's kinds uint8 [rows, bytes of a row]. `scale`,
    float32 [rows, 1] or [1, 1], multiplies what fp8 and int8 hold.
    """

    kind: str
    data: torch.Tensor
    scale: torch.Tensor | None
    shape: tuple[int, int]

    def floats(self) -> torch.Tensor:
        """The weights, float32 [rows, columns]."""
        out = torch.empty(self.shape, dtype=torch.float32, device=self.data.device)
        for rows in spans(self.shape, self.data.device):
            bring_up(self, rows, out[rows])
        return out

    def bytes(self) -> int:
        """How much memory it takes."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, device: torch.device) -> "Packed":
        """The same on `device`."""
        scale = None if self.scale is None else self.scale.to(device)
        return dataclasses.replace(self, data=self.data.to(device), scale=scale)


def from_ggml(kind: str, raw: torch.Tensor, shape: tuple[int, int]) -> Packed:
    """A matrix of a GGUF file: `kind` from `ggml.ggml_kind`, raw its bytes, uint8 of any shape.

    Raises ValueError when there are not as many bytes as `shape` takes.
    """
    rows, columns = shape
    block = BLOCKS[kind]
    if columns % block.size or raw.numel() != rows * columns // block.size * block.bytes:
        raise ValueError(f"{raw.numel()} bytes of {kind} do not make a matrix of {rows} x {columns}")
    return Packed(kind, raw.reshape(rows, -1), None, (rows, columns))


def stacked(parts: Sequence[Packed]) -> Packed:
    """The rows of several matrices below each other. Raises ValueError for different kinds or numbers of columns."""
    first = parts[0]
    if any((part.kind, part.shape[1]) != (first.kind, first.shape[1]) for part in parts):
        raise ValueError("matrices of different kinds or widths cannot be stacked")
    scale = None
    if any(part.scale is not None for part in parts):
        scale = torch.cat([row_scales(part) for part in parts])
    data = torch.cat([part.data for part in parts])
    return Packed(first.kind, data, scale, (len(data), first.shape[1]))


def row_scales(packed: Packed) -> torch.Tensor:
    """The scale of each row, float32 [rows, 1]."""
    rows = packed.shape[0]
    return packed.data.new_ones(rows, 1, dtype=torch.float32) if packed.scale is None else packed.scale.expand(rows, 1)


def row_halves_swapped(packed: Packed) -> Packed:
    """The second half of the rows first."""
    half, scale = packed.shape[0] // 2, packed.scale
    if scale is not None and len(scale) > 1:
        scale = torch.cat([scale[half:], scale[:half]])
    return dataclasses.replace(packed, data=torch.cat([packed.data[half:], packed.data[:half]]), scale=scale)


def quantised(weight: torch.Tensor, kind: Literal["int8", "fp8"]) -> Packed:
    """A floating-point matrix at 8 bits: int8 with a scale for each row, or fp8 (e4m3) with one for all.

    Computed in float32. Rows of zeros stay so; where a weight is no finite number, all that share its scale become NaN.
    """
    largest = LARGEST[kind]
    parts = spans(weight.shape, weight.device)
    scale = torch.cat([weight[rows].float().abs().amax(1, keepdim=True) for rows in parts]) / largest
    if kind == "fp8":
        scale = scale.amax().view(1, 1)
    packed = Packed(
        {"int8": "INT8", "fp8": "F8_E4M3"}[kind],
        torch.empty_like(weight, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn),
        scale,
        tuple(weight.shape),
    )
    divisor = torch.where(scale == 0, 1, scale).expand(len(weight), 1)
    for rows in parts:
        values = weight[rows].float().div(divisor[rows]).clamp_(-largest, largest)
        packed.data[rows] = values.round_().nan_to_num_().to(torch.int8) if kind == "int8" else values
    return packed


def spans(shape: Sequence[int], device: torch.device) -> list[slice]:
    """The rows of a matrix in slices that are brought up at once: on a CPU so few that its cache holds them.

    Each but the last has a multiple of 64 rows, which matrix products take well.
    """
    step = max(256, (2**20 if device.type == "cpu" else 2**24) // shape[1] // 64 * 64)
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def bring_up(packed: Packed, rows: slice, out: torch.Tensor) -> None:
    """Write the weights of some rows, in float32, into `out`, contiguous [rows, columns]."""
    data = packed.data[rows]
    if packed.kind in BLOCKS:
        block = BLOCKS[packed.kind]
        block.unpack(data.reshape(-1, block.bytes), out.view(-1, block.size))
        return
    factor = 1.0
    if packed.kind == "INT8" or data.device.type != "cpu":
        out.copy_(data)
    else:
        halves, factor = as_float16(data)
        out.copy_(halves)
    if packed.scale is not None:
        out.mul_((packed.scale if len(packed.scale) == 1 else packed.scale[rows]) * factor)
    elif factor != 1:
        out.mul_(factor)


def as_float16(data: torch.Tensor) -> tuple[torch.Tensor, float]:
    """8-bit floating point as float16 by shifts of its bits, and what to multiply by: far faster than a CPU's casts.

    E5M2 is the upper half of a float16. E4M3 has its exponent in float16's place after a shift by 7, without the sign,
    but the exponent counts from 2^-7 there and from 2^-15 in float16, also below the normal numbers. Its NaN are no
    NaN then, so they are looked for.
    """
    if data.dtype == torch.float8_e5m2:
        return (data.view(torch.uint8).to(torch.int16) << 8).view(torch.float16), 1.0
    signed, unsigned = data.view(torch.int8), data.view(torch.uint8)
    bits = signed.to(torch.int16).mul_(128).bitwise_and_(~0x4000)  # the sign is in bits 14 and 15 after the widening
    if signed.amax() == 0x7F or unsigned.amax() == 0xFF:
        bits.masked_fill_(unsigned & 0x7F == 0x7F, 0x7E00)
    return bits.view(torch.float16), 256.0


class PackedLinear(nn.Module):
    """A linear layer whose matrix stays packed and is brought up in float32, then rounded to the input's dtype.

    It is made from sizes, as the parts of `Packed` have them; `load_state_dict(assign=True)` then gives it the tensors
    `packed`, `scale` and `bias`, of which the latter two may be absent. The dtypes of `packed` and `scale` must stay:
    do not cast the module. `lora` is added to the weights before they are rounded.
    """

    def __init__(
        self,
        kind: str,
        shape: tuple[int, int],
        data_shape: Sequence[int],
        scale_shape: Sequence[int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        self.packed = frozen(torch.empty(*data_shape, dtype=DTYPES.get(kind, torch.uint8)))
        self.scale = None if scale_shape is None else frozen(torch.empty(*scale_shape, dtype=torch.float32))
        self.bias = frozen(torch.empty(shape[0])) if bias else None
        self.lora: list[Lora] = []

    @classmethod
    def of(cls, packed: Packed, bias: torch.Tensor | None = None) -> "PackedLinear":
        """The layer with this matrix and bias."""
        with torch.device("meta"):
            scale_shape = None if packed.scale is None else packed.scale.shape
            layer = cls(packed.kind, packed.shape, packed.data.shape, scale_shape, bias is not None)
        tensors = {"packed": packed.data, "scale": packed.scale, "bias": bias}
        layer.load_state_dict({name: t for name, t in tensors.items() if t is not None}, assign=True)
        return layer

    def matrix(self) -> Packed:
        """The matrix as it is stored, without `lora`."""
        return Packed(self.kind, self.packed, self.scale, self.shape)

    def pieces(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some rows after others: which they are, and their weights [rows, columns]. Each overwrites the one before."""
        pieces = spans(self.shape, self.packed.device)
        exact = torch.empty(pieces[0].stop, self.shape[1], dtype=torch.float32, device=self.packed.device)
        rounded = exact if dtype == torch.float32 else torch.empty_like(exact, dtype=dtype)
        for rows in pieces:
            weights = exact[: rows.stop - rows.start]
            bring_up(self.matrix(), rows, weights)
            self.add_lora(rows, weights)
            yield rows, rounded[: len(weights)].copy_(weights)

    def add_lora(self, rows: slice, weights: torch.Tensor) -> None:
        """Add to the weights of some rows, float32, what `lora` has for them."""
        for first, up, down, factor in self.lora:
            start, stop = max(rows.start, first), min(rows.stop, first + len(up))
            if start < stop:
                up, down = up[start - first : stop - first].to(weights.device), down.to(weights.device)
                weights[start - rows.start : stop - rows.start].addmm_(up, down, alpha=factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [..., rows of the matrix] of x [..., columns], in its dtype."""
        flat = x.reshape(-1, self.shape[1])
        out = x.new_empty(len(flat), self.shape[0])
        for rows, weights in self.pieces(x.dtype):
            if self.bias is None:
                torch.mm(flat, weights.T, out=out[:, rows])
            else:
                torch.addmm(self.bias[rows], flat, weights.T, out=out[:, rows])
        return out.view(*x.shape[:-1], self.shape[0])


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter that is not trained, as tensors of integers have to be."""
    return nn.Parameter(tensor, requires_grad=False)

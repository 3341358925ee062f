"""One tensor of a model as it lies in a file: in pieces, with scales and LoRAs, dense or packed.

Start reading at `Weight.dense` and `Weight.packed`.
"""

import dataclasses
import re

import torch

from resd3_medium.ggml import BLOCKS, floats_by_gguf, ggml_kind
from resd3_medium.lora import Delta
from resd3_medium.packed import Packed, from_ggml, row_halves_swapped, stacked
from resd3_medium.weight_files import DENSE, FLOAT8, GGUFFile, WeightsFile, first_line

ALIGNED = 16  # bytes; a matrix at another place of a file's map rounds products with a single row otherwise
ONE_ROW = r"text_projection|text_embedder|[ty]_embedder"  # matrices that have such products


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of a model: pieces of a file below each other, their scales, and what is added to it."""

    file: WeightsFile
    shape: tuple[int, ...]
    pieces: tuple[str, ...]  # names in the file
    scales: tuple[str | None, ...]
    swapped: bool = False  # the halves of the rows change places
    deltas: tuple[Delta, ...] = ()

    @property
    def kind(self) -> str:
        """How the numbers are stored; empty where pieces differ."""
        kinds = {self.file.entries[name].kind for name in self.pieces}
        return kinds.pop() if len(kinds) == 1 else ""

    @property
    def is_dense(self) -> bool:
        """Whether all of it is stored at 16 bits or more, so that rounding it to 8 is the first rounding."""
        return all(self.file.entries[name].kind in DENSE for name in self.pieces)

    @property
    def is_packed(self) -> bool:
        """Whether it is a matrix that is stored at few bits, and is kept so."""
        if len(self.shape) != 2 or not self.kind or self.kind in DENSE:
            return False
        return self.kind in FLOAT8 or self.kind in BLOCKS

    def in_map(self, dtype: torch.dtype) -> bool:
        """Whether `dense` at that dtype shares the file's memory map."""
        simple = len(self.pieces) == 1 and not (self.swapped or self.deltas or self.scales[0])
        return simple and DENSE.get(self.kind) == dtype

    def piece(self, k: int) -> torch.Tensor:
        """Piece k in float32, with its scale."""
        name, scale = self.pieces[k], self.scales[k]
        entry, raw = self.file.entries[name], self.file.raw(name)
        if entry.kind not in DENSE and entry.kind not in FLOAT8:
            assert isinstance(self.file, GGUFFile)
            if (kind := ggml_kind(self.file.ggml_type(name))) is not None and len(entry.shape) == 2:
                return from_ggml(kind, raw, entry.shape).floats()
            try:
                return floats_by_gguf(raw, self.file.ggml_type(name), entry.shape)
            except ValueError as error:
                raise self.file.error(f"must hold weights that can be read; {name}: {first_line(error)}") from None
        values = raw.float()
        return values if scale is None else values * self.scale(k)

    def scale(self, k: int) -> torch.Tensor:
        """The scale of piece k in float32: [1, 1], or one for each row [rows, 1]."""
        name, scale = self.pieces[k], self.scales[k]
        assert scale is not None
        values = self.file.raw(scale).float().reshape(-1, 1)
        return values if len(self.file.entries[name].shape) == 2 else values.reshape(())

    def floats(self) -> torch.Tensor:
        """The tensor in float32 with everything that is added to it, in memory of its own where need be."""
        values = torch.cat([self.piece(k).reshape(-1, *self.shape[1:]) for k in range(len(self.pieces))])
        if self.swapped:
            values = torch.cat(values.chunk(2)[::-1])
        if self.deltas:
            values = values.clone()
            for delta in self.deltas:
                delta.add_to(values)
        return values.reshape(self.shape)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor at a dtype, rounded once; it shares the memory map where it can."""
        if self.deltas or any(self.scales) or self.kind not in DENSE:
            return self.floats().to(dtype)
        rows = [self.file.raw(name).to(dtype).reshape(-1, *self.shape[1:]) for name in self.pieces]
        values = rows[0] if len(rows) == 1 else torch.cat(rows)
        if values.data_ptr() % ALIGNED and (values.nbytes < 2**20 or re.search(ONE_ROW, self.pieces[0])):
            values = values.clone()
        return (torch.cat(values.chunk(2)[::-1]) if self.swapped else values).reshape(self.shape)

    def packed(self) -> Packed | None:
        """The matrix as it is stored, without what is added to it; None when it is not stored at few bits."""
        if not self.is_packed:
            return None
        parts = []
        for k, name in enumerate(self.pieces):
            entry, raw = self.file.entries[name], self.file.raw(name)
            if self.kind in FLOAT8:
                scale = None if self.scales[k] is None else self.scale(k)
                parts.append(Packed(self.kind, raw, scale, (entry.shape[0], entry.shape[1])))
                continue
            parts.append(from_ggml(self.kind, raw, (entry.shape[0], entry.shape[1])))
        whole = parts[0] if len(parts) == 1 else stacked(parts)
        return row_halves_swapped(whole) if self.swapped else whole

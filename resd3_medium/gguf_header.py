"""Whether a GGUF file is whole, by its header: in words for the user, and quick whatever a damaged header says.

Start reading at `not_gguf`.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where a file does not say its own
NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value by its type
STRING, ARRAY = 8, 9  # the other types
LONGEST = 10_000_000  # values of an array; a vocabulary has some 100,000


def not_gguf(path: Path) -> str:
    """What is wrong with a GGUF file, in words; empty when it may be whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic, start = file.read(4), file.read(4)
        if magic != b"GGUF":
            return "no GGUF file"
        little, big = (int.from_bytes(start, order) for order in ("little", "big"))
        if little not in VERSIONS and big in VERSIONS:
            return "big-endian; must be little-endian, as nearly all are"
        if little not in VERSIONS and len(start) == 4:
            return f"of version {little}; must be of version 2 or 3"
        try:
            whole = Header(file, size).end()
        except EOFError:
            return f"cut off within its header, after {size:,} bytes; fetch it anew"
        except (ValueError, KeyError):
            return "a GGUF file with a damaged header"
    return f"half a download: {size:,} of {whole:,} bytes; fetch the rest" if size < whole else ""


class Header:
    """The header of an open file that stands behind its version."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.alignment = file, size, ALIGNMENT

    def end(self) -> int:
        """Bytes that the whole file takes. Raises EOFError where it ends too soon, ValueError, KeyError for damage."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # half a second to import

        tensors, pairs = self.number(8), self.number(8)
        for _ in range(pairs):
            key, kind = self.text(), self.number(4)
            if key == b"general.alignment" and kind == 4:
                self.alignment = self.number(4)
            else:
                self.skip_value(kind)
        last = 0
        for _ in range(tensors):
            self.text()
            shape = [self.number(8) for _ in range(self.length(self.number(4)))]
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.number(4))]
            last = max(last, self.number(8) + math.prod(shape) // block * size)
        if not self.alignment:
            raise ValueError("alignment 0")
        return -(-self.file.tell() // self.alignment) * self.alignment + last

    def number(self, count: int) -> int:
        """The whole number of the next `count` bytes, 4 or 8."""
        found = self.file.read(count)
        if len(found) < count:
            raise EOFError
        return int(struct.unpack({4: "<I", 8: "<Q"}[count], found)[0])

    def length(self, count: int) -> int:
        """The same count, of things of at least a byte each, where the file may hold so many."""
        if count > LONGEST:
            raise ValueError("too long")
        if self.file.tell() + count > self.size:
            raise EOFError
        return count

    def text(self) -> bytes:
        """The next string."""
        return self.file.read(self.length(self.number(8)))

    def skip_value(self, kind: int) -> None:
        """Go behind a value of that type. Arrays of arrays are not known to be in any file."""
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            of, count = self.number(4), self.length(self.number(8))
            if of == STRING:
                for _ in range(count):
                    self.text()
            else:
                self.file.seek(self.length(count * NUMBERS[of]), 1)
        else:
            self.file.seek(self.length(NUMBERS[kind]), 1)

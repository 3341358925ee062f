"""Files of weights as they lie on disk: safetensors in one piece or in shards, and GGUF.

Each gives its tensors by name, from a memory map and as they are stored: dense, or packed at few bits. Names and
layouts are as the file has them; weights.py turns them into models. Start reading at `open_weights`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from common.parameters import ParameterError
from common.progress import Progress
from resd3_medium.file_kinds import NO_SAFETENSORS, gguf_words, not_weights
from resd3_medium.gguf_header import not_gguf

DENSE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# What damaged files raise when they are read.
DAMAGE = (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
SAMPLES, SAMPLE = 2048, 2**12  # pieces of a file, and bytes of each, that stand for all of it


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file: its shape, and how its numbers are stored, as safetensors or GGUF call it."""

    shape: tuple[int, ...]
    kind: str


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__


class WeightsFile:
    """A safetensors file. Raises ParameterError when it is none, or not whole.

    `given` is what the user named, for errors. `entries` tells every tensor by name.
    """

    words = "safetensors"

    def __init__(self, path: Path, given: Path | None = None) -> None:
        self.path, self.given = path, given or path.parent
        if words := self.wrong():
            raise self.error(f"must be a whole {self.words} file; it is {words}")
        try:
            self.open()
        except DAMAGE as error:
            raise self.error(f"must be a whole {self.words} file ({first_line(error)})") from None

    def open(self) -> None:
        """Read the header: `entries` and `metadata`."""
        self.file = safe_open(self.path, framework="pt", device="cpu")
        self.entries: dict[str, Entry] = {}
        for name in self.file.keys():  # noqa: SIM118, it is no dict
            piece = self.file.get_slice(name)
            self.entries[name] = Entry(tuple(piece.get_shape()), piece.get_dtype())
        self.metadata: Mapping[str, str] = self.file.metadata() or {}

    def wrong(self) -> str:
        """What the file is in words, when it is no such file."""
        return not_weights(self.path)

    def error(self, words: str) -> ParameterError:
        """The error that this file makes."""
        return ParameterError("models", self.given, f"{self.path.name} {words}")

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, in the file's memory map: GGUF's blocks as bytes [rows, bytes of a row]."""
        return self.file.get_tensor(name)

    @property
    def paths(self) -> list[Path]:
        """The files on disk."""
        return [self.path]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the sizes, the headers and a sample of the data: quick on large files."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(sample(path))
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)


def sample(path: Path) -> bytes:
    """A digest of a file's size, its first megabyte and SAMPLES pieces spread over the rest."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        for k in range(SAMPLES):
            file.seek(max(0, size - SAMPLE) * k // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.digest()


def sha256(path: Path) -> str:
    """The checksum of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file, Progress(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
        while chunk := file.read(2**24):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


class ShardedFile(WeightsFile):
    """Several safetensors files of one model, named by an index file. Raises ParameterError as WeightsFile does."""

    words = "index"

    def wrong(self) -> str:
        """Nothing: what is wrong shows when it is read."""
        return ""

    def open(self) -> None:
        """Read the index, and the headers of all shards."""
        where = json.loads(self.path.read_text(encoding="utf-8")).get("weight_map", {})
        shards = sorted(set(where.values()))
        if not where or any(not isinstance(s, str) or Path(s).name != s or s.startswith(".") for s in shards):
            raise ValueError("its weight_map must name files beside it")
        missing = [shard for shard in shards if not (self.path.parent / shard).is_file()]
        if missing:
            raise self.error(f"names {', '.join(missing[:3])}, missing beside it")
        self.shards = {shard: WeightsFile(self.path.parent / shard, self.given) for shard in shards}
        self.where, self.metadata, self.entries = where, {}, {}
        for name, shard in where.items():
            if name not in self.shards[shard].entries:
                raise self.error(f"says that {name} lies in {shard}, which lacks it")
            self.entries[name] = self.shards[shard].entries[name]

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, in its shard's memory map."""
        return self.shards[self.where[name]].raw(name)

    @property
    def paths(self) -> list[Path]:
        """The files on disk, the index first."""
        return [self.path, *(shard.path for shard in self.shards.values())]


class GGUFFile(WeightsFile):
    """A GGUF file. Raises ParameterError when it is none, or not whole."""

    words = "GGUF"

    def wrong(self) -> str:
        """What the file is in words, when it is no such file."""
        words = not_weights(self.path)
        return not_gguf(self.path) if not words or words == NO_SAFETENSORS else words

    def open(self) -> None:
        """Read the header."""
        from gguf import GGUFReader  # half a second to import

        reader = GGUFReader(self.path)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.metadata = {}
        for name in ("general.architecture", "general.name"):
            field = reader.fields.get(name)
            if field is not None:
                self.metadata[name] = str(field.contents())
        self.entries = {}
        for name, tensor in self.tensors.items():
            shape = [int(n) for n in reversed(tensor.shape)]
            field = reader.fields.get(f"comfy.gguf.orig_shape.{name}")
            if field is not None:
                shape = [int(n) for n in field.contents()]
            self.entries[name] = Entry(tuple(shape), tensor.tensor_type.name)

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, in the file's memory map: dense, or blocks as bytes [rows, bytes of a row]."""
        import warnings

        entry = self.entries[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the map is read-only, and nothing writes to it
            data = torch.from_numpy(self.tensors[name].data)
        if entry.kind in DENSE:
            return data.view(torch.uint8).view(DENSE[entry.kind]).view(entry.shape)
        return data.view(torch.uint8)

    def ggml_type(self, name: str) -> Any:
        """The tensor's type as the gguf package has it."""
        return self.tensors[name].tensor_type


def open_weights(path: Path, given: Path | None = None) -> WeightsFile:
    """The file of weights at a path, told by its suffix and first bytes.

    Raises ParameterError when it is none, or not whole.
    """
    if path.suffix == ".json":
        return ShardedFile(path, given)
    gguf = path.suffix.lower() == ".gguf" or gguf_words(path)
    return GGUFFile(path, given) if gguf else WeightsFile(path, given)

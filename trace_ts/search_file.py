"""What a search or a training goes on from after its process was killed: a file beside the policy that it makes.

Start reading at `SearchFile`.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.parameters import ParameterError
from common.run_folder import describe, replace_file

EVERY = 10.0  # s after which a state is written, whether or not it is `due`
T = TypeVar("T")
Content = dict[str, Any]


class SearchFile:
    """The states of a policy's searches, which come one after another, in one file until the policy is written.

    A state is a dictionary of arrays and of what JSON holds. `flag` is the parameter that told of the file.
    """

    def __init__(self, path: Path, flag: str = "resume") -> None:
        self.path, self.flag, self.written = path, flag, time.monotonic()

    @functools.cached_property
    def parts(self) -> dict[str, tuple[Content, Content]]:
        """Identity and state of each search by its name. Raises ParameterError for a damaged file."""
        if not self.path.exists():
            return {}
        try:
            with safe_open(self.path, framework="numpy") as file:
                header = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["sha256"] != checksum(arrays, header["searches"]):
                raise ValueError("its checksum is another")
            parts = {name: (part["identity"], part["state"]) for name, part in json.loads(header["searches"]).items()}
            for name, array in arrays.items():
                part, _, key = name.rpartition("/")
                parts[part][1][key] = array
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self.broken(error) from None
        return parts

    def broken(self, error: Exception) -> ParameterError:
        """An error of reading, as one of the file's parameter."""
        return ParameterError(self.flag, self.path, f"must be a search of main_trace.py ({describe(error)})")

    def part(self, name: str, **identity: Any) -> "Part":
        """One of the searches; `identity` is what JSON can say of what it searches."""
        return Part(self, name, identity)

    def write(self) -> None:
        """Write every state. Raises OSError."""
        arrays: dict[str, np.ndarray] = {}
        told: Content = {}
        for name, (identity, state) in self.parts.items():
            own = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
            arrays |= {f"{name}/{key}": np.ascontiguousarray(value) for key, value in own.items()}
            told[name] = {"identity": identity, "state": {key: state[key] for key in state.keys() - own}}
        searches = json.dumps(told)
        content = save(arrays, metadata={"searches": searches, "sha256": checksum(arrays, searches)})
        self.path.parent.mkdir(exist_ok=True)
        replace_file(self.path, lambda temporary: temporary.write_bytes(content))
        self.written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the policy is written."""
        self.path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Part:
    """One search of a file. `identity` says what it searches: a state of another one is not gone on with."""

    file: SearchFile
    name: str
    identity: Content

    def of(self, **identity: Any) -> "Part":
        """The same with more that tells it from others."""
        return dataclasses.replace(self, identity=json.loads(json.dumps(self.identity | identity)))

    def load(self, make: Callable[..., T]) -> T | None:
        """make(**state) of the state in the file; None where there is none.

        A state of another search is told of in a line, and forgotten with what came after it. Raises ParameterError for
        a damaged file.
        """
        if self.name not in self.file.parts:
            return None
        identity, state = self.file.parts[self.name]
        known = sorted(identity.keys() | self.identity.keys())
        if other := [key for key in known if identity.get(key) != self.identity.get(key)]:
            print(f"{self.file.path} is a search of another {', '.join(other)}: {self.name} begins anew")
            self.file.parts.clear()
            return None
        try:
            return make(**state)
        except (TypeError, ValueError, LookupError) as error:
            raise self.file.broken(error) from None

    def save(self, state: Content, due: bool) -> None:
        """Keep a state; it is written where it is `due`, or `EVERY` seconds after the last. Raises OSError."""
        self.file.parts[self.name] = self.identity, state
        if due or time.monotonic() - self.file.written >= EVERY:
            self.file.write()


def checksum(arrays: dict[str, np.ndarray], searches: str) -> str:
    """What tells a damaged file: the SHA-256 of arrays, their names and the text about them."""
    names = sorted(arrays)
    return digest([arrays[name] for name in names], json.dumps([names, searches]))


def digest(arrays: Iterable[np.ndarray], text: str = "") -> str:
    """The SHA-256 of arrays and of a text."""
    found = hashlib.sha256(text.encode())
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()

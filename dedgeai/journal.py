"""The journal: what was accepted and what came of it, a JSON line each, on disk before anybody is told.

A killed driver finds in it which tasks are left. A last line that is cut off, as a kill may leave it, does not count.
Start reading at `Journal.write`.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe


class Entries:
    """Entries that go to disk together, and what became of that."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.tried = False
        self.error: OSError | None = None


class Journal:
    """Appends entries to a file, those that come together in one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = Entries()
        self.lock = asyncio.Lock()
        if path.is_file():  # a cut-off last line must not spoil the next one
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)

    async def write(self, *entries: dict[str, Any]) -> None:
        """Returns when the entries are on disk, in the order in which they came. Raises OSError when they are not."""
        together = self.waiting
        together.entries += entries
        async with self.lock:
            if not together.tried:
                self.waiting, together.tried = Entries(), True
                try:
                    await asyncio.to_thread(self.append, together.entries)
                except OSError as error:
                    together.error = error
        if together.error is not None:
            raise together.error

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Write the entries' lines; when that fails, the file is as it was before."""
        text = memoryview("".join(json.dumps(entry, ensure_ascii=True) + "\n" for entry in entries).encode("ascii"))
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise


def read_journal(path: Path, flag: str, fields: dict[str, set[str]] | None = None) -> list[dict[str, Any]]:
    """The whole entries of a journal. Raises ParameterError when it cannot be read or is none.

    `fields` are what entries of an event must have.
    """
    try:
        lines = path.read_bytes().split(b"\n")
        entries = [json.loads(line) for line in lines[:-1] if line]
        if not all(isinstance(entry, dict) and "event" in entry for entry in entries):
            raise ValueError("an entry without an event")
        if any((fields or {}).get(entry["event"], set()) - entry.keys() for entry in entries):
            raise ValueError("an entry that lacks something")
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise ParameterError(flag, path.parent, f"must hold a run's journal ({describe(error)})") from None
    return entries

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


class Journal:
    """Appends entries to a file, those that come together in one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[dict[str, Any]] = []
        self.lock = asyncio.Lock()
        if path.is_file():  # a cut-off last line must not spoil the next one
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(content.rfind(b"\n") + 1)

    async def write(self, *entries: dict[str, Any]) -> None:
        """Returns when the entries are on disk, in the order in which they came."""
        self.pending += entries
        async with self.lock:
            lines, self.pending = self.pending, []
            if lines:
                await asyncio.to_thread(self.append, lines)

    def append(self, entries: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=True) + "\n" for entry in entries)
        with self.path.open("a", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path, flag: str) -> list[dict[str, Any]]:
    """The whole entries of a journal. Raises ParameterError when it cannot be read or is none."""
    try:
        lines = path.read_bytes().split(b"\n")
        entries = [json.loads(line) for line in lines[:-1] if line]
        if not all(isinstance(entry, dict) and "event" in entry for entry in entries):
            raise ValueError("an entry without an event")
    except (OSError, ValueError) as error:
        raise ParameterError(f"--{flag}={path.parent}: must hold a run's journal ({describe(error)})") from None
    return entries

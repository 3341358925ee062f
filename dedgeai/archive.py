"""How tasks end on disk: the image first, then the record, tried again until there is room.

Start reading at `Archive.keep`.
"""

import asyncio
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.run_folder import replace_file
from dedgeai.records import Record
from dedgeai.store import Store

RETRY_SECONDS = 1.0  # s between tries, and between looks whether the record is there


class Archive:
    """The images and the record of a run's folder. `trouble` says in words why nothing can be written at present."""

    def __init__(self, folder: Path, store: Store, changed: Callable[[], Any]) -> None:
        self.images, self.store = folder / "images", store
        self.trouble, self.changed = "", changed  # called when `trouble` comes or goes
        self.stuck: dict[int, str] = {}  # what keeps ended tasks from being written

    async def keep(self, record: Record, state: str, image: bytes | None) -> None:
        """Write how a task ended, however long that takes; then its record says so."""
        number, name = record.task.number, record.image
        while True:
            try:
                if image is not None:
                    name = f"{number:06d}.png"
                    await asyncio.to_thread(write_durably, self.images / name, image)
                await self.store.finish(dataclasses.replace(record, state=state, image=name))
                break
            except OSError as problem:
                self.stuck[number] = f"images or the record cannot be written ({problem.strerror or problem})"
                self.say(self.stuck[number])
                await asyncio.sleep(RETRY_SECONDS)
        record.state, record.image = state, name
        if self.stuck.pop(number, None):
            self.say(next(iter(self.stuck.values()), ""))

    async def remove(self, number: int) -> Record | None:
        """Forget a finished task, but its image first. Raises OSError, and then the task is still there."""
        record = self.store.get(number)
        if record is not None:
            if record.image:
                await asyncio.to_thread((self.images / record.image).unlink, missing_ok=True)
            await self.store.remove([number])
        return record

    async def watch(self) -> None:
        """See to it for ever that the record on disk is there."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            words = next(iter(self.stuck.values()), "")
            try:
                await self.store.check()
            except OSError as problem:
                words = words or f"the record cannot be written ({problem})"
            self.say(words)

    def say(self, words: str) -> None:
        """Set `trouble`."""
        if words != self.trouble:
            self.trouble = words
            self.changed()


def write_durably(path: Path, content: bytes) -> None:
    """A file that is whole on the disk when this returns. Its folder is made if need be."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, write)

"""The record of tasks on disk: an SQLite database of what was accepted, where it is, and what came of it.

One thread writes. What comes together goes to disk together, in one transaction, and whoever asked is told after that.
Reads are short and happen in the thread of the caller. Start reading at `Store.work`.
"""

import asyncio
import contextlib
import dataclasses
import errno
import json
import operator
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe, replace_file
from dedgeai.records import FINAL, LIVE, WAITING, Record
from dedgeai.schema import INSERT, LISTED, OPEN, SELECT, UPDATE, prepare, record_of, row_of

IDLE_SECONDS = 0.5  # s between writes of noted rows
KEY_SECONDS = 7 * 86_400  # s for which an idempotency key holds
LARGEST = 2**63 - 1  # of SQLite's integers
Change = Callable[[sqlite3.Connection], Any]  # a part of a transaction


class StoreError(OSError):
    """What could not be written or read; its text says why, in words."""

    def __str__(self) -> str:
        return str(self.strerror)


class Store:
    """The database of a run or a service. Raises ParameterError of `flag` for a file that is no such database.

    `counts` says how many tasks ended in which of the FINAL states; `last` is the highest number ever given, or -1.
    """

    def __init__(self, path: Path, flag: str = "out") -> None:
        self.path = path
        self.files = [path.with_name(path.name + ending) for ending in ("", "-wal", "-shm")]
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                prepare(connection)
            self.connect()
            found = dict(self.reader.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall())
            self.last = self.reader.execute("SELECT coalesce(max(seq), -1) FROM sqlite_sequence").fetchone()[0]
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            raise ParameterError(flag, path.parent, f"must hold a run's {path.name} ({describe(error)})") from None
        self.counts = {state: found.get(state, 0) for state in FINAL}
        self.noted: dict[int, Record] = {}  # whose rows are to be brought up to date
        self.due = 0.0  # when that is done next
        self.orders: queue.SimpleQueue[tuple[Change, asyncio.Future] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="record", daemon=True)
        self.thread.start()

    def connect(self) -> None:
        """Open the file, for the writing thread and for reads in others."""
        connections = [sqlite3.connect(self.path, isolation_level=None, check_same_thread=False) for _ in range(2)]
        for connection in connections:
            connection.executescript(OPEN)
        self.writer, self.reader = connections
        self.inodes = self.present()

    def present(self) -> list[int]:
        """What tells whether the files are still those that are open."""
        return [file.stat().st_ino if file.exists() else 0 for file in self.files]

    def rescue(self) -> None:
        """Write everything anew where somebody removed or replaced a file; those that are open still have it all."""

        def copy(temporary: Path) -> None:
            with contextlib.closing(sqlite3.connect(temporary)) as new:
                self.writer.backup(new)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.present()[0] not in (0, self.inodes[0]):
            self.path.replace(self.path.with_name(f"{self.path.name}.replaced"))
        replace_file(self.path, copy)
        for beside in self.files[1:]:
            beside.unlink(missing_ok=True)
        before = self.writer
        self.connect()
        before.close()

    async def check(self) -> None:
        """See to it that the whole record is on disk, also where somebody removed it. Raises StoreError."""
        self.due = 0.0
        await self.write(lambda writer: None)

    async def close(self) -> None:
        """Write what is noted, and end."""
        self.orders.put(None)
        await asyncio.to_thread(self.thread.join)
        self.reader.close()
        self.writer.close()

    def work(self) -> None:
        """What the writing thread does until it is told to end: carry out what has come, and bring noted rows up."""
        orders: list[tuple[Change, asyncio.Future] | None] = []
        while None not in orders:
            orders = []
            with contextlib.suppress(queue.Empty):
                orders.append(self.orders.get(timeout=IDLE_SECONDS))
                while True:
                    orders.append(self.orders.get_nowait())
            wanted, noted = [order for order in orders if order], {}
            if time.monotonic() >= self.due or None in orders:
                noted = dict(self.noted.popitem() for _ in [*self.noted])
                self.due = time.monotonic() + IDLE_SECONDS
            update = operator.methodcaller("executemany", UPDATE, [row_of(record) for record in noted.values()])
            *results, updated = self.carry_out([*(change for change, _ in wanted), update])
            if isinstance(updated, StoreError):
                self.noted.update(noted | self.noted)
            futures = [future for _, future in wanted]
            with contextlib.suppress(RuntimeError, IndexError):  # the loop has ended; nobody waits
                futures[0].get_loop().call_soon_threadsafe(settle, futures, results)

    def carry_out(self, changes: list[Change]) -> list[Any]:
        """Make changes in one transaction: their results, or StoreErrors. One that is wrong in itself fails alone."""
        try:
            if self.present() != self.inodes:
                self.rescue()
            with self.writer:
                self.writer.execute("BEGIN IMMEDIATE")
                return [change(self.writer) for change in changes]
        except Exception as error:
            if len(changes) > 1 and not isinstance(error, sqlite3.OperationalError | OSError):
                return [self.carry_out([change])[0] for change in changes]
            return [store_error(error) for _ in changes]

    async def write(self, change: Change) -> Any:
        """The result of a change once it is on disk. Raises StoreError when it is not, and nothing has changed."""
        future = asyncio.get_running_loop().create_future()
        self.orders.put((change, future))
        return await future

    async def add(self, records: Sequence[Record], key: str = "", digest: str = "") -> None:
        """New tasks, and what the request with an idempotency key was and got. Raises StoreError."""
        numbers, now = [record.task.number for record in records], time.time()
        self.last = max([self.last, *numbers])

        def change(writer: sqlite3.Connection) -> None:
            writer.executemany(INSERT, map(row_of, records))
            if key:
                row = [key, digest, numbers[0], len(numbers), now]
                writer.execute("DELETE FROM keys WHERE at < ?", [now - KEY_SECONDS])
                writer.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)", row)

        await self.write(change)

    async def finish(self, record: Record) -> None:
        """The row of a task that has ended, as its record is now. Raises StoreError."""
        row = row_of(record)
        changed = await self.write(lambda writer: writer.execute(UPDATE, row).rowcount)
        self.counts[record.state] += changed

    def note(self, record: Record) -> None:
        """Bring the row of an unfinished task up to date within a second."""
        self.noted[record.task.number] = record

    async def remove(self, numbers: Sequence[int]) -> None:
        """Forget tasks. Raises StoreError."""
        delete, values = f"DELETE FROM tasks WHERE {LISTED} RETURNING state", [json.dumps([*numbers])]
        for (state,) in await self.write(lambda writer: writer.execute(delete, values).fetchall()):
            if state in self.counts:
                self.counts[state] -= 1

    async def drop_images(self, numbers: Sequence[int]) -> None:
        """Say that tasks have no image file any more. Raises StoreError."""
        update = f"UPDATE tasks SET image = '' WHERE {LISTED}"
        await self.write(lambda writer: writer.execute(update, [json.dumps([*numbers])]))

    async def total(self, tasks: int, seconds: float) -> None:
        """How long a run of so many tasks took as a whole. Raises StoreError."""
        await self.write(lambda writer: writer.execute("INSERT OR REPLACE INTO totals VALUES (?, ?)", [tasks, seconds]))

    def set(self, name: str, value: str | None) -> None:
        """Keep a text, or with None forget it. Raises StoreError."""
        self.rows("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, value)

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What an SQL query finds. Raises StoreError, as everything here that reads."""
        try:
            return self.reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise store_error(error) from None

    def read(self, more: str, *values: Any) -> list[Record]:
        """The records that an SQL query with this end finds."""
        return [record_of(row) for row in self.rows(f"{SELECT} {more}", *values)]

    def get(self, number: int) -> Record | None:
        """The record of a task, None if there is none."""
        return next(iter(self.read("WHERE number = ?", number)), None) if abs(number) <= LARGEST else None

    def records(self, numbers: Sequence[int]) -> list[Record]:
        """The records of those tasks that there are, in their order."""
        found = {record.task.number: record for record in self.read(f"WHERE {LISTED}", json.dumps([*numbers]))}
        return [found[number] for number in numbers if number in found]

    def page(self, states: Sequence[str], before: int | None, limit: int) -> list[Record]:
        """The newest records of these states, or of all, with numbers below `before`."""
        more = "number < ? ORDER BY number DESC LIMIT ?"
        values = LARGEST if before is None else max(-LARGEST, min(before, LARGEST)), limit
        if not states:
            return self.read(f"WHERE {more}", *values)
        found = [record for state in set(states) for record in self.read(f"WHERE state = ? AND {more}", state, *values)]
        return sorted(found, key=lambda record: record.task.number, reverse=True)[:limit]

    def unfinished(self) -> list[Record]:
        """Tasks that have not ended, oldest first, as if they had just come; attempts count on."""
        new = dict.fromkeys(("server", "sent", "started", "finished", "finished_at")) | {"state": WAITING, "error": ""}
        return [dataclasses.replace(r, **new) for r in self.read(f"WHERE state IN {LIVE} ORDER BY number")]

    def images_beyond(self, keep: int | None, before: float | None) -> list[Record]:
        """Tasks with an image, at most 1000: all but the newest `keep`, else those that ended before a wall time."""
        by_number = "WHERE image != '' ORDER BY number DESC LIMIT 1000 OFFSET ?"
        by_age = "WHERE image != '' AND finished_at < ? ORDER BY finished_at LIMIT 1000"  # none before None
        return (self.read(by_number, keep) if keep is not None else []) or self.read(by_age, before)

    def key(self, key: str) -> tuple[str, list[int]] | None:
        """What the request with an idempotency key was, as its digest, and the tasks that it got."""
        query = "SELECT digest, first, number FROM keys WHERE key = ? AND at > ?"
        found = self.rows(query, key, time.time() - KEY_SECONDS)
        return (found[0][0], [found[0][1] + k for k in range(found[0][2])]) if found else None

    def totals(self) -> dict[int, float]:
        """Seconds of whole runs, by their numbers of tasks."""
        return dict(self.rows("SELECT tasks, seconds FROM totals"))

    def setting(self, name: str) -> str | None:
        """A text that outlives a start."""
        found = self.rows("SELECT value FROM settings WHERE name = ?", name)
        return found[0][0] if found else None


def settle(futures: Sequence[asyncio.Future], results: Sequence[Any]) -> None:
    """Tell those who wait for changes what became of them."""
    for future, result in zip(futures, results, strict=True):
        if not future.done():
            future.set_exception(result) if isinstance(result, StoreError) else future.set_result(result)


def store_error(error: Exception) -> StoreError:
    """The StoreError that tells of an error, with errno ENOSPC for a full disk."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    number = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
    return StoreError(number, getattr(error, "strerror", None) or str(error))

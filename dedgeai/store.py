"""The record of tasks on disk: an SQLite database of what was accepted, where it is, and what came of it.

One thread writes. What comes together goes to disk together, in one transaction, and whoever asked is told after that.
Reads are short and happen in the thread of the caller. Start reading at `Store.write`.
"""

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe, replace_file
from dedgeai.records import FINAL, LIVE, WAITING, Record
from dedgeai.tasks import Task

FORMAT = "1"
APPLICATION = 0xDED6E  # tells the file from other programs' databases
FLUSH_SECONDS = 0.5  # s after which a noted row is written at the latest
KEY_SECONDS = 7 * 86_400  # s for which an idempotency key holds
UNSTORED = ("task", "step", "cancelling", "recalled")
OF_TASK = tuple(field.name for field in dataclasses.fields(Task))
OF_RECORD = tuple(field.name for field in dataclasses.fields(Record) if field.name not in UNSTORED)
COLUMNS = (*OF_TASK, *OF_RECORD)
SCHEMA = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE tasks (number INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(COLUMNS[1:])});
CREATE INDEX by_state ON tasks (state, number);
CREATE INDEX with_image ON tasks (number) WHERE image != '';
CREATE TABLE keys (key TEXT PRIMARY KEY, digest TEXT, numbers TEXT, at REAL);
CREATE TABLE totals (tasks INTEGER PRIMARY KEY, seconds REAL);
"""
INSERT = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
UPDATE = f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in OF_RECORD)} WHERE number = ?"
SELECT = f"SELECT {', '.join(COLUMNS)} FROM tasks"
Change = tuple[str, Iterable[Sequence[Any]]]  # an SQL statement, and its values, row by row


class StoreError(OSError):
    """A write that failed; its text says why."""


class Store:
    """The database of a run or a service. Raises ParameterError of `flag` for a file that is none of ours."""

    def __init__(self, path: Path, flag: str = "out") -> None:
        self.path = path
        try:
            self.writer = self.opened()
            self.prepare()
            self.reader = self.opened()
            found = self.reader.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall()
            # how many tasks ended in which way
            self.counts = dict.fromkeys(FINAL, 0) | {state: count for state, count in found if state in FINAL}
            top = self.reader.execute("SELECT seq FROM sqlite_sequence WHERE name = 'tasks'").fetchone()
            self.last = -1 if top is None else top[0]  # the highest number that a task has ever had
        except (sqlite3.Error, ValueError) as error:
            raise ParameterError(flag, path.parent, f"must hold a run's {path.name} ({describe(error)})") from None
        self.inode = path.stat().st_ino
        self.noted: dict[int, Record] = {}  # whose rows are to be brought up to date
        self.orders: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="record", daemon=True)
        self.thread.start()

    # --- the file ---

    def opened(self) -> sqlite3.Connection:
        """A connection; transactions are begun by hand."""
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def prepare(self) -> None:
        """Make the tables of a new file, and check an old one. Raises ValueError and sqlite3.Error."""
        application = self.writer.execute("PRAGMA application_id").fetchone()[0]
        tables = self.writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if not tables:
            schema = f"{SCHEMA} INSERT INTO settings VALUES ('format', '{FORMAT}');"
            self.writer.executescript(f"BEGIN; {schema} PRAGMA application_id = {APPLICATION}; COMMIT;")
        elif application != APPLICATION:
            raise ValueError("another program's database")
        elif (found := self.writer.execute("SELECT value FROM settings WHERE name = 'format'").fetchone()) != (FORMAT,):
            raise ValueError(f"format {found and found[0]}, which another version of this program writes")
        elif (words := self.writer.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(words)

    async def check(self) -> None:
        """Write noted rows; and where somebody removed the file, the whole record anew. Raises StoreError."""
        if self.noted:
            await self.write([])
        beside = self.path.with_name(f"{self.path.name}-wal")
        if not (self.path.exists() and beside.exists()):
            await self.ordered(self.rescue)
            self.reader.close()
            self.reader, self.inode = self.opened(), self.path.stat().st_ino
        elif self.path.stat().st_ino != self.inode:
            raise StoreError(errno.ESTALE, f"{self.path.name} is another file than at the start")

    def rescue(self) -> None:
        """Copy everything from the file that was removed, and is still open, to a new one."""

        def copy(temporary: Path) -> None:
            with contextlib.closing(sqlite3.connect(temporary)) as new:
                self.writer.backup(new)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        replace_file(self.path, copy)
        self.writer.close()
        self.writer = self.opened()
        self.writer.execute("UPDATE settings SET value = value")  # which makes the file beside it

    async def close(self) -> None:
        """Write what is noted, and end."""
        with contextlib.suppress(StoreError):
            await self.write([])
        self.orders.put(None)
        await asyncio.to_thread(self.thread.join)
        self.reader.close()
        self.writer.close()

    # --- writing ---

    def work(self) -> None:
        """What the writing thread does: all orders that have come, in one transaction, until it is told to end."""
        while (order := self.orders.get()) is not None:
            orders = [order]
            with contextlib.suppress(queue.Empty):
                while (order := self.orders.get_nowait()) is not None:
                    orders.append(order)
            problem = None
            try:
                self.transact([change for changes, _ in orders if not callable(changes) for change in changes])
                for special in [call for call, _ in orders if callable(call)]:
                    special()
            except (sqlite3.Error, OSError) as error:
                full = "full" in str(error) or getattr(error, "errno", 0) == errno.ENOSPC
                problem = StoreError(errno.ENOSPC if full else errno.EIO, describe(error))
            with contextlib.suppress(RuntimeError):  # the loop has ended
                orders[0][1].get_loop().call_soon_threadsafe(settle, [future for _, future in orders], problem)
            if order is None:
                return

    def transact(self, changes: list[Change]) -> None:
        """All changes or none."""
        if not changes:
            return
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in changes:
                self.writer.executemany(statement, rows)
            self.writer.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.writer.execute("ROLLBACK")
            raise

    async def ordered(self, order: Any) -> None:
        """Have the thread carry out changes, or a call, and wait for it. Raises StoreError."""
        future = asyncio.get_running_loop().create_future()
        self.orders.put((order, future))
        await future

    async def write(self, changes: list[Change]) -> None:
        """Returns when the changes, and rows noted before, are on disk. Raises StoreError when they are not."""
        noted, self.noted = self.noted, {}
        rows = [[*row_of(record, OF_RECORD), number] for number, record in noted.items()]
        try:
            await self.ordered([*changes, (UPDATE, rows)] if rows else changes)
        except StoreError:
            self.noted = noted | self.noted
            raise

    def note(self, record: Record) -> None:
        """Bring its row up to date with the next write, or `check`."""
        self.noted[record.task.number] = record

    async def add(self, records: Sequence[Record], key: str = "", digest: str = "") -> None:
        """New tasks, and what the request with an idempotency key was and got. Raises StoreError."""
        changes: list[Change] = [(INSERT, [[*task_of(record), *row_of(record, OF_RECORD)] for record in records])]
        if key:
            now, numbers = time.time(), ",".join(str(record.task.number) for record in records)
            changes.append(("DELETE FROM keys WHERE at < ?", [[now - KEY_SECONDS]]))
            changes.append(("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", [[key, digest, numbers, now]]))
        await self.write(changes)
        self.last = max(self.last, *(record.task.number for record in records))

    async def finish(self, record: Record) -> None:
        """The row of a task that has ended, as its record is now. Raises StoreError."""
        self.noted.pop(record.task.number, None)
        await self.write([(UPDATE, [[*row_of(record, OF_RECORD), record.task.number]])])
        self.counts[record.state] += 1

    async def drop_images(self, numbers: Sequence[int]) -> None:
        """Say that tasks have no image file any more. Raises StoreError."""
        await self.write([("UPDATE tasks SET image = '' WHERE number = ?", [[number] for number in numbers])])

    async def remove(self, numbers: Sequence[int]) -> None:
        """Forget tasks that have ended. Raises StoreError."""
        states = [record.state for record in map(self.get, numbers) if record is not None]
        await self.write([("DELETE FROM tasks WHERE number = ?", [[number] for number in numbers])])
        for state in states:
            self.counts[state] = self.counts.get(state, 0) - 1

    async def total(self, tasks: int, seconds: float) -> None:
        """How long a run of so many tasks took as a whole. Raises StoreError."""
        await self.write([("INSERT OR REPLACE INTO totals VALUES (?, ?)", [[tasks, seconds]])])

    # --- reading ---

    def read(self, more: str = "", values: Sequence[Any] = ()) -> list[Record]:
        """Records by the end of an SQL query."""
        return [record_of(row) for row in self.reader.execute(f"{SELECT} {more}", values).fetchall()]

    def get(self, number: int) -> Record | None:
        """The record of a task, None if there is none."""
        return next(iter(self.read("WHERE number = ?", [number])), None) if abs(number) < 2**63 else None

    def records(self, numbers: Sequence[int]) -> list[Record]:
        """The records of those tasks that there are, in their order."""
        if isinstance(numbers, range) and len(numbers) > 1:
            return self.read("WHERE number BETWEEN ? AND ? ORDER BY number", [numbers[0], numbers[-1]])
        return [record for record in map(self.get, numbers) if record is not None]

    def page(self, states: Sequence[str], before: int | None, limit: int) -> list[Record]:
        """The newest records of these states, or of all, with numbers below `before`."""
        below = min(2**63 - 1 if before is None else before, 2**63 - 1)
        if not states:
            return self.read("WHERE number < ? ORDER BY number DESC LIMIT ?", [below, limit])
        more = "WHERE state = ? AND number < ? ORDER BY number DESC LIMIT ?"
        found = itertools.chain.from_iterable(self.read(more, [state, below, limit]) for state in states)
        return sorted(found, key=lambda record: -record.task.number)[:limit]

    def unfinished(self) -> list[Record]:
        """Tasks that have not ended, oldest first, as if they had just come."""
        marks = ", ".join("?" * len(LIVE))
        again = {"state": WAITING, "server": None, "sent": None, "started": None, "finished": None, "finished_at": None}
        found = self.read(f"WHERE state IN ({marks}) ORDER BY number", LIVE)
        return [dataclasses.replace(record, error="", **again) for record in found]

    def images_beyond(self, keep: int | None, before: float | None) -> list[Record]:
        """Tasks with an image, at most 1000: all but the newest `keep`, or those that ended before a wall time."""
        if keep is not None:
            return self.read("WHERE image != '' ORDER BY number DESC LIMIT 1000 OFFSET ?", [keep])
        oldest = self.read("WHERE image != '' ORDER BY number LIMIT 1000")
        return [record for record in oldest if before is not None and (record.finished_at or 0) < before]

    def key(self, key: str) -> tuple[str, list[int]] | None:
        """What the request with an idempotency key was, as its digest, and the tasks that it got."""
        query = "SELECT digest, numbers FROM keys WHERE key = ? AND at > ?"
        found = self.reader.execute(query, [key, time.time() - KEY_SECONDS]).fetchone()
        return None if found is None else (found[0], [int(number) for number in found[1].split(",")])

    def totals(self) -> dict[int, float]:
        """Seconds of whole runs, by their numbers of tasks."""
        return dict(self.reader.execute("SELECT tasks, seconds FROM totals").fetchall())

    # --- settings ---

    def setting(self, name: str) -> str | None:
        """A text that outlives a start."""
        found = self.reader.execute("SELECT value FROM settings WHERE name = ?", [name]).fetchone()
        return None if found is None else found[0]

    def set(self, name: str, value: str | None) -> None:
        """Keep a text, or with None forget it; while nothing else is written."""
        self.writer.execute("DELETE FROM settings WHERE name = ?", [name])
        if value is not None:
            self.writer.execute("INSERT INTO settings VALUES (?, ?)", [name, value])


def settle(futures: list[asyncio.Future], problem: Exception | None) -> None:
    """Tell those who wait for a write what became of it."""
    for future in futures:
        if not future.done():
            if problem is None:
                future.set_result(None)
            else:
                future.set_exception(problem)


def task_of(record: Record) -> list[Any]:
    """The values of a row that say what the task is. SQLite takes no halves of surrogate pairs."""
    values = row_of(record.task, OF_TASK)
    return [value.encode(errors="replace").decode() if isinstance(value, str) else value for value in values]


def row_of(source: Any, names: Sequence[str]) -> list[Any]:
    """The values of a row."""
    return [getattr(source, name) for name in names]


def record_of(row: Sequence[Any]) -> Record:
    """The record of a row."""
    task = Task(*row[: len(OF_TASK)])
    return Record(task, **dict(zip(OF_RECORD, row[len(OF_TASK) :], strict=True)))

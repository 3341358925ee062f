"""The tables of the record: their columns, which are fields of tasks and records, and how rows are written and read.

Start reading at `prepare`.
"""

import dataclasses
import operator
import sqlite3
from collections.abc import Sequence
from typing import Any

from dedgeai.records import LIVE, Record
from dedgeai.tasks import Task

FORMAT = 1  # counts changes that earlier programs cannot read; a new column is none
APPLICATION = 0xDED6E  # tells the file from other programs' databases
UNSTORED = ("task", "step", "cancelling", "recalled")
FIELDS = [field for kind in (Task, Record) for field in dataclasses.fields(kind) if field.name not in UNSTORED]
COLUMNS = {f.name: "NULL" if f.default in (None, dataclasses.MISSING) else repr(f.default) for f in FIELDS}
OF_TASK, OF_RECORD = [*COLUMNS][: len(dataclasses.fields(Task))], [*COLUMNS][len(dataclasses.fields(Task)) :]
VALUES = operator.attrgetter(*(f"task.{name}" for name in OF_TASK), *OF_RECORD)
SCHEMA = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE tasks (number INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE keys (key TEXT PRIMARY KEY, digest TEXT, first INTEGER, number INTEGER, at REAL);
CREATE INDEX keys_by_age ON keys (at);
CREATE TABLE totals (tasks INTEGER PRIMARY KEY, seconds REAL);
INSERT INTO settings VALUES ('format', {FORMAT});
PRAGMA application_id = {APPLICATION};"""
INDICES = """
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, number);
CREATE INDEX IF NOT EXISTS images ON tasks (number) WHERE image != '';
CREATE INDEX IF NOT EXISTS images_by_age ON tasks (finished_at) WHERE image != '';"""
OPEN = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 4194304;
SELECT 1 FROM settings;"""  # which makes the files beside it
SELECT = f"SELECT {', '.join(COLUMNS)} FROM tasks"
INSERT = f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
CHANGED = ", ".join(f"{name} = ?{place}" for place, name in enumerate(OF_RECORD, len(OF_TASK) + 1))
UPDATE = f"UPDATE tasks SET {CHANGED} WHERE number = ?1 AND state IN {LIVE}"  # what has ended stays as it is
LISTED = "number IN (SELECT value FROM json_each(?))"


def prepare(connection: sqlite3.Connection) -> None:
    """Make what a new file lacks, and check an old one. Raises ValueError, TypeError and sqlite3.Error."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if not (application or connection.execute("SELECT 1 FROM sqlite_schema").fetchone()):
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    elif application != APPLICATION:
        raise ValueError("another program's database")
    elif (words := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise ValueError(f"damaged: {words.splitlines()[-1]}")  # a headline comes before it
    if int(connection.execute("SELECT value FROM settings WHERE name = 'format'").fetchone()[0]) > FORMAT:
        raise ValueError("written by a newer version of this program")
    there = {column[1] for column in connection.execute("PRAGMA table_info(tasks)")}
    new = [f"ALTER TABLE tasks ADD COLUMN {name} DEFAULT {COLUMNS[name]};" for name in COLUMNS if name not in there]
    connection.executescript(f"BEGIN; {' '.join(new)} {INDICES} COMMIT;")


def row_of(record: Record) -> list[Any]:
    """The values of its row. Halves of surrogate pairs, which SQLite does not take, are spelled out."""
    values = VALUES(record)
    return [v if type(v) is not str or v.isascii() else v.encode(errors="backslashreplace").decode() for v in values]


def record_of(row: Sequence[Any]) -> Record:
    """The record of a row."""
    return Record(Task(*row[: len(OF_TASK)]), **dict(zip(OF_RECORD, row[len(OF_TASK) :], strict=True)))

"""The record of tasks: what it keeps, and what becomes of it when files vanish, disks are full and processes die.

What is on disk is looked at by a connection of the test's own, or by a record that is opened anew.
"""

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from common.parameters import ParameterError
from dedgeai import store as module
from dedgeai.records import CANCELLED, DONE, FAILED, FINAL, LIVE, QUEUED, RUNNING, WAITING, Record
from dedgeai.store import KEY_SECONDS, Store, StoreError
from dedgeai.tasks import Task


def record(number: int, **known: Any) -> Record:
    return Record(Task(number, f"prompt {number}", 14, number, 64, 64, number % 3), 1e9 + number, **known)


def done(number: int, **known: Any) -> Record:
    ended = {"state": DONE, "image": f"{number:06d}.png", "finished": 5.0, "finished_at": 1e9 + number}
    return record(number, **(ended | known))


def using(folder: Path, work: Callable[[Store], Coroutine[Any, Any, Any]]) -> Any:
    """What `work` returns, given the record of a folder, which is closed after it."""

    async def run() -> Any:
        store = Store(folder / "tasks.db")
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def on_disk(path: Path, query: str = "SELECT number, state FROM tasks ORDER BY number") -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


# --- what it keeps ---


def test_every_field_outlives_a_start(tmp_path: Path) -> None:
    """Each stored field of a task and its record, texts of any kind, and the numbering, also after removals."""
    odd = "naïve \x00 \r\n\t \U0001f34e \u202e '); DROP TABLE tasks; -- %s"
    task = Task(7, odd, 3, 2**63 - 1, 64, 128, 2, odd, 7.1, 6, odd, 1.7, odd)
    whole = Record(task, 1e9, 2.5, DONE, 1, 2, 3, 4.5, 5.5, 6.1, 1e9 + 0.1, 2, 1, odd, "7.png")
    assert all(value not in (None, f.default) for f in dataclasses.fields(task) for value in [getattr(task, f.name)])

    async def fill(store: Store) -> None:
        assert store.last == -1
        await store.add([whole, record(900)], "a key", "its digest")
        await store.remove([900])
        await store.total(100, 12.5)
        store.set("token", "hash")
        store.set("secret", "x")
        store.set("secret", None)

    async def look(store: Store) -> None:
        assert store.get(7) == whole == store.page([], None, 5)[0] == store.records([900, 7])[0]
        assert (store.last, store.totals()) == (900, {100: 12.5})
        assert (store.setting("token"), store.setting("secret"), store.setting("none")) == ("hash", None, None)
        assert store.counts == {DONE: 1, FAILED: 0, CANCELLED: 0}

    using(tmp_path, fill)
    using(tmp_path, look)


def test_texts_that_sqlite_cannot_hold_are_spelled_out(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        odd = dataclasses.replace(record(0).task, prompt="half \ud800 a pair", user="\udfff")
        await store.add([Record(odd, 1e9), record(1)])
        await store.finish(Record(odd, 1e9, state=FAILED, error="file\udc80"))
        found = store.get(0)
        assert (found.task.prompt, found.task.user, found.error) == ("half \\ud800 a pair", "\\udfff", "file\\udc80")

    using(tmp_path, work)


def test_states_and_counts(tmp_path: Path) -> None:
    """What has ended is not changed any more, whatever comes late or twice; unfinished tasks begin again."""

    async def live(store: Store) -> None:
        await store.add([record(number) for number in range(6)])
        late = record(0, state=RUNNING, server=1)
        await asyncio.gather(store.finish(done(0)), store.finish(done(0)))
        store.note(late)
        await store.finish(record(1, state=FAILED, error="why"))
        store.note(record(3, state=RUNNING, server=2, sent=1.0, started=2.0, attempts=2, moves=1, decided=0, round=4))
        store.note(record(4, state=QUEUED, finished=3.0, finished_at=3.0))
        await store.finish(record(2, state=CANCELLED))
        await asyncio.gather(store.remove([1, 5]), store.remove([1, 77]))
        assert store.counts == {DONE: 1, FAILED: 0, CANCELLED: 1}
        await store.check()
        assert store.get(0) == done(0)

    async def again(store: Store) -> None:
        assert store.counts == {DONE: 1, FAILED: 0, CANCELLED: 1}
        assert store.unfinished() == [record(3, attempts=2, moves=1, decided=0, round=4), record(4)]
        assert store.get(3).state == RUNNING

    using(tmp_path, live)
    using(tmp_path, again)


def test_noted_rows_are_written_soon_without_another_write(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.add([record(0)])
        store.note(record(0, state=QUEUED))
        store.note(record(0, state=RUNNING))
        await until(lambda: on_disk(store.path) == [(0, RUNNING)], 1.0)

    using(tmp_path, work)


def test_pages_and_look_ups_agree_with_a_plain_list(tmp_path: Path) -> None:
    """Pages by state walked to their end, for odd limits and places, and numbers that no database holds."""
    rng = random.Random(0)
    plain = [record(number, state=rng.choice(LIVE + FINAL)) for number in rng.sample(range(1000), 200)]
    plain.sort(key=lambda one: -one.task.number)

    async def work(store: Store) -> None:
        await store.add(rng.sample(plain, len(plain)))
        for states in ([], [DONE], list(LIVE), [FAILED, "unknown", FAILED, WAITING]):
            wanted, before, pages = [one for one in plain if not states or one.state in states], None, []
            while page := store.page(states, before, 7):
                pages, before = pages + page, page[-1].task.number
            assert pages == wanted
            assert store.page(states, 10**30, 3) == wanted[:3] and store.page(states, -(10**30), 3) == []
        assert store.get(-1) is store.get(10**30) is store.get(-(10**30)) is None
        numbers = [one.task.number for one in rng.sample(plain, 20)]
        assert [one.task.number for one in store.records([*numbers, 5000, -1])] == numbers
        assert len(store.records(range(1000))) == 200 and store.records([]) == []

    using(tmp_path, work)


def test_which_images_go(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        order = [3, 0, 4, 1, 2]  # by their ends, which need not be that of their numbers
        await store.add([done(number, finished_at=1e9 + order.index(number)) for number in range(5)])
        await store.add([record(5), done(6, image=""), record(7, state=FAILED, finished_at=1.0)])
        names = lambda *beyond: [one.task.number for one in store.images_beyond(*beyond)]  # noqa: E731
        assert names(3, None) == [1, 0] and names(5, None) == [] and names(None, None) == []
        assert names(None, 1e9 + 2.5) == [3, 0, 4] and names(None, 0.0) == [] and names(9, 1e9 + 0.5) == [3]
        await store.drop_images([0, 1, 3])
        assert names(0, None) == [4, 2] and names(None, 2e9) == [4, 2] and store.get(1).state == DONE

    using(tmp_path, work)


def test_idempotency_keys_hold_for_a_week(tmp_path: Path, monkeypatch) -> None:
    async def work(store: Store) -> None:
        await store.add([record(3), record(4)], "key", "digest")
        assert store.key("key") == ("digest", [3, 4]) and store.key("Key") is None
        with pytest.raises(StoreError):  # of one that fails, nothing is kept
            await store.add([record(5), record(4)], "second", "digest")
        assert store.key("second") is store.get(5) is None
        late = time.time() + KEY_SECONDS + 1
        monkeypatch.setattr(module.time, "time", lambda: late)
        assert store.key("key") is None
        await store.add([record(6)], "third", "")
        assert on_disk(store.path, "SELECT key FROM keys") == [("third",)]
        await store.add([record(8)], "key", "new")
        assert store.key("key") == ("new", [8])

    using(tmp_path, work)


# --- files that are none of ours ---


def text(path: Path) -> None:
    path.write_text("a list of tasks\n" * 200)


def half(path: Path) -> None:
    using(path.parent, lambda store: store.add([record(number) for number in range(500)]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribbled(path: Path) -> None:
    using(path.parent, lambda store: store.add([record(number) for number in range(500)]))
    content = bytearray(path.read_bytes())
    content[-5 * 4096 :] = b"\x55" * (5 * 4096)
    path.write_bytes(content)


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE tasks (number, state)")


def newer(path: Path) -> None:
    using(path.parent, lambda store: store.check())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'format'")


def without_table(path: Path) -> None:
    using(path.parent, lambda store: store.check())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE settings")


@pytest.mark.parametrize("spoil", [text, half, scribbled, foreign, newer, without_table, Path.mkdir])
def test_a_file_that_is_no_record_is_refused_and_left_alone(spoil: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ParameterError) as refused:
        Store(path, "resume")
    assert str(refused.value).startswith(f"--resume={tmp_path}: must hold") and "\n" not in str(refused.value)
    assert "***" not in str(refused.value)  # the headline of SQLite's check, which says nothing
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert [file.name for file in tmp_path.iterdir()] == ["tasks.db"]


def test_a_record_of_before_a_field_was_added_goes_on(tmp_path: Path) -> None:
    using(tmp_path, lambda store: store.add([dataclasses.replace(record(0), attempts=3)]))
    with contextlib.closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as connection:
        for column in ("scale", "negative_prompt", "user", "moves"):
            connection.execute(f"ALTER TABLE tasks DROP COLUMN {column}")

    async def work(store: Store) -> None:
        await store.add([record(1)])
        assert store.unfinished() == [dataclasses.replace(record(0), attempts=3), record(1)]

    using(tmp_path, work)


# --- writes that fail ---


def test_one_wrong_write_fails_alone(tmp_path: Path) -> None:
    """A number that is taken or none at all does not fail what comes at the same moment, nor end the writing."""

    async def work(store: Store) -> None:
        await store.add([record(0)])
        await store.add([])
        wrong = [record(0), record(10**30), Record(dataclasses.replace(record(9).task, seed=object()), 1.0)]
        adds = [store.add([one]) for one in (*wrong, *map(record, range(1, 4)))]
        store.note(record(0, server=object()))
        results = await asyncio.gather(*adds, return_exceptions=True)
        assert [type(result) for result in results] == [StoreError] * 3 + [type(None)] * 3
        assert "UNIQUE" in str(results[0])
        store.note(record(0, state=RUNNING))
        await store.check()
        assert on_disk(store.path) == [(0, RUNNING), *((number, WAITING) for number in range(1, 4))]

    using(tmp_path, work)


def test_a_caller_that_gives_up_harms_nobody(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        adds = [asyncio.create_task(store.add([record(number)])) for number in range(20)]
        await asyncio.sleep(0)
        for add in adds[::2]:
            add.cancel()
        await asyncio.wait(adds)
        await store.check()
        assert {number for number, _ in on_disk(store.path)} >= set(range(1, 20, 2))

    using(tmp_path, work)


def test_a_record_locked_by_another_program(tmp_path: Path) -> None:
    """A write waits for it, then fails with words; reads go on, and so do later writes."""

    async def work(store: Store) -> None:
        await store.add([record(0)])
        store.writer.execute("PRAGMA busy_timeout = 50")
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await asyncio.gather(store.add([record(1)]), store.finish(done(0)))
            assert store.get(0) == record(0) and store.counts[DONE] == 0
            other.execute("ROLLBACK")
        await store.finish(done(0))
        assert store.get(0) == done(0)

    using(tmp_path, work)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("room", [700_000, 4_300_000, 4_600_000])  # at 4 MB, what is beside the file goes into it
def test_a_full_disk(room: int, small_disk: Path) -> None:
    """What was accepted stays, nothing is half there, reads go on, and writes go on when there is room again."""
    accepted = []

    async def work(store: Store) -> None:
        (small_disk / "other").write_bytes(bytes(8 * 2**20 - room))
        with pytest.raises(StoreError) as full:
            for first in itertools.count(0, 30):
                await store.add([record(number) for number in range(first, first + 30)], f"key {first}")
                accepted.extend(range(first, first + 30))
        assert full.value.errno == errno.ENOSPC and "full" in str(full.value)
        store.note(record(0, state=RUNNING))
        adds = [store.add([record(number) for number in range(k, k + 900)]) for k in range(100_000, 118_000, 900)]
        results = await asyncio.gather(*adds, return_exceptions=True)
        assert {type(result) for result in results} == {StoreError}
        assert [one.task.number for one in store.unfinished()] == accepted and len(accepted) > 300
        assert store.key(f"key {len(accepted)}") is None and store.key("key 30") == ("", [*range(30, 60)])
        (small_disk / "other").unlink()
        await store.finish(done(1))
        await store.add([record(200_000)])
        accepted.append(200_000)
        await store.check()
        assert store.get(0).state == RUNNING and store.get(1) == done(1)

    using(small_disk, work)
    using(small_disk, lambda store: asyncio.sleep(0, accepted.remove(1)))
    assert [number for number, state in on_disk(small_disk / "tasks.db") if state != DONE] == accepted


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """The same with an error that is not that of a full disk."""

    async def work(store: Store) -> None:
        await store.add([record(0)])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (store.path.with_name("tasks.db-wal").stat().st_size, limits[1]))
        try:
            with pytest.raises(StoreError) as refused:
                await store.add([record(number) for number in range(1, 1000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(refused.value) and len(store.unfinished()) == 1
        await store.add([record(1)])

    using(tmp_path, work)
    assert on_disk(tmp_path / "tasks.db") == [(0, WAITING), (1, WAITING)]


# --- files that vanish ---


def remove_all(folder: Path) -> None:
    for file in folder.glob("tasks.db*"):
        file.unlink()


def remove_folder(folder: Path) -> None:
    remove_all(folder)
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    """Put older files there, as someone might who does not know that a service stands still for that."""
    for file in ("tasks.db", "tasks.db-wal"):
        copy = folder / "copy"
        copy.write_bytes((folder / "before" / file).read_bytes())
        copy.replace(folder / file)


LOSSES = {
    "the file": lambda folder: (folder / "tasks.db").unlink(),
    "-wal": lambda folder: (folder / "tasks.db-wal").unlink(),
    "-shm": lambda folder: (folder / "tasks.db-shm").unlink(),
    "all": remove_all,
    "folder": remove_folder,
    "moved folder": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "replaced": replace,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("how", ["killed", "closed"])
def test_removed_files_are_written_anew(loss: str, how: str, tmp_path: Path, monkeypatch) -> None:
    """After the next write or check all is there for another process, whether this one ends well or is killed."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.02)
    folder = tmp_path / "run"
    folder.mkdir()

    async def run() -> None:
        store = Store(folder / "tasks.db")
        await store.add([record(0)])
        (folder / "before").mkdir()
        for file in folder.glob("tasks.db*"):
            shutil.copy(file, folder / "before")
        await store.add([record(number) for number in range(1, 300)])
        for number in range(300, 303):
            LOSSES[loss](folder)
            if number == 301:
                await until(lambda: store.present() == store.inodes)  # of itself
                await store.check()
            await store.add([record(number)])
            await store.finish(done(number))
            assert store.get(number) == done(number)
            if loss == "moved folder":
                folder.with_name("elsewhere").rename(tmp_path / f"left {number}")
        if how == "killed":
            shutil.copytree(folder, tmp_path / "killed")
        await store.close()

    asyncio.run(run())
    where = tmp_path / "killed" if how == "killed" else folder
    expected = [(number, WAITING) for number in range(300)] + [(number, DONE) for number in range(300, 303)]
    assert on_disk(where / "tasks.db") == expected
    using(where, lambda store: asyncio.sleep(0))
    assert {file.name for file in folder.iterdir()} <= {"tasks.db", "tasks.db.replaced", "before"}
    assert (folder / "tasks.db.replaced").exists() == (loss == "replaced")


def test_a_folder_that_cannot_come_back(tmp_path: Path) -> None:
    """A file where the folder was: writes and checks fail with words, until it is gone."""

    async def work(store: Store) -> None:
        await store.add([record(0)])
        remove_folder(tmp_path / "run")
        (tmp_path / "run").write_text("in the way")
        for write in (store.add([record(1)]), store.check(), store.finish(done(0))):
            with pytest.raises(StoreError, match=r"[a-z]{4}"):
                await write
        assert store.get(0) == record(0)
        (tmp_path / "run").unlink()
        await store.finish(done(0))

    (tmp_path / "run").mkdir()
    using(tmp_path / "run", work)
    assert on_disk(tmp_path / "run" / "tasks.db") == [(0, DONE)]


# --- a process that dies ---


def test_a_killed_process_loses_nothing_that_it_said_was_there(tmp_path: Path) -> None:
    """20 adders and finishers at once, killed at any moment, again and again on the same record."""
    code = """
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, "tests")
        from test_edge_store import Store, done, record

        async def add(store, out):
            while True:
                number = store.last + 1
                await store.add([record(number), record(number + 1)])
                print("added", number, number + 1, file=out, flush=True)
                await store.finish(done(number))
                print("done", number, file=out, flush=True)

        async def main():
            store = Store(Path(sys.argv[1]) / "tasks.db")
            await asyncio.gather(*(add(store, sys.stdout) for _ in range(20)))

        asyncio.run(main())
    """
    told: dict[str, list[int]] = {"added": [], "done": []}
    for pause in (0.1, 0.3):
        command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            lines = [process.stdout.readline()]
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            lines += [line for line in process.stdout if line.endswith("\n")]
        for word, *numbers in map(str.split, lines):
            told[word] += map(int, numbers)
    assert len(told["added"]) == len(set(told["added"])) > 100
    states = dict(on_disk(tmp_path / "tasks.db"))
    assert states.keys() >= set(told["added"]) and all(states[number] == DONE for number in told["done"])
    assert all(number ^ 1 in states for number in states)  # both of an add, or none
    using(tmp_path, lambda store: asyncio.sleep(0))


# --- sizes ---


def test_reads_do_not_scan(tmp_path: Path) -> None:
    """SQLite's own plan of each query names a search by an index, and no sorting but of the few unfinished ones."""
    queries = []

    async def work(store: Store) -> None:
        await store.add([done(number) for number in range(50)], "key")
        store.reader.set_trace_callback(queries.append)
        store.get(3), store.records([3, 4]), store.unfinished(), store.key("key"), store.setting("format")
        store.page([], 30, 5), store.page([DONE, FAILED], None, 5)
        store.images_beyond(3, None), store.images_beyond(None, 0.0)
        store.reader.set_trace_callback(None)
        store.writer.set_trace_callback(queries.append)
        store.note(record(1))
        await asyncio.gather(store.finish(done(2)), store.remove([5]), store.drop_images([6]))
        await store.add([record(60)], "new")
        store.writer.set_trace_callback(None)
        for query in [query for query in queries if query.startswith(("SELECT", "UPDATE", "DELETE"))]:
            plan = [row[3] for row in store.reader.execute(f"EXPLAIN QUERY PLAN {query}")]
            scans = [step for step in plan if step.startswith("SCAN") and "json_each" not in step]
            assert all("USING" in step and "images" in step for step in scans), plan  # along it, to a limit
            assert "USE TEMP B-TREE FOR ORDER BY" not in plan or "'running'" in query, plan

    using(tmp_path, work)
    assert len(queries) > 15


def test_the_file_beside_it_stays_small(tmp_path: Path) -> None:
    """However much is written and read, it is written over again; a large transaction's room is given back."""

    async def work(store: Store) -> None:
        beside = store.path.with_name("tasks.db-wal")
        await store.add([record(-1 - number) for number in range(25_000)])
        largest = beside.stat().st_size
        for number in range(600):
            await store.add([record(number)])
            assert store.get(number) and store.page([WAITING], None, 2)
        assert largest > 2**22 >= beside.stat().st_size

    using(tmp_path, work)


@pytest.mark.alone
def test_adds_are_fast(tmp_path: Path) -> None:
    """20 at once: over 2,000 a second. A lone one: as long as bringing 8 kB to disk, and 1 ms at most."""

    async def work(store: Store) -> tuple[float, float]:
        async def add(numbers: range) -> None:
            for number in numbers:
                await store.add([record(number)])

        began = time.perf_counter()
        await asyncio.gather(*(add(range(first, 4000, 20)) for first in range(20)))
        rate, lone = 4000 / (time.perf_counter() - began), []
        for number in range(4000, 4100):
            began = time.perf_counter()
            await store.add([record(number)])
            lone.append(time.perf_counter() - began)
        return rate, sorted(lone)[50]

    rate, lone = using(tmp_path, work)
    bare = []
    with (tmp_path / "plain").open("wb", buffering=0) as file:
        for _ in range(100):
            began = time.perf_counter()
            file.write(bytes(8192))
            os.fsync(file.fileno())
            bare.append(time.perf_counter() - began)
    assert rate > 2000 and lone < sorted(bare)[50] + 1e-3

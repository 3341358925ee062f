"""Folders of runs: whose they are, and that nobody touches what another process is writing."""

import dataclasses
import errno
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import refusal, run_here
from scripts_by_path import load

from baselines import main_dqn
from common import locks, run_folder
from common.parameters import ParameterError, Parameters, parameter, resolve
from common.run_folder import claimed, new_folder, resumed

reproduce, sweep = load("reproduce"), load("sweep")
RUN = ["--num_bs=2", "--num_tasks=3", "--num_slots=4", "--learning_start=10", "--episodes=4"]


@pytest.fixture(params=["flock", "file"])
def kind(request, monkeypatch) -> str:
    """With the system's locks, and on a file system that does not know them."""
    if request.param == "file":

        def unknown(*_: int) -> None:
            raise OSError(errno.ENOSYS, "no such locks")

        monkeypatch.setattr(fcntl, "flock", unknown)
    return request.param


def live_run(folder: Path) -> dict[str, bytes]:
    """What a run that is going on has left so far, half-written files included."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "delay.csv", ".delay.partial.csv", ".progress"):
        (folder / name).write_text("7")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != locks.LOCK}


def test_default_folders_of_runs_that_begin_together_are_numbered(tmp_path, kind):
    with new_folder(None, tmp_path / "run") as first, new_folder(None, tmp_path / "run") as second:
        assert (first.name, second.name) == ("run", "run_2")
    with new_folder(None, tmp_path / "run") as third:  # the first one has left nothing
        assert third.name == "run"


def test_a_folder_is_swept_only_by_whose_it_is(tmp_path, kind):
    before = live_run(tmp_path)
    with claimed(tmp_path):
        (tmp_path / ".delay.partial.csv").write_text("7")
        with pytest.raises(ParameterError, match="another process"), claimed(tmp_path, "resume"):
            pass
        assert contents(tmp_path) == before
    with claimed(tmp_path):
        assert set(contents(tmp_path)) == {"config.json", "delay.csv", ".progress"}
    assert not (tmp_path / locks.LOCK).exists()


@dataclasses.dataclass(kw_only=True)
class Older(Parameters):
    """A script's parameters, one of which was added since."""

    resume: str | None = parameter(None, "run to go on with")
    steps: int = parameter(3, "steps", low=1)
    added: int = parameter(7, "added since", low=1)


def test_any_folder_of_an_older_version_goes_on_with_defaults_that_are_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"parameters": {"resume": null, "steps": 5}}')
    config = resumed(resolve(Older, {"resume": str(tmp_path)}), {"resume": str(tmp_path)}, ("resume",))
    assert (config.steps, config.added) == (5, 7)
    assert "older version" in (told := capsys.readouterr().out) and "added=7" in told
    for content in ('{"parameters": []}', '{"parameters": {"warmth": 1, "steps": 5, "added": 7}}', "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ParameterError, match="--resume="):
            resumed(resolve(Older, {"resume": str(tmp_path)}), {}, ())


def test_a_users_own_files_are_neither_swept_nor_overlooked(tmp_path):
    (tmp_path / ".note.partial.of.mine.txt").write_text("mine")
    with pytest.raises(ParameterError, match="new or empty folder"), new_folder(str(tmp_path), tmp_path):
        pass
    assert (tmp_path / ".note.partial.of.mine.txt").read_text() == "mine"


@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_a_refused_training_leaves_a_live_run_alone(tmp_path, capsys, flag):
    before = live_run(tmp_path)
    release = locks.lock(tmp_path)
    line = refusal(capsys, main_dqn, *([] if flag == "--resume" else RUN), flag, tmp_path)
    release()
    assert f"{flag}={tmp_path}: must be free" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("script", "place"), [(reproduce, "runs"), (reproduce, "runs/dqn_ts_tuned"), (sweep, "runs")])
def test_a_second_command_over_many_runs_touches_nothing(tmp_path, capsys, script, place):
    run = tmp_path / "runs" / "dqn_ts_tuned"
    before = live_run(run)
    release = locks.lock(tmp_path / place)
    line = refusal(capsys, script, "--methods=dqn_ts", "--episodes=2", "--seeds=1", "--out", tmp_path)
    release()
    assert f"--out={tmp_path / place}: must be free, but another process" in line
    assert contents(run) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, no_plots):
    run_here(main_dqn, *RUN, "--out", tmp_path / "whole")
    run_here(main_dqn, *RUN, "--out", tmp_path / "killed")
    for path in (tmp_path / "killed").iterdir():
        if path.name != "config.json":
            path.unlink()
    run_here(main_dqn, "--resume", tmp_path / "killed")
    assert (tmp_path / "killed" / "delay.csv").read_bytes() == (tmp_path / "whole" / "delay.csv").read_bytes()


def test_only_a_run_of_the_same_method_is_resumed_without_a_checkpoint(tmp_path, capsys, no_plots):
    run_here(main_dqn, *RUN, "--out", tmp_path)
    run_here(main_dqn, "--evaluate", tmp_path / "checkpoint.pt", "--evaluation_episodes=1")
    line = refusal(capsys, main_dqn, "--resume", tmp_path / "evaluation_sample")
    assert line.endswith("holds a run of DQN-TS (tuned), evaluation; must be one of DQN-TS")


def test_a_run_needs_no_main_thread(tmp_path, no_plots):
    """Signals reach the main thread alone; a training from Python may be anywhere."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_here, main_dqn, *RUN, "--out", tmp_path).result()
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_loop_is_one_line_and_its_own_exit_code(tmp_path, end):
    """As while a scheduler is made, or tables are fitted."""
    code = f"""
import os, signal, time
from common.command_line import command_line
from common.parameters import Parameters
def main(config, given):
    os.kill(os.getpid(), {int(end)})
    time.sleep(60)
command_line(Parameters, main, "", [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    words = "interrupted" if end == signal.SIGINT else "terminated"
    assert (done.returncode, done.stderr) == (128 + end, f"error: {words}\n")


@pytest.mark.parametrize("kind", ["file"], indirect=True)
def test_lock_files_of_dead_processes_count_nothing_and_those_of_other_machines_do(tmp_path, kind):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / locks.LOCK
    path.write_text(f"{socket.gethostname()} {dead.pid}")
    locks.lock(tmp_path)()
    assert not path.exists()
    for owner in (f"elsewhere {os.getpid()}", f"{socket.gethostname()} {os.getpid()}", ""):
        path.write_text(owner)
        with pytest.raises(locks.BusyError):
            locks.lock(tmp_path)
        assert path.read_text() == owner


def test_only_one_of_those_who_find_a_dead_lock_gets_the_folder(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / locks.LOCK).write_text(f"{socket.gethostname()} {dead.pid}")
    look = locks.held

    def held(path: Path) -> bool:
        found = look(path)
        time.sleep(0.02 * random.random())  # so that others act before what was seen is used
        return found

    def attempt(_: int) -> bool:
        try:
            locks.lock_file(tmp_path / locks.LOCK)
        except locks.BusyError:
            return False
        return True

    monkeypatch.setattr(locks, "held", held)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    turn = tmp_path / (locks.LOCK + locks.TURN)
    assert not turn.exists()
    (tmp_path / locks.LOCK).write_text(f"{socket.gethostname()} {dead.pid}")
    turn.touch()  # its process was killed there
    assert not attempt(0)
    os.utime(turn, (0, 0))
    assert not attempt(0) and attempt(0)


def test_network_file_systems_get_a_lock_file(tmp_path, monkeypatch):
    """Locks of the system may hold on one machine only there."""
    (tmp_path / "home" / "local").mkdir(parents=True)
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(locks, "MOUNTS", mounts)
    mounts.write_text(
        "22 1 0:20 / / rw - ext4 /dev/a rw\n"
        f"30 22 0:40 / {tmp_path}/home rw,relatime shared:1 - nfs4 server:/home rw\n"
        f"31 30 0:41 / {tmp_path}/home/local rw - ext4 /dev/b rw\n"
    )
    for place, network in (("home", True), ("home/local", False), (".", False)):
        release = locks.lock(tmp_path / place)
        assert (tmp_path / place / locks.LOCK).exists() == network
        with pytest.raises(locks.BusyError):
            locks.lock(tmp_path / place)
        release()


def test_an_error_of_writing_names_the_file_that_was_to_be(tmp_path):
    (tmp_path / "a.csv").mkdir()
    for write in (lambda temporary: temporary.write_text("x"), lambda _: Path("/dev/full").write_text("x")):
        with pytest.raises(OSError, match=r"directory|space") as error:
            run_folder.replace_file(tmp_path / "a.csv", write)
        assert error.value.filename == str(tmp_path / "a.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_config_that_is_nested_without_end_is_a_mistake_in_words(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ParameterError, match="nested too deep"):
        run_folder.read_config(tmp_path)


def test_what_a_killed_run_left_in_folders_of_its_own_goes_and_other_runs_keep_theirs(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for part in (".", "images", "other"):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / f".a.{dead.pid}-1.partial.png").touch()
    (tmp_path / "other" / "config.json").touch()
    with claimed(tmp_path):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.partial.png")}
    assert left == {f"other/.a.{dead.pid}-1.partial.png"}

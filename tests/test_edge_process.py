"""The edge system as a process that is signalled and killed from outside: what it says, and what it leaves behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from helpers import ROOT, answers_signals, make

from common.locks import lock
from common.parameters import ParameterError
from dedgeai import ray_host
from dedgeai.live import service_token
from dedgeai.main_dedgeai import DedgeConfig
from dedgeai.ray_start import RayLink
from dedgeai.store import Store

FLAGS = ("--compute", "simulated", "--scheduler", "water_filling", "--num_servers", "2", "--step_seconds", "0.02")
RUN = (*FLAGS, "--num_tasks", "500", "--out", "run")
SERVE = (*FLAGS, "--serve", "--port", "0", "--out", "run")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Starts:
    """Starts of main_dedgeai.py with a folder for temporary files that no other process uses."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, Path(tempfile.mkdtemp(prefix="e", dir="/tmp"))

    def start(self, *flags: object) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "dedgeai/main_dedgeai.py"), *map(str, flags)]
        environment = os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def served(self, *flags: object) -> tuple[subprocess.Popen, str]:
        """A service that answers, and its address."""
        process = self.start(*SERVE, *flags)
        for line in process.stdout:
            if found := re.search(r"listening on (\S+);", line):
                return process, found[1]
        raise AssertionError(process.communicate())

    def running(self) -> dict[str, psutil.Process]:
        """Processes of all starts but the drivers, by their commands."""
        found = {}
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                files = [file.path for file in process.open_files()] if command.startswith("ray::") else [command]
                host = "ray_host" in command and process.environ().get("TMPDIR") == str(self.temporary)
                if host or any(f"{self.temporary}/" in text for text in files):
                    found[command[:200]] = process
            except psutil.Error:
                continue
        return found

    def one(self, words: str) -> psutil.Process:
        """The process whose command has these words in it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := [process for command, process in self.running().items() if words in command]:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no {words}")

    def left(self) -> list[str]:
        """What is still there: processes, and files for Ray."""
        return [*self.running(), *(path.name for path in self.temporary.glob(f"{ray_host.NAME}*"))]


@pytest.fixture
def starts(tmp_path) -> Iterator[Starts]:
    starts = Starts(tmp_path)
    yield starts
    for process in starts.running().values():
        process.kill()
    shutil.rmtree(starts.temporary)


def end(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error that are no progress bar's."""
    out, told = process.communicate(timeout=60)
    return process.returncode, out, [line for line in told.splitlines() if line.strip() and " tasks: " not in line]


def post(url: str) -> int:
    body = json.dumps({"prompt": "a red apple", "steps": 20}).encode()
    with urlopen(Request(f"{url}/api/tasks", body, {"Content-Type": "application/json"}), timeout=20) as answer:
        return json.load(answer)["task"]


def states(run: Path) -> list[str]:
    store = Store(run / "tasks.db")
    return [record.state for record in reversed(store.page((), None, 1000))]


# --- Ray dies ---


def test_a_run_whose_raylet_dies_ends_with_words_and_goes_on_with_what_is_left(starts):
    process = starts.start(*RUN)
    raylet = starts.one("raylet/raylet")
    while not list((starts.folder / "run/images").glob("*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    raylet.kill()
    code, _, told = end(process)
    assert code == 1 and told == ["error: raylet of Ray died; what was accepted is kept; go on with --resume run"]
    assert time.monotonic() - began < 10 and starts.left() == []
    found = states(starts.folder / "run")
    assert len(found) == 500 and 0 < found.count("done") < 500


def test_signals_to_edge_servers_end_them_and_others_do_their_tasks(starts):
    process, url = starts.served()
    for restarts, number in enumerate((signal.SIGTERM, signal.SIGHUP), 1):
        for _ in range(4):
            last = post(url)
        starts.one("ray::EdgeServer").send_signal(number)
        deadline, found = time.monotonic() + 30, (0, 0, False)
        while found != (last + 1, restarts, True):
            assert time.monotonic() < deadline, (number, found)
            time.sleep(0.2)
            with urlopen(f"{url}/api/cluster", timeout=20) as answer:
                told = json.load(answer)
            servers = told["servers"]
            found = told["done"], sum(s["restarts"] for s in servers), all(s["up"] for s in servers)
    process.terminate()
    assert end(process)[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcs/gcs_server", "ray_host", "ray::DashboardAgent", "ray::RuntimeEnvAgent"])
def test_a_service_ends_within_10_s_when_what_it_cannot_do_without_dies(name, starts):
    process, url = starts.served()
    tasks = [post(url) for _ in range(30)]
    began = time.monotonic()
    starts.one(name).kill()
    code, _, told = end(process)
    assert code == 1 and len(told) == 1 and "of Ray died; what was accepted is kept; go on with --resume run" in told[0]
    assert time.monotonic() - began < 10 and starts.left() == []
    assert len(states(starts.folder / "run")) == len(tasks)


def test_a_process_that_takes_no_connection_any_more_is_noticed(tmp_path):
    place, died = str(tmp_path / "s"), threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        link = RayLink(make(DedgeConfig))
        link.sockets = {"raylet": place}
        link.watch(lambda name: died.set())
        taken, _ = listener.accept()
        assert not died.wait(0.5)
        taken.close()
    assert died.wait(5)


# --- signals ---


@pytest.mark.slow
@pytest.mark.parametrize("flags", [RUN, SERVE], ids=["run", "serve"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_any_moment_leaves_one_line_and_nothing_else(number, flags, starts):
    for tenths in (*range(1, 40, 4), *range(40, 90, 10)):
        shutil.rmtree(starts.folder / "run", ignore_errors=True)
        process = answers_signals(starts.start(*flags))
        time.sleep(tenths / 10)
        process.send_signal(number)
        code, out, told = end(process)
        assert code == 128 + number and starts.left() == [], (tenths, out, told)
        assert (len(told) == 1 and told[0].startswith("error: ")) != ("stopping" in out), (tenths, out, told)
        assert (starts.folder / "run/config.json").exists() or not (starts.folder / "run").exists()


@pytest.mark.slow
def test_a_service_finishes_what_runs_at_the_first_signal_and_the_next_start_does_the_rest(starts):
    process, url = starts.served()
    for _ in range(20):
        post(url)
    process.send_signal(signal.SIGHUP)
    code, out, told = end(process)
    found = states(starts.folder / "run")
    assert (code, told) == (129, []) and starts.left() == []
    assert set(found) == {"done", "queued"}
    assert f"hung up with {found.count('queued')} accepted tasks left; go on with --resume run" in out
    process, url = starts.served()
    while states(starts.folder / "run").count("done") < 20:
        time.sleep(0.1)
    assert post(url) == 20
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130 and starts.left() == []


# --- SIGKILL ---


@pytest.mark.slow
def test_nothing_of_ray_outlives_a_killed_driver_and_a_killed_host_is_cleared_by_the_next_start(starts):
    process, _ = starts.served()
    process.kill()
    deadline = time.monotonic() + 5
    while starts.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert starts.left() == []
    process, _ = starts.served()
    process.kill()
    starts.one("ray_host").kill()
    process, _ = starts.served()
    assert len(list(starts.temporary.glob(f"{ray_host.NAME}*"))) == 1
    assert len([command for command in starts.running() if "raylet/raylet" in command]) == 1
    process.terminate()
    assert end(process)[0] == 143 and starts.left() == []


def test_folders_of_dead_hosts_are_swept_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_host, "above", lambda: tmp_path)
    dead, living, other, aside = (tmp_path / name for name in ("dedgeai-dead", "dedgeai-lives", "ray", "aside"))
    for folder in (dead, living, other, aside):
        (folder / "session").mkdir(parents=True)
    (tmp_path / "dedgeai-link").symlink_to(aside)
    release = lock(living)
    agent = [sys.executable, "-c", "import time; time.sleep(60)", "/ray/agent"]
    agents = [subprocess.Popen([*agent, f"{folder}/session"]) for folder in (dead, living)]
    try:
        ray_host.sweep()
        assert not dead.exists() and agents[0].poll() is not None
        assert all((folder / "session").exists() for folder in (living, other, aside)) and agents[1].poll() is None
        release()
        ray_host.sweep()
        assert not living.exists() and agents[1].poll() is not None
    finally:
        for process in agents:
            process.kill()


# --- the token ---


def test_a_service_keeps_its_token_as_a_hash_and_asks_for_it(tmp_path):
    store, file = Store(tmp_path / "tasks.db"), tmp_path / "token"
    file.write_text("secret\nand more\n")
    assert service_token(make(DedgeConfig), store) is None
    known = service_token(make(DedgeConfig, token="secret"), store)
    assert known == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # by sha256sum
    store.set("token", known)
    assert service_token(make(DedgeConfig, token_file=str(file)), store) == known
    for wrong in ({}, {"token": "other"}):
        with pytest.raises(ParameterError, match="--token: must be"):
            service_token(make(DedgeConfig, **wrong), store)
        service_token(make(DedgeConfig, change_token=True, **wrong), store)
    file.write_text("\n")
    with pytest.raises(ParameterError, match="token_file"):
        service_token(make(DedgeConfig, token_file=str(file)), store)

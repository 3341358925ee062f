"""The edge system on Ray: speed-up, faults, resuming, and the same decisions as in the simulator.

Servers wait instead of computing, but for the run of the pocket model. Starting Ray takes some seconds, so all tests
share one, and runs from the command line take place in this process; a driver of its own is started only to be killed.
"""

import asyncio
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers import make, run_here, start_script
from PIL import Image
from ray.exceptions import ActorDiedError

from common.parameters import ParameterError
from common.tables import read_csv
from dedgeai import main_dedgeai
from dedgeai.cluster import Cluster, refusal
from dedgeai.edge_server import SimulatedCompute
from dedgeai.main_dedgeai import DedgeConfig
from dedgeai.ray_start import RayLink
from dedgeai.records import DONE, FAILED, Record
from dedgeai.report import predict
from dedgeai.store import Store
from dedgeai.system import EdgeSystem
from dedgeai.tasks import Task
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import SchedulerOptions, make_scheduler, method_of
from edge_sim.server_profile import Profile, equal_servers
from edge_sim.task_stream import draw_stream

SCRIPT = "dedgeai/main_dedgeai.py"


@pytest.fixture(scope="module")
def local_ray():
    link = RayLink(make(DedgeConfig, num_servers=6))
    link.connect()
    yield
    link.close()


@pytest.fixture
def shared_ray(local_ray, monkeypatch):
    """Runs from the command line in this process use the tests' Ray."""
    for name in ("connect", "watch", "close"):
        monkeypatch.setattr(RayLink, name, lambda *_: None)


async def system_of(profile: Profile, folder: Path, scheduler: str = "water_filling", **changes) -> EdgeSystem:
    """A started system whose servers wait as the profile says."""
    config = make(DedgeConfig, num_servers=profile.servers, scheduler=scheduler, **changes)
    times = (profile.seconds_per_step, profile.seconds_base, profile.spread)
    waiting = functools.partial(SimulatedCompute, *times, config.seed)
    system = EdgeSystem(config, waiting, folder, Store(folder / "tasks.db"))
    await system.cluster.start()
    method, policies = method_of(scheduler), folder / "policies"
    options = SchedulerOptions(scheduler, method, None, policies, 3, 10, (10, 19), 0.001, 450.0, 0)
    system.schedule_with(Dispatcher(make_scheduler(options, profile), config.learn), profile)
    return system


def tasks_of(count: int, servers: int, seed: int = 0) -> list[Task]:
    drawn = draw_stream(count, servers, (10, 19), np.array([1e-4]), None, seed)
    return [Task(k, "a", int(drawn.steps[k]), k, 1, 1, int(drawn.base_station[k])) for k in range(count)]


def stored(folder: Path, count: int) -> list[Record]:
    """The records of tasks 0 to `count` - 1, all of which have ended."""
    store = Store(folder / "tasks.db")
    records = store.records(range(count))
    assert [record.task.number for record in records] == list(range(count)) and store.last == count - 1
    assert all(record.final for record in records)
    asyncio.run(store.close())
    return records


def listening() -> set[tuple[str, str]]:
    """Address and port, in hexadecimal, of every TCP socket of this machine that listens."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {tuple(row[1].split(":")) for row in rows if row[3] == "0A"}


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="needs Linux, to see who listens")
def test_a_local_ray_listens_on_the_loopback_address_alone(request):
    before = listening()
    request.getfixturevalue("local_ray")
    new = {address for address, _ in listening() - before}
    assert new and new <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({}, "--num_servers=7: needs 7 of the resource", marks=pytest.mark.slow),
        pytest.param({"RAY_AUTH_TOKEN": "0" * 64}, "with the same token", marks=pytest.mark.slow),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "with the same token"),
    ],
    ids=["its token", "another one", "none"],
)
def test_a_cluster_is_joined_with_its_token_and_refuses_others_at_once(given, words, local_ray, monkeypatch, tmp_path):
    address = ray.get_runtime_context().gcs_address
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    flags = ["--num_servers", 7, "--num_tasks", 1, "--scheduler", "water_filling", "--compute", "simulated"]
    process = start_script(SCRIPT, "--address", address, *flags, folder=tmp_path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and len(told.splitlines()) == 1 and words in told


@pytest.mark.alone
@pytest.mark.parametrize(
    ("count", "speed_up", "percent"),  # few tasks have few rounds, of which one late one is not the system's
    [(150, 4.4, 90), pytest.param(500, 4.85, 99, marks=pytest.mark.slow)],
)
def test_five_servers_are_nearly_five_times_as_fast_as_one_and_the_simulator_knows(
    count, speed_up, percent, local_ray, no_plots, tmp_path
):
    profile = equal_servers(0.006, 0.012, 0.0, np.ones(5))  # 0.1 s a task, so that what it costs besides is little
    tasks = tasks_of(count, 5)

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, "lad_ts")
        await system.submit(tasks, slot=0.0)
        await system.finished()
        await system.close()
        return system

    system = asyncio.run(story())
    records = stored(tmp_path, count)
    alone = sum(profile.seconds(0, task.steps) for task in tasks)  # one server could not be faster
    assert alone / max(record.finished for record in records) >= speed_up
    took = np.repeat([s for s, _ in system.rounds.seconds], [n for _, n in system.rounds.seconds])
    assert np.percentile(took, percent) < 0.01
    predicted, measured = predict(records, profile), np.array([record.delay for record in records])
    assert predicted.mean() == pytest.approx(measured.mean(), rel=0.05)
    assert np.abs(predicted - measured).mean() < 0.05 * measured.mean()


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_again_and_again_loses_no_task_and_rejoins(kills, local_ray, tmp_path):
    profile = equal_servers(0.004, 0.004, 0.0, np.ones(5))
    count = 50 + 50 * kills
    tasks = tasks_of(count, 5)

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path)
        victim = system.cluster.servers[2]
        await system.submit(tasks)
        for kill in range(kills):
            done = 15 + 20 * kill
            while count - system.left < done or not victim.up:
                await asyncio.sleep(0.01)
            os.kill(victim.process, signal.SIGKILL)
            while victim.up:
                await asyncio.sleep(0.01)
        await system.finished()
        while not victim.up:  # it rejoins
            await asyncio.sleep(0.05)
        again = [Task(count + k, "a", 10, k, 1, 1, 2) for k in range(40)]
        await system.submit(again)
        await system.finished()
        assert any(system.find(task.number).server == 2 for task in again)
        await system.close()
        return system

    system = asyncio.run(story())
    assert system.cluster.servers[2].starts == 1 + kills
    records = stored(tmp_path, count + 40)
    assert all(record.state == DONE for record in records)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"{k:06d}.png" for k in range(count + 40)}
    assert sum(record.attempts for record in records) <= kills  # only what ran was in danger


def test_a_task_that_kills_every_server_fails_and_a_hung_server_is_started_again(local_ray, tmp_path):
    """The task takes longer than the timeout allows, so each server that has it is killed."""
    profile = equal_servers(0.001, 0.0, 0.0, np.ones(2))

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, attempts=2, job_timeout=0.5)
        endless = Task(0, "a", 1_000_000, 0, 1, 1, 0)
        await system.submit([endless, *(Task(k, "a", 10, k, 1, 1, k % 2) for k in range(1, 30))])
        await system.finished()
        while not all(server.up for server in system.cluster.servers):
            await asyncio.sleep(0.05)
        await system.close()
        return system

    system = asyncio.run(story())
    endless, *others = stored(tmp_path, 30)
    assert endless.state == FAILED and "2 edge servers died while working on it" in endless.error
    assert all(record.state == DONE for record in others)
    assert sum(server.starts - 1 for server in system.cluster.servers) >= 1


@pytest.mark.alone
def test_a_server_that_becomes_slow_is_seen_in_its_rate_and_gets_less(local_ray, tmp_path):
    fast = equal_servers(0.002, 0.0, 0.0, np.ones(3))

    async def story() -> EdgeSystem:
        slow = equal_servers(0.002, 0.0, 0.0, np.array([1.0, 0.2, 1.0]))
        system = await system_of(slow, tmp_path, "opt_ts", rebalance=False)
        system.cluster.calibrate(fast.seconds_per_step, 0.0)  # as if it had been measured when all were fast
        for burst in range(15):
            await system.submit([Task(10 * burst + k, "a", 10, k, 1, 1, k % 3) for k in range(10)])
            await asyncio.sleep(0.1)
        await system.finished()
        await system.close()
        return system

    system = asyncio.run(story())
    rates = [server.seconds_per_step for server in system.cluster.servers]
    assert rates[1] > 3 * max(rates[0], rates[2])
    served = np.bincount([record.server for record in stored(tmp_path, 150)], minlength=3)
    assert served[1] < 0.6 * min(served[0], served[2])


def test_agents_go_on_learning_from_measured_delays(local_ray, no_plots, tmp_path):
    profile = equal_servers(0.0005, 0.0, 0.0, np.ones(2))

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, "lad_ts", learn=True)
        agents = system.dispatcher.ready.scheduler
        before = agents.theta_actor.clone()
        held = int(agents.replay.written.sum())
        for burst in range(8):
            await system.submit([Task(20 * burst + k, "a", 10 + k % 10, k, 1, 1, k % 2) for k in range(20)], slot=0.0)
            await system.finished()
        assert system.dispatcher.learned == 7  # all but the last, whose next state is not known
        assert int(agents.replay.written.sum()) == held + 7 * 20
        assert not (agents.theta_actor == before).all() and agents.finite()
        await system.close()
        return system

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "flag", "value", "words"),
    [
        (
            ParameterError("models", "/nowhere", "clip_g.safetensors missing"),
            "models",
            "/nowhere",
            "clip_g.safetensors",
        ),
        (RuntimeError("no memory\nat all"), None, None, "could not start: RuntimeError: no memory"),
    ],
)
def test_what_keeps_a_server_from_starting_is_said_as_of_its_parameter(error, flag, value, words, local_ray):
    def unloadable(server: int):  # it lies in here, so that Ray sends it whole
        raise error

    async def story() -> None:
        cluster = Cluster(make(DedgeConfig, num_servers=1), unloadable, None)
        try:
            await cluster.start()
        finally:
            await cluster.close()

    with pytest.raises(ParameterError, match=words) as refused:
        asyncio.run(story())
    assert (refused.value.flag, refused.value.value) == (flag, value) and "\n" not in str(refused.value)
    assert "no answer within" in str(refusal(TimeoutError()))
    assert "could not start: The actor died" in str(refusal(ActorDiedError()))


# --- from the command line ---


@pytest.mark.alone
def test_a_live_run_decides_as_the_simulator_does(shared_ray, no_plots, tmp_path):
    """Same arrivals and profile, by the scheduler's state alone: every decision is the same, and delays are alike."""
    flags = ["--num_tasks", "60,40", "--num_servers", 3, "--policy_episodes", 4, "--load", 1.3, "--backlog", "profile"]
    flags += ["--step_seconds", 0.004, "--base_seconds", 0.01, "--policies", tmp_path / "policies", "--round_tasks", 2]
    live = ["--compute", "simulated", "--rebalance", False, "--out", tmp_path / "live"]
    run_here(main_dedgeai, *flags, *live)
    run_here(main_dedgeai, *flags, "--simulate", "--out", tmp_path / "simulated")
    ours = read_csv(tmp_path / "live/tasks.csv")
    theirs = [row for count in (60, 40) for row in read_csv(tmp_path / f"simulated/{count}/tasks.csv")]
    assert [row["decided_server"] for row in ours] == [row["server"] for row in theirs]
    assert len({row["decided_server"] for row in ours}) == 3 and int(ours[-1]["round"]) > 5
    measured, expected = (np.array([float(row["delay_s"]) for row in rows]) for rows in (ours, theirs))
    assert measured.mean() == pytest.approx(expected.mean(), rel=0.15)


def test_requests_are_replayed_with_their_models_and_servers_load_them(shared_ray, no_plots, tmp_path, capsys):
    rows = [f"{k / 7},user {k % 5},{5 + k % 9},{'qqqqppr'[k % 7]}" for k in range(40)]
    (tmp_path / "requests.csv").write_text("\n".join(["time_s,user,work,model", *rows]) + "\n")
    models = [{"name": "a", "load_time": 0.05}, {"name": "b", "size": 50}, {"name": "c", "size": 50}]
    (tmp_path / "catalogue.json").write_text(json.dumps(models))
    flags = ["--catalogue", tmp_path / "catalogue.json", "--arrivals", tmp_path / "requests.csv", "--load", 0.8]
    flags += ["--compute", "simulated", "--num_servers", 2, "--num_tasks", 40, "--scheduler", "water_filling"]
    run_here(main_dedgeai, *flags, "--out", tmp_path / "run")
    told = capsys.readouterr().out
    assert "a 1 (60 %), b 1 (27.5 %), c 1 (12.5 %)" in told and "at most 1 of 3 models: a, b (50 MB), c (50 MB)" in told
    tasks = read_csv(tmp_path / "run/tasks.csv")
    assert [row["model"] for row in tasks] == ["aaaabbc"[k % 7] for k in range(40)]
    assert [int(row["steps"]) for row in tasks] == [5 + k % 9 for k in range(40)]
    assert len({(k % 5, row["base_station"]) for k, row in enumerate(tasks)}) == 5
    facts = {row["quantity"]: float(row["value"]) for row in read_csv(tmp_path / "run/summary.csv")}
    assert facts["failed"] == 0 and 4 <= facts["loads of models"] <= 40
    assert 0.05 <= facts["seconds of a load, mean"] < 0.08 and abs(facts["error_of_mean_percent"]) < 15


def test_the_pocket_model_serves_from_the_command_line(shared_ray, no_plots, tmp_path, capsys):
    flags = ["--num_tasks", 6, "--num_servers", 2, "--scheduler", "lad_ts", "--policy_episodes", 1]
    flags += ["--profile_repeats", 1, "--steps", "2-4", "--batch_size", 2, "--policies", tmp_path / "policies"]
    flags += ["--profile", tmp_path / "profile.json", "--out", tmp_path / "run"]
    run_here(main_dedgeai, *flags)
    out = capsys.readouterr().out
    assert "| DEdgeAI, published | reSD3-medium | 18.3 |" in out and "6 images and tables in" in out
    images = sorted((tmp_path / "run/images").iterdir())
    assert [path.name for path in images] == [f"{k:06d}.png" for k in range(6)]
    for path in images:
        with Image.open(path) as image:
            settings = json.loads(image.text["dedgeai"])
            assert image.size == (64, 64) and np.asarray(image).std() > 5 and settings["settings"]["steps"] <= 4
    profile = Profile.read(tmp_path / "profile.json", 2)
    assert (profile.seconds_per_step < 1).all() and profile.result_mbit > 0
    rows = read_csv(tmp_path / "run/table.csv")
    assert float(rows[-1]["N = 1"]) > 0 and float(rows[-1]["N = 6"]) > 0 and rows[-1]["N = 500"] == "-"


def test_a_killed_and_then_interrupted_driver_resumes_what_is_left(shared_ray, tmp_path, monkeypatch, capsys):
    """SIGKILL, Ctrl-C, then to the end: every task is done once, and no process stays behind."""
    run, count = tmp_path / "run", 100
    flags = ["--num_tasks", count, "--num_servers", 2, "--scheduler", "water_filling", "--compute", "simulated"]
    flags += ["--step_seconds", 0.004, "--base_seconds", 0.0, "--out", run]

    def raylets() -> list[Path]:
        ours = [p.parent for p in Path("/proc").glob("[0-9]*/environ") if bytes(tmp_path) in contents(p)]
        return [p for p in ours if b"raylet" in contents(p / "cmdline")]

    with monkeypatch.context() as patch:
        patch.setenv("STARTED_BY", str(tmp_path))  # tells this driver's processes from those of others
        process = start_script(SCRIPT, *flags, folder=tmp_path)
    for done in done_tasks(run):
        assert process.poll() is None
        if done >= 20:
            break
    assert raylets() or not Path("/proc").exists()
    process.kill()
    process.communicate()

    def interrupt() -> None:
        if any(done >= 50 for done in done_tasks(run)):
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(SystemExit) as ended:
        run_here(main_dedgeai, "--resume", run)
    watcher.join()
    out = capsys.readouterr().out
    assert ended.value.code == 130 and f"accepted tasks left; go on with --resume {run}" in out
    assert f"interrupted with {count}" not in out and 50 <= next(done_tasks(run)) < count
    for _ in range(2):  # the second time nothing is left
        run_here(main_dedgeai, "--resume", run)
    assert f"nothing is left of the run in {run}" in capsys.readouterr().out
    assert {record.state for record in stored(run, count)} == {DONE}
    assert len(list((run / "images").iterdir())) == count
    assert [row["state"] for row in read_csv(run / "tasks.csv")] == ["done"] * count
    deadline = time.monotonic() + 20
    while raylets() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not raylets()


def done_tasks(run: Path) -> Iterator[int]:
    """How many images a run has, again and again for at most a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield len(list(run.glob("images/*.png")))
        time.sleep(0.02)
    raise AssertionError(f"{run} does not get on")


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

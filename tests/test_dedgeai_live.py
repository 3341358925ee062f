"""The edge system on Ray: speed-up, faults, resuming, and the same decisions as in the simulator.

Servers wait instead of computing, but for the run of the pocket model. Starting Ray takes some seconds, so the tests in
this process share one.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from helpers import start_script
from PIL import Image

from common.run_folder import read_csv
from dedgeai.arrivals import draw_arrivals
from dedgeai.cluster import ClusterOptions, connect
from dedgeai.dispatcher import Dispatcher
from dedgeai.edge_server import SimulatedOptions
from dedgeai.journal import read_journal
from dedgeai.policies import PolicyOptions, make_policy
from dedgeai.report import predict
from dedgeai.server_profile import Profile, equal_servers
from dedgeai.system import DONE, FAILED, EdgeSystem, SystemOptions
from dedgeai.tasks import Task

SCRIPT = "dedgeai/main_dedgeai.py"


@pytest.fixture(scope="module")
def local_ray():
    connect(cluster_options(6))
    yield
    ray.shutdown()


def cluster_options(servers: int, **changes) -> ClusterOptions:
    given = {"address": None, "gpus": 0.0, "batch_size": 1, "job_timeout": 600.0, "rebalance": True} | changes
    return ClusterOptions(servers=servers, **given)


async def system_of(profile: Profile, folder: Path, scheduler: str = "water_filling", **changes) -> EdgeSystem:
    """A started system whose servers wait as the profile says."""
    waiting = SimulatedOptions(
        *(tuple(x.tolist()) for x in (profile.seconds_per_step, profile.seconds_base, profile.spread)), 0
    )
    learn = changes.pop("learn", False)
    attempts = changes.pop("attempts", 3)
    system = EdgeSystem(
        cluster_options(profile.servers, **changes), waiting, SystemOptions(False, attempts, learn), folder
    )
    await system.start()
    options = PolicyOptions(scheduler, None, 3, 10, (10, 19), 0.001, 450.0, 0)
    await system.schedule_with(Dispatcher(make_policy(options, profile, folder / "policies"), learn), profile)
    return system


def tasks_of(count: int, servers: int, seed: int = 0) -> list[Task]:
    drawn = draw_arrivals(count, servers, (10, 19), np.array([1e-4]), None, seed)
    return [Task(k, "a", int(drawn.steps[k]), k, 1, 1, int(drawn.base_station[k])) for k in range(count)]


def check_journal(folder: Path, tasks: list[Task], failed: int = 0) -> None:
    """Every task is in the journal as accepted, and ends once."""
    events = [(entry["event"], entry["number"]) for entry in read_journal(folder / "journal.jsonl", "resume")]
    numbers = [task.number for task in tasks]
    assert sorted(n for event, n in events if event == "submitted") == numbers
    assert sorted(n for event, n in events if event in (DONE, FAILED)) == numbers
    assert sum(event == FAILED for event, _ in events) == failed


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


@pytest.mark.alone
def test_five_servers_are_nearly_five_times_as_fast_as_one_and_the_simulator_knows(local_ray, tmp_path):
    profile = equal_servers(0.006, 0.012, 0.0, np.ones(5))
    tasks = tasks_of(500, 5)  # 10 s, so that what a task costs besides weighs as in earnest

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, "lad_ts")
        await system.submit(tasks)
        await system.wait()
        await system.close()
        return system

    system = asyncio.run(story())
    records = [system.records[k] for k in range(500)]
    alone = sum(profile.seconds(0, task.steps) for task in tasks)  # one server could not be faster
    assert alone / max(record.finished for record in records) >= 4.85
    took = np.repeat([s for s, _ in system.dispatch_seconds], [n for _, n in system.dispatch_seconds])
    assert np.percentile(took, 99) < 0.005
    check_journal(tmp_path, tasks)
    predicted, measured = predict(records, profile), np.array([record.delay for record in records])
    assert predicted.mean() == pytest.approx(measured.mean(), rel=0.05)
    assert np.abs(predicted - measured).mean() < 0.05 * measured.mean()


def test_a_server_killed_three_times_loses_no_task(local_ray, tmp_path):
    profile = equal_servers(0.004, 0.004, 0.0, np.ones(5))
    tasks = tasks_of(200, 5)

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path)
        victim = system.cluster.servers[2]
        await system.submit(tasks)
        for kill in range(3):
            done = 15 + 20 * kill
            while sum(record.final for record in system.records.values()) < done or not victim.up:
                await asyncio.sleep(0.01)
            os.kill(victim.process, signal.SIGKILL)
            while victim.up:
                await asyncio.sleep(0.01)
        await system.wait()
        while not victim.up:  # it rejoins
            await asyncio.sleep(0.05)
        again = [Task(200 + k, "a", 10, k, 1, 1, 2) for k in range(60)]
        await system.submit(again)
        await system.wait()
        assert any(system.records[task.number].server == 2 for task in again)
        await system.close()
        return system

    system = asyncio.run(story())
    assert system.cluster.servers[2].starts == 4
    assert all(record.state == DONE for record in system.records.values())
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"{k:06d}.png" for k in range(260)}
    check_journal(tmp_path, [*tasks, *(Task(200 + k, "a", 10, k, 1, 1, 2) for k in range(60))])
    assert sum(record.attempts for record in system.records.values()) <= 3  # only what ran was in danger


def test_a_task_that_kills_every_server_fails_and_a_hung_server_is_started_again(local_ray, tmp_path):
    """The task takes longer than the timeout allows, so each server that has it is killed."""
    profile = equal_servers(0.001, 0.0, 0.0, np.ones(2))

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, attempts=2, job_timeout=1.0)
        endless = Task(0, "a", 1_000_000, 0, 1, 1, 0)
        await system.submit([endless, *(Task(k, "a", 10, k, 1, 1, k % 2) for k in range(1, 30))])
        await system.wait()
        while not all(server.up for server in system.cluster.servers):
            await asyncio.sleep(0.05)
        await system.close()
        return system

    system = asyncio.run(story())
    assert system.records[0].state == FAILED and "2 edge servers died while working on it" in system.records[0].error
    assert all(system.records[k].state == DONE for k in range(1, 30))
    assert sum(server.starts - 1 for server in system.cluster.servers) >= 1


@pytest.mark.alone
def test_a_server_that_becomes_slow_is_seen_in_its_rate_and_gets_less(local_ray, tmp_path):
    fast = equal_servers(0.002, 0.0, 0.0, np.ones(3))

    async def story() -> EdgeSystem:
        system = await system_of(fast, tmp_path, "opt_ts", rebalance=False)
        slow = equal_servers(0.002, 0.0, 0.0, np.array([1.0, 0.2, 1.0]))
        await system.close()
        system = await system_of(slow, tmp_path, "opt_ts", rebalance=False)
        await system.cluster.calibrate(fast.seconds_per_step, 0.0)  # as if it had been measured when all were fast
        for burst in range(15):
            await system.submit([Task(10 * burst + k, "a", 10, k, 1, 1, k % 3) for k in range(10)])
            await asyncio.sleep(0.1)
        await system.wait()
        await system.close()
        return system

    system = asyncio.run(story())
    rates = [server.seconds_per_step for server in system.cluster.servers]
    assert rates[1] > 3 * max(rates[0], rates[2])
    served = np.bincount([record.server for record in system.records.values()], minlength=3)
    assert served[1] < 0.6 * min(served[0], served[2])


def test_agents_go_on_learning_from_measured_delays(local_ray, tmp_path):
    profile = equal_servers(0.0005, 0.0, 0.0, np.ones(2))

    async def story() -> EdgeSystem:
        system = await system_of(profile, tmp_path, "lad_ts", learn=True)
        learner = system.dispatcher.policy.scheduler
        before = learner.theta_actor.clone()
        held = int(learner.replay.written.sum())
        for burst in range(40):
            await system.submit([Task(20 * burst + k, "a", 10 + k % 10, k, 1, 1, k % 2) for k in range(20)])
            await system.wait()
        assert system.dispatcher.learned == 39  # all but the last, whose next state is not known
        assert int(learner.replay.written.sum()) == held + 39 * 20
        assert not (learner.theta_actor == before).all() and learner.finite()
        await system.close()
        return system

    asyncio.run(story())


# --- as scripts ---


def finished(process, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-2000:]
    return out, err


@pytest.mark.alone
def test_a_live_run_decides_as_the_simulator_does(tmp_path):
    """Same arrivals and profile, by the policy's state alone: every decision is the same, and delays are alike."""
    flags = ["--num_tasks", "90,60", "--num_servers", 3, "--policy_episodes", 4, "--load", 1.3, "--backlog", "profile"]
    flags += ["--step_seconds", 0.004, "--base_seconds", 0.01, "--policies", tmp_path / "policies", "--round_tasks", 4]
    live = start_script(
        SCRIPT, *flags, "--compute", "simulated", "--rebalance", False, "--out", tmp_path / "live", folder=tmp_path
    )
    finished(live)
    simulated = start_script(SCRIPT, *flags, "--simulate", "--out", tmp_path / "simulated", folder=tmp_path)
    finished(simulated)
    ours = read_csv(tmp_path / "live/tasks.csv")
    theirs = [row for count in (90, 60) for row in read_csv(tmp_path / f"simulated/{count}/tasks.csv")]
    assert [row["decided_server"] for row in ours] == [row["server"] for row in theirs]
    assert len({row["decided_server"] for row in ours}) == 3 and int(ours[-1]["round"]) > 5
    measured, expected = (np.array([float(row["delay_s"]) for row in rows]) for rows in (ours, theirs))
    assert measured.mean() == pytest.approx(expected.mean(), rel=0.15)


def test_the_pocket_model_serves_from_the_command_line(tmp_path):
    flags = ["--num_tasks", 6, "--num_servers", 2, "--scheduler", "lad_ts", "--policy_episodes", 3]
    flags += ["--profile_repeats", 1, "--steps", "2-4", "--batch_size", 2, "--policies", tmp_path / "policies"]
    flags += ["--profile", tmp_path / "profile.json", "--out", tmp_path / "run"]
    out, _ = finished(start_script(SCRIPT, *flags, folder=tmp_path))
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


def test_a_killed_and_then_interrupted_driver_resumes_what_is_left(tmp_path, monkeypatch):
    """SIGKILL, Ctrl-C, then to the end: every task is done once, and no process stays behind."""
    run = tmp_path / "run"
    flags = ["--num_tasks", 120, "--num_servers", 2, "--scheduler", "water_filling", "--compute", "simulated"]
    flags += ["--step_seconds", 0.005, "--base_seconds", 0.0, "--out", run]
    monkeypatch.setenv("STARTED_BY", str(tmp_path))  # tells this test's processes from those of others

    def raylets() -> list[Path]:
        ours = [p.parent for p in Path("/proc").glob("[0-9]*/environ") if bytes(tmp_path) in contents(p)]
        return [p for p in ours if b"raylet" in contents(p / "cmdline")]

    def wait_for(process, count: int) -> None:
        journal = run / "journal.jsonl"
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_text().count('"event": "done"') < count:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    process = start_script(SCRIPT, *flags, folder=tmp_path)
    wait_for(process, 20)
    assert raylets() or not Path("/proc").exists()
    process.kill()
    process.communicate()
    process = start_script(SCRIPT, "--resume", run, folder=tmp_path)
    wait_for(process, 60)
    process.send_signal(signal.SIGINT)
    out, _ = finished(process, 130)
    assert f"accepted tasks left; go on with --resume {run}" in out
    assert "interrupted with 120" not in out
    finished(start_script(SCRIPT, "--resume", run, folder=tmp_path))
    done = [e["number"] for e in read_journal(run / "journal.jsonl", "resume") if e["event"] == "done"]
    assert sorted(done) == list(range(120)) and len(list((run / "images").iterdir())) == 120
    states = [row["state"] for row in read_csv(run / "tasks.csv")]
    assert states == ["done"] * 120
    deadline = time.monotonic() + 20
    while raylets() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not raylets()


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

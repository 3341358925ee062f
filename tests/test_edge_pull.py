"""The central queue of the edge system: tasks that are held back until a server has no work, live and simulated."""

import asyncio
import itertools
import json

import numpy as np
import pytest
from edge_helpers_api import LocalService
from helpers import make, refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tables import read_csv
from dedgeai import deciding, main_dedgeai
from dedgeai.cluster import Cluster
from dedgeai.configuration import DedgeParameters
from dedgeai.deciding import Rounds
from dedgeai.records import Record
from dedgeai.run_options import run_options
from dedgeai.tasks import Made, Task
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import make_scheduler

NAMES, LOAD = "abc", (0.5, 0.1, 0.9)
ORDERS = {"pull": "shortest", "pull_resident": "resident_first", "pull_fcfs": "fcfs"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "catalogue.json"
    path.write_text(json.dumps([{"name": n, "load_time": s} for n, s in zip(NAMES, LOAD, strict=True)]))
    return str(path)


class Hands(Cluster):
    """Servers whose batches end by hand, and what becomes of the tasks."""

    def __init__(self, config) -> None:
        super().__init__(config, None, self)
        self.log, self.done = [], []
        self.rounds = Rounds(config, self, lambda: 0.0, lambda records: None)

    def begin(self, server, call):
        self.log.append((call.tasks[0].number, server.number))

    def started(self, server, tasks):
        assert len(tasks) == 1 and not self.servers[server].waiting

    def made(self, server, task, *more):
        self.done.append(task.number)

    def lost(self, server, running, queued):
        assert not queued
        self.rounds.take(None, [self.records[task.number] for task in running])

    def end(self, server):
        (task,) = server.calls[0].tasks
        held = [*(name for name in server.resident if name != task.model), task.model][-self.config.resident_models :]
        self.ended(server, server.calls[0], Made([b"x"], 0.1, resident=held))


class Plain:
    """The same by comparing all pairs after each event."""

    def __init__(self, rates, order, most) -> None:
        self.rates, self.order, self.most = rates, order, most
        self.waiting, self.running, self.log = [], {}, []
        self.up, self.held = [True] * len(rates), [[] for _ in rates]

    def hand_out(self):
        while self.waiting and (idle := [b for b, up in enumerate(self.up) if up and b not in self.running]):
            costs = {}
            for b, task in itertools.product(idle, self.waiting[:1] if self.order == "fcfs" else self.waiting):
                load = LOAD[NAMES.index(task.model)] * (task.model not in self.held[b])
                last = self.order == "resident_first" and task.model not in self.held[b]
                costs[b, task.number] = last, task.steps * self.rates[b] + load
            b, number = min(costs, key=lambda pair: (costs[pair], pair[1]))
            task = next(task for task in self.waiting if task.number == number)
            self.waiting.remove(task)
            self.running[b] = task
            self.log.append((number, b))

    def end(self, b, lost=False):
        task = self.running.pop(b, None)
        if lost:
            self.up[b], self.held[b] = False, []
            self.waiting = sorted([*self.waiting, *([task] if task else [])], key=lambda task: task.number)
        else:
            self.held[b] = [*(n for n in self.held[b] if n != task.model), task.model][-self.most :]
        self.hand_out()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_a_server_without_work_takes_what_costs_it_least(catalogue, data):
    """Whatever comes, ends, is cancelled, dies or comes back."""
    name, most = data.draw(st.sampled_from([*ORDERS])), data.draw(st.integers(1, 2))
    flags = {"scheduler": f"trace:{name}", "catalogue": catalogue, "num_servers": 3, "compute": "simulated"}
    flags |= {"step_seconds": 0.017, "base_seconds": 0.0, "speeds": "1,0.6,1.7"}
    config = make(DedgeParameters, resident_models=most, max_steps=1000, rebalance=data.draw(st.booleans()), **flags)
    options = run_options(config)

    async def story() -> None:
        cluster, plain, numbers = (
            Hands(config),
            Plain(options.waiting.seconds_per_step, ORDERS[name], most),
            itertools.count(),
        )
        cluster.calibrate(options.waiting.seconds_per_step, 0.0)
        cluster.records = {}
        for server in cluster.servers:
            server.up = True
        cluster.rounds.begin(Dispatcher(make_scheduler(options.scheduler, options.waiting)), options.waiting)
        deciding_all = asyncio.create_task(cluster.rounds.decide_all())
        for _ in range(data.draw(st.integers(1, 30))):
            event, b = (
                data.draw(st.sampled_from(["come"] * 3 + ["end"] * 3 + ["cancel", "die"])),
                data.draw(st.integers(0, 2)),
            )
            server = cluster.servers[b]
            if event == "come":
                steps = data.draw(st.lists(st.integers(1, 999), min_size=1, max_size=3))
                new = [
                    Task(next(numbers), "x", n, 0, 64, 64, 0, model=data.draw(st.sampled_from(NAMES))) for n in steps
                ]
                records = [Record(task, 0.0, submitted=task.number) for task in new]
                cluster.records |= {record.task.number: record for record in records}
                cluster.rounds.take(None, records)
                for task in new:
                    plain.waiting.append(task)
                    plain.hand_out()
            elif event == "end" and server.calls:
                cluster.end(server)
                plain.end(b)
            elif event == "cancel" and plain.waiting:
                gone = plain.waiting.pop(data.draw(st.integers(0, len(plain.waiting) - 1)))
                cluster.records[gone.number].finished = 1.0
            elif event == "die" and server.up:
                cluster.lose(server)
                plain.end(b, lost=True)
            elif event == "die":
                server.up = plain.up[b] = True
                cluster.rounds.wake.set()
                cluster.settle()
                plain.hand_out()
            for _ in range(6):
                await asyncio.sleep(0)
            assert sorted(cluster.log) == sorted(plain.log)
            cluster.log, plain.log = [], []
        deciding_all.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deciding, "REST", 0)
        asyncio.run(story())


def test_a_service_makes_the_shortest_first_and_ends_what_is_cancelled_at_once(tmp_path):
    with LocalService(tmp_path, scheduler="trace:pull", num_servers=1, step_seconds=0.01) as service:
        first = service.order(steps=30)
        later = {steps: service.order(steps=steps)["task"] for steps in (20, 5, 29, 10, 15)}
        states = {steps: service.client.get(f"/api/tasks/{number}").json()["state"] for steps, number in later.items()}
        assert set(states.values()) == {"waiting"}
        assert service.client.delete(f"/api/tasks/{later.pop(29)}").json()["state"] == "cancelled"
        service.settle()
        records = [service.system.find(number) for number in (first["task"], *later.values())]
        assert {record.state for record in records} == {"done"} and {record.server for record in records} == {0}
        order = sorted(later, key=lambda steps: service.system.find(later[steps]).finished)
        assert order == [5, 10, 15, 20] and not service.system.rounds.held


def test_a_service_has_the_tasks_of_a_server_that_dies_made_by_another(tmp_path):
    with LocalService(tmp_path, scheduler="trace:pull_fcfs", num_servers=2, step_seconds=0.01) as service:
        numbers = [service.order(steps=12)["task"] for _ in range(8)]
        service.loop.call_soon_threadsafe(service.system.cluster.servers[0].handle.die)
        service.settle()
        records = [service.system.find(number) for number in numbers]
        assert {record.state for record in records} == {"done"} and sum(record.attempts for record in records) <= 1


def test_nothing_idles_while_tasks_wait_in_a_simulated_run(catalogue, no_plots, tmp_path):
    """With service times that vary: the tables of the run alone tell."""
    flags = ["--simulate", "--scheduler", "trace:pull", "--catalogue", catalogue, "--num_tasks", 150, "--spread", 0.3]
    run_here(main_dedgeai, *flags, "--num_servers", 3, "--load", 1.2, "--out", tmp_path / "run")
    rows = read_csv(tmp_path / "run/tasks.csv")
    come, start, finish = (np.array([float(row[n]) for row in rows]) for n in ("submitted_s", "start_s", "finished_s"))
    server = np.array([int(row["server"]) for row in rows])
    assert (start >= come - 1e-6).all() and len(set(server)) == 3 and (start > come + 1e-6).sum() > 20
    for k in np.flatnonzero(start > come + 1e-6):  # while it waits, every server works
        for b in range(3):
            mine = np.flatnonzero((server == b) & (finish > come[k]) & (start < start[k] - 1e-6))
            edges = sorted(zip(start[mine], finish[mine], strict=True))
            assert edges and edges[0][0] <= come[k] + 2e-6 and edges[-1][1] >= start[k] - 2e-6
            assert all(begin <= end + 2e-6 for (_, end), (begin, _) in itertools.pairwise(edges))


def test_a_queue_of_the_profile_is_refused(tmp_path, capsys):
    flags = ["--simulate", "--scheduler", "trace:pull", "--backlog", "profile", "--out", tmp_path / "run"]
    assert "--backlog=profile: must be reported with --scheduler=trace:pull" in refusal(capsys, main_dedgeai, *flags)
    assert not (tmp_path / "run").exists()

"""The policies of trace_ts on the edge system: beside the simulator of trace_ts, and live beside the simulation."""

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make, refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tables import read_csv
from dedgeai import main_dedgeai
from dedgeai.batch_runs import tasks_of
from dedgeai.cluster import Cluster
from dedgeai.configuration import DedgeParameters
from dedgeai.deciding import Rounds
from dedgeai.queues import Call
from dedgeai.records import Record
from dedgeai.run_options import choose_model, run_options
from dedgeai.tasks import Task
from edge_sim.catalogue import use
from edge_sim.dispatcher import Dispatcher
from edge_sim.replay import Replay, read_replay
from edge_sim.schedulers import SchedulerOptions, make_scheduler, method_of
from edge_sim.server_profile import Profile
from edge_sim.servers import Asked, Known, Models
from edge_sim.simulation import simulate
from trace_ts import simulation as trace_simulation
from trace_ts.central import CENTRAL, Pull, simulate_pull
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.policy_file import load_policy, read_rule, save_policy, write_rule
from trace_ts.rules import RULES, START
from trace_ts.scenario import Scenario, draw_rates
from trace_ts.sita import partition, size_intervals
from trace_ts.workload import requests_of, write_csv

SERVERS, MODELS = 4, 5


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    """A file of 250 requests, several of one time, of models that are the less popular the higher their number."""
    generator = np.random.default_rng(4)
    time = np.cumsum(generator.exponential(1.0, 250) * (generator.random(250) < 0.7))
    user, work = generator.integers(0, 90, 250), generator.integers(1, 200, 250).astype(float)
    model = generator.choice(MODELS, 250, p=[0.4, 0.25, 0.2, 0.1, 0.05])
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    write_csv(requests_of(time, user.tolist(), work, model.tolist()), path)
    return path


def replay_of(trace: Path) -> Replay:
    """The file's requests, all of which train, so that one factor scales their times."""
    replay = read_replay(str(trace), 250, 200, MODELS)
    return dataclasses.replace(replay, requests=dataclasses.replace(replay.requests, num_training=250))


def both(name, policy, trace, load_time, most, folder):
    """What the edge system's simulation and that of trace_ts make of the same requests on the same servers."""
    replay = replay_of(trace)
    requests = replay.requests
    rate = draw_rates(SERVERS, 3)
    profile = Profile(1 / rate, np.zeros(SERVERS), np.zeros(SERVERS), 0.0, {})
    models = Models(np.full(MODELS, load_time), most, held=())
    options = SchedulerOptions(
        *(name, method_of(name), None, folder, 1, 1, (1, 200), 0.0, 450.0, 0), models, requests.work.mean(), 0.7
    )
    stream = replay.stream(250, SERVERS, np.zeros(250), 0.7, profile)
    dispatcher = Dispatcher(make_scheduler(options, profile))
    found = simulate(dispatcher, profile, stream, 450.0, 0, models=models, progress=False)
    scenario = Scenario(
        load=0.7,
        time_scale="compress",
        num_servers=SERVERS,
        num_base_stations=SERVERS,
        load_time=load_time,
        resident_models=most,
    )
    if isinstance(policy, Pull):
        return found, simulate_pull(requests, scenario, 0, order=policy.order, rate=rate)
    expected = trace_simulation.simulate(policy, requests, scenario, 0, rate=rate)
    return found, expected


def check(found, expected):
    assert found.server.tolist() == expected.server.tolist()
    assert found.loads.tolist() == expected.loads.tolist()
    for name in ("start", "finish", "delay"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-9, err_msg=name)


# --- beside the simulator of trace_ts ---


@pytest.mark.parametrize("name", [*RULES, *CENTRAL])
@pytest.mark.parametrize(("load_time", "most"), [(0.0, 1), (12.0, 1), (12.0, 3)])
def test_a_rule_decides_and_servers_work_as_in_the_simulator_of_trace_ts(name, load_time, most, trace, tmp_path):
    check(*both(f"trace:{name}", (RULES | CENTRAL)[name], trace, load_time, most, tmp_path))


@pytest.mark.parametrize("design", [Design(), Design(steps=3, latent="user"), Design(steps=2, latent="base_station")])
def test_a_trained_policy_comes_from_its_file(design, trace, tmp_path):
    parameters = design.begin(np.array(START), 1)
    parameters += np.random.default_rng(0).normal(0, 0.1, parameters.size)
    save_policy(tmp_path / "score.safetensors", ScorePolicy(design, parameters), {})
    policy = load_policy(tmp_path / "score.safetensors")
    check(*both(f"trace:{tmp_path}/score.safetensors", policy, trace, 12.0, 1, tmp_path))


def test_a_fitted_rule_comes_from_its_file(trace, tmp_path):
    write_rule(tmp_path / "mine.json", dataclasses.replace(RULES["priced"], constants=(1, 1.2, 2, 0.5, 3, 0.1, 0.2)))
    check(*both(f"trace:{tmp_path}/mine.json", read_rule(tmp_path / "mine.json"), trace, 12.0, 1, tmp_path))


CLASSES = [
    size_intervals([60.0], [0.4]),
    size_intervals([30.0, 90.0], [0.2, 0.7], "mixed"),
    dataclasses.replace(size_intervals([60.0], [0.4]), constants=(1, 1.2, 2, 0.5, 3, 0.1, 0)),
    *(partition(classes) for classes in (1, 2, 3, 9)),
]


def kept(rule, requests, path):
    """The rule's file, with the work of these requests' models where it asks for it."""
    write_rule(path, dataclasses.replace(rule, more=rule.more.on(requests)) if rule.name == "partition" else rule)
    return path


@pytest.mark.parametrize(("load_time", "most"), [(0.0, 1), (12.0, 1), (12.0, 3)])
@pytest.mark.parametrize("rule", CLASSES)
def test_classes_of_tasks_come_from_their_file(rule, load_time, most, trace, tmp_path):
    """As the rule decides that was not kept: a model of the catalogue is another number than in the trace."""
    replay = replay_of(trace)
    assert replay.model.tolist() != [*range(MODELS)]
    file = kept(rule, replay.requests, tmp_path / "classes.json")
    check(*both(f"trace:{file}", rule, trace, load_time, most, tmp_path))


@pytest.mark.parametrize("catalogue", [1, 2, 3, 7])
def test_a_catalogue_of_another_size_is_partitioned_by_what_its_models_stand_for(catalogue, trace, tmp_path):
    replay = read_replay(str(trace), 250, 200, catalogue)
    file, rate = kept(partition(3), replay.requests, tmp_path / "classes.json"), draw_rates(SERVERS, 3)
    profile = Profile(1 / rate, np.zeros(SERVERS), np.zeros(SERVERS), 0.0, {})
    models = Models(np.ones(catalogue), 1, held=())
    name = f"trace:{file}"
    options = SchedulerOptions(name, method_of(name), None, tmp_path, 1, 1, (1, 9), 0.0, 1.0, 0, models)
    policy = make_scheduler(options, profile).scheduler.policy
    seen, there = replay.requests.training(), min(catalogue, MODELS)
    stand_in = dataclasses.replace(seen, model=replay.model[seen.model], num_models=there, num_training=len(seen))
    expected, _ = partition(3).arrays(Scenario(num_servers=SERVERS), rate, stand_in)
    assert policy.class_of_model[:there].tolist() == expected.class_of_model.tolist()
    assert policy.allowed[: len(expected.allowed)].tolist() == expected.allowed.tolist()


# --- what the policies are told ---


@pytest.fixture
def catalogue(tmp_path) -> str:
    """A file of five models that load for 0.5 to 0.9 s."""
    entries = [{"name": name, "load_time": 0.5 + 0.1 * k} for k, name in enumerate("abcde")]
    (tmp_path / "catalogue.json").write_text(json.dumps(entries))
    return str(tmp_path / "catalogue.json")


class Sent:
    """In the place of a live cluster: notes where tasks go."""

    def __init__(self) -> None:
        self.servers = [SimpleNamespace(up=True, number=b) for b in range(3)]
        self.orders: dict[int, int] = {}

    def send(self, orders: dict[int, list[Task]]) -> None:
        self.orders |= {task.number: server for server, tasks in orders.items() for task in tasks}


@pytest.mark.parametrize("scheduler", ["trace:priced", "trace:two_choices", "opt_ts", "trace:SITA", "trace:PARTS"])
def test_by_the_profile_alone_a_live_run_decides_as_a_simulated_one(scheduler, trace, catalogue, tmp_path):
    replay = read_replay(str(trace), 120, 200, MODELS)
    for name, rule in (("SITA", CLASSES[1]), ("PARTS", CLASSES[4])):
        scheduler = scheduler.replace(name, str(kept(rule, replay.requests, tmp_path / f"{name}.json")))
    flags = {"scheduler": scheduler, "arrivals": str(trace), "catalogue": catalogue, "load": 0.9, "num_servers": 3}
    flags |= {"num_tasks": "120", "speeds": "1,0.6,1.7", "backlog": "profile", "compute": "simulated"}
    config = make(DedgeParameters, resident_models=2, max_steps=200, **flags)
    options = run_options(config)
    profile, ((first, stream),) = options.waiting, options.demand.runs(options.waiting)
    dispatcher = Dispatcher(make_scheduler(options.scheduler, profile))
    found = simulate(dispatcher, profile, stream, 450.0, 0, True, options.scheduler.models, progress=False)
    cluster = Sent()
    rounds = Rounds(config, cluster, lambda: 0.0, lambda records: None)
    rounds.begin(Dispatcher(make_scheduler(options.scheduler, profile)), profile)
    records = [Record(task, 0.0) for task in tasks_of(options.demand, choose_model(options), first, stream)]
    for slot, part in stream.slots(rounds.dispatcher.ready.slot_seconds):
        rounds.send_round(slot, [[records[k]] for k in part])
    assert [cluster.orders[k] for k in range(120)] == found.server.tolist()
    assert len(set(found.server.tolist())) == 3 and found.loads.any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(*(st.lists(st.sampled_from("abcde"), max_size=8) for _ in range(3)), st.integers(1, 4))
def test_what_a_server_will_hold_is_what_it_holds_when_all_is_done(resident, running, waiting, most):
    held = [*dict.fromkeys(resident)][:most]
    tasks = [Task(k, "x", 1, 0, 64, 64, 0, model=name) for k, name in enumerate(running + waiting)]
    calls, rest = tasks[: len(running)], tasks[len(running) :]
    server = SimpleNamespace(
        resident=held,
        calls=[Call([task], 1.0) for task in calls],
        waiting=OrderedDict((task.number, task) for task in rest),
    )
    found = Cluster.planned(SimpleNamespace(config=SimpleNamespace(resident_models=most)), server)
    plain = [*held]
    for name in running + waiting:
        use(plain, name, most)
    assert found == plain[::-1]


def choose(scheduler, seconds, held, models, loads=(1.0, 1.0, 1.0), up=(True, True), work=10.0):
    """The servers of tasks that come at once, of these models, at servers that are so busy and hold a model each."""
    count = len(models)
    known = Known(np.array(seconds), np.zeros(2), np.array(held)[:, None], np.array(up), np.array(loads))
    asked = Asked(np.full(count, work), np.array(models), np.zeros(count, dtype=int), np.zeros(count, dtype=bool))
    return scheduler.choose(np.zeros(count, dtype=int), asked, known).tolist()


def test_a_round_counts_what_it_has_sent_and_loads_and_servers_that_are_down(tmp_path):
    profile = Profile(np.array([0.1, 0.1]), np.zeros(2), np.zeros(2), 0.0, {})
    options = SchedulerOptions(
        "trace:opt_ts_loading", method_of("trace:opt_ts_loading"), None, tmp_path, 1, 1, (1, 9), 0, 1, 0
    )
    ready = make_scheduler(dataclasses.replace(options, models=Models(np.ones(3))), profile)
    scheduler = ready.scheduler
    assert ready.slot_seconds == 0
    # 1 s each and a load of 1 s: the server that holds the model, until its queue is longer than a load
    assert choose(scheduler, [0, 0.5], [0, 1], [0, 0, 0, 0]) == [0, 0, 1, 0]
    assert choose(scheduler, [0, 0.5], [0, 1], [1]) == [1] and choose(scheduler, [0, 0.5], [0, 1], [2]) == [0]
    assert choose(scheduler, [0, 0.5], [0, 1], [1], loads=(1.0, 0.2, 1.0)) == [0]  # it has turned out to load faster
    assert choose(scheduler, [0, 0.5], [0, -1], [0, 0], up=(False, True)) == [1, 1]
    assert choose(scheduler, [0, 0.5], [-1, -1], [0], up=(False, False)) == [0]  # somebody has to take it


def test_users_that_have_not_been_seen_for_longest_are_forgotten(tmp_path):
    design = Design(steps=2, latent="user")
    save_policy(tmp_path / "lad.safetensors", ScorePolicy(design, design.begin(np.array(START), 0)), {})
    name, profile = f"trace:{tmp_path}/lad.safetensors", Profile(np.full(2, 0.1), np.zeros(2), np.zeros(2), 0.0, {})
    options = SchedulerOptions(name, method_of(name), None, tmp_path, 1, 1, (1, 9), 0, 1, 0)
    scheduler = make_scheduler(options, profile).scheduler
    scheduler.most_users = 100
    assert [scheduler.number_of(f"user {k}") for k in range(100)] == list(range(100))
    assert len(scheduler.memory.last_model) == len(scheduler.network.memory) == 100
    scheduler.network.memory[:], scheduler.memory.last_model[:] = 1.0, 0
    assert scheduler.number_of("user 0") == 0 and scheduler.number_of("new") == 1 == scheduler.number_of("new")
    assert scheduler.memory.last_model[1] == -1 and (scheduler.network.memory[1] == 0).all()
    assert scheduler.number_of("user 1") == 2 and len(scheduler.users) == 100


# --- from the command line ---


@pytest.mark.parametrize("scheduler", ["trace:priced", "water_filling"])
def test_a_simulated_run_loads_the_models_that_requests_ask_for(scheduler, trace, catalogue, no_plots, tmp_path):
    flags = ["--simulate", "--arrivals", trace, "--catalogue", catalogue, "--num_tasks", 100, "--load", 0.8]
    run_here(main_dedgeai, *flags, "--num_servers", 2, "--scheduler", scheduler, "--out", tmp_path / "run")
    rows, held, free, loads = read_csv(tmp_path / "run/tasks.csv"), {"0": "a", "1": "a"}, {"0": 0.0, "1": 0.0}, 0
    for row in rows:
        load = held[row["server"]] != row["model"]
        held[row["server"]], loads = row["model"], loads + load
        seconds = 0.02 + 0.01 * int(row["steps"]) + load * (0.5 + 0.1 * "abcde".index(row["model"]))
        free[row["server"]] = max(free[row["server"]], float(row["submitted_s"])) + seconds
        assert int(row["loads"]) == load and float(row["finished_s"]) == pytest.approx(free[row["server"]], abs=1e-6)
    (count,) = [row["value"] for row in read_csv(tmp_path / "run/summary.csv") if row["quantity"] == "loads of models"]
    assert int(count) == loads > 5


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("trace:", [], "--scheduler=trace:: must be trace: with one of random, "),
        ("trace:priced_fitted", [], "must be trace: with one of random, "),
        ("trace:nowhere.json", [], "must be trace: with one of random, "),
        ("trace:sita_2_fitted", [], "trace:FILE of a policy of trace_ts/main_trace.py"),
        ("trace:pull_shortest", [], ", pull, pull_resident, pull_fcfs, or trace:FILE of"),
        ("trace:BAD.json", [], "must be a rule of main_trace.py"),
        ("trace:BAD.safetensors", [], "must be a policy of main_trace.py"),
        ("trace:jsq", ["--learn", True], "--learn=True: must come with a scheduler that learns"),
        ("trace:pull", ["--learn", True], "--learn=True: must come with a scheduler that learns"),
        ("trace:jsq", ["--checkpoint", "x.pt"], "--checkpoint=x.pt: must come with a scheduler that learns"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_line(name, more, words, tmp_path, capsys):
    for suffix in ("json", "safetensors"):
        (tmp_path / f"BAD.{suffix}").write_text("[1]")
    name = name.replace("BAD", str(tmp_path / "BAD"))
    flags = ["--simulate", "--scheduler", name, *more, "--out", tmp_path / "run"]
    assert words in refusal(capsys, main_dedgeai, *flags) and not (tmp_path / "run").exists()

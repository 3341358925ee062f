"""The policies of trace_ts on the edge system: beside the simulator of trace_ts, and live beside the simulation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edge_sim.dispatcher import Dispatcher
from edge_sim.replay import read_replay
from edge_sim.schedulers import SchedulerOptions, make_scheduler, method_of
from edge_sim.server_profile import Profile
from edge_sim.servers import Models
from edge_sim.simulation import simulate
from trace_ts import simulation as trace_simulation
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.policy_file import load_policy, read_rule, save_policy, write_rule
from trace_ts.rules import RULES, START
from trace_ts.scenario import Scenario, draw_rates
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


def both(name, policy, trace, load_time, most, folder):
    """What the edge system's simulation and that of trace_ts make of the same requests on the same servers."""
    replay = read_replay(str(trace), 250, 200, MODELS)
    rate = draw_rates(SERVERS, 3)
    profile = Profile(1 / rate, np.zeros(SERVERS), np.zeros(SERVERS), 0.0, {})
    models = Models(np.full(MODELS, load_time), most, held=())
    options = SchedulerOptions(
        *(name, method_of(name), None, folder, 1, 1, (1, 200), 0.0, 450.0, 0), models, replay.mean_steps, 0.7
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
    expected = trace_simulation.simulate(policy, replay.requests, scenario, 0, rate=rate)
    return found, expected


def check(found, expected):
    assert found.server.tolist() == expected.server.tolist()
    assert found.loads.tolist() == expected.loads.tolist()
    for name in ("start", "finish", "delay"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-9, err_msg=name)


# --- beside the simulator of trace_ts ---


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("load_time", "most"), [(0.0, 1), (12.0, 1), (12.0, 3)])
def test_a_rule_decides_and_servers_work_as_in_the_simulator_of_trace_ts(name, load_time, most, trace, tmp_path):
    check(*both(f"trace:{name}", RULES[name], trace, load_time, most, tmp_path))


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

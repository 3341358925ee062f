"""The edge system without Ray: profile, rounds, dispatcher, simulator, against plain versions and the environment."""

import itertools
import json

import numpy as np
import pytest
import torch
from edge_helpers import ready
from helpers import make
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parameters import ParameterError
from edge_sim.dispatcher import Dispatcher
from edge_sim.server_profile import DENSITY, Profile, equal_servers, fitted
from edge_sim.servers import first_in_first_out
from edge_sim.simulation import simulate
from edge_sim.task_stream import Demand, TaskStream, draw_stream, place_of, rounds
from lad_ts.environment_lad import Arrivals, CollaborativeMEC, Scenario, draw_scenario
from lad_ts.model_lad import LadConfig

# --- rounds and queues ---

stations = st.lists(st.integers(0, 4), max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(stations, st.integers(1, 5))
def test_rounds_take_every_task_once_in_order_and_no_station_too_often(base_station, most):
    seen = list(rounds(base_station, most))
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(base_station.size))
    for part in seen:
        assert (np.diff(part) > 0).all() and np.bincount(base_station[part]).max() <= most
    for station in range(5):  # first come, first scheduled
        order = [k for part in seen for k in part if base_station[k] == station]
        assert order == sorted(order)
    assert place_of(base_station).tolist() == [(base_station[:k] == b).sum() for k, b in enumerate(base_station)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 9)), max_size=9), max_size=5))
def test_servers_work_first_in_first_out(slots):
    """Slot by slot against a loop over tasks; slots are 2 s apart."""
    free, plain = np.zeros(4), [0.0] * 4
    for t, tasks in enumerate(slots):
        server = np.array([es for es, _ in tasks], dtype=np.int64)
        seconds = np.array([s for _, s in tasks], dtype=float)
        start, finish = first_in_first_out(server, 2.0 * t, seconds, free)
        for k, (es, s) in enumerate(tasks):
            begin = max(plain[es], 2.0 * t)
            plain[es] = begin + s
            assert start[k] == pytest.approx(begin, abs=1e-9) and finish[k] == pytest.approx(plain[es], abs=1e-9)
    assert free == pytest.approx(plain, abs=1e-9)


def test_slots_hold_the_tasks_that_arrived_since_the_slot_before():
    stream = TaskStream(np.array([0.0, 0.0, 0.1, 1.0, 1.01, 5.0]), *np.zeros((3, 6), dtype=int))
    assert [(now, part.tolist()) for now, part in stream.slots(1.0)] == [
        (0.0, [0, 1]),
        (1.0, [2, 3]),
        (2.0, [4]),
        (5.0, [5]),
    ]


# --- profile ---


def test_a_profile_is_recovered_from_measured_times_and_its_file(tmp_path):
    rng = np.random.default_rng(0)
    steps = rng.integers(10, 20, 400).astype(float)
    seconds = (0.3 + 0.05 * steps) * np.exp(0.04 * rng.standard_normal(400))
    slope, base, spread = fitted(steps, seconds)
    assert (slope, base, spread) == pytest.approx((0.05, 0.3, 0.04), rel=0.1)
    profile = Profile(np.array([slope, 0.1]), np.array([base, 0.2]), np.array([spread, 0]), 0.05, {"model": "x"})
    assert profile.capacity[1] == pytest.approx(DENSITY / 0.1) and profile.seconds(1, 10) == pytest.approx(1.2)
    profile.write(tmp_path / "profile.json")
    again = Profile.read(tmp_path / "profile.json", 2, {"model": "x"})
    assert again.seconds_per_step.tolist() == profile.seconds_per_step.tolist() and again.source == {"model": "x"}
    for servers, source, words in ((3, {}, "of 2"), (2, {"model": "y"}, "measured with model=x, not y")):
        with pytest.raises(ParameterError, match=words):
            Profile.read(tmp_path / "profile.json", servers, source)
    content = json.loads((tmp_path / "profile.json").read_text())
    for name, value in (("seconds_per_step", [0.1, 0.0]), ("spread", [0.1]), ("result_mbit", -1)):
        (tmp_path / "bad.json").write_text(json.dumps(content | {name: value}))
        with pytest.raises(ParameterError, match="must be a profile"):
            Profile.read(tmp_path / "bad.json", 2)


# --- dispatcher and simulator ---


@pytest.mark.parametrize("scheduler", ["opt_ts", "water_filling", "lad_ts", "coop_lad_ts", "size_interval"])
def test_the_simulator_gives_the_delays_of_the_environment(scheduler, tmp_path):
    """Tasks of the paper's kind, one slot after another: schedulers choose and queues delay as in training."""
    profile = equal_servers(0.02, 0.0, 0.0, np.array([1.0, 0.5, 2.0]))
    chosen = ready(scheduler, profile, tmp_path)
    rng = np.random.default_rng(1)
    count = rng.integers(0, 5, (9, 3)) + (np.arange(9) == 0)[:, None]
    count = np.minimum(count, 4)
    steps, size = rng.integers(10, 20, 4), rng.uniform(0, 0.001, (9, 3, 4))
    # the same tasks as arrivals in order of time, base station and place
    t, b, n = np.nonzero(np.arange(4) < count[..., None])
    order = np.lexsort((n, b, t))
    t, b, n = t[order], b[order], n[order]
    stream = TaskStream(t * chosen.slot_seconds, b, steps[n], size[t, b, n])
    found = simulate(Dispatcher(chosen), profile, stream, 450.0, 0, progress=False)

    scenario = Scenario(
        chosen.scenario.capacity,
        chosen.scenario.link_rate,
        np.full((1, 4), DENSITY),
        steps[None],
        chosen.scenario.result_size,
    )
    other = ready(scheduler, profile, tmp_path).scheduler
    env = CollaborativeMEC(scenario)
    slot = env.reset(Arrivals(np.concatenate([count, count[:1]])[None], np.concatenate([size, size[:1]])[None]))
    other.training = False
    other.begin(chosen.scenario, [(seed, chosen.first_episode) for seed in chosen.seeds])
    expected, servers = [], []
    for k in range(9):
        if not count[k].any():
            delay, slot = env.step(np.zeros((1, 3, 4), dtype=np.int64))
            continue
        action = np.asarray(other.act(slot))
        here = (t == k).nonzero()[0]
        delay, slot = env.step(torch.as_tensor(action))
        expected += delay[0].numpy()[b[here], n[here]].tolist()
        servers += action[0][b[here], n[here]].tolist()
    assert found.server.tolist() == servers
    np.testing.assert_allclose(found.delay, np.array(expected) * chosen.slot_seconds, rtol=1e-9)


def test_agents_see_what_they_were_trained_on(tmp_path):
    """The state of a task at 3 servers, by hand: d and w over their maxima, and backlogs in slots."""
    profile = equal_servers(0.02, 0.04, 0.0, np.array([1.0, 0.5, 2.0]))
    chosen = ready("lad_ts", profile, tmp_path)
    dispatcher = Dispatcher(chosen)
    slot = dispatcher.slot(3, np.array([1]), profile.workload(np.array([12])), np.array([2e-4]), np.array([1.0, 2, 0]))
    config = chosen.scheduler.params
    assert (config.quality_min, config.quality_max) == (12, 21) and profile.overhead == 2
    chosen.scheduler.begin(chosen.scenario, [(0, 0)])
    state = chosen.scheduler.features(slot)[0, 1, 0].numpy()
    busy = np.array([1.0, 2.0, 0.0]) / (DENSITY / 0.02 * np.array([1, 0.5, 2]) * chosen.slot_seconds)
    expected = [2e-4 / 0.001, (12 + 2) / 21, np.log1p(busy.mean()), *(busy - busy.mean())]
    np.testing.assert_allclose(state, expected, rtol=1e-5)
    drawn = draw_scenario(make(LadConfig, num_bs=3, capacities="5,6.5,7"), [0])
    assert drawn.capacity.tolist() == [[5, 6.5, 7]]


def test_service_times_vary_as_the_profile_says_and_load_is_what_was_asked_for(tmp_path):
    profile = equal_servers(0.02, 0.1, 0.2, np.ones(4))
    chosen = ready("capacity_round_robin", profile, tmp_path)
    rate = 0.8 * profile.task_rate(14.5)
    stream = draw_stream(20_000, 4, (10, 19), np.array([1e-4]), rate, 3)
    found = simulate(Dispatcher(chosen), profile, stream, 450.0, 0, progress=False)
    took = found.finish - found.start
    relative = took / profile.seconds(found.server, stream.steps)
    assert relative.mean() == pytest.approx(1, abs=0.01) and relative.std() == pytest.approx(0.2, rel=0.05)
    assert took.sum() / (4 * found.finish.max()) == pytest.approx(0.8, rel=0.03)
    assert (found.start >= stream.time - 1e-9).all() and (found.delay >= took).all()


def test_runs_one_after_another_take_the_prompts_in_turn_and_repeat():
    profile = equal_servers(0.02, 0.1, 0.0, np.ones(3))
    demand = Demand([4, 2], ["a", "bb", "ccc", "dddd", "ä", "f"], (10, 19), 0.9, 3, seed=5)
    found = list(demand.runs(profile))
    assert [first for first, _ in found] == [0, 4]
    assert [(1e6 / 8 * stream.size).round().tolist() for _, stream in found] == [[1, 2, 3, 4], [2, 1]]
    for (_, stream), (_, again) in zip(found, demand.runs(profile), strict=True):
        assert (stream.time == again.time).all() and (stream.steps == again.steps).all()
    assert not any(stream.time.any() for _, stream in Demand([4], demand.prompts, (1, 1), None, 3, 5).runs(profile))

"""The trace's world one decision at a time: equal to the simulator; its adapters are accepted by outside judges."""

import dataclasses
import itertools
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import run_here
from pettingzoo.test import api_test, seed_test

import mec_env.registration  # noqa: F401  registers the environments
from common.parameters import ParameterError
from mec_env import example_trace
from mec_env.trace_gymnasium import TraceEnv
from mec_env.trace_pettingzoo import TraceAEC
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario, draw_rates
from trace_ts.simulation import simulate
from trace_ts.synthetic import generate
from trace_ts.world import SERVER_FEATURES, TASK_FEATURES, TraceWorld

REQUESTS = generate(400, 0)
SMALL = {"num_servers": 4, "num_base_stations": 3}
SCENARIOS = {
    "plain": {},
    "old_news": {"age": 10.0, "noise": 0.4, "resident_models": 2},
    "own_discipline": {"age": 3.0, "own_sends": False, "discipline": "resident_first", "ageing": 60.0},
    "outages": {"up_time": 200.0, "down_time": 50.0, "discipline": "shortest", "noise": 0.3},
    "outages_and_old_news": {"up_time": 60.0, "age": 20.0, "load": 1.5, "resident_models": 2},
    "compressed": {"time_scale": "compress", "load_time": 0.0, "up_time": 1000.0},
}
ENV = {"requests": REQUESTS, "tasks": 40, **SMALL}


def driven(world, draw, choose):
    """The outcome of an episode, its costs, and the time of each decision, before a last one at the end."""
    world.reset(draw)
    costs, times = [], []
    while not world.over:
        times.append(world.time)
        costs.append(world.send(choose(world)))
    return world.outcome(), np.array(costs), np.array([*times, world.time])


def assert_same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


def in_system(outcome, begin, end):
    """Task-seconds between two times, from the outcome alone."""
    return np.maximum(np.minimum(outcome.finish, end) - np.maximum(outcome.time, begin), 0).sum()


@pytest.mark.parametrize("rule", ["priced", "round_robin", "two_choices"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_rule_has_the_outcome_that_it_has_in_the_simulator(name, rule):
    scenario, part = Scenario(**SMALL | SCENARIOS[name]), slice(50, 350)
    world = TraceWorld(REQUESTS, scenario, part, RULES[rule])
    for draw in (0, 1):
        outcome, costs, times = driven(world, draw, TraceWorld.advice)
        assert_same(outcome, simulate(RULES[rule], REQUESTS, scenario, draw, part))
        assert len(costs) == outcome.attempts.sum() and (np.diff(times) >= 0).all()
        assert costs.sum() == pytest.approx(outcome.delay.sum(), rel=1e-12)
        expected = [in_system(outcome, *span) for span in itertools.pairwise(times)]
        np.testing.assert_allclose(costs, expected, rtol=1e-9, atol=1e-6)
    assert (outcome.attempts.max() > 1) == ("up_time" in SCENARIOS[name])


@pytest.mark.parametrize("name", ["plain", "old_news", "outages"])
def test_what_a_base_station_knows_is_enough_for_a_rule_of_ones_own(name):
    """Wait, loading and service are least: Opt-TS with loading, in numpy."""
    scenario = Scenario(**SMALL | SCENARIOS[name])

    def choose(world):
        known = world.known()
        score = known.backlog + world.work / known.rate + scenario.load_time * known.miss
        return np.where(known.up | ~known.up.any(), score, np.inf).argmin()

    expected = simulate(RULES["opt_ts_loading"], REQUESTS, scenario, 2)
    outcome, _, _ = driven(TraceWorld(REQUESTS, scenario), 2, choose)
    assert_same(outcome, expected)


def test_observations_are_what_is_known_scaled():
    scenario = Scenario(**SMALL | SCENARIOS["outages"])
    world, mean = TraceWorld(REQUESTS, scenario), REQUESTS.halves()[0].work.mean()
    world.reset(0)
    assert world.known().rate.tolist() == draw_rates(4, 0).tolist()
    down, later = 0, 0
    while not world.over:
        seen, known, task = world.observe(), world.known(), world.observe_task()
        assert seen.shape == (4, SERVER_FEATURES) and task.shape == (TASK_FEATURES,)
        assert seen.dtype == task.dtype == np.float32 and np.isfinite(seen).all() and np.isfinite(task).all()
        service = mean / 17.2
        columns = {
            0: np.log1p(known.backlog / service),
            1: (known.backlog - known.backlog.mean()) / (service + known.backlog.mean()),
            2: np.log(world.work / known.rate / service),
            3: known.miss,
            5: known.rate / known.rate.mean() - 1,
            6: np.log1p(known.queue),
            7: known.up,
        }
        for column, values in columns.items():
            np.testing.assert_allclose(seen[:, column], values, rtol=1e-4, atol=1e-5)
        assert task[0] == pytest.approx(np.log1p(known.backlog.mean() / service), rel=1e-4)
        assert task[7] == pytest.approx(np.log(world.work / mean), rel=1e-4, abs=1e-5)
        assert REQUESTS.model[world.number] == world.model and world.attempts >= 0
        down, later = down + (~known.up).any(), later + world.attempts
        world.send(int(np.where(known.up, known.backlog, np.inf).argmin()))
    assert down and later


def test_looking_changes_nothing_and_a_world_begins_anew():
    scenario = Scenario(**SMALL | SCENARIOS["outages_and_old_news"])

    def curious(world):
        for _ in range(2):
            choice = world.advice(), world.observe().sum(), world.observe_task().sum(), world.known()
        return choice[0]

    world = TraceWorld(REQUESTS, scenario, slice(100), RULES["round_robin"])
    first, _, _ = driven(world, 5, curious)
    again, _, _ = driven(world, 5, TraceWorld.advice)
    assert_same(first, again)
    other, _, _ = driven(world, 6, TraceWorld.advice)
    assert (other.rate != first.rate).any()


def test_mistakes_are_named():
    world = TraceWorld(REQUESTS, Scenario(**SMALL), slice(2))
    for call in (world.observe, world.advice, world.outcome, lambda: world.send(0), lambda: world.over):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            call()
    world.reset(0)
    for wrong in (-1, 4, 1.0, True, "1", None, np.array([1]), np.float32(1), np.bool_(True)):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            world.send(wrong)
    with pytest.raises(RuntimeError, match="not over"):
        world.outcome()
    assert world.send(np.array(3)) > 0 and world.send(np.int8(0)) > 0
    for call in (world.observe, world.advice, lambda: world.send(0), lambda: world.base_station):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            call()
    for requests, part in ((REQUESTS.part(slice(1)), slice(None)), (REQUESTS, slice(0))):
        with pytest.raises(ParameterError, match="requests"):
            TraceWorld(requests, Scenario(**SMALL), part)
    for wrong, words in (
        ({"tasks": 201}, "--tasks=201: must be at most 200"),
        ({"tasks": 0}, "--tasks=0: must be at least 1"),
        (
            {"requests": None, "num_requests": 10_000_001},
            "--num_requests=10000001: must be at least 2 and at most 1000",
        ),
        ({"seed": -1}, "--seed=-1"),
        ({"num_servers": 0}, "--num_servers=0"),
        ({"num_server": 3}, "did you mean --num_servers"),
    ):
        for kind in (TraceEnv, TraceAEC):
            with pytest.raises(ParameterError, match=words):
                kind(**ENV | wrong)
    env = TraceEnv(**ENV)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        env.step(0)
    for options in ({"held_out": 1}, {"episode": -1}, {"episode": 1.5}):
        with pytest.raises(ParameterError):
            env.reset(seed=3, options=options)
    assert env.episodes.episode == env.episodes.seed == 0
    env.reset(seed=3, options={"episode": 2**31 - 1})
    after_the_last = env.reset()[0]
    assert np.array_equal(after_the_last, env.reset(seed=3)[0])


# --- adapters ---


@pytest.fixture
def strict():
    """Warnings are mistakes, but those that the judges themselves cannot do without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="options not used: options")  # api_test gives that one
        warnings.filterwarnings("ignore", message=".*infinity")  # backlogs have no bound
        warnings.filterwarnings("ignore", message="Environment has not defined a render")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@pytest.mark.parametrize("name", ["plain", "outages_and_old_news"])
def test_outside_judges_accept_them(strict, capsys, name):
    given = ENV | SCENARIOS[name]
    check_env(TraceEnv(**given), skip_render_check=True)
    api_test(TraceAEC(**given), num_cycles=200)
    seed_test(lambda: TraceAEC(**given), num_cycles=100)


def test_episodes_are_by_seed_number_and_half():
    env = gymnasium.make("mec_env.registration:DEdgeAI/Trace-v0", **ENV)
    seen = [env.reset(seed=1)[0], env.reset()[0], env.reset(seed=1)[0], env.reset(options={"episode": 1})[0]]
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(seen[1], seen[3])
    assert (seen[0] != seen[1]).any() and (seen[0] != env.reset(seed=2)[0]).any()
    for held_out in (True, False):
        firsts = []
        for episode in range(40):
            env.reset(options={"held_out": held_out, "episode": episode})
            firsts.append(env.unwrapped.world.part.start)
        assert (min(firsts) >= 200) if held_out else (max(firsts) <= 160)
        assert max(firsts) + 40 <= 400 and np.ptp(firsts) > 80


def test_rewards_are_minus_the_delays_and_base_stations_act_when_their_tasks_come():
    """The same choices, by one agent and by all base stations, give the same episode."""
    given = ENV | SCENARIOS["outages"]
    env, stations = TraceEnv(**given), TraceAEC(**given)
    env.reset(seed=4)
    stations.reset(seed=4)
    info, total, rewards = None, 0.0, dict.fromkeys(stations.possible_agents, 0.0)
    for agent in stations.agent_iter():
        observation, reward, terminated, truncated, facts = stations.last()
        rewards[agent] += reward
        if terminated:
            stations.step(None)
            continue
        world = env.world
        assert agent == f"bs_{world.base_station}" and not truncated
        assert facts["base_station"] == world.base_station and facts["time"] == world.time
        np.testing.assert_array_equal(facts["up"], world.known().up)
        action = world.advice()
        stations.step(action)
        known = np.concatenate([world.observe().ravel(), world.observe_task()])
        np.testing.assert_array_equal(observation, known)
        after, one, over, _, info = env.step(action)
        total += one
        assert (after == 0).all() == over
    assert over and stations.agents == [] and facts == info
    expected = simulate(RULES["opt_ts_loading"], REQUESTS, env.episodes.scenario, world.draw, world.part)
    assert total == pytest.approx(-expected.delay.sum())
    assert list(rewards.values()) == pytest.approx([total] * 3)
    assert info == {"time": expected.finish.max(), "mean_delay": pytest.approx(expected.delay.mean())}
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        stations.step(0)


def test_the_example_runs(capsys):
    run_here(example_trace, "--decisions", 64, "--episodes", 1, "--tasks", 30)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["ppo", "opt_ts_loading", "random"]

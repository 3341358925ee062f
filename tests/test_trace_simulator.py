"""The compiled simulator of a trace against a plain event loop, and what holds of every schedule."""

import dataclasses
import itertools

import numpy as np
import pytest
from edge_helpers import ready
from trace_oracle import Agents, Task, plain_simulation

from common.random_streams import Stream, random_generator
from edge_sim.dispatcher import Dispatcher
from edge_sim.server_profile import Profile
from edge_sim.simulation import simulate as simulate_edge
from edge_sim.task_stream import TaskStream
from trace_ts.rules import RULES, mean_service
from trace_ts.scenario import Scenario, draw_noise, draw_outages
from trace_ts.simulation import simulate, simulate_all
from trace_ts.time_scale import base_stations
from trace_ts.workload import Requests

DISCIPLINES = ("fcfs", "shortest", "resident_first")
PLAIN = {"capacity_proportional": "random", "opt_ts_loading": "opt_ts", "weighted": "priced", "affinity": "priced"}


def requests_of(seed, count=250, models=6, users=15):
    """Requests in bursts, many at one time; a user stays with a model for a while."""
    generator = np.random.default_rng(seed)
    gap = generator.exponential(1.0, count) * generator.choice([0, 0.05, 1, 30], count, p=[0.3, 0.3, 0.3, 0.1])
    user = generator.integers(0, users, count)
    popular = generator.dirichlet(np.full(models, 0.5))
    own = generator.choice(models, users, p=popular)
    model = np.where(generator.random(count) < 0.6, own[user], generator.choice(models, count, p=popular))
    return Requests(np.cumsum(gap), user, generator.gamma(1.0, 80.0, count) + 1, model, users, models)


def random_rule(name, generator):
    """A rule of this name; a free constant is drawn, now and then to be 0."""
    rule, constants = RULES[name], list(RULES[name].constants)
    if name == "priced":
        constants = np.exp(generator.normal(0, 1, 7)) * (generator.random(7) < 0.8)
        constants[:2] = np.maximum(constants[:2], 0.05)
    return dataclasses.replace(rule, constants=tuple(float(c) for c in constants))


def rates_of(generator, servers):
    """No two servers are equally fast, so that scores differ."""
    return generator.uniform(5, 30, servers)


def check(rule, requests, scenario, rate, draw=0):
    """The outcome of the compiled simulator, after comparing it with the plain one."""
    outcome = simulate(rule, requests, scenario, draw, rate=rate)
    chance = random_generator(Stream.TRACE_CHOICES, draw)
    credit = rate * chance.random((scenario.num_base_stations, len(rate)))
    count = len(requests)
    noise = draw_noise(count, scenario.noise, draw) if scenario.noise else np.ones(count)
    station = base_stations(requests.user, scenario.num_base_stations, draw)
    columns = (outcome.time, requests.work, requests.model, station, noise, chance.random(count))
    tasks = [Task(k, *values) for k, values in enumerate(zip(*(c.tolist() for c in columns), strict=True))]
    constants = [*rule.constants[:6], rule.constants[6] if scenario.age else 0.0]
    by_rate = rule.name in ("capacity_proportional", "two_choices", "round_robin")
    plain_name = PLAIN.get(rule.name, rule.name)
    agents = Agents(plain_name, constants, mean_service(requests, rate), credit, by_rate, scenario.load_time)
    outages = draw_outages(scenario, outcome.time[-1], draw)
    plain = plain_simulation(tasks, rate, scenario, agents, outages, requests.num_models)
    for name in ("server", "loads", "attempts"):
        np.testing.assert_array_equal(getattr(outcome, name), plain[name], name)
    for name in ("start", "finish"):
        np.testing.assert_allclose(getattr(outcome, name), plain[name], rtol=0, atol=1e-9, err_msg=name)
    return outcome


def scene(**values):
    """A small scenario: 4 servers, 3 base stations."""
    known = {"num_servers": 4, "num_base_stations": 3, "load": 0.9, "load_time": 3.0}
    return Scenario(**known | values)


# --- against the plain event loop ---


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_rules_and_disciplines(name, discipline):
    for resident_models in (1, 3):
        generator = np.random.default_rng([resident_models, len(name)])
        rule, rate = random_rule(name, generator), rates_of(generator, 4)
        scenario = scene(discipline=discipline, resident_models=resident_models)
        check(rule, requests_of(resident_models), scenario, rate)


@pytest.mark.parametrize("age", [0.5, 10.0])
@pytest.mark.parametrize("own_sends", [False, True])
@pytest.mark.parametrize("name", ["opt_ts_loading", "priced", "jsq", "jsq_tasks", "two_choices", "weighted"])
def test_old_news(name, own_sends, age):
    generator = np.random.default_rng([len(name), own_sends])
    for discipline in DISCIPLINES:
        scenario = scene(age=age, own_sends=own_sends, discipline=discipline, resident_models=2)
        check(random_rule(name, generator), requests_of(3), scenario, rates_of(generator, 4))


@pytest.mark.parametrize("seed", range(60))
def test_random_scenarios(seed):
    """Everything at once: loads, models, news, noise, ageing and outages, few and many servers."""
    generator = np.random.default_rng([7, seed])
    pick, servers = generator.choice, int(generator.integers(1, 9))
    scenario = Scenario(
        load=float(pick([0.4, 0.9, 1.5])),
        time_scale=str(pick(["flat", "compress"])),
        num_servers=servers,
        num_base_stations=int(generator.integers(1, 6)),
        load_time=float(pick([0, 1.5, 12])),
        resident_models=int(generator.integers(1, 4)),
        discipline=str(pick(DISCIPLINES)),
        ageing=float(pick([0, 5, 60])),
        age=float(pick([0, 0, 0.7, 10])),
        own_sends=bool(pick([True, False])),
        noise=float(pick([0, 0.35])),
        up_time=float(pick([0, 40, 400])),
        down_time=float(pick([5, 60])),
    )
    requests = requests_of(seed, int(generator.integers(2, 250)), int(generator.integers(1, 8)))
    check(random_rule(str(pick(list(RULES))), generator), requests, scenario, rates_of(generator, servers), seed)


def test_the_edge_system_simulates_the_same(tmp_path):
    """Opt-TS without loading, in slots so short that every request is decided when it comes."""
    requests = requests_of(9, 120)
    gaps = np.random.default_rng(9).exponential(1, 120)  # no two at one time
    requests = dataclasses.replace(requests, time=np.cumsum(gaps), work=np.ceil(requests.work))
    rate = rates_of(np.random.default_rng(9), 5)
    scenario = scene(num_servers=5, num_base_stations=5, load_time=0.0, time_scale="compress")
    ours = simulate(RULES["opt_ts"], requests, scenario, 0, rate=rate)
    profile = Profile(1 / rate, np.zeros(5), np.zeros(5), 0.0, {})
    scheduler = dataclasses.replace(ready("opt_ts", profile, tmp_path), slot_seconds=1e-10)
    station, steps = base_stations(requests.user, 5, 0), requests.work.astype(np.int64)
    stream = TaskStream(ours.time, station, steps, np.zeros(120))
    edge = simulate_edge(Dispatcher(scheduler), profile, stream, 1.0, 0, progress=False)
    np.testing.assert_array_equal(edge.server, ours.server)
    np.testing.assert_allclose(edge.delay, ours.delay, rtol=0, atol=1e-9)


# --- what holds of every schedule ---


def random_outcome(seed, **values):
    """What becomes of random requests under a random rule."""
    generator = np.random.default_rng([8, seed])
    rule = random_rule(str(generator.choice(list(RULES))), generator)
    requests = requests_of(seed)
    return requests, simulate(rule, requests, scene(**values), seed, rate=rates_of(generator, 4))


def busy(outcome):
    """The seconds [K] that a task took with its loading."""
    return outcome.finish - outcome.start


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("seed", range(6))
def test_a_server_works_on_one_task_at_a_time_and_never_rests_while_some_wait(seed, discipline):
    _, outcome = random_outcome(seed, discipline=discipline, noise=0.3, age=5.0 * (seed % 2), resident_models=2)
    assert (outcome.attempts == 1).all() and (outcome.start >= outcome.time).all()
    np.testing.assert_allclose(busy(outcome), outcome.service + 3.0 * outcome.loads, rtol=1e-9, atol=1e-9)
    for b in range(4):
        mine = np.flatnonzero(outcome.server == b)
        mine = mine[np.argsort(outcome.start[mine], kind="stable")]
        done = np.maximum.accumulate(np.concatenate(([0.0], outcome.finish[mine])))[:-1]
        assert (outcome.start[mine] >= done).all()
        first_waiting = np.minimum.accumulate(outcome.time[mine][::-1])[::-1]  # of those that are still to start
        np.testing.assert_allclose(outcome.start[mine], np.maximum(done, first_waiting), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_first_come_is_first_served(seed):
    _, outcome = random_outcome(seed, noise=0.5)
    for b in range(4):
        assert (np.diff(outcome.finish[outcome.server == b]) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_without_loading_models_do_not_matter(seed):
    _, one = random_outcome(seed, load_time=0.0)
    _, three = random_outcome(seed, load_time=0.0, resident_models=3)
    np.testing.assert_array_equal(one.finish, three.finish)
    assert one.loads.sum() > three.loads.sum()


def test_room_for_all_models_loads_each_once_a_server():
    requests, outcome = random_outcome(1, resident_models=6, discipline="shortest")
    pairs = {(b, model) for b, model in zip(outcome.server.tolist(), requests.model.tolist(), strict=True)}
    assert outcome.loads.sum() == len(pairs)


@pytest.mark.parametrize("discipline", DISCIPLINES[1:])
def test_ageing_of_almost_nothing_is_first_come_first_served(discipline):
    requests, rate = requests_of(2), rates_of(np.random.default_rng(0), 4)
    served = [
        simulate(RULES["round_robin"], requests, scene(discipline=d, ageing=a), 0, rate=rate).finish
        for d, a in (("fcfs", 0.0), (discipline, 1e-9), (discipline, 0.0))
    ]
    np.testing.assert_array_equal(served[0], served[1])
    assert (served[0] != served[2]).any()


def test_a_server_that_fails_loses_its_task_and_its_models():
    """Two tasks of one model on the only server: it fails during the second, which starts anew with a load."""
    requests = Requests(np.array([0.0, 5.0]), np.zeros(2, int), np.array([10.0, 1000.0]), np.zeros(2, int), 1, 1)
    for draw in itertools.count():
        scenario = scene(load=0.01, num_servers=1, time_scale="compress", up_time=10000.0, down_time=1.0)
        outcome = simulate(RULES["opt_ts"], requests, scenario, draw, rate=np.array([1.0]))
        times, _, ups = draw_outages(scenario, outcome.time[-1], draw)
        if outcome.attempts[1] == 2:
            break
    comes_back = times[ups][times[ups] > outcome.time[1]][0]
    assert outcome.loads.tolist() == [True, True] and outcome.start[1] == comes_back
    assert outcome.finish[1] == pytest.approx(comes_back + 3.0 + 1000.0)


def test_a_round_leaves_out_the_servers_that_are_down_and_owes_them_nothing():
    """Of four servers all but equally fast, those that are up share what comes evenly, also after another came back."""
    requests, rate = requests_of(5, 1000), np.array([10.0, 10.0001, 10.0002, 10.0003])
    scenario = scene(num_base_stations=1, load=0.02, up_time=9000.0, down_time=9000.0)
    outcome = simulate(RULES["round_robin"], requests, scenario, 1, rate=rate)
    time, server, back = draw_outages(scenario, outcome.time[-1], 1)
    event = np.searchsorted(time, outcome.time, side="right")
    stretches = 0
    for number in np.unique(event):
        down = {b for b in range(4) if (server[:number] == b).sum() % 2}
        sent, once = outcome.server[event == number], (outcome.attempts[event == number] == 1).all()
        if 0 < len(down) < 4 and len(sent) > 20 and once:
            stretches += 1
            counts = np.bincount(sent, minlength=4)[[b for b in range(4) if b not in down]]
            assert counts.sum() == len(sent) and np.ptp(counts) <= 3
    assert stretches > 3 and back.any()


def test_equal_seeds_give_equal_outcomes_and_draws_at_once_those_one_by_one():
    requests = requests_of(4)
    scenario = scene(noise=0.3, up_time=200.0, age=2.0)
    rule = random_rule("priced", np.random.default_rng(1))
    together = simulate_all(rule, requests, scenario, range(5), slice(50, 200))
    for draw, outcome in enumerate(together):
        again = simulate(rule, requests, scenario, draw, slice(50, 200))
        for field in dataclasses.fields(outcome):
            np.testing.assert_array_equal(getattr(outcome, field.name), getattr(again, field.name))
    assert (together[0].finish != together[1].finish).any()

"""The central queue, the bounds and the rules with classes, against plain versions."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_ts.central import bound, bounds, pooled, simulate_pull
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario, draw_noise, draw_outages
from trace_ts.simulation import simulate
from trace_ts.sita import (
    SERVER_ORDERS,
    best_cuts,
    cost_of,
    fit_partition,
    fit_size_intervals,
    partition,
    servers_of_classes,
    size_intervals,
)
from trace_ts.workload import Requests, read_trace

ORDERS = ("fcfs", "shortest", "resident_first")


def requests_of(seed, count=150, models=5, users=10):
    """Requests in bursts, many at one time."""
    generator = np.random.default_rng(seed)
    gap = generator.exponential(1.0, count) * generator.choice([0, 0.05, 1, 30], count, p=[0.3, 0.3, 0.3, 0.1])
    model = generator.choice(models, count, p=generator.dirichlet(np.full(models, 0.6)))
    work = generator.gamma(1.0, 80.0, count) + 1
    return Requests(np.cumsum(gap), generator.integers(0, users, count), work, model, users, models)


def random_scenario(generator, **values):
    """Any scenario of a few servers."""
    pick = generator.choice
    known = {
        "load": float(pick([0.4, 0.9, 1.5])),
        "num_servers": int(generator.integers(1, 6)),
        "load_time": float(pick([0, 1.5, 12])),
        "resident_models": int(generator.integers(1, 4)),
        "ageing": float(pick([0, 0, 20])),
        "noise": float(pick([0, 0.35])),
        "up_time": float(pick([0, 40, 400])),
        "down_time": float(pick([5, 60])),
    }
    return Scenario(**known | values)


# --- the central queue ---


def plain_pull(time, work, model, noise, rate, scenario, order, outages):
    """Start, finish, server and loads of each task: one event after the other, all pairs compared."""
    count, servers = len(time), range(len(rate))
    events = sorted(
        [(t, 2, k) for k, t in enumerate(time)] + [(t, 1, (b, up)) for t, b, up in zip(*outages, strict=True)],
        key=lambda event: event[:2],
    )
    models, running, up, waiting = [[] for _ in servers], {}, [True] * len(rate), []
    start, finish, server, loads = np.empty(count), np.full(count, np.nan), np.empty(count, int), np.empty(count, bool)
    while np.isnan(finish).any():
        first = min(running.values(), default=(np.inf, 0))[0]
        if first <= (events[0][0] if events else np.inf):
            now = first
            for b in [b for b in running if running[b][0] == now]:
                finish[running.pop(b)[1]] = now
        else:
            now, kind, what = events.pop(0)
            if kind == 2:
                waiting.append(what)
            else:
                b, up[what[0]] = what
                if not up[what[0]]:
                    models[what[0]] = []
                    if what[0] in running:
                        waiting = sorted([*waiting, running.pop(what[0])[1]])
        while waiting and (idle := [b for b in servers if up[b] and b not in running]):
            oldest = order == "fcfs" or (scenario.ageing and now - time[waiting[0]] > scenario.ageing)
            takes = {}
            for b, k in itertools.product(idle, waiting[:1] if oldest else waiting):
                missing = model[k] not in models[b]
                last = missing and order == "resident_first" and not oldest
                takes[k, b] = (last, work[k] / rate[b] + scenario.load_time * missing)
            k, b = min(takes, key=takes.get)
            waiting.remove(k)
            start[k], server[k], loads[k] = now, b, model[k] not in models[b]
            models[b] = [model[k], *(m for m in models[b] if m != model[k])][: scenario.resident_models]
            running[b] = (now + scenario.load_time * loads[k] + work[k] / rate[b] * noise[k], k)
    return start, finish, server, loads


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(25))
def test_pulling_equals_a_plain_loop(seed, order):
    generator = np.random.default_rng([9, seed])
    scenario, requests = random_scenario(generator), requests_of(seed, int(generator.integers(2, 150)))
    rate = generator.uniform(5, 30, scenario.num_servers)
    outcome = simulate_pull(requests, scenario, seed, order=order, rate=rate)
    noise = draw_noise(len(requests), scenario.noise, seed) if scenario.noise else np.ones(len(requests))
    outages = draw_outages(scenario, outcome.time[-1], seed)
    arrays = (outcome.time, requests.work, requests.model, noise, rate)
    start, finish, server, loads = plain_pull(*arrays, scenario, order, outages)
    np.testing.assert_array_equal(outcome.server, server)
    np.testing.assert_array_equal(outcome.loads, loads)
    np.testing.assert_allclose(outcome.start, start, rtol=0, atol=1e-9)
    np.testing.assert_allclose(outcome.finish, finish, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_one_server_that_pulls_is_one_server_with_a_queue(order):
    scenario = random_scenario(np.random.default_rng(1), num_servers=1, discipline=order, load_time=3.0)
    queue = simulate(RULES["opt_ts"], requests_of(3), scenario, 2)
    central = simulate_pull(requests_of(3), scenario, 2, order=order)
    np.testing.assert_allclose(central.finish, queue.finish, rtol=0, atol=1e-9)


def test_pulling_takes_no_order_that_it_does_not_know():
    with pytest.raises(ValueError, match="order is 'sjf'"):
        simulate_pull(requests_of(0), Scenario(), 0, order="sjf")


# --- bounds ---


def plain_pooled(release, work, rate, remaining, step):
    """In small steps: the released task of the least key is worked on."""
    left, busy, finish = work.copy(), np.zeros(len(work)), np.zeros(len(work))
    for i in itertools.count():
        ready = np.flatnonzero((release <= i * step + 1e-9) & (left > 1e-9))
        if len(ready):
            k = ready[np.argmin((left if remaining else work)[ready])]
            left[k] -= rate * step
            busy[k] += (i + 0.5) * step * rate * step / work[k]
            finish[k] = (i + 1) * step
        elif (left <= 1e-9).all():
            return finish, busy


@pytest.mark.parametrize("remaining", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_pooled_server_equals_one_in_small_steps(seed, remaining):
    generator, step, rate = np.random.default_rng(seed), 0.125, 4.0
    release = generator.integers(0, 100, 30) * step
    work = generator.permutation(np.arange(1, 31)) * rate * step  # whole steps, none alike
    finish, busy = pooled(release, work, rate, remaining)
    plain = plain_pooled(release, work, rate, remaining, step)
    assert finish.mean() == pytest.approx(plain[0].mean(), abs=1e-9)
    if not remaining:
        np.testing.assert_allclose(finish, plain[0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(busy, plain[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_faster_than_the_bounds(seed):
    """Rules, disciplines and the central queue, also where there are few tasks, loads, noise and outages."""
    generator = np.random.default_rng([4, seed])
    for discipline in ("fcfs", "shortest", "resident_first"):
        scenario = random_scenario(generator, discipline=discipline)
        requests = requests_of(seed, int(generator.choice([2, 5, 150])))
        least = bound(requests, scenario, seed)
        outcomes = [simulate(RULES[name], requests, scenario, seed) for name in ("opt_ts_loading", "priced", "jsq")]
        outcomes += [simulate_pull(requests, scenario, seed, order=order) for order in ORDERS]
        assert least <= min(outcome.delay.mean() for outcome in outcomes) + 1e-9


def test_bounds_that_are_reached():
    """A task alone takes a load and its work; one server without loads that is sent all at once, shortest first."""
    alone = Requests(np.array([0.0, 1e5]), np.zeros(2, int), np.array([10.0, 30.0]), np.array([0, 1]), 1, 2)
    scenario = Scenario(num_servers=3, load_time=7.0, load=1e-4, time_scale="compress")
    assert bound(alone, scenario, 1) == pytest.approx(simulate_pull(alone, scenario, 1).delay.mean(), abs=1e-9)
    together = requests_of(1, 40)
    work = np.sort(together.work)  # nothing is interrupted
    together = dataclasses.replace(together, work=work, time=np.append(np.zeros(39), 1e-6))
    scenario = Scenario(num_servers=1, load_time=0.0, load=1e6, time_scale="compress", discipline="shortest")
    found = bounds(together, scenario, 0)
    assert found["pooled"] == pytest.approx(simulate_pull(together, scenario, 0).delay.mean(), rel=0.02)
    assert found["busy"] == pytest.approx(found["pooled"], rel=1e-3)


# --- classes ---


@pytest.mark.parametrize("order", SERVER_ORDERS)
@pytest.mark.parametrize("servers", [1, 2, 3, 20])
def test_every_class_gets_servers_in_the_order_asked_for(servers, order):
    generator = np.random.default_rng(servers)
    for classes in (1, 2, 3):
        rate = generator.uniform(5, 30, servers)
        shares = np.sort(generator.random(classes - 1))
        allowed = servers_of_classes(rate, shares, order)
        assert allowed.shape == (classes, servers) and allowed.any(1).all() and allowed.any(0).all()
        if servers >= classes:
            assert (allowed.sum(0) == 1).all()
            for one, next_one in itertools.pairwise(allowed) if order != "mixed" else ():
                low, high = (one, next_one) if order == "slow_first" else (next_one, one)
                assert rate[low].max() < rate[high].min()


def test_shares_of_the_capacity_are_met_as_well_as_can_be():
    for order in SERVER_ORDERS:
        assert servers_of_classes(np.ones(10), [0.3, 0.52], order).sum(1).tolist() == [3, 2, 5]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(5, 30), min_size=4, max_size=20), st.lists(st.floats(0.02, 0.98), max_size=3, unique=True))
def test_mixed_classes_lack_less_than_a_server_of_their_shares(rates, shares):
    """Unless a class would have had no server: then it has the slowest one."""
    rate, shares = np.array(rates), sorted(shares)
    allowed = servers_of_classes(rate, shares, "mixed")
    assert (allowed.sum(0) == 1).all() and allowed.any(1).all()
    wanted, got = np.diff([0, *shares, 1]) * rate.sum(), allowed @ rate
    for number in np.flatnonzero(allowed.sum(1) > 1):  # when it got its last server it still lacked some
        assert got[number] - rate[allowed[number]].min() < wanted[number] + 1e-9
    if (allowed.sum(1) > 1).all():
        assert (wanted - got < rate.max() + 1e-9).all()


def plain_classes(rule, requests, rate, time, scenario):
    """The servers of tasks that are sent to the member of their class that is done first; first come first served."""
    policy, _ = rule.arrays(scenario, rate, requests)
    free, chosen = np.zeros(len(rate)), []
    for t, work, model in zip(time, requests.work, requests.model, strict=True):
        number = policy.class_of_model[model] if len(policy.class_of_model) else sum(work > policy.limits)
        members = np.flatnonzero(policy.allowed[number])
        done = np.maximum(free[members], t) + work / rate[members]
        chosen.append(members[done.argmin()])
        free[chosen[-1]] = done.min()
    return chosen


@pytest.mark.parametrize(
    "rule",
    [
        size_intervals([60.0], [0.4]),
        size_intervals([30.0, 90], [0.2, 0.7], "fast_first"),
        size_intervals([60.0], [0.6], "mixed"),
        partition(3),
    ],
)
def test_a_task_goes_to_the_server_of_its_class_that_is_done_first(rule):
    requests, rate = requests_of(6), np.random.default_rng(6).uniform(5, 30, 7)
    scenario = Scenario(num_servers=7, load_time=0.0)
    outcome = simulate(rule, requests, scenario, 0, rate=rate)
    assert outcome.server.tolist() == plain_classes(rule, requests, rate, outcome.time, scenario)


def test_models_share_classes_and_servers_by_their_work():
    work = np.array([60.0, 20, 10, 6, 4])
    half = Requests(np.arange(5.0), np.zeros(5, int), work, np.arange(5), 1, 5)
    requests = Requests(*(np.tile(getattr(half, n), 2) for n in ("time", "user", "work", "model")), 1, 5)
    policy, _ = partition(3).arrays(Scenario(num_servers=5), np.array([10.0, 10, 10, 10, 10.1]), requests)
    assert policy.class_of_model.tolist() == [0, 1, 2, 2, 2]
    assert policy.allowed.sum(1).tolist() == [3, 1, 1] and policy.allowed[0, 4]
    few, _ = partition(9).arrays(Scenario(num_servers=2), np.array([10.0, 20]), requests)
    assert few.allowed.tolist() == [[False, True], [True, False]] and set(few.class_of_model) == {0, 1}


@pytest.mark.parametrize("number", [1, 2])
def test_cuts_are_found(number):
    """The cost is the distance from known cuts, each of which is best whatever the others are."""
    known, sizes = [(20.0, 0.25), (50.0, 0.6)][:number], np.arange(10.0, 100, 10)

    def cost(cuts):
        return sum(min(abs(a - c) / 100 + abs(b - d) for c, d in cuts) for a, b in known)

    least, cuts = best_cuts(number, sizes, cost)
    assert least == pytest.approx(0, abs=1e-9) and np.allclose(cuts, known)


def test_there_are_as_many_cuts_as_asked_for_however_close():
    _, cuts = best_cuts(4, np.arange(1.0, 5), lambda cuts: sum(abs(0.93 - share) for _, share in cuts))
    sizes, shares = zip(*cuts, strict=True)
    assert sizes == (1, 2, 3, 4) and (np.diff((0, *shares, 1)) > 0).all()


def test_fitted_rules_look_at_the_first_half_only_and_are_better_there():
    requests, scenario = requests_of(8, 300), Scenario(num_servers=4, load_time=0.0, load=1.3)
    first, second = requests.halves()
    other = dataclasses.replace(requests, work=np.concatenate([first.work, second.work[::-1]]), time=requests.time)
    fitted = fit_size_intervals(2, requests, [scenario], [7])
    limits = np.quantile(first.work, [0.25, 0.5, 0.75], method="lower")
    for limit, share in itertools.product(limits, [0.25, 0.5, 0.75]):
        for order in SERVER_ORDERS:
            rule = size_intervals([limit], [share], order)
            assert cost_of(fitted, first, [scenario], [7]) <= cost_of(rule, first, [scenario], [7])
    assert fitted.text == fit_size_intervals(2, other, [scenario], [7]).text
    loading = dataclasses.replace(scenario, load_time=10.0)
    found = cost_of(fit_partition(requests, [loading], [7]), first, [loading], [7])
    assert found == min(cost_of(partition(classes), first, [loading], [7]) for classes in range(2, 5))
    with pytest.raises(ValueError, match="1 classes"):
        fit_size_intervals(1, requests, [scenario], [7])


@pytest.mark.skipif("DEDGEAI_TRACE" not in os.environ, reason="DEDGEAI_TRACE names no file")
@pytest.mark.parametrize(("load", "pulled", "sita", "least"), [(0.6, 4.6, 7.0, 3.1), (0.8, 5.65, 10.2, 3.1)])
def test_figures_of_the_real_trace(load, pulled, sita, least):
    """Mean delays in s of the second half without loading, five draws, as a simulator of another author had them."""
    requests, scenario = read_trace(os.environ["DEDGEAI_TRACE"]), Scenario(load=load, load_time=0.0)
    half = slice(len(requests) // 2, None)
    rule = fit_size_intervals(2, requests, [scenario], [10_000])
    found = [simulate(rule, requests, scenario, draw, half).delay.mean() for draw in range(5)]
    central = [simulate_pull(requests, scenario, draw, half).delay.mean() for draw in range(5)]
    bounds_found = [bound(requests, scenario, draw, half) for draw in range(5)]
    assert np.mean(central) == pytest.approx(pulled, rel=0.03)
    assert np.mean(found) == pytest.approx(sita, rel=0.03)
    assert np.mean(bounds_found) == pytest.approx(least, rel=0.03)

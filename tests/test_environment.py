"""The environment and its two yardsticks against plain loops written from the paper's equations."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SCHEDULERS, make, plain_delay, plain_slot, random_arrivals, random_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rules import HeuristicConfig
from common.random_streams import Stream
from lad_ts.environment_lad import (
    Arrivals,
    CollaborativeMEC,
    EnvironmentParameters,
    Scenario,
    draw_arrivals,
    draw_scenario,
)
from lad_ts.episodes import run_episode
from lad_ts.references import OptTS, pooled_srpt_bound
from lad_ts.scheduler import Scheduler

SMALL = {"num_bs": 4, "num_tasks": 6, "num_slots": 8}
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = {"num_bs": st.integers(1, 5), "num_tasks": st.integers(1, 6), "num_slots": st.integers(2, 6)}


class Recorded(Scheduler):
    """Plays back actions [R, T, B, N]."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions

    def act(self, slot):
        return self.actions[:, slot.t]


def rows_of(scenario: Scenario, rows: slice) -> Scenario:
    return Scenario(*(getattr(scenario, field.name)[rows] for field in dataclasses.fields(scenario)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("num_bs", "num_tasks", "slot_length", "targets"),
    [(1, 1, 1.0, 1), (1, 7, 0.3, 1), (6, 1, 1.0, 6), (5, 8, 1.0, 5), (5, 8, 2.5, 2), (7, 5, 0.05, 7)],
)
def test_delays_and_queues_equal_a_loop_over_tasks(seed, num_bs, num_tasks, slot_length, targets):
    """`targets` below num_bs leaves edge servers idle."""
    rng = np.random.default_rng(seed)
    scenario = random_scenario(rng, 2, num_bs, num_tasks)
    arrivals = random_arrivals(rng, 2, 9, num_bs, num_tasks)
    env = CollaborativeMEC(scenario, slot_length=slot_length)
    slot = env.reset(arrivals)
    queues = [[0.0] * num_bs for _ in range(2)]
    for t in range(8):
        action = rng.integers(0, targets, (2, num_bs, num_tasks))
        delay, slot = env.step(torch.as_tensor(action))
        for row in range(2):
            expected, queues[row], _ = plain_slot(
                scenario, row, arrivals.count[row, t], arrivals.size[row, t], action[row], queues[row], slot_length
            )
            plain = np.zeros((num_bs, num_tasks))
            for cell, value in expected.items():
                plain[cell] = value
            np.testing.assert_allclose(delay[row], plain, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(slot.backlog[row], queues[row], rtol=1e-9, atol=1e-9)


def test_statistics_are_those_of_the_delays_of_existing_tasks():
    rng = np.random.default_rng(0)
    scenario, arrivals = random_scenario(rng, 1, 4, 5), random_arrivals(rng, 1, 9, 4, 5)
    actions = rng.integers(0, 4, (1, 8, 4, 5))
    stats = run_episode(CollaborativeMEC(scenario, slot_length=0.5), Recorded(actions), arrivals, [(0, 0)])
    queue, delays, done = [0.0] * 4, [], np.zeros(4)
    for t in range(8):
        before = queue
        found, queue, sent = plain_slot(
            scenario, 0, arrivals.count[0, t], arrivals.size[0, t], actions[0, t], queue, 0.5
        )
        delays += found.values()
        done += np.array(before) + sent - queue
    expected = [np.mean(delays), *np.percentile(delays, [50, 95, 99]), max(delays), len(delays)]
    got = [stats.mean[0], stats.p50[0], stats.p95[0], stats.p99[0], stats.max[0], stats.tasks[0]]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(stats.utilisation[0], done / (scenario.capacity[0] * 0.5 * 8), rtol=1e-9)


@PROPERTY
@given(seed=st.integers(0, 10**6), slot_length=st.floats(0.01, 5), **SIZES)
def test_work_is_conserved_and_no_delay_is_below_service_and_transmission(
    seed, slot_length, num_bs, num_tasks, num_slots
):
    rng = np.random.default_rng(seed)
    scenario = random_scenario(rng, 2, num_bs, num_tasks)
    arrivals = random_arrivals(rng, 2, num_slots, num_bs, num_tasks)
    actions = rng.integers(0, num_bs, (2, num_slots - 1, num_bs, num_tasks))
    env = CollaborativeMEC(scenario, slot_length=slot_length)
    env.reset(arrivals)
    least = np.zeros((2, num_bs, num_tasks))
    for t in range(num_slots - 1):
        delay, slot = env.step(torch.as_tensor(actions[:, t]))
        for row, b, n in np.ndindex(least.shape):
            size, es = arrivals.size[row, t, b, n], actions[row, t, b, n]
            exists = n < arrivals.count[row, t, b]
            least[row, b, n] = plain_delay(scenario, row, b, n, size, es, 0.0) if exists else 0.0
        assert (delay.numpy() >= least * (1 - 1e-12)).all()
    stats = run_episode(env, Recorded(actions), arrivals, [(0, 0), (1, 0)])
    exists = np.arange(num_tasks) < arrivals.count[:, :-1, :, None]
    sent = (exists * (scenario.density * scenario.steps)[:, None, None]).sum((1, 2, 3))
    done = (stats.utilisation * scenario.capacity).sum(1) * slot_length * (num_slots - 1)
    np.testing.assert_allclose(done + slot.backlog.sum(1).numpy(), sent, rtol=1e-9, atol=1e-9)
    assert (stats.utilisation <= 1 + 1e-9).all()


@PROPERTY
@given(seed=st.integers(0, 10**6), **SIZES)
def test_a_batch_of_seeds_gives_bit_for_bit_what_each_seed_gives_alone(seed, num_bs, num_tasks, num_slots):
    rng = np.random.default_rng(seed)
    scenario = random_scenario(rng, 3, num_bs, num_tasks)
    arrivals = random_arrivals(rng, 3, num_slots, num_bs, num_tasks)
    actions = rng.integers(0, num_bs, (3, num_slots - 1, num_bs, num_tasks))

    def run(rows: slice) -> torch.Tensor:
        env = CollaborativeMEC(rows_of(scenario, rows))
        env.reset(Arrivals(arrivals.count[rows], arrivals.size[rows]))
        steps = [env.step(torch.as_tensor(actions[rows, t])) for t in range(num_slots - 1)]
        return torch.stack([torch.cat([delay.flatten(1), slot.backlog], 1) for delay, slot in steps])

    together = run(slice(3))
    assert torch.equal(together, run(slice(3)))
    for row in range(3):
        assert torch.equal(together[:, row : row + 1], run(slice(row, row + 1)))


@pytest.mark.parametrize("method", SCHEDULERS)
def test_a_scheduler_gives_a_seed_the_same_delays_alone_and_among_others(method):
    params = make(HeuristicConfig, **SMALL, scenario_per_seed=True, classes=2, fit_steps=20)

    def mean(rows: list[tuple[int, int]]) -> np.ndarray:
        env = CollaborativeMEC(draw_scenario(params, [seed for seed, _ in rows]))
        scheduler = SCHEDULERS[method](params, [seed for seed, _ in rows], "cpu")
        return run_episode(env, scheduler, draw_arrivals(params, rows), rows).mean

    rows = [(3, 0), (0, 5), (8, 2)]
    assert list(mean(rows)) == [mean([row])[0] for row in rows]


def test_arrivals_depend_on_seed_episode_and_stream_only():
    params = make(EnvironmentParameters, **SMALL)
    alone = draw_arrivals(params, [(7, 3)])
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    draw_scenario(params, [7])
    among = draw_arrivals(params, [(0, 0), (7, 3), (7, 4)])
    assert (among.count[1] == alone.count[0]).all() and (among.size[1] == alone.size[0]).all()
    assert (states[0] == np.random.get_state()[1]).all() and torch.equal(states[1], torch.get_rng_state())  # noqa: NPY002
    for other in (draw_arrivals(params, [(7, 4)]), draw_arrivals(params, [(7, 3)], Stream.HELD_OUT_ARRIVALS)):
        assert not (other.size == alone.size).any()
    more_slots = draw_arrivals(
        make(EnvironmentParameters, **SMALL | {"capacity_max": 90, "scenario_seed": 9}), [(7, 3)]
    )
    assert (more_slots.size == alone.size).all()


def test_drawn_values_lie_in_their_ranges_and_reach_the_ends():
    params = make(EnvironmentParameters, num_bs=50, num_tasks=200, num_slots=4, min_tasks=0)
    scenario = draw_scenario(params, [0, 1])
    assert (scenario.capacity[0] == scenario.capacity[1]).all()  # one scenario for all seeds
    assert scenario.capacity.min() >= 10 and scenario.capacity.max() <= 50
    assert scenario.link_rate.min() >= 400 and scenario.link_rate.max() <= 500
    assert set(scenario.steps[0]) == set(range(1, 15))
    assert scenario.density.min() >= 0.1024 and scenario.density.max() < 0.3072
    assert scenario.result_size.min() >= 0.6 and scenario.result_size.max() < 1.0
    assert abs(np.corrcoef(scenario.density[0], scenario.result_size[0])[0, 1]) < 0.3
    tied = draw_scenario(make(EnvironmentParameters, num_tasks=200, tied_sizes=True), [0])
    assert np.corrcoef(tied.density[0], tied.result_size[0])[0, 1] > 0.999
    arrivals = draw_arrivals(make(EnvironmentParameters, num_tasks=3, min_tasks=1), [(0, 0)])
    assert set(arrivals.count.flat) == {1, 2, 3}
    assert arrivals.size.min() >= 2 and arrivals.size.max() < 5


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": np.zeros((2, 3))},
        {"capacity": np.full((2, 3), np.nan)},
        {"capacity": np.ones((2, 4))},
        {"capacity": np.ones(3)},
        {"capacity": np.ones((2, 0)), "link_rate": np.ones((2, 0))},
        {"link_rate": np.full((2, 3), -1.0)},
        {"link_rate": np.full((2, 3), np.inf)},
        {"steps": np.zeros((2, 4))},
        {"density": np.ones((2, 5))},
        {"density": np.ones((1, 4)), "steps": np.ones((1, 4)), "result_size": np.ones((1, 4))},
        {"result_size": np.full((2, 4), -0.1)},
    ],
)
def test_scenario_refuses_bad_arrays(change):
    good = {name: np.ones((2, 3)) for name in ("capacity", "link_rate")}
    good |= {name: np.ones((2, 4)) for name in ("density", "steps", "result_size")}
    Scenario(**good)
    with pytest.raises(ValueError, match=next(iter(change))):
        Scenario(**good | change)


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (np.full((1, 5, 3), 5), np.ones((1, 5, 3, 4))),
        (np.full((1, 5, 3), -1), np.ones((1, 5, 3, 4))),
        (np.ones((1, 5, 2), dtype=int), np.ones((1, 5, 3, 4))),
        (np.ones((1, 5, 3), dtype=int), np.ones((1, 5, 3))),
        (np.ones((1, 5, 3), dtype=int), np.full((1, 5, 3, 4), np.nan)),
        (np.ones((1, 5, 3), dtype=int), np.full((1, 5, 3, 4), -1.0)),
    ],
)
def test_arrivals_refuse_bad_arrays(count, size):
    with pytest.raises(ValueError, match=r"count|size"):
        Arrivals(count, size)


def test_reset_refuses_arrivals_of_another_shape():
    rng = np.random.default_rng(0)
    env = CollaborativeMEC(random_scenario(rng, 1, 3, 4))
    for seeds, num_bs, num_tasks in ((2, 3, 4), (1, 2, 4), (1, 3, 5)):
        with pytest.raises(ValueError, match="arrivals"):
            env.reset(random_arrivals(rng, seeds, 5, num_bs, num_tasks))


@pytest.mark.parametrize("seed", range(4))
def test_opt_takes_the_least_delay_of_every_task_in_order(seed):
    """Checked as regret, so that a tie may go to any of its servers."""
    rng = np.random.default_rng(seed)
    num_bs, num_tasks = (1, 1) if seed == 0 else (5, 6)
    scenario, arrivals = random_scenario(rng, 2, num_bs, num_tasks), random_arrivals(rng, 2, 7, num_bs, num_tasks)
    if seed == 3:  # equal servers, so ties are everywhere
        scenario = dataclasses.replace(scenario, capacity=np.full((2, 5), 7.0), link_rate=np.full((2, 5), 9.0))
    env, scheduler = CollaborativeMEC(scenario), OptTS()
    slot = env.reset(arrivals)
    scheduler.begin(scenario, [(0, 0), (1, 0)])
    queues = [[0.0] * num_bs for _ in range(2)]
    for t in range(6):
        action = np.asarray(scheduler.act(slot))
        for row in range(2):
            count, size = arrivals.count[row, t], arrivals.size[row, t]
            ahead = list(queues[row])
            for b in range(num_bs):
                for n in range(count[b]):
                    delays = [plain_delay(scenario, row, b, n, size[b, n], e, ahead[e]) for e in range(num_bs)]
                    assert delays[action[row, b, n]] <= min(delays) + 1e-9
                    ahead[action[row, b, n]] += scenario.density[row, n] * scenario.steps[row, n]
            _, queues[row], _ = plain_slot(scenario, row, count, size, action[row], queues[row], 1.0)
        _, slot = env.step(torch.as_tensor(action))


def plain_pooled_srpt(scenario: Scenario, arrivals: Arrivals, row: int, slot_length: float) -> float:
    """Mean delay on one pooled server that always serves the task with the least work left, event by event."""
    pool, fastest = scenario.capacity[row].sum(), scenario.link_rate[row].max()
    events = []  # arrival time, work
    transmission = 0.0
    for t, b in np.ndindex(arrivals.count.shape[1] - 1, arrivals.count.shape[2]):
        for n in range(arrivals.count[row, t, b]):
            events.append((t * slot_length, scenario.density[row, n] * scenario.steps[row, n]))
            transmission += scenario.result_size[row, n] / fastest
    now, waiting, total, tasks = 0.0, [], transmission, len(events)
    while events or waiting:
        if not waiting:
            now = max(now, events[0][0])
        while events and events[0][0] <= now:
            arrived, work = events.pop(0)
            waiting.append([work, arrived])
        waiting.sort()
        work, arrived = waiting[0]
        until = events[0][0] if events else np.inf
        if now + work / pool <= until:
            now += work / pool
            total += now - arrived
            waiting.pop(0)
        else:
            waiting[0][0] -= (until - now) * pool
            now = until
    return total / tasks if tasks else np.nan


@PROPERTY
@given(seed=st.integers(0, 10**6), slot_length=st.floats(0.05, 3), **SIZES)
def test_lower_bound_equals_an_event_by_event_simulation(seed, slot_length, num_bs, num_tasks, num_slots):
    rng = np.random.default_rng(seed)
    scenario = random_scenario(rng, 2, num_bs, num_tasks)
    arrivals = random_arrivals(rng, 2, num_slots, num_bs, num_tasks)
    expected = [plain_pooled_srpt(scenario, arrivals, row, slot_length) for row in range(2)]
    np.testing.assert_allclose(pooled_srpt_bound(scenario, arrivals, slot_length), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_scheduler_is_below_the_lower_bound(seed):
    rng = np.random.default_rng(seed)
    sizes = {"num_bs": int(rng.integers(1, 7)), "num_tasks": int(rng.integers(1, 12)), "num_slots": 9}
    params = make(HeuristicConfig, **sizes, classes=3, fit_steps=20)
    scenario = random_scenario(rng, 1, params.num_bs, params.num_tasks)
    arrivals = random_arrivals(rng, 1, params.num_slots, params.num_bs, params.num_tasks)
    bound = pooled_srpt_bound(scenario, arrivals)[0]
    for build in [*SCHEDULERS.values(), lambda *_: OptTS()]:
        scheduler = build(params, [0], "cpu")
        mean = run_episode(CollaborativeMEC(scenario), scheduler, arrivals, [(0, 0)]).mean[0]
        assert bound <= mean + 1e-12, type(scheduler).__name__

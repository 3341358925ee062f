"""The schedulers without learning: the shares they give to the edge servers, and what must not matter to them."""

import itertools

import numpy as np
import pytest
import torch
from helpers import SCHEDULERS, make, random_arrivals, random_scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baselines.heuristics import CapacityRoundRobin, fill_levels
from baselines.rules import HeuristicConfig
from lad_ts.environment_lad import CollaborativeMEC, Slot, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.references import OptTS
from lad_ts.scheduler import Scheduler


class Watched(Scheduler):
    """Plays another scheduler and keeps its actions at existing tasks as rows (row, BS, task index, ES)."""

    def __init__(self, scheduler: Scheduler, spoil: int | None = None) -> None:
        self.scheduler, self.spoil, self.log = scheduler, spoil, []

    def begin(self, scenario, rows):
        self.scheduler.begin(scenario, rows)

    def act(self, slot: Slot) -> np.ndarray:
        mask = slot.mask.numpy()
        action = np.array(self.scheduler.act(slot))
        self.log.append(np.column_stack([np.argwhere(mask), action[mask]]))
        return action if self.spoil is None else np.where(mask, action, self.spoil)


def watched_run(method: str, **given) -> tuple[np.ndarray, HeuristicConfig, CollaborativeMEC]:
    """One episode's actions at existing tasks, of one row."""
    config = make(HeuristicConfig, **given)
    env = CollaborativeMEC(draw_scenario(config, [0]))
    watched = Watched(SCHEDULERS[method](config, [0], "cpu"))
    run_episode(env, watched, draw_arrivals(config, [(0, 0)]), [(0, 0)])
    return np.concatenate(watched.log)[:, 1:], config, env


def chi_square(es: np.ndarray, probabilities: np.ndarray) -> float:
    expected = len(es) * probabilities
    return float(((np.bincount(es, minlength=len(expected)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("method", ["uniform_random", "capacity_proportional"])
def test_random_schedulers_choose_with_the_right_frequencies(method):
    """Chi-square with 19 degrees of freedom: mean 19, standard deviation 6; 45 is its 99.9 % quantile or so."""
    log, _, env = watched_run(method)
    right, wrong = env.capacity[0].numpy() / env.capacity[0].sum().item(), np.full(20, 1 / 20)
    if method == "uniform_random":
        right, wrong = wrong, right
    assert chi_square(log[:, 2], right) < 45
    assert chi_square(log[:, 2], wrong) > 450
    for b in range(20):  # whatever the BS
        assert chi_square(log[log[:, 0] == b][:, 2], right) < 50


def test_round_robin_keeps_every_share_within_two_turns():
    """From any start and for any length: a server's count differs from its exact share by at most two turns."""
    log, _, env = watched_run("capacity_round_robin")
    share = env.capacity[0].numpy() / env.capacity[0].sum().item()
    for b in range(20):
        chosen = log[log[:, 0] == b][:, 2]
        counts = (chosen[:, None] == np.arange(20)).cumsum(0)
        exact = np.arange(1, len(chosen) + 1)[:, None] * share
        assert np.abs(counts - exact).max() < 2


def test_round_robin_turns_come_in_the_order_in_which_they_are_due():
    """Against a plain search for the next turn: server b's turn j is due at (j + 1/2) / f[b]."""
    capacity = np.array([3.0, 1.0, 7.0, 2.5])
    turns, expected = [0] * 4, []
    for _ in range(300):
        expected.append(min(range(4), key=lambda b: ((turns[b] + 0.5) / capacity[b], b)))
        turns[expected[-1]] += 1
    assert CapacityRoundRobin.sequence(capacity, 300).tolist() == expected


def test_local_only_stays_local():
    log, _, _ = watched_run("local_only", num_bs=4)
    assert (log[:, 2] == log[:, 0]).all()


def test_shortest_queue_takes_a_server_with_the_least_backlog_in_seconds():
    config = make(HeuristicConfig, num_bs=3, num_tasks=200)
    scheduler = SCHEDULERS["shortest_queue"](config, [0], "cpu")
    scenario = draw_scenario(config, [0])
    scheduler.begin(scenario, [(0, 0)])
    backlog = torch.tensor(scenario.capacity) * torch.tensor([2.0, 1.0, 1.0])  # 2 s, 1 s and 1 s
    cells = torch.ones(1, 3, 200, dtype=torch.bool)
    action = scheduler.act(Slot(0, cells, cells.double(), torch.as_tensor(scenario.workload), backlog))
    counts = np.bincount(action.ravel(), minlength=3)
    assert counts[0] == 0 and 240 < counts[1] < 360


amounts = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        arrays(float, n, elements=st.floats(0, 1e4)),
        arrays(float, n, elements=st.just(0.0) | st.floats(0.1, 100)),
        st.floats(1e-3, 1e5),
    )
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(amounts)
def test_fill_levels_makes_the_used_servers_finish_together(case):
    """Work poured by these shares ends everywhere at one level, above which all unused servers' backlogs lie."""
    backlog, capacity, work = case
    able = capacity > 0
    if not able.any():
        return
    share = fill_levels(backlog, capacity, np.array(work))
    assert (share >= 0).all() and share.sum() > 0 and (share[~able] == 0).all()
    poured = work * share / share.sum()
    level = (backlog + poured)[able] / capacity[able]
    used = poured[able] > 0
    scale = 1e-7 * max(1.0, backlog.max() + work)
    assert np.ptp(level[used] * capacity[able][used].min()) < scale
    assert (level[~used] * capacity[able][used].min() > level[used].max() * capacity[able][used].min() - scale).all()
    np.testing.assert_allclose(share.sum(), work, rtol=1e-6, atol=scale)


def test_water_filling_follows_the_backlog():
    """With the mean work of a slot as 2 B Gcycles: by hand, levels and shares of three servers."""
    share = fill_levels(np.array([0.0, 10.0, 100.0]), np.array([10.0, 10.0, 10.0]), np.array(30.0))
    np.testing.assert_allclose(share, [20.0, 10.0, 0.0])


def test_size_interval_separates_classes_and_beats_opt():
    """Each server gets tasks of one size interval only, and the mean of 3 default episodes is below Opt-TS's."""
    log, config, env = watched_run("size_interval")
    groups: list[tuple[set[int], set[int]]] = []  # servers and task indices that were seen together
    for n, es in {(int(n), int(es)) for _, n, es in log}:
        touched = [g for g in groups if n in g[1] or es in g[0]]
        merged = {es}.union(*(g[0] for g in touched)), {n}.union(*(g[1] for g in touched))
        groups = [g for g in groups if g not in touched] + [merged]
    workload = env.workload[0, 0].numpy()
    sizes = sorted((workload[list(tasks)].min(), workload[list(tasks)].max()) for _, tasks in groups)
    assert len(groups) == config.classes == 3
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(sizes))

    rows = [(0, episode) for episode in range(3)]
    scenario, arrivals = draw_scenario(config, [0, 0, 0]), draw_arrivals(config, rows)
    scheduler = SCHEDULERS["size_interval"](config, [0], "cpu")
    ours, opt = (run_episode(CollaborativeMEC(scenario), s, arrivals, rows).mean for s in (scheduler, OptTS()))
    assert (ours < 0.85 * opt).all()


@pytest.mark.parametrize("method", [*SCHEDULERS, "opt"])
def test_actions_of_cells_without_a_task_change_nothing(method):
    rng = np.random.default_rng(0)
    config = make(HeuristicConfig, num_bs=5, num_tasks=6, num_slots=8, fit_steps=20)
    scenario, arrivals = random_scenario(rng, 2, 5, 6), random_arrivals(rng, 2, 8, 5, 6)

    def run(spoil: int | None) -> tuple[np.ndarray, ...]:
        scheduler = OptTS() if method == "opt" else SCHEDULERS[method](config, [0, 1], "cpu")
        watched, env = Watched(scheduler, spoil), CollaborativeMEC(scenario)
        stats = run_episode(env, watched, arrivals, [(0, 0), (1, 0)])
        return np.concatenate(watched.log), stats.mean, stats.max, stats.utilisation, env.backlog.numpy()

    for one, other in zip(run(0), run(4), strict=True):
        assert (one == other).all()


class Rewrites(Scheduler):
    """Sends task n to server n, and writes into everything that it is shown."""

    def __init__(self, honest: bool, kind: type = np.int64) -> None:
        self.honest, self.kind, self.buffer = honest, kind, None

    def act(self, slot: Slot) -> np.ndarray:
        number = np.broadcast_to(np.arange(slot.mask.shape[2]) % self.num_bs, slot.mask.shape)
        if self.honest:
            return number.copy()
        for shown in (slot.backlog, slot.size, slot.workload[:, 0], slot.mask):
            shown.numpy()[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            self.scenario.capacity *= 2
        self.buffer = np.zeros(slot.mask.shape, self.kind) if self.buffer is None else self.buffer
        self.buffer[...] = number
        return self.buffer


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int16])
def test_what_a_scheduler_is_shown_is_not_what_the_simulator_keeps(kind):
    config = make(HeuristicConfig, num_bs=4, num_tasks=6, num_slots=9)
    scenario, rows = draw_scenario(config, [0, 1]), [(0, 0), (1, 0)]
    arrivals = draw_arrivals(config, rows)
    honest, rewriting = (
        run_episode(CollaborativeMEC(scenario), scheduler, arrivals, rows)
        for scheduler in (Rewrites(honest=True), Rewrites(honest=False, kind=kind))
    )
    for name in ("mean", "max", "slowdown", "utilisation", "tasks"):
        np.testing.assert_array_equal(getattr(rewriting, name), getattr(honest, name))

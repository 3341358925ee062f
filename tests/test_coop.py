"""Cooperative LAD-TS: its queue model against the simulator, its parts against plain versions, and its script."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import SCHEDULERS, make, random_arrivals, random_scenario, refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import main_heuristics
from baselines.rules import HeuristicConfig
from coop_lad_ts import main_coop
from coop_lad_ts.congestion import CongestionPrices, measured_costs
from coop_lad_ts.coop_actors import ServerActor, States
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from coop_lad_ts.practice import drawn_scenario, practice_lessons, rehearsed
from coop_lad_ts.queue_model import Objective, QueueModel
from coop_lad_ts.routing_table import RoutingTable, coordinated_uniforms, fit_tables
from coop_lad_ts.view import View
from experiments.trials import Trial, compare_in, misjudged, moved, run_trial, unseen_scenarios
from lad_ts.environment_lad import (
    Arrivals,
    CollaborativeMEC,
    Slot,
    draw_arrivals,
    draw_scenario,
    offered_load,
    presence,
)
from lad_ts.episodes import run_episode
from lad_ts.references import OptTS

TINY = {"num_bs": 4, "num_tasks": 6, "num_slots": 8, "fit_steps": 5, "distil_updates": 4, "batch_states": 4}


@given(seed=st.integers(0, 10**6), seeds=st.integers(1, 3), num_bs=st.integers(1, 5), num_tasks=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_queue_model_is_the_simulator_for_deterministic_routing(seed, seeds, num_bs, num_tasks):
    rng = np.random.default_rng(seed)
    scenario = random_scenario(rng, seeds, num_bs, num_tasks)
    arrivals = random_arrivals(rng, seeds, 9, num_bs, num_tasks)
    action = torch.from_numpy(rng.integers(num_bs, size=arrivals.size.shape))
    env = CollaborativeMEC(scenario)
    slot, delays, backlogs = env.reset(arrivals), [], []
    for t in range(8):
        backlogs.append(slot.backlog)
        delay, slot = env.step(action[:, t])
        delays.append(delay)
    model = QueueModel(scenario)
    mask = env._mask[:, :8]
    one_hot = torch.nn.functional.one_hot(action[:, :8], num_bs).double()
    expected = (model.delays(one_hot, mask, env._size[:, :8]) * one_hot).sum(-1) * mask
    torch.testing.assert_close(expected, torch.stack(delays, 1), rtol=1e-9, atol=1e-9)
    sent = ((mask * model.workload[:, None, None])[..., None] * one_hot).sum((2, 3))
    torch.testing.assert_close(model.backlogs(sent), torch.stack(backlogs, 1), rtol=1e-9, atol=1e-9)


def test_table_delays_are_the_mean_of_all_base_stations_delays():
    """With all tasks present and one input size, averaging the exact model over BSs gives the table's delays."""
    rng = np.random.default_rng(1)
    model = QueueModel(random_scenario(rng, 2, 4, 3))
    table = torch.from_numpy(rng.dirichlet(np.ones(4), (2, 5, 3)))
    every = table[:, :, None].expand(-1, -1, 4, -1, -1)
    mask = torch.ones(2, 5, 4, 3, dtype=torch.bool)
    exact = model.delays(every, mask, torch.full(mask.shape, 3.0)).mean(2)
    count = torch.full((2, 1, 5, 3), 4.0, dtype=torch.float64)
    torch.testing.assert_close(model.table_delays(table, count, 3.0)[:, 0], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean", "tail", "slowdown"])
def test_gradient_is_what_a_small_change_of_the_table_does(kind):
    rng = np.random.default_rng(2)
    model = QueueModel(random_scenario(rng, 1, 3, 4))
    objective = Objective(kind, 5.0, torch.tensor([2.0]))
    count = torch.from_numpy(rng.integers(0, 4, (1, 2, 6, 4))).double()
    logits = torch.from_numpy(rng.normal(size=(1, 6, 4, 3))).requires_grad_()

    def cost(x: torch.Tensor) -> torch.Tensor:
        return model.table_cost(x.softmax(-1), count, 3.0, objective)

    assert torch.autograd.gradcheck(cost, logits, eps=1e-6, atol=1e-5)


def test_a_fitted_table_is_far_below_opt_and_its_load_is_the_environments():
    config = make(HeuristicConfig, fit_steps=300)
    rows = [(900, 0), (901, 0)]
    scenario, arrivals = draw_scenario(config, [0, 0]), draw_arrivals(config, rows)
    work = (np.arange(50) < arrivals.count[..., None]) * scenario.workload[:, None, None]
    load = work.sum((2, 3)).mean(1) / scenario.capacity.sum(1)
    np.testing.assert_allclose(offered_load(config, scenario), load, rtol=0.1)
    env = CollaborativeMEC(scenario)
    table = SCHEDULERS["routing_table"](config, [0], "cpu")
    ours, opt = (run_episode(env, scheduler, arrivals, rows) for scheduler in (table, OptTS()))
    assert (ours.mean < 0.68 * opt.mean).all()
    assert (ours.p95 > opt.p95).all()  # the price


def test_several_scenarios_are_fitted_as_each_alone(monkeypatch):
    config = make(CoopConfig, **TINY)
    scenario = random_scenario(np.random.default_rng(3), 3, 4, 6)
    together, costs = fit_tables(config, scenario, [5, 6, 7], progress=False)
    monkeypatch.setattr("coop_lad_ts.routing_table.FITTED_AT_ONCE", 1)
    alone, costs_alone = fit_tables(config, scenario, [5, 6, 7], progress=False)
    torch.testing.assert_close(together.log_table, alone.log_table, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(costs, costs_alone)


def test_coordinated_draws_keep_probabilities_and_spread_evenly():
    """A server of probability 0.3 gets 300 of 1000 tasks within 8; independent draws would miss by 14 or so."""
    spread = coordinated_uniforms(20, 50)
    offsets = np.random.default_rng(4).random(400)
    hits = ((torch.from_numpy(offsets)[:, None, None] + spread) % 1 < 0.3).double()
    assert (hits.sum((1, 2)) - 300).abs().max() < 8
    assert (hits.mean(0) - 0.3).abs().max() < 0.09  # 4 standard deviations of a mean of 400


def test_prices_count_the_tasks_behind_until_the_queue_is_empty():
    """By hand, one server with 10 Gcycles/s: the queue outlasts slot 0 and is empty after slot 1."""
    column = lambda *x: torch.tensor(x)[None, :, None]  # noqa: E731
    backlog, work, tasks = column(0.0, 5.0, 0.0), column(15.0, 4.0, 20.0), column(6.0, 2.0, 8.0)
    wait, price = measured_costs(backlog, work, tasks, torch.tensor([[10.0]]), 1.0)
    torch.testing.assert_close(price[0, :, 0], torch.tensor([(3 + 2.0) / 10, 1.0 / 10, 4.0 / 10]))
    torch.testing.assert_close(wait[0, :, 0], torch.tensor([0.75, 0.7, 1.0]))


def test_a_table_moves_away_from_what_its_costs_exceed_the_mean(monkeypatch):
    """By hand: one slot and task with workload 2, two servers with costs 1 + 0.5 + 2 and 0.5 + 0.5 + 0."""
    monkeypatch.setattr("coop_lad_ts.congestion.WARM_START", 0)
    table = RoutingTable(torch.full((1, 1, 1, 2), 0.5).log(), torch.zeros(1, 1, 2))
    prices = CongestionPrices(table, rate=0.4, memory=0.5)
    row = lambda *x: torch.tensor(x)[None, None]  # noqa: E731
    prices.learn(row(1.0, 0.5), row(1.0, 0.0), row(3.0, 4.0), row(0.5, 0.5), torch.tensor([[2.0]]))
    rate, advantage = 0.4 / (1 + 1 / 20), torch.tensor([1.25, -1.25])
    torch.testing.assert_close(table.log_table.softmax(-1)[0, 0, 0], (-rate * advantage).softmax(-1))
    assert table.nominal.tolist() == [[[3.0, 4.0]]]
    prices.learn(row(2.0, 0.5), row(1.0, 2.0), row(5.0, 4.0), row(0.5, 0.5), torch.tensor([[2.0]]))
    assert prices.wait.tolist() == [[[1.5, 0.5]]] and prices.price.tolist() == [[[1.0, 1.0]]]
    assert table.nominal.tolist() == [[[4.0, 4.0]]]


@pytest.mark.parametrize("method", ["coop", "routing_table", "virtual_opt"])
@pytest.mark.parametrize("load", [0.8, 1.3])
def test_who_hears_of_a_failure_leaves_the_failed_server_alone(method, load):
    config = make(HeuristicConfig, num_bs=5, num_tasks=10, num_slots=12, fit_steps=20)
    trial = Trial(config, unseen_scenarios(config, [0, 1], 5, load, 3.0), [0, 1], fails_at=6)
    coop = make(CoopConfig, num_bs=5, num_tasks=10, num_slots=12)
    scheduler = CoopAgents(coop, [0, 1], "cpu") if method == "coop" else SCHEDULERS[method](config, [0, 1], "cpu")
    scheduler.training = False
    told, untold = (
        run_trial(dataclasses.replace(trial, told=told), scheduler, 2)[1].max.min() for told in (True, False)
    )
    assert told < 100 < untold


def test_lessons_of_an_episode_may_come_late_but_stay_in_their_slots():
    """As in a live system, whose next episode begins before the last slots of this one are finished."""
    config = make(CoopConfig, **TINY, takeover=0)
    scenario, learned = draw_scenario(config, [0]), []
    env = CollaborativeMEC(scenario)
    for lag in (0, 2):
        agents = CoopAgents(config, [0], "cpu")
        agents.begin(scenario, [(0, 0)])
        slot, lessons = env.reset(draw_arrivals(config, [(0, 0)])), []
        for _ in range(7):
            action = torch.zeros(1, 4, 6, dtype=torch.int64)
            delay, following = env.step(action)
            lessons.append((slot, action, delay, following))
            slot = following
        for lesson in lessons[: 7 - lag]:
            agents.learn(*lesson)
        if lag:
            agents.begin(scenario, [(0, 1)])
        for lesson in lessons[7 - lag :]:
            agents.learn(*lesson)
        assert int(agents.course.recorded) == 1
        learned.append(agents.course.tasks[0, 0])
    assert (learned[0] == learned[1]).all() and (learned[0][0] != learned[0][-1]).any()


@pytest.mark.parametrize("num_bs", [1, 3, 30])
def test_the_shared_network_takes_any_number_of_servers_in_any_order(num_bs):
    config = make(CoopConfig)
    scenario = drawn_scenario(config, 7, num_bs, 1.2, 5.0)
    view = View(config, scenario)
    actor = ServerActor(8, 3, "vp", "cpu")
    theta = actor.draw([torch.Generator().manual_seed(0)], "cpu")
    row, t = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[3, 40]])
    q = torch.rand(1, 2, num_bs, generator=torch.Generator().manual_seed(1)) * 100
    workload = view.workload[:, None, :5].expand(1, 2, 5)
    weights = actor.split(theta)
    x0 = actor.x0(weights, view, States(row, t, workload, q))
    assert x0.shape == (1, 2, 5, num_bs)
    order = torch.randperm(num_bs, generator=torch.Generator().manual_seed(2))
    view.capacity, view.share, view.fixed = (x[:, order] for x in (view.capacity, view.share, view.fixed))
    turned = actor.x0(weights, view, States(row, t, workload, q[..., order]))
    torch.testing.assert_close(turned, x0[..., order], rtol=1e-4, atol=1e-5)


def test_other_tasks_at_each_base_station_are_decided_as_the_same_ones(monkeypatch):
    """The environment's tasks, the same at all BSs, take a shorter way; copied out for each BS, nothing may change."""
    config = make(CoopConfig, **TINY, takeover=0)
    agents = CoopAgents(config, [0], "cpu")
    scenario = draw_scenario(config, [0])
    agents.begin(scenario, [(0, 0)])
    slot = CollaborativeMEC(scenario).reset(draw_arrivals(config, [(0, 0)]))
    copied = Slot(slot.t, slot.mask, slot.size, slot.workload.contiguous(), slot.backlog)
    monkeypatch.setattr("coop_lad_ts.coop_actors.PAIRS_AT_ONCE", 4 * 10)  # parts of 10 cells
    weights, view = agents.weights, agents.view
    short, long = (agents.actor.slot_logits(weights, view, s, s.backlog.float()) for s in (slot, copied))
    assert short.shape == (1, 6, 4) and long.shape == (1, 24, 4)
    assert (agents.act(slot) == agents.act(copied)).all()


def test_agents_learn_to_be_far_below_opt_and_move_to_other_scenarios():
    """Five short episodes; then on a scenario with other servers, and below the load where virtual Opt takes over."""
    config = make(CoopConfig, distil_episodes=4, distil_updates=120, fit_steps=300, tune_updates=2)
    agents = CoopAgents(config, [0], "cpu")
    scenario = draw_scenario(config, [0])
    env, ratios = CollaborativeMEC(scenario), []
    for episode in range(5):
        rows = [(0, episode)]
        ours = run_episode(env, agents, draw_arrivals(config, rows), rows).mean
        ratios.append(float((ours / run_episode(env, OptTS(), draw_arrivals(config, rows), rows).mean)[0]))
    assert ratios[4] < 0.8 < ratios[0]
    other = make(CoopConfig, num_bs=10, num_slots=40)
    busy, idle = (Trial(other, unseen_scenarios(other, [0], 10, load, 3.0), [0]) for load in (1.3, 0.7))
    methods = {"coop": lambda trial: moved(agents, trial.params)}
    assert compare_in(busy, methods, 1)["coop"]["mean"] < 0.9
    assert compare_in(idle, methods, 1)["coop"]["mean"] < 1.15
    wrong = Trial(other, busy.scenario, [0], believed=misjudged(busy.scenario, [0], 0.15), fails_at=20)
    before = busy.scenario.capacity.copy()
    assert compare_in(wrong, methods, 1)["coop"]["mean"] < 1.5
    assert (busy.scenario.capacity == before).all()


class Follows:
    """Agents that do what a table [R, T - 1, N, B] says, whatever the queues."""

    def __init__(self, log_table: torch.Tensor) -> None:
        self.log_table = log_table

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        return [theta]

    def logits(self, weights: list[torch.Tensor], view: View, states: States) -> torch.Tensor:
        return self.log_table[states.row, states.t][:, None]


def test_practice_episodes_bring_about_the_queues_of_whoever_goes_through_them(monkeypatch):
    monkeypatch.setattr("coop_lad_ts.practice.SHAPES", ((3, 9), (5, 6)))
    lessons = practice_lessons(make(CoopConfig, **TINY), "cpu", 4, seeds=2)
    assert [lesson.backlog.shape[2:] for lesson in lessons] == [(8, 3), (5, 5)]
    for lesson in lessons:
        every = torch.arange(lesson.rows.shape[1]).expand(2, -1)
        again = rehearsed(lesson, Follows(lesson.table.log_table), torch.zeros(0), every)
        torch.testing.assert_close(again.backlog, lesson.backlog, rtol=1e-4, atol=1e-3)
        same = rehearsed(lesson, Follows(torch.zeros_like(lesson.table.log_table)), torch.zeros(0), every[:, 1:2])
        work = (same.tasks[..., None] > torch.arange(6)).sum(3) * lesson.view.workload[same.rows][:, :, None]
        q = torch.zeros(2, 1, lesson.view.capacity.shape[1])
        for t in range(same.backlog.shape[2]):  # a plain recursion, where every server gets as much
            torch.testing.assert_close(same.backlog[:, :, t], q)
            q = (q + work[:, :, t].sum(-1, keepdim=True) / q.shape[-1] - lesson.view.capacity[same.rows]).clamp(min=0)


@pytest.mark.parametrize(
    "flags",
    [{"objective": "tail"}, {"objective": "slowdown"}, {"actor": "per_bs"}, {"teacher": "prices"}, {"practice": 3}],
)
def test_every_variant_trains_resumes_to_the_same_bytes_and_evaluates(tmp_path, flags, monkeypatch, no_plots):
    monkeypatch.setattr("coop_lad_ts.practice.SHAPES", ((3, 9), (5, 6)))
    monkeypatch.setattr("coop_lad_ts.congestion.WARM_START", 1)
    options = TINY | flags | {"distil_episodes": 2, "seeds": 2, "checkpoint_every": 1, "takeover": 0}
    words = [f"--{name}={value}" for name, value in options.items()]
    run_here(main_coop, *words, "--episodes=4", f"--out={tmp_path / 'whole'}")
    run_here(main_coop, *words, "--episodes=2", f"--out={tmp_path / 'parts'}")
    run_here(main_coop, f"--resume={tmp_path / 'parts'}", "--episodes=4")
    whole, parts = ((tmp_path / name / "delay.csv").read_bytes() for name in ("whole", "parts"))
    assert whole == parts and whole.count(b"\n") == 9
    run_here(main_coop, f"--evaluate={tmp_path / 'whole' / 'checkpoint.pt'}", "--evaluation_episodes=2")
    summary = json.loads((tmp_path / "whole" / "evaluation_sample" / "summary.json").read_text())
    assert summary["episodes"] == 2 and summary["delay_s"] > 0


def test_virtual_opt_is_close_to_opt_below_capacity():
    config = make(HeuristicConfig, num_tasks=30)
    rows = [(902, 0)]
    env, arrivals = CollaborativeMEC(draw_scenario(config, [0])), draw_arrivals(config, rows)
    virtual = SCHEDULERS["virtual_opt"](config, [0], "cpu")
    ours, opt = (run_episode(env, scheduler, arrivals, rows).mean for scheduler in (virtual, OptTS()))
    assert (ours < 1.1 * opt).all()


def test_virtual_opt_of_the_first_base_station_is_opt():
    """Nobody is before the first BS, so its tasks go where Opt-TS sends them, whatever the others do."""
    config = make(HeuristicConfig, num_bs=4, num_tasks=8, num_slots=6)
    scenario = draw_scenario(config, [0])
    slot = CollaborativeMEC(scenario).reset(draw_arrivals(config, [(0, 0)]))
    virtual, opt = SCHEDULERS["virtual_opt"](config, [0], "cpu"), OptTS()
    for scheduler in (virtual, opt):
        scheduler.begin(scenario, [(0, 0)])
    there = slot.mask[0, 0].numpy()
    assert (np.asarray(virtual.act(slot))[0, 0][there] == opt.act(slot)[0, 0][there]).all()


def test_mistakes_are_told_in_one_line(capsys):
    assert "--practice=3" in refusal(capsys, main_coop, "--practice=3", "--actor=per_bs")
    assert "--objective=least" in refusal(capsys, main_coop, "--objective=least")
    assert "--classes" in refusal(capsys, main_heuristics, "--method=size_interval", "--classes=0")


def test_presence_is_the_share_of_base_stations_with_such_a_task():
    config = make(CoopConfig, num_tasks=7, min_tasks=2)
    count = draw_arrivals(make(CoopConfig, num_tasks=7, min_tasks=2, num_slots=400), [(0, 0)]).count
    np.testing.assert_allclose((count[..., None] > np.arange(7)).mean((0, 1, 2)), presence(config), atol=0.02)


def test_an_episode_without_tasks_teaches_nothing_and_harms_nothing():
    config = make(CoopConfig, **TINY, takeover=0, distil_episodes=0)
    agents = CoopAgents(config, [0], "cpu")
    scenario = draw_scenario(config, [0])
    nothing = Arrivals(np.zeros((1, 8, 4), dtype=np.int64), np.ones((1, 8, 4, 6)))
    before = agents.theta.clone()
    run_episode(CollaborativeMEC(scenario), agents, nothing, [(0, 0)])
    assert int(agents.course.recorded) == 1 and int(agents.course.adam.count) == config.tune_updates
    assert torch.equal(agents.theta, before)

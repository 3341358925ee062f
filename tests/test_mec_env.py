"""The environment for other libraries: equal to the simulator, and careful with what it is given."""

import re

import numpy as np
import pytest
import torch
from helpers import make
from hypothesis import given, settings
from hypothesis import strategies as st

from common.parameters import ParameterError
from common.random_streams import Stream
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.observation import KINDS, observe
from mec_env.vector import MECVector

SMALL = {"num_bs": 4, "num_tasks": 6, "min_tasks": 0, "num_slots": 6}


def played(env: MECVector, actions: np.ndarray) -> dict[tuple[int, int, int, int], float]:
    """The delay of every task (environment, slot, BS, number), by actions [T - 1, S, B, N]; one episode."""
    delays, (_, info) = {}, env.reset()
    for t, action in enumerate(actions):
        mask = info["mask"]
        _, _, _, _, info = env.step(action)
        delays |= {(s, t, b, n): info["delay"][s, b, n] for s, b, n in np.argwhere(mask)}
    return delays


def played_by_tasks(env: MECVector, actions: np.ndarray) -> dict[tuple[int, int, int, int], float]:
    delays, (_, info) = {}, env.reset()
    row, over = np.arange(env.num_envs), np.zeros(env.num_envs, bool)
    while not over.all():
        t, b, n = info["slot"], info["station"], info["task"]
        _, reward, _, truncated, info = env.step(actions[np.minimum(t, len(actions) - 1), row, b, n])
        delays |= {(s, t[s], b[s], n[s]): info["delay"][s] for s in row[~over]}
        assert np.allclose(reward, -info["delay"])
        over |= truncated
    return delays


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), envs=st.integers(1, 4), bursty=st.booleans())
def test_steps_by_slot_and_by_task_are_those_of_the_simulator(seed, envs, bursty):
    given_ = SMALL | {"arrivals": "bursty" if bursty else "uniform"}
    by_slot, by_task = (MECVector(envs, seed=seed, per=per, **given_) for per in ("bs", "task"))
    actions = np.random.default_rng(seed).integers(0, 4, (5, envs, 4, 6))
    seeds = list(range(seed, seed + envs))
    env = CollaborativeMEC(draw_scenario(by_slot.params, seeds))
    slot, delays = env.reset(draw_arrivals(by_slot.params, [(s, 0) for s in seeds])), {}
    for t, action in enumerate(actions):
        delay, following = env.step(torch.from_numpy(action))
        delays |= {(s, t, b, n): float(delay[s, b, n]) for s, b, n in np.argwhere(slot.mask.numpy())}
        slot = following
    assert played(by_slot, actions) == delays
    assert played_by_tasks(by_task, actions) == delays


def test_tasks_of_a_file_have_their_own_work_at_either_pace(tmp_path):
    rng, place = np.random.default_rng(0), tmp_path / "tasks.csv"
    rows = [
        f"{t:.2f},{b},{d:.2f},{z}"
        for t, b, d, z in zip(
            rng.uniform(0, 60, 400),
            rng.integers(0, 4, 400),
            rng.uniform(2, 5, 400),
            rng.integers(1, 15, 400),
            strict=True,
        )
    ]
    place.write_text("\n".join(["time_s,base_station,input_mbit,steps", *rows]))
    by_slot, by_task = (
        MECVector(2, per=per, arrivals=str(place), **SMALL | {"num_tasks": 12}) for per in ("bs", "task")
    )
    actions = rng.integers(0, 4, (5, 2, 4, 12))
    delays = played(by_slot, actions)
    assert delays and played_by_tasks(by_task, actions) == delays


@pytest.mark.parametrize("kind", KINDS)
def test_observations_are_what_learners_see_where_there_is_a_task(kind):
    env = MECVector(2, observation=kind, seed=3, **SMALL)
    agents = LadAgents(make(LadConfig, state_features=kind, **SMALL), [3, 4], "cpu")
    seen, info = env.reset()
    agents.begin(env.scenario, [(3, 0), (4, 0)])
    for _ in range(4):
        slot, mask = env.slot(), info["mask"]
        assert seen.dtype == np.float32 and seen.shape == env.observation_space.shape
        assert (seen[mask] == agents.features(slot).numpy()[mask]).all()
        assert (seen[mask] == observe(slot, env.scenario, kind, env.scales).numpy()[mask]).all()
        assert (seen[~mask][:, :2] == 0).all()
        seen, _, _, _, info = env.step(np.ones((2, 4, 6), np.uint8))


def test_a_central_agent_sees_what_was_sent_earlier_in_the_slot():
    shown, hidden = (MECVector(1, per="task", observation="raw", in_slot=seen, **SMALL) for seen in (True, False))
    (first, info), _ = shown.reset(seed=1), hidden.reset(seed=1)
    sent = np.zeros(4)
    for _ in range(5):
        t, work = info["slot"][0], float(first[0, 1])
        first, _, _, _, info = shown.step(np.array([2]))
        plain = hidden.step(np.array([2]))[0]
        sent = sent + work * (np.arange(4) == 2) if info["slot"][0] == t else np.zeros(4)
        assert np.allclose(first[0, 2:] - plain[0, 2:], sent, atol=1e-4)


@pytest.mark.parametrize("per", ["bs", "task"])
def test_an_episode_ends_by_truncation_and_goes_on_or_refuses(per):
    going, ending = (MECVector(2, per=per, autoreset=auto, **SMALL) for auto in (True, False))
    action = np.zeros((2, 4, 6) if per == "bs" else 2, int)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        ending.step(action)
    going.reset(seed=5), ending.reset(seed=5)
    ended, finals = np.zeros(2, bool), {}
    while not ended.all():
        seen, _, terminated, truncated, info = going.step(action)
        last = ending.step(action)[0]
        assert not terminated.any()
        for row in (truncated & ~ended).nonzero()[0]:
            finals[row] = (info["final_observation"][row], last[row])
        ended |= truncated
    assert all((ours == theirs).all() for ours, theirs in finals.values())
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        ending.step(action)
    if per == "bs":  # the next episode's arrivals are those of a training
        arrivals = draw_arrivals(going.params, [(5, 1), (6, 1)])
        assert (info["mask"].sum(2) == arrivals.count[:, 0]).all()
    assert (ending.reset(seed=5, options={"episode": 1})[0] == seen).all() or per == "task"


def test_what_is_returned_is_the_callers_own():
    mine, other = MECVector(1, seed=2, output="torch", **SMALL), MECVector(1, seed=2, output="torch", **SMALL)
    for step in range(12):
        action = torch.full((1, 4, 6), step % 4)
        results = [env.reset() if step == 0 else env.step(action) for env in (mine, other)]
        seen, info = results[1][0], results[1][-1]
        for ours, theirs in zip((results[0][0], *results[0][-1].values()), (seen, *info.values()), strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
        for values in (results[0][0], *results[0][-1].values(), action):  # spoil one environment's results
            torch.as_tensor(values).fill_(0)
    seen.requires_grad_().sum().backward()  # an ordinary tensor


def test_seeds_and_options_choose_arrivals_and_scenario():
    env = MECVector(2, seed=7, **SMALL)
    counts = env.reset()[1]["mask"].sum(2)
    for options, rows, stream in (
        (None, [(7, 1), (8, 1)], Stream.TRAINING_ARRIVALS),
        ({"episode": 9, "held_out": True}, [(7, 9), (8, 9)], Stream.HELD_OUT_ARRIVALS),
    ):
        counts = env.reset(options=options)[1]["mask"].sum(2)
        assert (counts == draw_arrivals(env.params, rows, stream).count[:, 0]).all()
    before = env.scenario.capacity
    env.reset(seed=[3, 3], options={"scenario_seed": 11, "held_out": False})
    assert (env.scenario.capacity != before).any() and env.seeds == [3, 3]
    per_seed = MECVector(2, scenario_per_seed=True, **SMALL)
    per_seed.reset(seed=[5, 6])
    assert (per_seed.scenario.capacity == draw_scenario(per_seed.params, [5, 6]).capacity).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per": "slot"}, "per=slot: must be one of bs, task"),
        ({"observation": "all"}, "observation=all"),
        ({"num_envs": 0}, "num_envs=0"),
        ({"in_slot": True}, "in_slot=True"),
        ({"per": "task", "reward": "team"}, "reward=team"),
        ({"scenario": "huge"}, "scenario=huge"),
        ({"num_bs": 0}, "num_bs=0"),
        ({"seed": [1, 2]}, "seed="),
    ],
)
def test_values_that_are_not_allowed_are_named(change, words):
    with pytest.raises(ParameterError, match=re.escape(words)):
        MECVector(**change)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros((1, 4, 5), int), "shape"),
        (np.zeros((1, 4, 6)), "must be integers"),
        (np.zeros((1, 4, 6), bool), "must be integers"),
        (torch.zeros(1, 4, 6), "must be integers"),
        (np.full((1, 4, 6), 4), "must be within 0..3"),
        (np.full((1, 4, 6), -1), "must be within 0..3"),
    ],
)
def test_wrong_actions_change_nothing(action, words):
    env, untouched = (MECVector(1, **SMALL | {"min_tasks": 3}) for _ in range(2))
    env.reset(), untouched.reset()
    with pytest.raises(ValueError, match=words):
        env.step(action)
    good = np.where(env.slot().mask.numpy(), 1, -1)  # any number may stand where there is no task
    assert (env.step(good)[0] == untouched.step(np.maximum(good, 0))[0]).all()


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("reward", ["mean", "sum", "team"])
def test_rewards_are_minus_delays(reward, output):
    env = MECVector(2, reward=reward, output=output, **SMALL)
    mask = env.reset()[1]["mask"]
    _, found, _, _, info = env.step(np.zeros((2, 4, 6), int))
    assert tuple(found.shape) == (2, 4)
    found, mask, info["delay"] = (np.asarray(values) for values in (found, mask, info["delay"]))
    for s in range(2):
        for b in range(4):
            mine = info["delay"][s, b][mask[s, b]]
            wanted = {
                "mean": mine.mean() if mine.size else 0.0,
                "sum": mine.sum() / 6,
                "team": info["delay"][s][mask[s]].mean(),
            }[reward]
            assert found[s, b] == pytest.approx(-wanted, rel=1e-5)


def test_what_is_refused_changes_nothing_and_episodes_without_a_task_are_passed_over():
    env, untouched = (MECVector(2, seed=1, **SMALL) for _ in range(2))
    for options, seed in (
        ({"scenario_seed": -1}, 7),
        ({"held_out": "no"}, 7),
        ({"episode": 2.5, "held_out": True}, None),
        ({"episodes": 2}, 7),
        (None, 1.0),
        (None, "12"),
        (None, [1]),
    ):
        with pytest.raises(ParameterError):
            env.reset(seed=seed, options=options)
    assert (env.reset()[0] == untouched.reset()[0]).all()

    rare = SMALL | {"arrivals": "poisson", "arrival_mean": 0.02}
    for seed in range(4):
        env = MECVector(3, per="task", seed=seed, **rare)
        env.reset()
        for _ in range(20):
            env.step(np.zeros(3, int))
    with pytest.raises(RuntimeError, match="no task"):
        MECVector(1, per="task", **SMALL | {"arrivals": "poisson", "arrival_mean": 1e-9}).reset()

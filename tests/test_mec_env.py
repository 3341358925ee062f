"""The environment for other libraries: equal to the simulator, accepted by outside judges, and trained through."""

import re
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from helpers import make, refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test, parallel_seed_test
from pettingzoo.utils import parallel_to_aec
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import mec_env.registration as registration
from baselines import main_heuristics
from common.parameters import ParameterError
from common.random_streams import Stream
from common.run_folder import read_csv
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.observation import KINDS, observe
from mec_env import example_gymnasium, example_pettingzoo, example_sb3, example_vector
from mec_env.gymnasium_env import CentralEnv, StationEnv
from mec_env.gymnasium_vector import MECVectorEnv
from mec_env.pettingzoo_env import MECParallel
from mec_env.sb3_vec_env import MECVecEnv
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


@pytest.fixture
def strict():
    """Warnings are mistakes, but those that the judges themselves cannot do without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="options not used: options")  # parallel_api_test gives that one
        warnings.filterwarnings("ignore", message=".*Box observation space m.*infinity")  # delays have no bound
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def test_pettingzoo_accepts_it(strict, capsys):
    parallel_api_test(MECParallel(**SMALL), num_cycles=30)
    parallel_seed_test(lambda: MECParallel(**SMALL), num_cycles=30)


def test_gymnasium_accepts_it(strict):
    for env in (CentralEnv(**SMALL), CentralEnv(per="bs", **SMALL), StationEnv(station=2, **SMALL)):
        check_env(env, skip_render_check=True)
    sb3_check_env(CentralEnv(**SMALL))


def test_named_scenarios_are_registered():
    names = registration.register()
    assert len(names) == len(set(names)) and "DEdgeAI/Central-light-v0" in names
    env = gymnasium.make("mec_env.registration:DEdgeAI/Station-small-v0", station=3, others="local_only")
    assert env.reset(seed=1)[0].shape == env.observation_space.shape == (50, 8)
    vector = gymnasium.make_vec("DEdgeAI/CentralSlot-small-v0", 3, vectorization_mode="vector_entry_point")
    assert isinstance(vector.unwrapped, MECVectorEnv)
    vector.reset(seed=1)
    assert vector.step(vector.action_space.sample())[1].shape == (3,)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("per", ["task", "bs"])
def test_vector_environments_are_single_ones_beside_each_other(mode, per):
    vector = MECVectorEnv(2, per=per, autoreset_mode=mode, **SMALL)
    singles = [CentralEnv(per=per, **SMALL) for _ in range(2)]
    seen, _ = vector.reset(seed=4)
    alone, over, rng = (
        [env.reset(seed=4 + i)[0] for i, env in enumerate(singles)],
        [False, False],
        np.random.default_rng(0),
    )
    ends = 0
    for _ in range(200):
        assert (seen == np.stack(alone)).all()
        action = rng.integers(0, 4, vector.action_space.shape)
        seen, reward, _, truncated, info = vector.step(action)
        for i, env in enumerate(singles):
            if over[i]:  # as Gymnasium's NEXT_STEP says
                alone[i], over[i] = env.reset()[0], False
                assert reward[i] == 0 and not truncated[i]
                continue
            alone[i], one, _, over[i], _ = env.step(action[i])
            assert one == reward[i] and over[i] == truncated[i]
            ends += over[i]
            if over[i] and mode is AutoresetMode.SAME_STEP:
                assert (info["final_obs"][i] == alone[i]).all()
                alone[i], over[i] = env.reset()[0], False
    assert ends > 2


def test_wrappers_of_the_libraries_take_it():
    for vector in (
        wrappers.vector.RecordEpisodeStatistics(MECVectorEnv(2, **SMALL)),
        wrappers.vector.NormalizeObservation(MECVectorEnv(2, per="bs", **SMALL)),
    ):
        vector.reset(seed=0)
        assert np.isfinite(vector.step(vector.action_space.sample())[1]).all()
    agents = parallel_to_aec(MECParallel(**SMALL))
    agents.reset(seed=1)
    assert agents.observe("bs_0").shape == (6, 7)
    env = VecMonitor(VecNormalize(MECVecEnv(1, **SMALL)))
    A2C("MlpPolicy", env, n_steps=3, device="cpu").learn(3 * env.num_envs)
    PPO("MlpPolicy", CentralEnv(per="bs", **SMALL), n_steps=5, batch_size=5, device="cpu").learn(5)
    DQN("MlpPolicy", CentralEnv(**SMALL), learning_starts=5, device="cpu").learn(20)


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


def test_adapters_name_what_is_wrong():
    agents = MECParallel(**SMALL)
    for call in (agents.state, lambda: agents.step({}), lambda: MECVecEnv(1, **SMALL).step(np.zeros(24, int))):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            call()
    agents.reset()
    good = {agent: np.zeros(6, int) for agent in agents.agents}
    for wrong, words in ((good | {"bs_1": np.zeros(5, int)}, "bs_1"), (good | {"xx": good["bs_0"]}, "xx")):
        with pytest.raises(ValueError, match=words):
            agents.step(wrong)
    with pytest.raises(ValueError, match=r"station 1\.5"):
        StationEnv(station=1.5, **SMALL)
    env = MECVecEnv(1, **SMALL)
    env.set_options({"held_out": True})
    held_out, direct = env.reset(), MECVector(1, **SMALL).reset(options={"held_out": True})[0]
    assert (held_out == direct.reshape(24, -1)).all()


def test_the_other_stations_follow_their_rule():
    env = StationEnv(station=1, others="local_only", **SMALL | {"min_tasks": 6})
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.full(6, 1))
    mec = MECVector(1, **SMALL | {"min_tasks": 6})
    mec.reset(seed=0)
    all_local = np.repeat(np.arange(4), 6).reshape(1, 4, 6)
    assert (mec.step(all_local)[-1]["delay"][0, 1] == info["delay"]).all()


def test_ppo_learns_and_its_policy_is_a_method(tmp_path, capsys, monkeypatch):
    """Its file decides as FILE.py:Class, with the probabilities that Stable-Baselines3 itself finds."""
    monkeypatch.chdir(tmp_path)
    env = MECVecEnv(2, "small", seed=3, num_tasks=6, num_slots=8)
    model = PPO("MlpPolicy", env, gamma=0.0, n_steps=7, batch_size=84, learning_rate=3e-3, seed=0, device="cpu")
    model.learn(7 * env.num_envs * 2)
    model.save("ppo.zip")
    Path("mine.py").write_text(
        "from mec_env.policies import SB3Scheduler\n\n\nclass Mine(SB3Scheduler):\n    path = 'ppo.zip'\n"
    )
    flags = ("--scenario", "small", "--num_tasks", 6, "--num_slots", 8, "--episodes", 3)
    run_here(main_heuristics, "--method", "mine.py:Mine", *flags, "--out", "run")
    assert len(read_csv(Path("run/delay.csv"))) == 3

    from baselines.own import own_class

    ours = own_class("mine.py:Mine", "method")[0]()
    seen = torch.from_numpy(env.reset())
    theirs = model.policy.get_distribution(seen).distribution.probs
    assert torch.allclose(ours.probabilities(seen), theirs, atol=1e-6)
    Path("mine.py").write_text(Path("mine.py").read_text() + "    kind = 'raw'\n")
    assert "Mine takes 8 numbers" in refusal(capsys, main_heuristics, "--method", "mine.py:Mine", *flags)


def test_examples_run(tmp_path, capsys):
    run_here(example_pettingzoo, "--episodes", 1, "--scenario", "small")
    run_here(example_gymnasium, "--decisions", 300)
    run_here(example_vector, "--updates", 5, "--num_envs", 4)
    run_here(example_sb3, "--episodes", 1, "--scenario", "small", "--policy", tmp_path / "ppo.zip")
    assert (tmp_path / "ppo.zip").is_file() and "mean delay" in capsys.readouterr().out

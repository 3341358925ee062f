"""Adapters of the environment: accepted by outside judges, trained through, and their policies compared."""

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from helpers import refusal, run_here
from pettingzoo.test import parallel_api_test, parallel_seed_test
from pettingzoo.utils import parallel_to_aec
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import mec_env.registration as registration
from baselines import main_heuristics
from common.tables import read_csv
from mec_env import example_gymnasium, example_pettingzoo, example_sb3, example_vector
from mec_env.gymnasium_env import CentralEnv, StationEnv
from mec_env.gymnasium_vector import MECVectorEnv
from mec_env.pettingzoo_env import MECParallel
from mec_env.sb3_vec_env import MECVecEnv
from mec_env.vector import MECVector

SMALL = {"num_bs": 4, "num_tasks": 6, "min_tasks": 0, "num_slots": 6}


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

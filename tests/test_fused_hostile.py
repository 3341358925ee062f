"""The fused engine where something is wrong: numbers, slots, copies, and what compiles."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make
from test_fused import build, copied, difference, episode

from common.compiled import compiler, place
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import play

ROOT = Path(__file__).resolve().parent.parent
METHODS = ["lad", "lad x0", "sac", "d2sac", "dqn"]


def policy(agents: Any) -> torch.Tensor:
    """The parameters that decide."""
    return agents.theta if hasattr(agents, "theta") else agents.theta_actor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_shows_in_what_is_measured(method, value):
    """A rectified unit must not make 0 of NaN, and an agent that is ill must not touch the others."""
    agents, config, env = build(method, "fused")
    episode(agents, config, env, 0)
    agents.metrics.take()
    policy(agents)[:, 5] = value
    agents.engine.update(torch.tensor([2]))
    measured = agents.metrics.take()
    assert all(np.isnan(measured[name]).any() for name in measured if name != "temperature" and name != "entropy")
    assert not agents.finite() and policy(agents)[0, 6:].isfinite().all()
    episode(agents, config, env, 1)  # and none of the actions is beyond the servers


@pytest.mark.parametrize("method", ["lad", "lad paper", "sac", "dqn"])
def test_slots_that_do_not_fit_are_refused(method):
    """As torch does, where compiled functions would read and write beyond their arrays."""
    for change in ({"num_bs": 6}, {"num_bs": 4}, {"num_tasks": 10}, {"num_tasks": 8}, {"num_slots": 14}):
        if method in ("sac", "dqn") and "num_bs" not in change:
            continue  # agents without a memory take any number of tasks
        agents, _, _ = build(method, "fused")
        config = make(type(agents.params), **{**vars_of(agents.params), **change, "engine": "torch"})
        env = CollaborativeMEC(draw_scenario(config, agents.seeds), "cpu")
        with pytest.raises((ValueError, IndexError), match="slot"):
            episode(agents, config, env, 0)


def vars_of(params: Any) -> dict[str, Any]:
    """The sizes of parameters."""
    return {name: getattr(params, name) for name in ("num_bs", "num_tasks", "num_slots", "seeds", "hidden")}


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_actions_that_are_no_servers_are_refused(wrong):
    agents, config, env = build("sac", "fused")
    rows = [(seed, 0) for seed in agents.seeds]
    slot, action, delay, following, _ = next(play(env, agents, draw_arrivals(config, rows), rows))
    action[1, 2, 0] = wrong
    with pytest.raises(IndexError, match=r"servers 0\.\.4"):
        env.step(action)
    before = agents.replay.rows.clone()
    with pytest.raises(ValueError, match="from 0 to 4"):
        agents.learn(slot, action, delay, following)
    with pytest.raises(ValueError, match="fit"):
        env.step(action[:, :, 1:])
    assert torch.equal(before, agents.replay.rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["lad", "dqn"])
def test_a_copy_of_agents_learns_on_its_own(method, threads):
    """And so do agents whose tensors are exchanged."""
    agents, config, env = build(method, "fused", threads=threads)
    for number in range(2):
        episode(agents, config, env, number)
    other, fresh = copy.deepcopy(agents), copied(agents, method, "fused", threads=threads)
    before = {name: tensor.clone() for name, tensor in agents.state_dict().items()}
    for one in (other, fresh):
        episode(one, config, env, 2)
    assert difference(other, fresh) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in agents.state_dict().items())
    agents.replay.rows = agents.replay.rows.clone()
    held = agents.replay.rows.clone()
    episode(agents, config, env, 2)
    assert difference(agents, fresh) == 0 and not torch.equal(held, agents.replay.rows)


def test_what_is_written_into_a_slot_or_given_to_agents_is_seen():
    """What the engine keeps of slots and tensors must not outlive them: the same slot is decided three times."""
    agents, config, env = build("sac", "fused")
    rows = [(seed, 0) for seed in agents.seeds]
    slot = env.reset(draw_arrivals(config, rows))
    agents.begin(env.scenario, rows)
    found = []
    for change in range(4):
        if change == 1:
            slot.backlog[:, 0] += 1e4
        elif change == 2:
            slot.size.mul_(50)
        elif change == 3:
            agents.theta_actor.data = -agents.theta_actor
        agents.draws.calls[:] = 0
        found.append(agents.act(slot))
        agents.draws.calls[:] = 0
        fresh = copied(agents, "sac", "fused")
        fresh.draws.keys[:] = agents.draws.keys
        fresh._capacity, fresh.scenario = agents._capacity, agents.scenario
        assert torch.equal(found[-1], fresh.act(slot))
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(found))


@pytest.mark.parametrize("method", ["lad", "dqn"])
def test_an_episode_in_inference_mode_is_the_same(method):
    """Where torch does not count what is written into tensors."""
    found = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            agents, config, env = build(method, "fused")
            found.append([episode(agents, config, env, number) for number in range(2)])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("broken", "words"),
    [("import", "numba cannot be imported, it wants another numpy"), ("switch", "NUMBA_DISABLE_JIT")],
)
def test_where_numba_compiles_nothing_torch_computes(tmp_path, broken, words):
    """And the fused engine is refused in one line."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if broken == "switch":
        env["NUMBA_DISABLE_JIT"] = "1"
    else:
        stub = tmp_path / "numba" / "__init__.py"
        stub.parent.mkdir()
        stub.write_text("raise ImportError('it wants\\nanother numpy')\n")
        env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    code = (
        "import torch; from common.parameters import ParameterError\n"
        "from baselines.model_sac import SACAgents, SACConfig\n"
        "from lad_ts.engines import compiled_fill, with_engine\n"
        "config, words = with_engine(SACConfig().checked(), SACAgents, torch.device('cpu'))\n"
        "print(config.engine, words, compiled_fill())\n"
        "try: SACAgents(SACConfig(engine='fused').checked(), [0], 'cpu')\n"
        "except ParameterError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"torch engine torch: {words}") and first.endswith("None")
    assert second.startswith("--engine=fused: must be torch or auto: " + words)


def made_of(x):
    """Something to compile."""
    return x * 3 + 1


@pytest.mark.parametrize("damage", ["none", "cut", "zeros", "flip", "empty", "mixed"])
def test_damaged_code_is_compiled_anew(tmp_path, damage):
    """Machine code that is not what was compiled would end the process."""
    place.cache_clear()
    compiled = compiler(tmp_path)
    first = compiled()(made_of)
    assert first(2) == 7 and first(0.5) == 2.5
    one, two = sorted(tmp_path.rglob("*.nbc"))
    whole, half = one.read_bytes(), one.stat().st_size // 2
    if damage == "mixed":  # as by two processes that name what they have compiled at once
        one.write_bytes(two.read_bytes())
    else:
        flipped = bytes([whole[half] ^ 4])
        told = {"none": whole, "cut": whole[:half], "empty": b"", "zeros": bytes(len(whole))}
        one.write_bytes(told.get(damage, whole[:half] + flipped + whole[half + 1 :]))
    again = compiled()(made_of)
    assert again(2) == 7
    assert sum(again.stats.cache_hits.values()) == (damage == "none")
    assert again(0.5) == 2.5


def test_code_that_cannot_be_kept_is_used_nevertheless(tmp_path, monkeypatch):
    """On a full disk, or in a folder that only seems to be one that can be written."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    place.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("numba.core.caching.os.replace", full)
    assert compiler(tmp_path)()(made_of)(2) == 7
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "numba" in path.name]

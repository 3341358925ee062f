"""The fused engine against the torch one: decisions, transitions, updates and whole episodes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make, random_arrivals, random_scenario, refusal, run_here

from baselines import main_dqn
from baselines.model_d2sac import D2SACAgents, D2SACConfig
from baselines.model_dqn import DQNAgents, DQNConfig
from baselines.model_sac import SACAgents, SACConfig
from common.parameters import ParameterError
from coop_lad_ts.coop_actors import ServerActor, States
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from coop_lad_ts.view import View
from lad_ts import engines, main_lad
from lad_ts.engines import with_engine
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import play, run_episode
from lad_ts.model_lad import LadAgents, LadConfig

SMALL = {"num_bs": 5, "num_tasks": 9, "num_slots": 12, "seeds": 2, "hidden": 11, "learning_start": 30}
METHODS = {
    "lad": (LadConfig, LadAgents, {}),
    "lad paper": (LadConfig, LadAgents, {"preset": "paper"}),
    "lad x0": (LadConfig, LadAgents, {"memory": "x0", "noise_softmax": False, "denoising_steps": 2}),
    "lad standardised": (LadConfig, LadAgents, {"memory": "x0_standardised", "posterior_noise": False}),
    "sac": (SACConfig, SACAgents, {"state_features": "scaled"}),
    "sac paper": (SACConfig, SACAgents, {"preset": "paper"}),
    "d2sac": (D2SACConfig, D2SACAgents, {"denoising_steps": 3}),
    "d2sac paper": (D2SACConfig, D2SACAgents, {"preset": "paper", "beta_schedule": "cosine"}),
    "dqn": (DQNConfig, DQNAgents, {"target_every": 7, "epsilon": 0.2}),
    "dqn paper": (DQNConfig, DQNAgents, {"preset": "paper"}),
}


def build(method: str, engine: str, **given: Any) -> tuple[Any, Any, CollaborativeMEC]:
    """Agents of a method, their parameters and their environment."""
    config_class, agents_class, more = METHODS[method]
    config = make(config_class, **SMALL | more | given | {"engine": engine})
    seeds = list(range(config.seed, config.seed + config.seeds))
    agents = agents_class(config, seeds, "cpu")
    env = CollaborativeMEC(draw_scenario(config, seeds), "cpu", config.slot_length)
    env.compiled = engine == "fused"
    return agents, config, env


def episode(agents: Any, config: Any, env: CollaborativeMEC, number: int) -> np.ndarray:
    """The mean delays [S] of an episode."""
    rows = [(seed, number) for seed in agents.seeds]
    return run_episode(env, agents, draw_arrivals(config, rows), rows).mean


def difference(one: Any, other: Any) -> float:
    """How far two agents' tensors are apart, as the root of mean squares, relative to that of the tensor's numbers.

    Single numbers may differ by more: Adam divides by gradients that are little else than roundings.
    """
    pairs = [
        (a.double(), b.double()) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    ]
    return max(float((a - b).norm() / a.norm().clamp(min=1e-30)) for a, b in pairs)


def copied(agents: Any, method: str, engine: str, **given: Any) -> Any:
    """The same agents with another engine, in the same episode."""
    other, _, _ = build(method, engine, **given)
    other.load_state_dict({name: tensor.clone() for name, tensor in agents.state_dict().items()})
    other.scenario, other._capacity = agents.scenario, agents._capacity
    other.draws.begin(3, [(seed, 5) for seed in other.seeds])
    return other


@pytest.mark.parametrize("given", [{}, {"batch_size": 100, "hidden": 16, "num_bs": 8, "num_tasks": 70}])
@pytest.mark.parametrize("method", METHODS)
def test_updates_are_the_same(method, given):
    """One within 1e-5, 21 within 1e-4, and what is measured of them."""
    agents, config, env = build(method, "torch", **given)
    for number in range(2):
        episode(agents, config, env, number)
    slow, fast = (copied(agents, method, engine, **given) for engine in ("torch", "fused"))
    for turn in range(21):
        slow.update(slow.replay.take(slow.draw("uniform", config.batch_size)), None)
        fast.engine.update(None)
        assert difference(slow, fast) < (1e-5 if turn == 0 else 1e-4), turn
    measured, found = slow.metrics.take(), fast.metrics.take()
    for name, values in measured.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    assert difference(agents, fast) > 1e-3  # they did learn


@pytest.mark.parametrize("method", METHODS)
def test_agents_that_wait_stay_as_they_are(method):
    agents, config, env = build(method, "torch")
    episode(agents, config, env, 0)
    slow, fast = (copied(agents, method, engine) for engine in ("torch", "fused"))
    learning = torch.tensor([1, 3])  # of the first of two seeds with five agents each
    for one in (slow, fast):
        one.draws.drawing[:] = [True, False]
    slow.update(slow.replay.take(slow.draw("uniform", config.batch_size)), learning)
    fast.engine.update(learning)
    assert difference(slow, fast) < 1e-5
    waiting = [g for g in range(10) if g not in learning.tolist()]
    name = "theta" if method.startswith("dqn") else "theta_actor"
    before, after = agents.state_dict()[name], fast.state_dict()[name]
    assert torch.equal(before[waiting], after[waiting]) and not torch.equal(before[learning], after[learning])
    assert (fast.draws.calls == slow.draws.calls).all()


@pytest.mark.parametrize("method", METHODS)
def test_slots_are_the_same(method):
    """Actions, delays, memory and replay of an episode that is not learnt from, and of one that fills the replay."""
    found = []
    for engine in ("torch", "fused"):
        agents, config, env = build(method, engine, learning_start=900, replay_capacity=1000)
        rows = [(seed, 4) for seed in agents.seeds]
        told = [
            (action.clone(), delay, slot.mask)
            for slot, action, delay, _, _ in play(env, agents, draw_arrivals(config, rows), rows)
        ]
        found.append((told, agents))
    for (action, delay, mask), (other, late, _) in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(action[mask], other[mask]) and torch.equal(delay, late)
    assert difference(found[0][1], found[1][1]) < 1e-5
    assert torch.equal(found[0][1].replay.written, found[1][1].replay.written)


@pytest.mark.parametrize("method", ["lad", "sac", "d2sac", "dqn"])
def test_episodes_are_the_same_whatever_seeds_and_threads_there_are(method):
    """To the last bit; and the torch engine's first episodes are the same, until roundings have grown."""

    def delays(engine: str, threads: int = 1, **given: Any) -> np.ndarray:
        agents, config, env = build(method, engine, threads=threads, **given)
        return np.array([episode(agents, config, env, number) for number in range(3)])

    whole = delays("fused")
    assert np.array_equal(delays("fused", threads=2), whole) and np.array_equal(delays("fused", threads=3), whole)
    assert np.array_equal(delays("fused", seeds=1), whole[:, :1])
    assert np.array_equal(delays("fused", seeds=1, seed=1), whole[:, 1:])
    slow = delays("torch")
    np.testing.assert_allclose(slow[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(slow, whole, rtol=0.05)


@pytest.mark.parametrize("own", [False, True])
def test_a_slot_of_the_simulator_is_the_same_to_the_last_bit(own):
    """With the same tasks at every BS, and with tasks of their own."""
    rng = np.random.default_rng(0)
    scenario, arrivals = random_scenario(rng, 3, 4, 6), random_arrivals(rng, 3, 8, 4, 6)
    envs = [CollaborativeMEC(scenario, "cpu", 0.7) for _ in range(2)]
    envs[1].compiled = True
    slots = [env.reset(arrivals) for env in envs]
    if own:
        parts = [torch.from_numpy(rng.uniform(1, 5, (3, 8, 4, 6))) for _ in range(2)]
        for env in envs:
            env.own_tasks = (parts[0], parts[1])
    for _ in range(7):
        action = torch.from_numpy(rng.integers(0, 4, slots[0].mask.shape))
        (delay, slot), (fast, other) = (env.step(action) for env in envs)
        assert torch.equal(delay, fast) and torch.equal(slot.backlog, other.backlog)
        assert torch.equal(envs[0].sent, envs[1].sent)


@pytest.mark.parametrize(
    ("method", "column", "value"),
    [
        ("lad", "action", 5),
        ("lad paper", "latent", -1),
        ("lad paper", "next_latent", float("nan")),
        ("dqn", "action", 1e9),
    ],
)
def test_a_replay_that_points_beyond_its_networks_is_refused(method, column, value):
    """Compiled functions take numbers of actions and cells as they are."""
    agents, _, _ = build(method, "fused")
    state = {name: tensor.clone() for name, tensor in agents.state_dict().items()}
    first = 0
    for name, width in agents.replay.columns.items():
        if name == column:
            state["replay.rows"][3, 7, first] = value
        first += width
    with pytest.raises(ValueError, match=f"{column} must be from 0 to"):
        agents.load_state_dict(state)


# ----- which engine it is -------------------------------------------------------------------------------------------


class Changed(SACAgents):
    """Agents that compute something else."""


def test_an_engine_is_chosen_by_what_it_knows_and_what_pays(monkeypatch):
    def chosen(agents: Any = SACAgents, device: str = "cpu", **given: Any) -> tuple[str, str]:
        config, words = with_engine(make(SACConfig, **given), agents, torch.device(device))
        return config.engine, words.removeprefix(f"engine {config.engine}: ")

    def kept(found: tuple[bool, bool]) -> None:
        monkeypatch.setattr("common.compiled.kept_code", lambda folder, name: found)

    kept((True, False))
    assert chosen(episodes=500) == ("fused", "compiled functions take less time")
    assert chosen(episodes=2) == ("torch", "the run is too short to load compiled functions for")
    assert chosen(episodes=60) == ("torch", "the run is too short to compile functions for")
    assert chosen(episodes=500, engine="torch") == ("torch", "")
    assert chosen(Changed, episodes=500) == ("torch", "these agents compute what the fused engine does not know")
    words = "the fused engine computes on the CPU only, and not on cuda:0"
    assert chosen(device="cuda:0", episodes=500) == ("torch", words)
    kept((True, True))
    assert chosen(episodes=60)[0] == "fused"
    kept((False, False))
    assert chosen(episodes=500) == ("torch", "there is no place to keep compiled functions in")
    with pytest.raises(ParameterError, match="engine"):
        Changed(make(SACConfig, engine="fused"), [0], "cpu")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert chosen(episodes=500) == ("torch", "the fused engine needs the package numba")
    with pytest.raises(ParameterError, match="numba"):
        SACAgents(make(SACConfig, engine="fused"), [0], "cpu")


def test_a_run_of_one_engine_goes_on_with_the_other(tmp_path, capsys):
    """And config.json tells which it was."""
    out = tmp_path / "run"
    given = [arg for name, value in SMALL.items() for arg in (f"--{name}", value)]
    run_here(main_lad, *given, "--episodes", 2, "--out", out, "--engine", "torch")
    assert json.loads((out / "config.json").read_text())["parameters"]["engine"] == "torch"
    run_here(main_lad, "--resume", out, "--episodes", 4, "--engine", "fused")
    assert json.loads((out / "config.json").read_text())["parameters"]["engine"] == "fused"
    whole = tmp_path / "whole"
    run_here(main_lad, *given, "--episodes", 4, "--out", whole, "--engine", "fused")
    once, twice = (np.genfromtxt(path / "delay.csv", delimiter=",", names=True) for path in (whole, out))
    np.testing.assert_allclose(once["delay_s"], twice["delay_s"], rtol=0.05)
    run_here(main_lad, "--evaluate", out / "checkpoint.pt", "--engine", "torch", "--evaluation_episodes", 1)


@pytest.mark.parametrize(
    ("config", "agents", "function"),
    [
        (LadConfig, LadAgents, "learn_actor_critic"),
        (DQNConfig, DQNAgents, "learn_values"),
        (CoopConfig, CoopAgents, "backward"),
    ],
)
def test_what_is_compiled_for_others_does_not_count(config, agents, function, monkeypatch):
    """A run that would have to compile its own learning functions is not taken for one that finds them."""
    asked = []
    monkeypatch.setattr("common.compiled.kept_code", lambda folder, name: asked.append(name) or (True, False))
    assert with_engine(make(config, episodes=5), agents, torch.device("cpu"))[0].engine == "torch"
    assert asked == [function]


def test_an_unknown_engine_is_refused(capsys):
    assert "engine" in refusal(capsys, main_dqn, "--engine", "cuda")


# ----- the network that all servers share -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "servers", "states", "tasks", "hidden"), [(5, 20, 16, 8, 32), (3, 7, 5, 50, 13), (1, 1, 1, 1, 8)]
)
def test_the_shared_network_and_its_gradient_are_the_same(steps, servers, states, tasks, hidden):
    params = make(CoopConfig, num_bs=servers, hidden=hidden, denoising_steps=steps, scenario_per_seed=True)
    view = View(params, draw_scenario(params, range(3)))
    generator = torch.Generator().manual_seed(0)

    def uniform(high: float, *shape: int) -> torch.Tensor:
        return high * torch.rand(2, states, *shape, generator=generator)

    seen = States(uniform(3).long(), uniform(59).long(), uniform(4, tasks), uniform(100, servers))
    theta = ServerActor(hidden, steps, "vp", "cpu").draw([generator, generator], "cpu") * 2
    weight, found = torch.randn(2, states, tasks, servers, generator=generator), []
    for compiled in (False, True):
        actor = ServerActor(hidden, steps, "vp", "cpu")
        actor.network = engines.fused_network(actor, 1) if compiled else None
        given = theta.clone().requires_grad_()
        x0 = actor.x0(actor.split(given), view, seen)
        found.append((x0.detach(), *torch.autograd.grad((x0 * weight).sum(), given)))
    for slow, fast in zip(*found, strict=True):
        assert slow.shape == fast.shape and (slow - fast).abs().max() < 1e-5 * slow.abs().max()


def test_cooperative_agents_learn_the_same():
    """Two episodes of distillation and two of tuning; and in threads, to the last bit."""
    found = {}
    for engine, threads in (("torch", 1), ("fused", 1), ("fused", 2)):
        config = make(
            CoopConfig, num_bs=4, num_tasks=6, num_slots=8, seeds=2, engine=engine, takeover=0.0,
            distil_episodes=2, distil_updates=10, fit_steps=20, threads=threads,
        )  # fmt: skip
        agents = CoopAgents(config, [0, 1], "cpu")
        env = CollaborativeMEC(draw_scenario(config, [0, 1]), "cpu", config.slot_length)
        env.compiled = engine == "fused"
        delays = [episode(agents, config, env, number) for number in range(4)]
        found[engine, threads] = np.array(delays), agents.theta
    (slow, theta), (fast, other) = found["torch", 1], found["fused", 1]
    np.testing.assert_allclose(slow, fast, rtol=0.02)
    assert (theta - other).norm() < 1e-3 * theta.norm()
    assert torch.equal(found["fused", 2][1], other) and np.array_equal(found["fused", 2][0], fast)


def test_a_network_at_each_station_is_left_to_torch():
    for actor, engine in (("shared", "fused"), ("per_bs", "torch")):
        config = make(CoopConfig, actor=actor, episodes=500)
        assert with_engine(config, CoopAgents, torch.device("cpu"))[0].engine == engine
    with pytest.raises(ParameterError, match="engine"):
        CoopAgents(make(CoopConfig, actor="per_bs", engine="fused"), [0], "cpu")

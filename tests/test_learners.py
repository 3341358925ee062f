"""The stacked learners against plain single agents: torch.nn modules, torch.optim.Adam, autograd, and Python lists."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make
from plain_agents import PlainDQN, PlainSAC, mlp, plain_denoise, vp_alphas
from torch import nn

from baselines.model_d2sac import D2SACAgents, D2SACConfig
from baselines.model_dqn import DQNAgents, DQNConfig
from baselines.model_sac import SACAgents, SACConfig
from lad_ts.agents import StackedAgents
from lad_ts.diffusion_lad import Denoiser, posterior_schedule, retained_signal
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.replay import Replay
from lad_ts.stacked import StackedAdam

TINY = {"num_bs": 3, "num_tasks": 4, "num_slots": 6, "seeds": 2}
METHODS = {
    "lad paper": (LadConfig, LadAgents, {"preset": "paper"}),
    "lad tuned": (LadConfig, LadAgents, {"preset": "tuned"}),
    "sac": (SACConfig, SACAgents, {}),
    "d2sac": (D2SACConfig, D2SACAgents, {}),
    "dqn": (DQNConfig, DQNAgents, {"target_every": 2}),
}


def build(method: str, **given: Any) -> tuple[StackedAgents, Any]:
    """A learner of seeds 0 and 1 with three BSs each: agents 0, 1, 2 of seed 0 and 3, 4, 5 of seed 1."""
    config_class, agents_class, more = METHODS[method]
    config = make(config_class, **TINY | more | given)
    seeds = list(range(config.seeds))
    learner = agents_class(config, seeds, "cpu")
    learner.begin(draw_scenario(config, seeds), [(seed, 0) for seed in seeds])
    return learner, config


def random_batch(learner: StackedAgents, generator: torch.Generator, samples: int = 64) -> dict[str, torch.Tensor]:
    """A minibatch [G, M, width] of every replay column."""

    def uniform(width: int) -> torch.Tensor:
        return torch.rand(learner.agents, samples, width, generator=generator)

    batch = {name: uniform(width) for name, width in learner.replay.columns.items()}
    batch["action"] = (batch["action"] * learner.num_bs).floor()
    batch["reward"] = -10 * batch["reward"]
    if getattr(learner.params, "replay_latent", None) == "present":
        cells = learner.params.num_tasks * learner.params.num_slots
        batch |= {name: (batch[name] * cells).floor() for name in ("latent", "next_latent")}
    return batch


def record_draws(learner: StackedAgents) -> list[torch.Tensor]:
    """A list that gets a copy of everything that the learner draws from now on."""
    original, draws = learner.draw, []

    def draw(kind: str, *shape: int) -> torch.Tensor:
        draws.append(original(kind, *shape))
        return draws[-1].clone()

    learner.draw = draw
    return draws


@pytest.mark.parametrize("method", METHODS)
def test_updates_equal_those_of_plain_single_agents(method):
    """Agents start at different times: 1 and 4 first, then 0 too, then all; those that wait stay as they were."""
    # Fast targets and temperatures, so that mistakes in them show within three updates.
    learner, _ = build(method, **{} if method == "dqn" else {"target_rate": 0.2, "temperature_lr": 0.1})
    plain = [(PlainDQN if method == "dqn" else PlainSAC)(method, learner, g) for g in range(6)]
    generator, draws = torch.Generator().manual_seed(0), record_draws(learner)
    for learning in (torch.tensor([1, 4]), torch.tensor([0, 1, 4]), None):
        batch = random_batch(learner, generator)
        before = [{name: own.clone() for name, (_, own) in agent.pairs().items()} for agent in plain]
        draws.clear()
        learner.update(batch, learning)
        for g, agent in enumerate(plain):
            if learning is not None and g not in learning:
                assert all(torch.equal(own, before[g][name]) for name, (_, own) in agent.pairs().items())
                continue
            agent.update(batch, draws)
            for name, (expected, own) in agent.pairs().items():
                difference = (expected - own).abs().max()
                assert difference < 1e-5, f"{name} of agent {g}: {difference:.1e}"
        if learning is None:  # and the networks do move
            assert all(not torch.equal(own, before[0][name]) for name, (_, own) in plain[0].pairs().items())


# ----- the denoising chain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_vp_schedule_and_posterior_follow_their_equations(steps):
    """alpha_i of arXiv 2412.18212; x_0, posterior mean and variance of Ho et al. 2020, equations 15, 7 and 6."""
    alphas = vp_alphas(steps)
    np.testing.assert_allclose(retained_signal("vp", steps), alphas, rtol=1e-12)
    s = posterior_schedule("vp", steps)
    assert s.steps == steps
    for i, alpha in enumerate(alphas):
        bar, before, beta = math.prod(alphas[: i + 1]), math.prod(alphas[:i]), 1 - alpha
        assert s.from_latent[i] == pytest.approx(1 / math.sqrt(bar))
        assert s.from_noise[i] == pytest.approx(math.sqrt(1 - bar) / math.sqrt(bar))
        assert s.mean_hat[i] == pytest.approx(math.sqrt(before) * beta / (1 - bar))
        assert s.mean_latent[i] == pytest.approx(math.sqrt(alpha) * (1 - before) / (1 - bar))
        assert s.spread[i] == pytest.approx(math.sqrt((1 - before) / (1 - bar) * beta))
        # Equation 11: the mean is (x_i - beta / sqrt(1 - bar) * noise) / sqrt(alpha).
        assert s.keep(i) == pytest.approx(1 / math.sqrt(alpha))
        assert s.remove(i) == pytest.approx(-beta / math.sqrt(1 - bar) / math.sqrt(alpha))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_cosine_and_linear_schedules_follow_their_papers(steps):
    """Cosine: Nichol and Dhariwal 2021, equation 17, beta cut at 0.999; linear: 1e-4 to 0.02, times 1000 / I."""

    def bar(i: int) -> float:
        return math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    cosine = [1 - min(0.999, 1 - bar(i) / bar(i - 1)) for i in range(1, steps + 1)]
    np.testing.assert_allclose(retained_signal("cosine", steps), cosine, rtol=1e-9)
    beta = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    np.testing.assert_allclose(retained_signal("linear", steps), 1 - np.minimum(beta, 0.999), rtol=1e-9)


def chain_case(predictor: str, samples: int, noisy: bool, **more: Any) -> tuple[Denoiser, tuple[Any, ...]]:
    denoiser = Denoiser(5, 3, 8, posterior_schedule("vp", 5), predictor=predictor, **more)
    generator = torch.Generator().manual_seed(samples)
    theta = denoiser.layout.draw([generator], 4, torch.device("cpu")).requires_grad_()
    latent, state = (torch.randn(4, width, samples, generator=generator) for width in (3, 5))
    noise = torch.randn(4, 4, 3, samples, generator=generator) if noisy else None
    return denoiser, (theta, latent, state, noise)


@pytest.mark.parametrize(
    ("predictor", "activation", "clip"), [("softmax", "relu", False), ("linear", "relu", False), ("tanh", "mish", True)]
)
@pytest.mark.parametrize("noisy", [True, False])
def test_the_chain_equals_a_plain_one_agent_by_agent(predictor, activation, clip, noisy):
    denoiser, (theta, latent, state, noise) = chain_case(predictor, 7, noisy, activation=activation, clip=clip)
    x0 = denoiser.forward(theta, latent, state, noise)
    for g in range(4):
        net = mlp(theta[g].detach(), 24, 8, 8, 3, activation=nn.Mish if activation == "mish" else nn.ReLU)
        plain = plain_denoise(
            net, latent[g].T, state[g].T, lambda i, g=g: noise[g, i - 2].T if noisy else 0.0, predictor, clip
        )
        torch.testing.assert_close(x0[g].T, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predictor", ["softmax", "linear"])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("samples", [1, 7, 64])
def test_the_fast_chain_has_the_values_and_gradients_of_the_plain_one(predictor, noisy, samples):
    denoiser, (theta, *rest) = chain_case(predictor, samples, noisy)
    weight = torch.randn(4, 3, samples, generator=torch.Generator().manual_seed(1))
    slow, fast = denoiser.forward(theta, *rest), denoiser.forward_fast(theta, *rest)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad((x0.softmax(1) * weight).sum(), theta)[0] for x0 in (slow, fast)]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


# ----- optimiser, replay and transitions ----------------------------------------------------------------------------


def test_stacked_adam_equals_torch_adam_when_agents_start_at_different_times():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 30, generator=generator)
    plain = [nn.Parameter(row.clone()) for row in theta]
    optimisers = [torch.optim.Adam([row]) for row in plain]
    adam = StackedAdam(theta, 1e-3)
    for step in range(40):
        gradient = torch.randn(4, 30, generator=generator) * 10.0 ** (step % 5 - 3)
        learning = [g for g in range(4) if step >= 7 * g]
        adam.lr = 1e-3 / (1 + step / 10)
        adam.step(gradient, None if len(learning) == 4 else torch.tensor(learning))
        for g in learning:
            plain[g].grad, optimisers[g].param_groups[0]["lr"] = gradient[g].clone(), adam.lr
            optimisers[g].step()
        torch.testing.assert_close(theta, torch.stack([row.detach() for row in plain]), rtol=1e-5, atol=1e-6)


def test_replay_equals_a_list_with_a_turning_place():
    rng, replay = np.random.default_rng(0), Replay(3, 10, {"state": 2, "reward": 1}, torch.device("cpu"))
    lists: list[list[list[float]]] = [[], [], []]
    written = [0, 0, 0]
    for _ in range(20):
        count = rng.integers(0, 5, 3)
        state, reward = torch.as_tensor(rng.random((3, 4, 2))), torch.as_tensor(rng.random((3, 4, 1)))
        replay.add(torch.arange(4) < torch.as_tensor(count)[:, None], state=state, reward=reward)
        for g in range(3):
            for n in range(count[g]):
                row = torch.cat([state[g, n], reward[g, n]]).float().tolist()
                if len(lists[g]) < 10:
                    lists[g].append(row)
                else:
                    lists[g][written[g] % 10] = row
                written[g] += 1
        assert replay.size[:, 0].tolist() == [len(x) for x in lists]
        if min(written) == 0:
            continue
        uniform = torch.as_tensor(rng.random((3, 6)), dtype=torch.float32)
        uniform[:, 0], uniform[:, 1] = 0.0, float(np.nextafter(np.float32(1), np.float32(0)))
        batch = replay.take(uniform)
        taken = torch.cat([batch["state"], batch["reward"]], 2)
        for g, m in np.ndindex(3, 6):
            assert taken[g, m].tolist() == lists[g][int(uniform[g, m].item() * len(lists[g]))]


def plain_state(features: str, env: CollaborativeMEC, row: int, n: int, size: float, queue: Any) -> list[float]:
    """The state of a decision: [d, w, q], or all scaled to about 1."""
    work = env.workload[row, 0, n].item()
    if features == "raw":
        return [size, work, *queue]
    busy = [q / f for q, f in zip(queue, env.capacity[row].tolist(), strict=True)]
    if features == "scaled":
        return [size / 5.0, work / (0.3072 * 14), *(math.log(1 + x) for x in busy)]
    mean = sum(busy) / len(busy)
    return [size / 5.0, work / (0.3072 * 14), math.log(1 + mean), *(x - mean for x in busy)]


@pytest.mark.parametrize(("preset", "features"), [("paper", "raw"), ("tuned", "scaled"), ("tuned", "relative")])
def test_stored_transitions_equal_a_loop_over_tasks(preset, features):
    """Tuned: q[t+1] and input latents; paper: zeros after a slot's last task, and cell numbers as latents."""
    learner, config = build("lad " + preset, min_tasks=0, learning_start=100, state_features=features)
    scenario, rows = draw_scenario(config, [0, 1]), [(0, 0), (1, 0)]
    env, arrivals = CollaborativeMEC(scenario), draw_arrivals(config, rows)
    slot = env.reset(arrivals)
    learner.begin(scenario, rows)
    expected: list[list[list[float]]] = [[] for _ in range(6)]
    for t in range(5):
        memory, queue = learner.memory.clone(), env.backlog.tolist()
        action = learner.act(slot)
        delay, following = env.step(action)
        learner.learn(slot, action, delay, following)
        after = env.backlog.tolist() if preset == "tuned" else [[0.0] * 3] * 2
        for g in range(6):
            row, b = divmod(g, 3)
            count, size = arrivals.count[row, t, b], arrivals.size[row]
            for n in range(count):
                cell, state = (t, n), plain_state(features, env, row, n, size[t, b, n], queue[row])
                if n + 1 < count:
                    next_cell = t, n + 1
                    next_state = plain_state(features, env, row, n + 1, size[t, b, n + 1], queue[row])
                else:
                    next_cell = t + 1, 0
                    next_state = plain_state(features, env, row, 0, size[t + 1, b, 0], after[row])
                if preset == "tuned":
                    latents = [value for at in (cell, next_cell) for value in memory[at[0], g, :, at[1]].tolist()]
                else:
                    latents = [at[0] * 4 + at[1] for at in (cell, next_cell)]
                outcome = [action[row, b, n].item(), -delay[row, b, n].item()]
                expected[g].append([*state, *next_state, *outcome, *latents])
            unscheduled = learner.memory[t, g, :, count:]
            assert torch.equal(unscheduled, memory[t, g, :, count:])
            assert not count or (learner.memory[t, g, :, :count] != memory[t, g, :, :count]).all()
        slot = following
    names = ["state", "next_state", "action", "reward", "latent", "next_latent"]
    assert list(learner.replay.columns) == names
    for g in range(6):
        stored = learner.replay.rows[g, : learner.replay.size[g]]
        np.testing.assert_allclose(stored, expected[g], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["x0", "x0_standardised", "probabilities"])
def test_memory_keeps_what_its_name_says(memory):
    learner, config = build("lad tuned", memory=memory)
    slot = CollaborativeMEC(learner.scenario).reset(draw_arrivals(config, [(0, 0), (1, 0)]))
    outputs, original = [], learner.logits
    learner.logits = lambda *args: outputs.append(original(*args)) or outputs[-1]
    learner.act(slot)
    mask = slot.mask.reshape(6, -1)
    kept, x0 = (x.transpose(1, 2)[mask] for x in (learner.memory[0], outputs[0]))  # [tasks, B]
    expected = {
        "x0": x0,
        "x0_standardised": (x0 - x0.mean(1, keepdim=True)) / x0.std(1, correction=0, keepdim=True),
        "probabilities": x0.exp() / x0.exp().sum(1, keepdim=True),
    }[memory]
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


def test_an_x0_that_is_remembered_as_it_is_never_overflows():
    learner, config = build("lad tuned", memory="x0", learning_start=5)
    env = CollaborativeMEC(learner.scenario)
    for episode in range(60):
        rows = [(0, episode), (1, episode)]
        run_episode(env, learner, draw_arrivals(config, rows), rows)
    assert learner.finite()
    assert learner.memory.abs().max() == 1e6


def test_the_actor_learns_more_slowly_from_episode_to_episode():
    learner, _ = build("lad tuned", actor_lr=0.1, actor_lr_halving=3)
    rates = []
    for episode in (0, 3, 9):
        learner.begin(learner.scenario, [(0, episode), (1, episode)])
        rates.append(learner.actor_adam.lr)
    assert rates == pytest.approx([0.1, 0.05, 0.025])


def test_agents_wait_for_their_own_learning_start():
    """An agent is updated after every slot from the first one that leaves it with more than learning_start."""
    learner, config = build("sac", min_tasks=0, updates_per_slot=2)
    env, rows = CollaborativeMEC(draw_scenario(config, [0, 1])), [(0, 0), (1, 0)]
    arrivals = draw_arrivals(config, rows)
    held = arrivals.count[:, :-1].cumsum(1).transpose(0, 2, 1).reshape(6, -1)  # transitions after each slot
    config.learning_start = int(held[0, 2])  # which agent 0 holds exactly, and must exceed
    run_episode(env, learner, arrivals, rows)
    assert learner.actor_adam.count[:, 0].tolist() == (2 * (held > config.learning_start).sum(1)).tolist()


def test_actions_are_drawn_with_their_probabilities():
    learner, _ = build("sac")
    probabilities = torch.tensor([0.5, 0.0, 0.5]).expand(6, 3)[..., None].expand(6, 3, 2000)
    skewed = torch.tensor([0.1, 0.7, 0.2])[:, None].expand(6, 3, 2000)
    counts = [torch.bincount(learner.pick(p).flatten(), minlength=3) / 12_000 for p in (probabilities, skewed)]
    assert counts[0][1] == 0
    np.testing.assert_allclose(counts[0], [0.5, 0, 0.5], atol=0.02)
    np.testing.assert_allclose(counts[1], [0.1, 0.7, 0.2], atol=0.02)
    learner.training, learner.params.evaluation_action = False, "argmax"
    assert (learner.pick(skewed) == 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_learns_the_same_alone_and_beside_another(method):
    """The draws are the same bits; batched products of another shape may round the last bit otherwise."""

    def train(seeds: list[int]) -> tuple[np.ndarray, StackedAgents]:
        config_class, agents_class, more = METHODS[method]
        config = make(config_class, **TINY | {"num_slots": 20, "learning_start": 10} | more)
        env, learner = CollaborativeMEC(draw_scenario(config, seeds)), agents_class(config, seeds, "cpu")
        rows = [(seed, 0) for seed in seeds]
        return run_episode(env, learner, draw_arrivals(config, rows), rows).mean, learner

    seeds = [0, 1, 2, 3, 4, 5]  # their agents begin to learn in different slots
    together, batch = train(seeds)
    for k, seed in enumerate(seeds):
        alone, single = train([seed])
        np.testing.assert_allclose(together[k], alone[0], rtol=1e-6)
        mine = slice(3 * k, 3 * k + 3)
        for name, value in single.modules().items():
            if name in ("theta", "theta_actor", "log_temperature"):
                torch.testing.assert_close(batch.modules()[name][mine], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.replay.rows[mine], single.replay.rows, rtol=0, atol=1e-5)

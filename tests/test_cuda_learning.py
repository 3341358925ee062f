"""What learns and what it learns in, on the GPU against the CPU: the same numbers in, the same numbers out."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import make, random_arrivals, random_scenario
from test_learners import METHODS, TINY, random_batch, record_draws

from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from gpu_check.pocket_training import painted
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from pocket import flow_training
from pocket.captions import Captions
from pocket.compositions import Renderer, held_out
from pocket.flow_training import FlowStage, make_latents
from pocket.vae_training import VAEStage
from resd3_medium.folders import TOKENIZERS

pytestmark = pytest.mark.cuda


def moved(values: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in values.items()}


def same_draws(learner: Any, other: Any) -> None:
    """Let `other` draw, from now on, what `learner` has drawn at the same place."""
    draws, taken = record_draws(learner), iter(range(10**6))
    other.draw = lambda kind, *shape: draws[next(taken)].to(other.device)


@pytest.mark.parametrize("method", METHODS)
def test_an_update_gives_the_same_networks(method, gpu):
    """Two updates: of some of the agents, then of all; targets that follow fast show mistakes in them."""
    config_class, agents_class, more = METHODS[method]
    more = more | ({} if method == "dqn" else {"target_rate": 0.2, "temperature_lr": 0.1})
    config = make(config_class, **TINY | more)
    learners = [agents_class(config, [0, 1], device) for device in ("cpu", gpu)]
    for learner in learners:
        learner.begin(draw_scenario(config, [0, 1]), [(0, 0), (1, 0)])
    here, there = learners
    there.load_state_dict(moved(here.state_dict(), gpu))
    before = {name: value.clone() for name, value in here.state_dict().items()}
    same_draws(here, there)
    generator = torch.Generator().manual_seed(0)
    for agents in (torch.tensor([1, 4]), None):
        batch = random_batch(here, generator)
        here.update(batch, agents)
        there.update(moved(batch, gpu), None if agents is None else agents.to(gpu))
    wanted, found = here.state_dict(), there.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in wanted.items())
    for name, value in wanted.items():
        assert found[name].device.type == gpu.type
        torch.testing.assert_close(
            found[name].cpu(), value, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n} {text}"
        )


def test_the_environment_has_the_same_delays_and_backlogs(gpu):
    rng = np.random.default_rng(0)
    scenario, arrivals = random_scenario(rng, 3, 4, 6), random_arrivals(rng, 3, 7, 4, 6)
    here, there = CollaborativeMEC(scenario), CollaborativeMEC(scenario, gpu)
    slots = [env.reset(arrivals) for env in (here, there)]
    for _ in range(6):
        action = torch.from_numpy(rng.integers(4, size=tuple(slots[0].mask.shape)))
        for field in ("mask", "size", "workload", "backlog"):
            wanted, found = (getattr(slot, field) for slot in slots)
            assert found.device.type == gpu.type
            torch.testing.assert_close(found.cpu(), wanted, rtol=1e-6, atol=1e-6)
        (delay, first), (other, second) = here.step(action), there.step(action.to(gpu))
        torch.testing.assert_close(other.cpu(), delay, rtol=1e-6, atol=1e-6)
        slots = [first, second]


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_episode_is_learned_from(method, gpu):
    config_class, agents_class, more = METHODS[method]
    config = make(config_class, **TINY | {"num_slots": 20, "learning_start": 10} | more)
    env, learner = CollaborativeMEC(draw_scenario(config, [0, 1]), gpu), agents_class(config, [0, 1], gpu)
    before = {name: value.clone() for name, value in learner.state_dict().items() if "theta" in name}
    rows = [(0, 0), (1, 0)]
    found = run_episode(env, learner, draw_arrivals(config, rows), rows)
    assert np.isfinite(found.mean).all() and learner.finite()
    assert all(not torch.equal(value, learner.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("actor", ["shared", "per_bs"])
def test_cooperative_agents_have_the_same_probabilities_and_learn(actor, gpu):
    """Networks that both have learned a little, in the first episode, from different draws."""
    sizes = {"num_bs": 4, "num_tasks": 6, "num_slots": 8, "fit_steps": 5, "distil_updates": 4, "batch_states": 4}
    config = make(CoopConfig, **sizes, actor=actor, takeover=0.0)
    scenario, rows = draw_scenario(config, [0, 1]), [(0, 0), (1, 0)]
    arrivals = draw_arrivals(config, rows)
    here, there = (CoopAgents(config, [0, 1], device) for device in ("cpu", gpu))
    start = here.theta.clone()
    for agents, device in ((here, "cpu"), (there, gpu)):
        run_episode(CollaborativeMEC(scenario, device), agents, arrivals, rows)
        assert agents.finite()
    assert not torch.equal(here.theta, start)
    there.load_state_dict(moved(here.state_dict(), gpu))
    found = []
    for agents, device in ((here, "cpu"), (there, gpu)):
        slot = CollaborativeMEC(scenario, device).reset(arrivals)
        backlog = 3 + slot.backlog.float()
        with torch.inference_mode():
            found.append(agents.actor.slot_logits(agents.weights, agents.view, slot, backlog).softmax(-1).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_steps_of_the_pocket_models_training_have_the_same_losses(gpu, monkeypatch):
    """They compute in bfloat16, so losses agree to some hundredths."""
    monkeypatch.setattr(flow_training, "CLIP_WIDTH", 64)
    monkeypatch.setattr(flow_training, "WIDTH", 128)
    emoji, losses = painted(12), []
    for device in (torch.device("cpu"), gpu):
        renderer = Renderer(emoji, device)
        out = held_out(renderer, 0)
        vae = VAEStage(renderer, out, 0, 4, 2, 1e-3)
        vae.average.requires_grad_(False)
        latents = make_latents(vae.average, renderer, out, 8, 0)
        flow = FlowStage(latents, Captions(emoji, TOKENIZERS), vae.average, device, 0, 4, 4, 1e-3)
        losses.append([stage.step(number) for stage in (vae, flow) for number in (0, 1)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)

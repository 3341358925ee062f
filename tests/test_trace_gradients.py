"""Learning by gradients on a trace: estimates against plain sums, and learners that come to avoid what costs."""

import numpy as np
import pytest
import torch

from trace_ts.fitting import Job
from trace_ts.gradients import collect
from trace_ts.learners import LEARNERS, Learning, advantages
from trace_ts.model_trace import Design, ScorePolicy
from trace_ts.scenario import Scenario
from trace_ts.synthetic import generate

REQUESTS = generate(600, 0)
GREEDY = np.array([1.0, 1.0, 0.05, 0.05, 0.05, 0.05, 0.3])  # hardly minds loading
QUICK = Learning(segments=1, tail=0, rate=1e-2, batch=200, discount=0.0, ppo_discount=0.0)


def test_advantages_are_sums_of_discounted_errors():
    generator = np.random.default_rng(0)
    reward, value = generator.normal(size=30), generator.normal(size=30)
    error = [reward[k] + 0.9 * value[min(k + 1, 29)] - value[k] for k in range(30)]
    expected = [sum((0.9 * 0.8) ** (j - k) * error[j] for j in range(k, 30)) for k in range(30)]
    np.testing.assert_allclose(advantages(reward, value, 0.9, 0.8), expected)


def misses(seen):
    """Whether each task [N] went to a server without its model."""
    return seen.on_server[:, 3].gather(1, seen.server[:, None])[:, 0]


@pytest.mark.parametrize("age", [0.0, 5.0])
@pytest.mark.parametrize(("kind", "design"), [*((kind, Design()) for kind in LEARNERS), ("ppo", Design(steps=3))])
def test_a_learner_comes_to_avoid_what_costs(kind, design, age):
    """A task costs 1, and 20 more where it needs a load, whatever its delay is."""
    job, generator = Job(Scenario(num_servers=6, age=age), 0, slice(0, 600)), np.random.default_rng(0)
    learner, shares = LEARNERS[kind](design, design.begin(GREEDY, 0), QUICK, generator), []
    for _ in range(25):
        seen = collect(ScorePolicy(learner.design, learner.parameters, QUICK.temperature), REQUESTS, job)
        shares.append(float(misses(seen).mean()))
        learner.learn([seen._replace(delay=1 + 20 * misses(seen))], generator)
    assert shares[0] > 0.3
    assert shares[-1] < 0.65 * shares[0]


def test_decisions_are_collected_as_they_were_made():
    """The probabilities by which a learner believes to have chosen are those of the simulator's draws."""
    design = Design(steps=2, latent="model")
    learner = LEARNERS["ppo"](design, design.begin(GREEDY, 1), QUICK, np.random.default_rng(0))
    job = Job(Scenario(num_servers=4), 1, slice(0, 600))
    seen = collect(ScorePolicy(design, learner.parameters, QUICK.temperature), REQUESTS, job)
    with torch.no_grad():
        chance = learner.chances(learner.nets["actor"], seen).exp()
    chosen = torch.nn.functional.one_hot(seen.server, 4).double()
    spread = (chance * (1 - chance)).sum(0).sqrt()  # of how often each server is drawn
    assert ((chosen.sum(0) - chance.sum(0)).abs() < 4 * spread).all()
    assert chance.max(1).values.mean() < 0.95  # so that this says something

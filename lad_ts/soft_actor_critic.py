"""Discrete soft actor-critic (SAC) for stacked agents: twin critics, target twins, a learned temperature.

LAD-TS, SAC-TS and D2SAC-TS are this with different actors (Haarnoja et al. 2018; Christodoulou 2019 for discrete
actions). A subclass gives the actor: `actor_layout`, and `logits` from a minibatch. Start reading at
`SoftActorCritic.update`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from common.parameters import ParameterError, parameter
from lad_ts.agents import PAPER_STATE, TUNED_STATE, AgentParameters, StackedAgents, blend
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.metrics import Metrics, norm
from lad_ts.policy_export import ExportedPolicy
from lad_ts.stacked import Layout, StackedAdam, forward


@dataclasses.dataclass(kw_only=True)
class SACParameters(AgentParameters):
    """Parameters of the soft actor-critic. Defaults are the paper's, but for those that the preset fills in."""

    GROUP: ClassVar[str] = "method"

    actor_lr: float | None = parameter(None, "learning rate of the actor", low=0)
    actor_lr_halving: float | None = parameter(
        None, "in episode e the actor's rate is actor_lr / (1 + e / this); 0: constant", unit="episodes", low=0
    )
    critic_lr: float | None = parameter(None, "learning rate of the critics", low=0)
    temperature_lr: float = parameter(3e-4, "learning rate of the temperature's logarithm", low=0)
    temperature: float = parameter(0.05, "initial temperature alpha, the weight of the entropy", above=0)
    target_entropy: float = parameter(
        -1.0, "entropy that the temperature steers to; out of reach when negative", unit="nat"
    )
    target_rate: float = parameter(0.005, "soft update of the target networks, per update", above=0, high=1)

    PRESETS: ClassVar = {
        "paper": PAPER_STATE | {"actor_lr": 1e-4, "actor_lr_halving": 0.0, "critic_lr": 1e-3},
        "tuned": TUNED_STATE | {"actor_lr": 1e-3, "actor_lr_halving": 3.0, "critic_lr": 3e-3},
    }


# What metrics.csv holds of every update.
MEASURED = ("critic_loss", "actor_loss", "entropy", "temperature", "q_mean", "critic_grad_norm", "actor_grad_norm")


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """Logarithms that stay finite for probabilities of 0."""
    return (probabilities + 1e-8).log()


class SoftActorCritic(StackedAgents):
    """Stacked discrete SAC. theta_actor is [G, P], theta_critic [2 G, P] (first twins, then second twins)."""

    params: SACParameters
    metrics: Metrics
    Parameters = SACParameters
    target_actor = False  # whether next actions come from a slowly following copy of the actor

    def __init__(self, params: SACParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        super().__init__(params, seeds, device)
        self.metrics = Metrics(len(self.seeds), MEASURED)
        if params.actor_lr is None or params.critic_lr is None:
            name = "actor_lr" if params.actor_lr is None else "critic_lr"
            raise ParameterError(name, None, "must be a number, at least 0; no preset fills it in")
        hidden = params.hidden
        self.critic_layout = Layout(self.state_size, hidden, hidden, self.num_bs)
        self.theta_actor = self.actor_layout().draw(self.generators, self.num_bs, self.device)
        twins = [self.critic_layout.draw(self.generators, self.num_bs, self.device) for _ in range(2)]
        self.theta_critic = torch.cat(twins)
        self.theta_critic_target = self.theta_critic.clone()
        self.theta_actor_target = self.theta_actor.clone() if self.target_actor else self.theta_actor
        self.log_temperature = torch.full((self.agents, 1), math.log(params.temperature), device=self.device)
        self.actor_lr = params.actor_lr
        self.actor_adam = StackedAdam(self.theta_actor, params.actor_lr)
        self.critic_adam = StackedAdam(self.theta_critic, params.critic_lr)
        self.temperature_adam = StackedAdam(self.log_temperature, params.temperature_lr)

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        if self.params.actor_lr_halving:
            episode = rows[0][1]
            self.actor_adam.lr = self.actor_lr / (1 + episode / self.params.actor_lr_halving)

    def actor_layout(self) -> Layout:
        """The layout of the actor's parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define actor_layout()")

    def logits(
        self, theta: torch.Tensor, state: torch.Tensor, latent: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """x_0 [G, B, M]; its softmax is the policy for state [G, F, M]; latent and noise where the actor has them."""
        raise NotImplementedError(f"{type(self).__name__} must define logits(theta, state, latent, noise)")

    @property
    def noise_steps(self) -> int:
        """Vectors of standard normal numbers that a decision takes."""
        return 0

    def draw_noise(self, samples: int) -> torch.Tensor | None:
        """The random numbers of the actor for `samples` states of every agent, for actors that need them."""
        return None

    def latents(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Latent actions [G, B, M] of the batch's states and next states, for actors that have them."""
        return None, None

    def choose(self, state: torch.Tensor, slot: Slot) -> torch.Tensor:
        with torch.no_grad():
            return self.pick(self.logits(self.theta_actor, state, None, self.draw_noise(state.shape[2])).softmax(1))

    def update(self, batch: dict[str, torch.Tensor], learning: torch.Tensor | None) -> None:
        """One step of critics, actor and temperature, then of the targets.

        critic target: r + gamma * (sum_a pi(a) min(Q1', Q2')(a) + alpha * entropy of pi), at the next state
        actor: maximise alpha * entropy + sum_a pi(a) min(Q1, Q2)(a)
        temperature: minimise alpha * (entropy - target entropy) over log alpha
        """
        p = self.params
        state, next_state = (batch[name].transpose(1, 2).contiguous() for name in ("state", "next_state"))
        latent, next_latent = self.latents(batch)
        # Both policies may use the same noise: they enter different losses, and each of those stays unbiased.
        noise = self.draw_noise(state.shape[2])
        state_twice = torch.cat([state, state])
        twice = None if learning is None else torch.cat([learning, learning + self.agents])
        alpha = self.log_temperature.exp()

        with torch.no_grad():
            probabilities = self.logits(self.theta_actor_target, next_state, next_latent, noise).softmax(1)
            entropy = -(probabilities * log_probabilities(probabilities)).sum(1)
            worst = self.critics(self.theta_critic_target, torch.cat([next_state, next_state])).amin(0)
            value = (probabilities * worst).sum(1) + alpha * entropy
            target = batch["reward"][..., 0] + p.gamma * value

        theta_critic = self.theta_critic.detach().requires_grad_()
        action = batch["action"].long().transpose(1, 2).expand(2, -1, -1, -1)
        chosen = self.critics(theta_critic, state_twice).gather(2, action)[:, :, 0]
        errors = (chosen - target).square()  # [2, G, M]
        (critic_gradient,) = torch.autograd.grad(errors.mean(-1).sum(), theta_critic)
        self.critic_adam.step(critic_gradient, twice)

        with torch.no_grad():
            worst = self.critics(self.theta_critic, state_twice).amin(0)
        theta_actor = self.theta_actor.detach().requires_grad_()
        probabilities = self.logits(theta_actor, state, latent, noise).softmax(1)
        entropy = -(probabilities * log_probabilities(probabilities)).sum(1)
        losses = -(alpha * entropy + (probabilities * worst).sum(1))  # [G, M]
        (actor_gradient,) = torch.autograd.grad(losses.mean(-1).sum(), theta_actor)
        self.actor_adam.step(actor_gradient, learning)

        gradient = alpha * (entropy.detach() - p.target_entropy).mean(-1, keepdim=True)
        self.temperature_adam.step(gradient, learning)

        blend(self.theta_critic_target, self.theta_critic, p.target_rate, twice)
        if self.target_actor:
            blend(self.theta_actor_target, self.theta_actor, p.target_rate, learning)
        self.metrics.add(
            learning,
            critic_loss=errors,
            actor_loss=losses,
            entropy=entropy,
            temperature=alpha,
            q_mean=chosen,
            critic_grad_norm=norm(critic_gradient).view(2, -1, 1),
            actor_grad_norm=norm(actor_gradient),
        )

    def policy(self, scenario: Scenario) -> ExportedPolicy:
        def compute(theta: torch.Tensor, observation: torch.Tensor, *noise: torch.Tensor) -> tuple[torch.Tensor]:
            steps = noise[0].permute(0, 2, 3, 1) if noise else None
            return (self.logits(theta, observation.transpose(1, 2), None, steps).transpose(1, 2).softmax(-1),)

        return self.exported(compute, self.theta_actor, ("probabilities",), self.noise_steps)

    def critics(self, theta: torch.Tensor, state_twice: torch.Tensor) -> torch.Tensor:
        """Both critics' values [2, G, B, M] of the states, which come twice over, [2 G, F, M]."""
        q = forward(self.critic_layout.split(theta), state_twice, torch.relu)
        return q.view(2, self.agents, self.num_bs, -1)

    def modules(self) -> dict[str, object]:
        names = ["theta_actor", "theta_critic", "theta_critic_target", "log_temperature"]
        names += ["actor_adam", "critic_adam", "temperature_adam"] + ["theta_actor_target"] * self.target_actor
        return super().modules() | {name: getattr(self, name) for name in names}

"""DQN-TS agents: deep Q-learning with epsilon-greedy actions (Mnih et al. 2015).

Start reading at `DQNAgents.update`.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from common.parameters import parameter
from lad_ts.agents import PAPER_STATE, TUNED_STATE, AgentParameters, StackedAgents
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.method import PRESETS, Method
from lad_ts.metrics import Metrics, norm
from lad_ts.policy_export import ExportedPolicy
from lad_ts.run_parameters import TrainingParameters
from lad_ts.stacked import Layout, StackedAdam, forward


@dataclasses.dataclass(kw_only=True)
class DQNParameters(AgentParameters):
    """Parameters of DQN-TS. Those whose default is None take the preset's value."""

    GROUP: ClassVar[str] = "method"

    learning_rate: float | None = parameter(None, "learning rate of the Q network", low=0)
    epsilon: float = parameter(0.01, "probability of a uniformly random action", low=0, high=1)
    target_every: int = parameter(200, "updates between copies of the Q network into its target", low=1)

    PRESETS: ClassVar = {
        "paper": PAPER_STATE | {"learning_rate": 1e-4},
        "tuned": TUNED_STATE | {"learning_rate": 3e-3},  # as the tuned critics of the others
    }


class DQNAgents(StackedAgents):
    """The DQN-TS agents of all BSs and seeds; theta and theta_target are [G, P]."""

    fused = "q"
    Parameters = DQNParameters
    params: DQNParameters

    def __init__(self, params: DQNParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        super().__init__(params, seeds, device)
        self.metrics = Metrics(len(self.seeds), ("loss", "q_mean", "grad_norm"))
        self.layout = Layout(self.state_size, params.hidden, params.hidden, self.num_bs)
        self.theta = self.layout.draw(self.generators, self.num_bs, self.device)
        self.theta_target = self.theta.clone()
        self.adam = StackedAdam(self.theta, params.learning_rate)

    def q(self, theta: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Q values [G, B, M] of state [G, F, M], with F features as StackedAgents.features has them."""
        return forward(self.layout.split(theta), state, torch.relu)

    def choose(self, state: torch.Tensor, slot: Slot) -> torch.Tensor:
        greedy = self.q(self.theta, state).argmax(1)
        if not self.training and self.params.evaluation_action == "argmax":
            return greedy
        explore, choice = self.draw("uniform", 2, state.shape[2]).unbind(1)
        return torch.where(explore < self.params.epsilon, (choice * self.num_bs).long(), greedy)

    def policy(self, scenario: Scenario) -> ExportedPolicy:
        def compute(theta: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.q(theta, observation.transpose(1, 2)).transpose(1, 2),)

        return self.exported(compute, self.theta, ("q_values",), epsilon=self.params.epsilon)

    def update(self, batch: dict[str, torch.Tensor], learning: torch.Tensor | None) -> None:
        """One step on (r + gamma * max_a Q'(next state, a) - Q(state, action))^2, averaged over the minibatch."""
        state, next_state = batch["state"].transpose(1, 2), batch["next_state"].transpose(1, 2)
        target = batch["reward"][..., 0] + self.params.gamma * self.q(self.theta_target, next_state).amax(1)
        theta = self.theta.detach().requires_grad_()
        chosen = self.q(theta, state).gather(1, batch["action"].long().transpose(1, 2))[:, 0]
        errors = (chosen - target).square()  # [G, M]
        (gradient,) = torch.autograd.grad(errors.mean(-1).sum(), theta)
        self.adam.step(gradient, learning)
        due = (self.adam.count % self.params.target_every == 0) & (self.adam.count > 0)
        self.theta_target.copy_(torch.where(due, self.theta, self.theta_target))
        self.metrics.add(learning, loss=errors, q_mean=chosen, grad_norm=norm(gradient))

    def modules(self) -> dict[str, object]:
        return super().modules() | {"theta": self.theta, "theta_target": self.theta_target, "adam": self.adam}


@dataclasses.dataclass(kw_only=True)
class DQNConfig(DQNParameters, TrainingParameters):
    """Every parameter of main_dqn.py."""


METHOD = Method("dqn_ts", "DQN-TS", DQNConfig, DQNAgents, "baselines/main_dqn.py", variants=PRESETS)

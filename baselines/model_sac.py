"""SAC-TS agents: discrete soft actor-critic with a plain MLP as the actor. Start reading at `SACAgents.logits`."""

import torch

from lad_ts.soft_actor_critic import SoftActorCritic
from lad_ts.stacked import Layout, forward


class SACAgents(SoftActorCritic):
    """The SAC-TS agents of all BSs and seeds."""

    def actor_layout(self) -> Layout:
        return Layout(self.state_size, self.params.hidden, self.params.hidden, self.num_bs)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: None, noise: None) -> torch.Tensor:
        return forward(self.actor_layout().split(theta), state, torch.relu)

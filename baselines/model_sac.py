"""SAC-TS agents: discrete soft actor-critic with a plain MLP as the actor. Start reading at `SACAgents.logits`."""

import dataclasses
from typing import ClassVar

import torch

from lad_ts.soft_actor_critic import SACParameters, SoftActorCritic
from lad_ts.stacked import Layout, forward

PRESETS = {
    "paper": {"state_features": "raw", "next_state": "zeros", "tied_sizes": True},
    "tuned": {"state_features": "scaled", "next_state": "true"},
}


@dataclasses.dataclass(kw_only=True)
class SACTSParameters(SACParameters):
    """Parameters of SAC-TS. Those whose default is None take the preset's value."""

    PRESETS: ClassVar = PRESETS


class SACAgents(SoftActorCritic):
    """The SAC-TS agents of all BSs and seeds."""

    def actor_layout(self) -> Layout:
        return Layout(self.state_size, self.params.hidden, self.params.hidden, self.num_bs)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: None) -> torch.Tensor:
        return forward(self.actor_layout().split(theta), state, torch.relu)

"""SAC-TS agents: discrete soft actor-critic with a plain MLP as the actor. Start reading at `SACAgents.logits`."""

import dataclasses

import torch

from lad_ts.method import PRESETS, Method
from lad_ts.run_parameters import TrainingParameters
from lad_ts.soft_actor_critic import SACParameters, SoftActorCritic
from lad_ts.stacked import Layout, forward


class SACAgents(SoftActorCritic):
    """The SAC-TS agents of all BSs and seeds."""

    fused = "mlp"

    def actor_layout(self) -> Layout:
        return Layout(self.state_size, self.params.hidden, self.params.hidden, self.num_bs)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: None, noise: None) -> torch.Tensor:
        return forward(self.actor_layout().split(theta), state, torch.relu)


@dataclasses.dataclass(kw_only=True)
class SACConfig(SACParameters, TrainingParameters):
    """Every parameter of main_sac.py."""


METHOD = Method("sac_ts", "SAC-TS", SACConfig, SACAgents, "baselines/main_sac.py", variants=PRESETS)

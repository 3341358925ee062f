"""D2SAC-TS agents: diffusion-based soft actor-critic as AGOD defines it (Du et al. 2024).

The actor denoises from Gaussian noise instead of a remembered latent action; its predictor has Mish units and ends in
tanh, the predicted x_0 is clipped to [-1, 1], and next actions come from a target actor. Since x_0 lies in [-1, 1], no
action is more than e^2 = 7.4 times as likely as another. Start reading at `D2SACAgents.logits`.
"""

import dataclasses
from collections.abc import Sequence

import torch

from common.parameters import parameter
from lad_ts.agents import state_size
from lad_ts.diffusion_lad import Denoiser, posterior_schedule
from lad_ts.method import PRESETS, Method
from lad_ts.run_parameters import TrainingParameters
from lad_ts.soft_actor_critic import SACParameters, SoftActorCritic
from lad_ts.stacked import Layout


@dataclasses.dataclass(kw_only=True)
class D2SACParameters(SACParameters):
    """Parameters of D2SAC-TS."""

    denoising_steps: int = parameter(5, "denoising steps I of the policy", unit="steps", low=1, high=1000)
    beta_schedule: str = parameter("vp", "noise schedule of the policy", choices=("vp", "cosine", "linear"))


class D2SACAgents(SoftActorCritic):
    """The D2SAC-TS agents of all BSs and seeds."""

    fused = "noise"
    Parameters = D2SACParameters
    params: D2SACParameters
    target_actor = True

    def __init__(self, params: D2SACParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        self.denoiser = Denoiser(
            state_size=state_size(params),
            num_actions=params.num_bs,
            hidden=params.hidden,
            schedule=posterior_schedule(params.beta_schedule, params.denoising_steps),
            activation="mish",
            predictor="tanh",
            clip=True,
            device=device,
        )
        super().__init__(params, seeds, device)

    def actor_layout(self) -> Layout:
        return self.denoiser.layout

    @property
    def noise_steps(self) -> int:
        return self.params.denoising_steps

    def draw_noise(self, samples: int) -> torch.Tensor:
        """x_I and the noise of the steps I .. 2 in one draw, [G, I, B, samples]."""
        return self.draw("normal", self.params.denoising_steps, self.num_bs, samples)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: None, noise: torch.Tensor) -> torch.Tensor:
        return self.denoiser.forward(theta, noise[:, -1], state, noise[:, :-1])


@dataclasses.dataclass(kw_only=True)
class D2SACConfig(D2SACParameters, TrainingParameters):
    """Every parameter of main_d2sac.py."""


METHOD = Method("d2sac_ts", "D2SAC-TS", D2SACConfig, D2SACAgents, "baselines/main_d2sac.py", variants=PRESETS)

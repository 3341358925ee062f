"""LAD-TS agents: soft actor-critic whose actor denoises the latent action that it remembers.

The memory holds one latent action for every cell (slot t, BS, task index n), standard normal at first. Scheduling a
task starts the denoising chain there and overwrites the cell (arXiv 2412.18212, algorithm of LAD-TS). Start reading at
`LadAgents.choose`.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from common.parameters import ParameterError, parameter
from lad_ts.agents import state_size
from lad_ts.diffusion_lad import Denoiser, posterior_schedule
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.method import PRESETS, Method
from lad_ts.policy_export import ExportedPolicy
from lad_ts.run_parameters import TrainingParameters
from lad_ts.soft_actor_critic import SACParameters, SoftActorCritic
from lad_ts.stacked import Layout

LARGEST_LATENT = 1e6  # an x_0 that is remembered as it is grows until float32 cannot hold it


@dataclasses.dataclass(kw_only=True)
class LadParameters(SACParameters):
    """Parameters of LAD-TS. Those whose default is None take the preset's value."""

    denoising_steps: int = parameter(5, "denoising steps I of the policy", unit="steps", low=1, high=1000)
    beta_schedule: str = parameter("vp", "noise schedule of the policy", choices=("vp", "cosine", "linear"))
    memory: str | None = parameter(
        None,
        "what a cell of the latent memory holds",
        choices=("x0", "x0_standardised", "probabilities"),
        more="x0: as in the paper's figure; it grows 12-fold with every visit at the defaults, and is held within "
        "+-1e6. x0_standardised: over the actions. probabilities: as in the published code.",
    )
    replay_latent: str | None = parameter(
        None,
        "latent of a replayed decision: what it started from, or the cell's content",
        choices=("input", "present"),
    )
    noise_softmax: bool | None = parameter(None, "softmax on the predicted noise, as the published code has")
    posterior_noise: bool | None = parameter(None, "add noise in the posterior steps, as DDPM does")

    PRESETS: ClassVar = {
        "paper": SACParameters.PRESETS["paper"]
        | {
            "memory": "probabilities",
            "replay_latent": "present",
            "noise_softmax": True,
            "posterior_noise": True,
        },
        "tuned": SACParameters.PRESETS["tuned"]
        | {
            "memory": "probabilities",
            "replay_latent": "input",
            "noise_softmax": True,
            "posterior_noise": True,
        },
    }

    def check(self) -> None:
        super().check()
        if self.num_slots * self.num_tasks > 2**24:
            raise ParameterError(
                "num_slots", self.num_slots, f"slots times tasks must be at most {2**24}, cells of the latent memory"
            )


class LadAgents(SoftActorCritic):
    """The LAD-TS agents of all BSs and seeds."""

    fused = "latent"
    Parameters = LadParameters
    params: LadParameters

    def __init__(self, params: LadParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        self.denoiser = Denoiser(
            state_size=state_size(params),
            num_actions=params.num_bs,
            hidden=params.hidden,
            schedule=posterior_schedule(params.beta_schedule, params.denoising_steps),
            predictor="softmax" if params.noise_softmax else "linear",
            device=device,
        )
        super().__init__(params, seeds, device)
        cells = self.draw("normal", self.num_bs, params.num_slots * params.num_tasks)
        cells = cells.view(self.agents, self.num_bs, params.num_slots, params.num_tasks)
        self.memory = cells.permute(2, 0, 1, 3).contiguous()  # [T, G, B, N]

    def actor_layout(self) -> Layout:
        return self.denoiser.layout

    def extra_columns(self) -> dict[str, int]:
        width = self.num_bs if self.params.replay_latent == "input" else 1
        return {"latent": width, "next_latent": width}

    def cell_columns(self) -> tuple[str, ...]:
        return ("latent", "next_latent") if self.params.replay_latent == "present" else ()

    @property
    def noise_steps(self) -> int:
        return self.params.denoising_steps - 1 if self.params.posterior_noise else 0

    def draw_noise(self, samples: int) -> torch.Tensor | None:
        """The noise of the steps I .. 2, [G, I - 1, B, samples]."""
        return self.draw("normal", self.noise_steps, self.num_bs, samples) if self.noise_steps else None

    def logits(
        self, theta: torch.Tensor, state: torch.Tensor, latent: torch.Tensor | None, noise: torch.Tensor | None
    ) -> torch.Tensor:
        assert latent is not None, "LAD-TS starts from a latent action"
        return self.denoiser.forward_fast(theta, latent, state, noise)

    def seen(self, slot: Slot) -> dict[str, torch.Tensor]:
        return {"latent": self.memory[slot.t].clone()}

    def choose(self, state: torch.Tensor, slot: Slot) -> torch.Tensor:
        latent = self.decision["latent"]
        with torch.no_grad():
            x0 = self.logits(self.theta_actor, state, latent, self.draw_noise(state.shape[2]))
        scheduled = slot.mask.reshape(self.agents, 1, -1)
        self.memory[slot.t] = torch.where(scheduled, self.remembered(x0), latent)
        return self.pick(x0.softmax(1))

    def remembered(self, x0: torch.Tensor) -> torch.Tensor:
        """What a cell holds after a decision that ended in x0 [G, B, M], in the same shape."""
        if self.params.memory == "probabilities":
            return x0.softmax(1)
        if self.params.memory == "x0_standardised":
            return (x0 - x0.mean(1, keepdim=True)) / (x0.std(1, keepdim=True, unbiased=False) + 1e-6)
        return x0.clamp(-LARGEST_LATENT, LARGEST_LATENT)

    def policy(self, scenario: Scenario) -> ExportedPolicy:
        def compute(
            theta: torch.Tensor, observation: torch.Tensor, latent: torch.Tensor, *noise: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            steps = noise[0].permute(0, 2, 3, 1) if noise else None
            x0 = self.logits(theta, observation.transpose(1, 2), latent.transpose(1, 2), steps)
            return x0.softmax(1).transpose(1, 2), self.remembered(x0).transpose(1, 2)

        outputs = "probabilities", "next_latent"
        memory = self.memory[:, : self.num_bs].transpose(2, 3)
        return self.exported(compute, self.theta_actor, outputs, self.noise_steps, memory, remembers=self.params.memory)

    def extra_values(self, slot: Slot, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.params.replay_latent == "present":
            cell = slot.t * self.params.num_tasks + torch.arange(mask.shape[1], device=self.device)
            now = cell.expand(self.agents, -1)[..., None]
            after = now.new_full((self.agents, 1), (slot.t + 1) * self.params.num_tasks)
        else:
            now, after = self.decision["latent"].transpose(1, 2), self.memory[slot.t + 1][:, :, 0]
        return {"latent": now, "next_latent": self.then(now, after, mask)}

    def latents(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.params.replay_latent == "input":
            return batch["latent"].transpose(1, 2), batch["next_latent"].transpose(1, 2)
        agent = torch.arange(self.agents, device=self.device)[:, None]

        def look_up(cell: torch.Tensor) -> torch.Tensor:
            t, n = cell[..., 0].long() // self.params.num_tasks, cell[..., 0].long() % self.params.num_tasks
            return self.memory[t, agent, :, n].transpose(1, 2)

        return look_up(batch["latent"]), look_up(batch["next_latent"])

    def modules(self) -> dict[str, object]:
        return super().modules() | {"memory": self.memory}


@dataclasses.dataclass(kw_only=True)
class LadConfig(LadParameters, TrainingParameters):
    """Every parameter of main_lad.py."""


METHOD = Method("lad_ts", "LAD-TS", LadConfig, LadAgents, "lad_ts/main_lad.py", variants=PRESETS)

"""Cooperative LAD-TS: diffusion agents that are trained to keep everybody's delay short, not each task's own.

Each BS decides as in LAD-TS, from the queues at the slot's start and its own tasks; what it learns from differs (see
coop_training.py). Not part of the LAD-TS paper. Start reading at `CoopAgents.act`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from coop_lad_ts.coop_actors import Actor, ServerActor, StationActors
from coop_lad_ts.coop_export import exported_policy
from coop_lad_ts.coop_parameters import CoopConfig, CoopParameters
from coop_lad_ts.coop_training import CoopTraining
from coop_lad_ts.routing_table import coordinated_uniforms
from coop_lad_ts.view import View
from lad_ts.engines import fused_network
from lad_ts.environment_lad import Scenario, Slot, draw_scenario, offered_load
from lad_ts.method import Method, Variant
from lad_ts.policy_export import ExportedPolicy
from lad_ts.references import VirtualOpt
from lad_ts.run_parameters import training_seeds
from lad_ts.seeded import SeededScheduler, check_stations


class CoopAgents(SeededScheduler):
    """The agents of all BSs, for S training seeds. A row of an episode is a training seed."""

    needs = (
        "q at the slot's start, t, the BS's own tasks, f, w, distribution of the task counts, a common random seed; "
        "v in training and where virtual Opt takes over"
    )
    fused, draws_by_place = "servers", False  # the compiled network draws nothing
    Parameters = CoopParameters
    params: CoopParameters

    def __init__(self, params: CoopParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        super().__init__(params, seeds, device)
        self.shared = params.actor == "shared"  # one network, that takes any number of servers
        sizes = (params.hidden, params.denoising_steps, params.beta_schedule, self.device)
        self.actor: Actor = ServerActor(*sizes) if self.shared else StationActors(params.num_bs, *sizes)
        if params.engine == "fused" and isinstance(self.actor, ServerActor):
            self.actor.network = fused_network(self.actor, getattr(params, "threads", 1))
        self.theta = self.actor.draw(self.generators, self.device)
        self.weights = self.actor.split(self.theta)
        self.actor.start_memory(self.draw_rows, params.num_slots, params.num_tasks)
        self.course = CoopTraining(params, self.seeds, self.actor, self.theta, self.draw_rows)
        self.metrics = self.course.metrics
        self.down: torch.Tensor | None = None  # [S, B], servers that are known to have failed
        self.virtual = VirtualOpt(params)

    @classmethod
    def fused_kind(cls, params: CoopParameters) -> str:
        return super().fused_kind(params) if params.actor == "shared" else ""

    @classmethod
    def fused_work(cls, params: Any) -> int:
        pairs = params.distil_updates * params.batch_states * params.batch_tasks * params.num_bs
        return int(params.episodes * params.seeds * pairs // 64)

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        self.num_bs = scenario.capacity.shape[1]
        self.view = View(self.params, scenario, self.device)
        self.greedy = torch.as_tensor(offered_load(self.params, scenario) < self.params.takeover)  # [S]
        self.virtual.begin(scenario, rows)
        self.down = None
        self.offsets = self.draw_rows("uniform", self.params.num_slots)
        self.uniforms = coordinated_uniforms(self.num_bs, scenario.workload.shape[1]).to(self.device)

    def lose(self, down: np.ndarray, scenario: Scenario) -> None:
        super().lose(down, scenario)
        self.virtual.lose(down, scenario)
        self.down = torch.as_tensor(down, device=self.device)

    def act(self, slot: Slot) -> torch.Tensor:
        if not self.greedy.any():
            return self.drawn(slot)
        virtual = torch.as_tensor(self.virtual.act(slot), device=self.device)
        if self.greedy.all():
            return virtual
        return torch.where(self.greedy.to(self.device)[:, None, None], virtual, self.drawn(slot))

    def drawn(self, slot: Slot) -> torch.Tensor:
        """Actions [S, B, N] drawn from the networks' probabilities."""
        seeds, stations, tasks = slot.mask.shape
        q = slot.backlog.to(self.device, torch.float32)
        with torch.inference_mode():
            logits = self.actor.slot_logits(self.weights, self.view, slot, q)  # [S, C, B], C is N or all cells
        if self.down is not None:
            logits = logits.masked_fill(self.down[:, None], float("-inf"))
        level = logits.double().softmax(-1).cumsum(-1)
        if not self.training and self.params.evaluation_action == "argmax":
            best = logits.argmax(-1)
            return best.view(seeds, -1, tasks).expand(seeds, stations, tasks).contiguous()
        if self.params.coordinated:
            uniform = (self.offsets[:, slot.t, None, None] + self.uniforms).remainder(1)
        else:
            uniform = self.draw_rows("uniform", stations, tasks)
        if level.shape[1] == tasks and stations > 1:  # all BSs draw from the same distributions
            drawn = torch.searchsorted(level, uniform.transpose(1, 2).double().contiguous(), right=True).transpose(1, 2)
        else:
            drawn = torch.searchsorted(level, uniform.reshape(seeds, -1, 1).double(), right=True).view(slot.mask.shape)
        last = self.num_bs - 1 if self.down is None else (self.num_bs - 1 - (~self.down).flip(1).int().argmax(1))
        return torch.minimum(drawn, torch.as_tensor(last, device=self.device).view(-1, 1, 1)).contiguous()

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        """Remember the slot's queues and counts; learn once those of a whole episode are there, which come in order."""
        whole = self.course.note(slot, action)
        if whole and not self.greedy.all():  # else nothing that is learned would be used
            self.course.finish_episode(self.scenario, self.view)

    def moved(self, params: CoopParameters) -> "CoopAgents":
        """One shared network takes any number of BSs. Raises ParameterError for another one with a network at each."""
        if not self.shared:
            check_stations(params, self.params.num_bs)
        other = super().moved(params)
        assert isinstance(other, CoopAgents)
        return other

    def policy(self, scenario: Scenario) -> ExportedPolicy:
        return exported_policy(self.params, self.actor, self.theta, scenario)

    def modules(self) -> dict[str, object]:
        return {"theta": self.theta, "memory": self.actor.memory} | self.course.modules()


# What may stand behind the name, as in coop_lad_ts:tail, and the episodes that the study trains it for.
VARIANTS = {
    "mean": Variant({}, 35),
    "tail": Variant({"objective": "tail"}, 35),
    "slowdown": Variant({"objective": "slowdown"}, 35),
    "per_bs": Variant({"actor": "per_bs"}, 35),
    "prices": Variant({"teacher": "prices"}, 50),
    "practised": Variant({"practice": 60, "distil_episodes": 30}, 30),
    "tail_practised": Variant({"objective": "tail", "practice": 60, "distil_episodes": 30}, 30),
}


def takeover_note(config: CoopConfig) -> str:
    """What to say where the load is so low that agents do not learn; else nothing."""
    load = offered_load(config, draw_scenario(config, training_seeds(config)))
    if not (load < config.takeover).any():
        return ""
    words = f"offered load {load.min():.2f} is below --takeover={config.takeover:g}"
    return f"{words}: there, all BSs replay the greedy rule (virtual Opt), and nothing is learned"


METHOD = Method(
    "coop_lad_ts",
    "Cooperative LAD-TS",
    CoopConfig,
    CoopAgents,
    "coop_lad_ts/main_coop.py",
    variants=VARIANTS,
    compared=False,
    note=takeover_note,
)

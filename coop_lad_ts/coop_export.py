"""Cooperative LAD-TS as a function of what a base station sees, for --export. Start reading at `exported_policy`."""

import torch

from coop_lad_ts.coop_actors import Actor, ServerActor, States, StationActors
from coop_lad_ts.coop_parameters import CoopParameters
from coop_lad_ts.view import View
from lad_ts.environment_lad import Scenario, offered_load
from lad_ts.policy_export import ExportedPolicy


def exported_policy(params: CoopParameters, actor: Actor, theta: torch.Tensor, scenario: Scenario) -> ExportedPolicy:
    """The networks theta of the first seed, with what they see of the scenario's first row built in.

    Raises ValueError below --takeover, where no network decides.
    """
    first = scenario.rows(slice(0, 1))
    load = float(offered_load(params, first)[0])
    if load < params.takeover:
        words = f"offered load {load:.2f} is below --takeover={params.takeover:g}"
        raise ValueError(f"{words}, where all BSs replay the greedy rule (virtual Opt) and no network decides")
    view, num_bs = View(params, first, theta.device), first.capacity.shape[1]
    facts = {"actor": params.actor, "objective": params.objective, "coordinated": params.coordinated}
    inputs: dict[str, tuple[int | str, ...]] = {"workload": (num_bs, "tasks"), "backlog": (num_bs,), "t": ()}

    def shared(
        theta: torch.Tensor, workload: torch.Tensor, backlog: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor]:
        assert isinstance(actor, ServerActor)
        states = States(None, t.view(1, 1), workload.reshape(1, 1, -1), backlog.view(1, 1, -1))
        x0 = actor.x0(actor.split(theta), view, states)  # [1, 1, B M, B]
        return (x0.softmax(-1).view(*workload.shape, num_bs),)

    def per_bs(
        theta: torch.Tensor, workload: torch.Tensor, backlog: torch.Tensor, t: torch.Tensor, latent: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        assert isinstance(actor, StationActors)
        row = torch.zeros(1, num_bs, dtype=torch.int64, device=theta.device)
        states = States(row, t.expand(1, num_bs), workload[None], backlog.expand(1, num_bs, -1))
        probabilities = actor.x0(theta, actor.state(view, states), latent.transpose(1, 2)[None])[0].softmax(-1)
        return probabilities, probabilities.clone()

    if params.actor == "shared":
        return ExportedPolicy(shared, theta[:1], inputs, ("probabilities",), facts)
    inputs["latent"] = (num_bs, "tasks", num_bs)
    memory = actor.memory[0].permute(2, 0, 3, 1)  # [T, BS, N, B]
    return ExportedPolicy(per_bs, theta[:num_bs], inputs, ("probabilities", "next_latent"), facts, memory)

"""What a decision of Cooperative LAD-TS costs, against one of LAD-TS in the same run, at the paper's defaults.

Two cases: the simulator, where the agents of all base stations decide a slot at once (and those of the shared network
use that equal tasks have equal probabilities at all of them), and one base station by itself with the tasks of a slot,
from what it sees to the probabilities. Networks are untrained, which changes no time. The policies take turns, on one
thread, and the least of their times counts, since other programs only ever add. Example:
python scripts/bench_decision.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from common.command_line import command_line
from common.parameters import Parameters, parameter, resolve
from common.progress import Progress
from coop_lad_ts.coop_actors import States, StationActors
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from lad_ts.environment_lad import CollaborativeMEC, Slot, draw_arrivals, draw_scenario
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.seeded import SeededScheduler


@dataclasses.dataclass(kw_only=True)
class BenchConfig(Parameters):
    """Every parameter of bench_decision.py."""

    tasks: int = parameter(25, "tasks of the one base station", low=1, high=50)
    repeats: int = parameter(300, "timed calls of each policy", low=1)


def one_slot(agents: SeededScheduler, config: Any) -> Slot:
    """A slot of an episode that the agents have begun."""
    scenario, rows = draw_scenario(config, agents.seeds), [(agents.seeds[0], 0)]
    slot = CollaborativeMEC(scenario, slot_length=config.slot_length).reset(draw_arrivals(config, rows))
    agents.begin(scenario, rows)
    agents.training = False
    return slot


def lad_alone(agents: LadAgents, slot: Slot, tasks: int) -> Callable[[], torch.Tensor]:
    """The first agent's probabilities for the first `tasks` tasks."""
    own = dataclasses.replace(slot, size=slot.size[:, :1, :tasks], workload=slot.workload[:, :1, :tasks])
    steps = agents.params.denoising_steps - 1

    def decide() -> torch.Tensor:
        state = agents.features(own).view(1, tasks, -1).transpose(1, 2)
        noise = torch.randn(1, steps, agents.num_bs, tasks)
        return agents.logits(agents.theta_actor[:1], state, agents.memory[slot.t, :1, :, :tasks], noise).softmax(1)

    return decide


def coop_alone(agents: CoopAgents, slot: Slot, tasks: int) -> Callable[[], torch.Tensor]:
    """The first BS's probabilities for its first `tasks` tasks."""
    row, now = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), slot.t)

    def decide() -> torch.Tensor:
        workload, q = slot.workload[:, :1, :tasks].float(), slot.backlog.float()[:, None]
        states = States(None if agents.shared else row, now, workload.contiguous(), q)
        if isinstance(agents.actor, StationActors):
            latent = agents.actor.memory[:, :1, :, slot.t, :tasks]
            return agents.actor.x0(agents.theta[:1], agents.actor.state(agents.view, states), latent).softmax(-1)
        return agents.actor.logits(agents.weights, agents.view, states).softmax(-1)

    return decide


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    policies = {
        "LAD-TS": (LadAgents, resolve(LadConfig, {}), lad_alone),
        "Cooperative LAD-TS, shared network": (CoopAgents, resolve(CoopConfig, {}), coop_alone),
        "Cooperative LAD-TS, network at each BS": (CoopAgents, resolve(CoopConfig, {"actor": "per_bs"}), coop_alone),
    }
    calls, decisions = {}, {}
    for name, (make, params, alone) in policies.items():
        agents = make(params, [0], "cpu")
        slot = one_slot(agents, params)
        calls[name] = (lambda agents=agents, slot=slot: agents.act(slot), alone(agents, slot, config.tasks))
        decisions[name] = (int(slot.mask.sum()), config.tasks)
    least = {name: [float("inf")] * 2 for name in policies}
    with torch.inference_mode():
        for _ in Progress(range(config.repeats), unit="repeat"):
            for name, pair in calls.items():
                for k, call in enumerate(pair):
                    began = time.perf_counter()
                    call()
                    least[name][k] = min(least[name][k], (time.perf_counter() - began) / decisions[name][k])
    base = least["LAD-TS"]
    all_at_once = f"all {slot.mask.shape[1]} BSs at once"
    print(f"| us per decision | {all_at_once} | / LAD-TS | one BS, {config.tasks} tasks | / LAD-TS |\n|" + "---|" * 5)
    for name, (together, single) in least.items():
        cells = f"{1e6 * together:.2f} | {together / base[0]:.2f} | {1e6 * single:.1f} | {single / base[1]:.2f}"
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)

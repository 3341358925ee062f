"""Practice for agents that are to schedule on any scenario: drawn scenarios, their tables, and drawn backlogs.

Start reading at `practice_lessons`.
"""

import dataclasses

import numpy as np
import torch

from lad_ts.coop_actors import View
from lad_ts.environment_lad import EnvironmentParameters, Scenario, draw_scenario
from lad_ts.queue_model import QueueModel, offered_load
from lad_ts.routing_table import PRACTICE, RoutingTable, TableParameters, fit_tables

PATHS = 8  # arrival paths of each practice scenario
SERVERS = (8, 20, 40)  # numbers of servers, in equal parts
LOADS = (1.03, 1.7)  # the smaller ones, where a mistake overloads a server, more often
SPREADS = (1.0, 8.0)  # greatest over least capacity
FIRST_SEED = 1_000_000  # scenario seeds of practice, far from those that are used elsewhere


@dataclasses.dataclass
class Lessons:
    """What distillation and tuning draw from: scenarios, their tables, and the episodes that were met in them.

    backlog [R, E, T - 1, B] in Gcycles and tasks [R, E, T - 1, B] (how many each BS had) of E episodes of R scenarios.
    """

    scenario: Scenario
    view: View
    table: RoutingTable
    backlog: torch.Tensor
    tasks: torch.Tensor


def drawn_scenario(params: EnvironmentParameters, seed: int, num_bs: int, load: float, spread: float) -> Scenario:
    """A scenario of an offered load: task classes from its seed, num_bs capacities within a factor of `spread`."""
    plain = dataclasses.replace(params, num_bs=num_bs, scenario_seed=seed, scenario_per_seed=False, capacities=None)
    drawn = draw_scenario(plain, [0])
    rng = np.random.default_rng(np.random.SeedSequence([PRACTICE, seed]))
    capacity = rng.uniform(1, spread, (1, num_bs))
    unscaled = dataclasses.replace(drawn, capacity=capacity)
    return dataclasses.replace(drawn, capacity=capacity * offered_load(params, unscaled)[:, None] / load)


def stack(scenarios: list[Scenario]) -> Scenario:
    """Scenarios of the same sizes as the rows of one."""
    return Scenario(*(np.concatenate([getattr(s, f.name) for s in scenarios]) for f in dataclasses.fields(Scenario)))


def practice_lessons(params: TableParameters, device: torch.device | str, count: int) -> list[Lessons]:
    """`count` practice scenarios, grouped by their number of servers, with fitted tables and drawn backlogs.

    The backlogs are those that drawn arrivals bring about under the tables, without feedback.
    """
    rng = np.random.default_rng(np.random.SeedSequence([PRACTICE, params.scenario_seed]))
    groups: dict[int, list[Scenario]] = {}
    for k in range(count):
        num_bs = SERVERS[k % len(SERVERS)]
        load = LOADS[0] + (LOADS[1] - LOADS[0]) * rng.random() ** 2
        spread = rng.uniform(*SPREADS)
        groups.setdefault(num_bs, []).append(drawn_scenario(params, FIRST_SEED + k, num_bs, load, spread))
    lessons = []
    for num_bs, scenarios in groups.items():
        scenario = stack(scenarios)
        table, _ = fit_tables(params, scenario, range(len(scenarios)), stream=PRACTICE)
        model = QueueModel(scenario, params.slot_length, torch.float32)
        shape = (len(scenarios), PATHS, params.num_slots - 1, num_bs)
        tasks = rng.integers(params.min_tasks, params.num_tasks, shape, endpoint=True)
        count_n = (tasks[..., None] > np.arange(params.num_tasks)).sum(3)  # [R, E, T - 1, N]
        work = model.workload[:, None, :, None] * table.log_table.softmax(-1)
        sent = torch.einsum("retn,rtnb->retb", torch.from_numpy(count_n).to(work), work)
        parts = (model.backlogs(sent), torch.from_numpy(tasks).to(work), table.log_table, table.nominal)
        backlog, tasks_, log_table, nominal = (part.to(device) for part in parts)
        view = View(params, scenario, device)
        lessons.append(Lessons(scenario, view, RoutingTable(log_table, nominal), backlog, tasks_))
    return lessons

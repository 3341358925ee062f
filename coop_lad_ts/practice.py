"""Practice for agents that are to schedule on any scenario: drawn scenarios, their tables, and drawn backlogs.

Start reading at `practice_lessons`.
"""

import dataclasses

import torch

from common.random_streams import Stream, random_generator
from coop_lad_ts.coop_actors import Actor, States
from coop_lad_ts.routing_table import RoutingTable, TableParameters, fit_tables, in_classes, queue_model
from coop_lad_ts.view import View
from lad_ts.arrivals import draw_counts
from lad_ts.environment_lad import EnvironmentParameters, Scenario, draw_scenario, offered_load

PATHS = 8  # arrival paths of each practice scenario
SHAPES = ((8, 120), (20, 60), (20, 15), (40, 30))  # servers and time slots, in equal parts
FIT_STEPS = 400  # at most, of the tables: more make them hardly better
LOADS = (1.03, 1.7)  # the smaller ones, where a mistake overloads a server, more often
SPREADS = (1.0, 8.0)  # greatest over least capacity
REHEARSED = 4  # episodes of each shape, in an episode of training, that agents go through themselves
FIRST_SEED = 1_000_000  # scenario seeds of practice, far from those that are used elsewhere


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What distillation and tuning draw from: scenarios, their tables, and K episodes in them for each seed.

    T and B are those of `params`, in which lessons differ. rows [S, K] tells the scenario of each episode, backlog
    [S, K, T - 1, B] its queues in Gcycles, and tasks [S, K, T - 1, B] how many tasks each BS had.
    """

    params: TableParameters
    scenario: Scenario
    view: View
    table: RoutingTable
    rows: torch.Tensor
    backlog: torch.Tensor
    tasks: torch.Tensor


def drawn_scenario(params: EnvironmentParameters, seed: int, num_bs: int, load: float, spread: float) -> Scenario:
    """A scenario of an offered load: task classes from its seed, num_bs capacities within a factor of `spread`."""
    plain = dataclasses.replace(params, scenario_seed=seed, scenario_per_seed=False)
    drawn = draw_scenario(plain, [0], num_bs)
    rng = random_generator(Stream.PRACTICE, seed)
    capacity = rng.uniform(1, spread, (1, num_bs))
    unscaled = dataclasses.replace(drawn, capacity=capacity)
    return dataclasses.replace(drawn, capacity=capacity * offered_load(params, unscaled)[:, None] / load)


def practice_lessons(params: TableParameters, device: torch.device | str, count: int, seeds: int) -> list[Lessons]:
    """`count` practice scenarios, grouped by their shapes, with fitted tables and drawn backlogs.

    The backlogs are those that drawn arrivals bring about under the tables, without feedback.
    """
    rng = random_generator(Stream.PRACTICE, params.scenario_seed)
    groups: dict[tuple[int, int], list[Scenario]] = {}
    for k in range(count):
        shape = SHAPES[k % len(SHAPES)]
        load = LOADS[0] + (LOADS[1] - LOADS[0]) * rng.random() ** 2
        spread = rng.uniform(*SPREADS)
        groups.setdefault(shape, []).append(drawn_scenario(params, FIRST_SEED + k, shape[0], load, spread))
    lessons = []
    for (num_bs, num_slots), scenarios in groups.items():
        steps = min(params.fit_steps, FIT_STEPS)
        own = dataclasses.replace(params, num_slots=num_slots, fit_steps=steps)
        scenario = Scenario.stacked(scenarios)
        table, _ = fit_tables(own, scenario, range(len(scenarios)), stream=Stream.PRACTICE)
        model = queue_model(own, scenario, torch.float32)
        tasks = torch.from_numpy(draw_counts(own, rng, len(scenarios), PATHS, num_slots - 1, num_bs))
        count_n = in_classes(own, tasks).sum(3)  # [R, E, T - 1, N]
        work = model.workload[:, None, :, None] * table.log_table.softmax(-1)
        sent = torch.einsum("retn,rtnb->retb", count_n.to(work), work)
        parts = (model.backlogs(sent), tasks.to(work), table.log_table, table.nominal)
        backlog, tasks_, log_table, nominal = (part.to(device) for part in parts)
        backlog, tasks_ = (part.flatten(0, 1).expand(seeds, -1, -1, -1) for part in (backlog, tasks_))
        rows = torch.arange(len(scenarios), device=device).repeat_interleave(PATHS).expand(seeds, -1)
        view = View(own, scenario, device)
        lessons.append(Lessons(own, scenario, view, RoutingTable(log_table, nominal), rows, backlog, tasks_))
    return lessons


def rehearsed(lessons: Lessons, actor: Actor, theta: torch.Tensor, episodes: torch.Tensor) -> Lessons:
    """Lessons at the queues that agents themselves bring about, with the arrivals of episodes [S, K] of the lessons.

    Tables alone show no queues that mistakes have made, so agents that learn from them do not correct their own.
    """
    seed = torch.arange(len(episodes), device=episodes.device)[:, None]
    rows, tasks = lessons.rows[seed, episodes], lessons.tasks[seed, episodes]
    count = in_classes(lessons.params, tasks).sum(3)  # [S, K, T - 1, N]
    workload, view, weights = lessons.view.workload[rows], lessons.view, actor.split(theta)
    work = (count * workload[:, :, None]).unsqueeze(-2)  # [S, K, T - 1, 1, N]
    served = view.capacity[rows] * lessons.params.slot_length
    backlog = torch.zeros_like(tasks)
    for t in range(tasks.shape[2] - 1):
        q = backlog[:, :, t]
        x0 = actor.logits(weights, view, States(rows, torch.full_like(rows, t), workload, q))[:, 0]
        sent = work[:, :, t] @ x0.softmax(-1)
        backlog[:, :, t + 1] = (q + sent.squeeze(-2) - served).clamp(min=0)
    return dataclasses.replace(lessons, rows=rows, backlog=backlog, tasks=tasks)

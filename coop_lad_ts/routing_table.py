"""Routing tables: action probabilities of the n-th task of slot t, for all base stations, fitted to everybody's delay.

The gradient of the queue model (queue_model.py) tells what a task costs itself and all tasks behind it, which a greedy
rule does not see; under overload the table that results keeps small tasks apart from large ones. It is fitted on drawn
arrivals, not on their mean: what chance does to queues matters most where servers are nearly idle. `fit_tables` fits,
`RoutingTable.log_probabilities` adds the feedback from the queues. Start reading at `fit_tables`.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from common.parameters import parameter
from common.progress import Progress
from common.random_streams import Stream, random_generator
from coop_lad_ts.queue_model import Objective, QueueModel
from lad_ts.arrivals import draw_counts, slot_presence
from lad_ts.environment_lad import EnvironmentParameters, Scenario, offered_load, presence

TASKS_BY_CAPACITY = {"mean": "descending", "slowdown": "descending", "tail": "ascending"}
FITTED_AT_ONCE = 2_000_000  # numbers of a fit's largest tensors
LOG_FLOOR = -25.0  # the least logarithm of a probability: what is never chosen in the model stays rare


@dataclasses.dataclass(kw_only=True)
class TableParameters(EnvironmentParameters):
    """What a table is fitted for, and how."""

    GROUP: ClassVar[str] = "routing table"

    objective: str = parameter(
        "mean",
        "what is minimised",
        choices=("mean", "tail", "slowdown"),
        more="mean: the mean delay. tail: the mean delay, and what exceeds a threshold. slowdown: the mean of the "
        "delay over the delay alone on the best server.",
    )
    tail_weight: float = parameter(5.0, "weight of what exceeds the threshold, for objective tail", low=0)
    tail_threshold: float | None = parameter(
        None,
        "delay above which objective tail counts; default: by the load",
        unit="s",
        low=0,
        more="The default is 0.95 of the fluid wait at the end, that is of T - 1 slots times load - 1, or times 0.05 "
        "if that is more.",
    )
    fit_steps: int = parameter(1000, "gradient steps of a table's fit", low=1)
    fit_paths: int = parameter(4, "arrival paths drawn for each gradient step", low=1)
    fit_rate: float = parameter(0.1, "learning rate of a table's fit, falling to 0", above=0)
    feedback: float = parameter(
        0.5, "how much an ES is avoided for each second that its queue exceeds the fitted one", unit="1/s", low=0
    )
    coordinated: bool = parameter(
        True,
        "draw actions from a sequence common to all BSs, so that they spread evenly",
    )


def make_objective(params: TableParameters, scenario: Scenario) -> Objective:
    """The objective of the parameters for R scenarios; the tail's threshold is in s, and rises with the load."""
    load = offered_load(params, scenario)
    fluid = np.maximum(load - 1, 0.05) * (params.num_slots - 1) * params.slot_length
    given = params.tail_threshold
    threshold = np.full_like(load, given) if given is not None else 0.95 * fluid
    return Objective(params.objective, params.tail_weight, torch.as_tensor(threshold))


def middle_ranks(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Where each of values [R, K] lies in their order, in 0..1 of the whole weight [R, K]; equal ones in turn."""
    order = values.argsort(dim=1, stable=True)
    share = weight.gather(1, order)
    middle = (share.cumsum(1) - share / 2) / share.sum(1, keepdim=True)
    return torch.zeros_like(middle).scatter_(1, order, middle)


def in_classes(params: EnvironmentParameters, tasks: torch.Tensor) -> torch.Tensor:
    """How many tasks of each class a BS has that has so many tasks [.., B], [.., B, N]: one of each of the first.

    Classes of a file are equally likely, so there it is a part of a task of each.
    """
    if params.file_tasks is None:
        return tasks[..., None] > torch.arange(params.num_tasks, device=tasks.device)
    return (tasks[..., None] / params.num_tasks).expand(*tasks.shape, params.num_tasks)


def queue_model(
    params: EnvironmentParameters, scenario: Scenario, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> QueueModel:
    """The queue model of the parameters' environment."""
    return QueueModel(scenario, params.slot_length, dtype, device, ordered=params.file_tasks is None)


@dataclasses.dataclass
class RoutingTable:
    """Fitted tables of R scenarios: log_table [R, T - 1, N, B], and the mean backlog [R, T - 1, B] in Gcycles."""

    log_table: torch.Tensor
    nominal: torch.Tensor

    def log_probabilities(
        self, row: torch.Tensor, t: torch.Tensor, n: torch.Tensor, q: torch.Tensor, capacity: torch.Tensor, gain: float
    ) -> torch.Tensor:
        """Unnormalised log probabilities [.., M, C, B] of tasks n [.., M, C], in slots t and scenarios row [.., M].

        With backlog q and capacity [.., M, B], these are log table - gain * (q - nominal q) / f.
        """
        excess = (q - self.nominal[row, t]) / capacity
        return self.log_table[row[..., None], t[..., None], n] - gain * excess[..., None, :]


def coordinated_uniforms(num_bs: int, num_tasks: int) -> torch.Tensor:
    """What is added to a slot's common random number for the n-th task of BS b, [B, N], in 0..1 (float64).

    frac(U + 0.618 b + 0.755 n) is uniform for each task, and evenly spread over the tasks of a slot and over the BSs
    with the same task, so that each ES gets close to its expected work without a message (steps from the plastic and
    golden numbers' additive sequences).
    """
    b, n = torch.arange(num_bs, dtype=torch.float64), torch.arange(num_tasks, dtype=torch.float64)
    return (0.6180339887498949 * b[:, None] + 0.7548776662466927 * n).remainder(1)


def size_matched_logits(
    params: EnvironmentParameters, model: QueueModel, order: str, sharpness: float = 12.0
) -> torch.Tensor:
    """Where a fit starts, [R, N, B]: a task prefers ESs whose place by capacity is its own place by size.

    `ascending`: small tasks to slow servers; `descending`: small tasks to fast ones. A start that treats all servers
    alike is a saddle, at which a fit stays.
    """
    present = torch.as_tensor(presence(params)).to(model.workload)
    size = middle_ranks(model.workload, model.workload * present)
    place = middle_ranks(model.capacity, model.capacity)
    if order == "descending":
        place = 1 - place
    return model.capacity.log()[:, None] - sharpness * (size[:, :, None] - place[:, None]).abs()


def fit_tables(
    params: TableParameters,
    scenario: Scenario,
    seeds: Sequence[int],
    stream: Stream = Stream.TABLE_FIT,
    progress: bool = True,
) -> tuple[RoutingTable, torch.Tensor]:
    """Tables of R scenarios, each on arrivals drawn from its own seed, and the cost [steps, R] of a task on the way.

    Adam on the logits, with the gradient of the queue model's mean cost over `fit_paths` fresh arrival paths a step.
    Scenarios do not touch each other; they are fitted a few at a time, which bounds the memory.
    """
    rows, num_bs = scenario.capacity.shape
    at_once = max(1, FITTED_AT_ONCE // (params.fit_paths * params.num_slots * params.num_tasks * num_bs))
    if rows > at_once:
        parts = [slice(start, start + at_once) for start in range(0, rows, at_once)]
        bar = Progress(parts, desc="fitting tables", unit="part", leave=False, disable=not progress)
        fits = [fit_tables(params, scenario.rows(part), list(seeds)[part], stream, False) for part in bar]
        tables, costs = zip(*fits, strict=True)
        log_table, nominal = (torch.cat([getattr(t, name) for t in tables]) for name in ("log_table", "nominal"))
        return RoutingTable(log_table, nominal), torch.cat(costs, 1)
    paths, slots = params.fit_paths, params.num_slots - 1
    model = queue_model(params, scenario, torch.float32)
    objective = make_objective(params, scenario)
    start = size_matched_logits(params, model, TASKS_BY_CAPACITY[params.objective])
    logits = start[:, None].repeat(1, slots, 1, 1).requires_grad_()
    adam = torch.optim.Adam([logits], betas=(0.9, 0.99))
    generators = [random_generator(stream, seed) for seed in seeds]
    size = params.mean_input
    costs = []
    for step in Progress(
        range(params.fit_steps), desc="fitting tables", unit="step", leave=False, disable=not progress
    ):
        adam.param_groups[0]["lr"] = params.fit_rate * (1 - step / params.fit_steps) ** 0.5
        drawn = np.stack([draw_counts(params, rng, paths, slots, model.num_bs) for rng in generators])
        count = in_classes(params, torch.from_numpy(drawn)).sum(-2)
        cost = model.table_cost(logits.softmax(-1), count.to(logits), size, objective)
        adam.zero_grad()
        cost.sum().backward()
        adam.step()
        costs.append(cost.detach())
    log_table = logits.detach().log_softmax(-1).clamp(min=LOG_FLOOR)
    return RoutingTable(log_table, nominal_backlog(params, model, log_table)), torch.stack(costs)


def nominal_backlog(params: EnvironmentParameters, model: QueueModel, log_table: torch.Tensor) -> torch.Tensor:
    """The backlogs [R, T - 1, B] in Gcycles that the mean arrivals bring about under tables [R, T - 1, N, B]."""
    present = torch.tensor(slot_presence(params)).to(log_table)
    sent = (present[..., None] * model.workload[:, None, :, None] * log_table.softmax(-1)).sum(2)
    return model.backlogs(model.num_bs * sent)


def unfitted_table(params: TableParameters, scenario: Scenario) -> RoutingTable:
    """Where measured prices start from: sizes matched to capacities, and no model of the queues."""
    model = queue_model(params, scenario, torch.float32)
    start = size_matched_logits(params, model, TASKS_BY_CAPACITY[params.objective])
    table = start.log_softmax(-1)[:, None].repeat(1, params.num_slots - 1, 1, 1)
    return RoutingTable(table, torch.zeros_like(table[:, :, 0]))

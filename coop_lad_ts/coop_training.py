"""How agents of Cooperative LAD-TS learn, once an episode is over: they distil a routing table, and are then tuned.

The table is fitted through the queue model, centrally and before the first episode (routing_table.py), or moved by
measured prices (congestion.py). Distillation follows the table, corrected by the queues that agents meet; tuning
follows the queue model's gradient through the agents' own decisions. Start reading at `CoopTraining.finish_episode`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from common.random_streams import Stream, random_generator
from coop_lad_ts.congestion import CongestionPrices, measured_costs
from coop_lad_ts.coop_actors import Actor, Draw, States
from coop_lad_ts.coop_parameters import CoopParameters
from coop_lad_ts.practice import REHEARSED, Lessons, practice_lessons, rehearsed
from coop_lad_ts.routing_table import (
    RoutingTable,
    TableParameters,
    fit_tables,
    in_classes,
    make_objective,
    queue_model,
    unfitted_table,
)
from coop_lad_ts.view import View
from lad_ts.environment_lad import Scenario, Slot, presence
from lad_ts.metrics import Metrics, norm
from lad_ts.stacked import StackedAdam

KEPT = 10  # episodes whose backlogs the agents remember
LESSONS, REHEARSAL = 1, 2  # what an episode's choices are for


class Step(Protocol):
    """What one step of training minimises."""

    name: str  # of its loss, in metrics.csv

    def losses(self, actor: Actor, theta: torch.Tensor, seeds: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [S, A] of some of the seeds, which their sum counts, and the policies' mean entropy [S] in nat.

        theta holds the seeds' parameters; A is 1, or B with a network at each BS that has a loss of its own.
        """


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Cross entropy to a table's probabilities label [S, M, C, B] at states of a view."""

    view: View
    states: States
    label: torch.Tensor
    name = "distil_loss"

    def losses(self, actor: Actor, theta: torch.Tensor, seeds: slice) -> tuple[torch.Tensor, torch.Tensor]:
        log = actor.logits(actor.split(theta), self.view, self.states.of(seeds)).log_softmax(-1)
        return -(self.label[seeds, None] * log).sum(-1).mean((2, 3)), mean_entropy(log)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Everybody's cost in an episode, through the queue model: states of all slots and task numbers.

    scenario has a row for each seed, mask [S, T - 1, B, N] tells the episode's tasks, or parts of tasks.
    """

    params: TableParameters
    view: View
    states: States
    scenario: Scenario
    mask: torch.Tensor
    name = "tune_loss"

    def losses(self, actor: Actor, theta: torch.Tensor, seeds: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The logarithm of each seed's mean cost: relative costs, so that all scenarios count alike."""
        p, scenario = self.params, self.scenario.rows(seeds)
        x0 = actor.logits(actor.split(theta), self.view, self.states.of(seeds))
        probabilities = x0.softmax(-1)
        model = queue_model(p, scenario, torch.float32, theta.device)
        costs = actor.mean_cost(model, make_objective(p, scenario), probabilities, self.mask[seeds], p.mean_input)
        return costs.clamp(min=1e-6).log()[:, None], mean_entropy(x0.detach().log_softmax(-1))


@torch.no_grad()
def mean_entropy(log: torch.Tensor) -> torch.Tensor:
    """The mean entropy [S] in nat of policies whose logarithms are log [S, .., B]."""
    return -(log.exp() * log).sum(-1).flatten(1).mean(1)


class CoopTraining:
    """What S seeds' agents remember of episodes, their table and prices, and the optimiser of theta.

    `draw(kind, *shape)` draws numbers [S, *shape], each seed's from its own generator.
    """

    def __init__(
        self, params: CoopParameters, seeds: Sequence[int], actor: Actor, theta: torch.Tensor, draw: Draw
    ) -> None:
        self.params, self.seeds, self.actor, self.theta, self.draw = params, list(seeds), actor, theta, draw
        self.device = theta.device
        self.metrics = Metrics(len(self.seeds), ("distil_loss", "tune_loss", "entropy", "grad_norm"))
        self.adam = StackedAdam(theta, params.distil_rate, beta2=0.99)
        rows, slots, servers = len(self.seeds), params.num_slots - 1, params.num_bs
        zeros = theta.new_zeros
        self.table = RoutingTable(zeros(rows, slots, params.num_tasks, servers), zeros(rows, slots, servers))
        self.fitted = zeros(rows, servers)  # capacities that the table was fitted for; 0: none yet
        self.prices = CongestionPrices(self.table, params.price_rate, params.price_memory)
        self.backlog, self.tasks = zeros(rows, KEPT, slots, servers), zeros(rows, KEPT, slots, servers)
        self.recorded = torch.zeros(1, dtype=torch.int64)  # episodes
        self.met: list[tuple[torch.Tensor, ...]] = []  # slots of the present episode
        self.practice: list[Lessons] | None = None
        self.row = torch.arange(rows, device=self.device)[:, None]

    def note(self, slot: Slot, action: torch.Tensor) -> bool:
        """Remember a slot's queues [S, B], tasks of each BS, and work and tasks sent to each ES.

        Returns whether a whole episode is there, slot after slot.
        """
        if slot.t == 0:
            self.met = []
        work = (slot.workload * slot.mask).flatten(1).float()
        sent = torch.zeros(len(self.seeds), 2, slot.backlog.shape[1], device=self.device)
        flat = action.flatten(1)
        sent[:, 0].scatter_add_(1, flat, work.to(self.device))
        sent[:, 1].scatter_add_(1, flat, slot.mask.flatten(1).to(self.device, torch.float32))
        self.met.append((slot.backlog.float(), slot.mask.sum(2).float(), sent[:, 0], sent[:, 1]))
        return len(self.met) == slot.t + 1 == self.params.num_slots - 1

    def finish_episode(self, scenario: Scenario, view: View) -> None:
        """Distil the table in the first episodes, and follow the queue model's gradient in the later ones.

        Raises ValueError when the episode had another number of servers than the agents were made for.
        """
        p = self.params
        backlog, tasks, work, sent = (torch.stack(parts, 1).to(self.device) for parts in zip(*self.met, strict=True))
        self.met = []
        if backlog.shape[2:] != self.backlog.shape[3:]:
            raise ValueError(f"trained for {self.backlog.shape[3]} servers, cannot learn from {backlog.shape[2]}")
        episode = int(self.recorded)
        self.backlog[:, episode % KEPT], self.tasks[:, episode % KEPT] = backlog, tasks
        self.recorded += 1
        if p.teacher == "model" and episode >= p.distil_episodes:
            self.tune(episode, self.lessons(episode, scenario, view))
            return
        self.prepare(scenario)
        if p.teacher == "prices":
            model = queue_model(p, scenario, torch.float32, self.device)
            wait, price = measured_costs(backlog, work, sent, model.capacity, p.slot_length)
            self.prices.learn(wait, price, backlog, model.own, model.workload)
        self.distil(episode, self.lessons(episode, scenario, view))

    def prepare(self, scenario: Scenario) -> None:
        """Fit the tables of the scenario, where that is not done yet."""
        prices = self.params.teacher == "prices"
        capacity = torch.tensor(scenario.capacity, device=self.device)
        if self.fitted.any() if prices else torch.equal(self.fitted, capacity.float()):
            return
        if prices:
            fitted = unfitted_table(self.params, scenario)
        else:
            fitted, _ = fit_tables(self.params, scenario, self.seeds)
        self.table.log_table.copy_(fitted.log_table)
        self.table.nominal.copy_(fitted.nominal)
        self.fitted.copy_(capacity)

    def lessons(self, episode: int, scenario: Scenario, view: View) -> list[Lessons]:
        """The agents' own episodes, practice episodes, and some of these as the agents now go through them."""
        if self.practice is None:
            self.practice = practice_lessons(self.params, self.device, self.params.practice, len(self.seeds))
        known = min(int(self.recorded), KEPT)
        met = self.row.expand(-1, known), self.backlog[:, :known], self.tasks[:, :known]
        own = Lessons(self.params, scenario, view, self.table, *met)
        chooser = self.chooser(episode, REHEARSAL)
        gone_through = []
        for lesson in self.practice:
            chosen = torch.from_numpy(chooser.choice(lesson.rows.shape[1], REHEARSED)).expand(len(self.seeds), -1)
            with torch.no_grad():
                gone_through.append(rehearsed(lesson, self.actor, self.theta, chosen.to(self.device)))
        return [own, *self.practice, *gone_through]

    def choose_lesson(self, lessons: list[Lessons], uniform: float) -> Lessons:
        """One of the lessons, in proportion to their scenarios; the agents' own counts as one."""
        weight = np.array([1.0] + [lesson.view.capacity.shape[0] for lesson in lessons[1:]]).cumsum()
        return lessons[int(np.searchsorted(weight, uniform * weight[-1], side="right"))]

    def chooser(self, episode: int, purpose: int) -> np.random.Generator:
        """What chooses an episode's lessons, for all seeds alike, so that a seed learns the same beside any others."""
        return random_generator(Stream.PRACTICE, self.params.scenario_seed, episode, purpose)

    def distil(self, episode: int, lessons: list[Lessons]) -> None:
        """Steps towards the table's probabilities, at states that were met."""
        p = self.params
        draws = self.draw("uniform", p.distil_updates, p.batch_states, 2 + p.batch_tasks)
        chooser = self.chooser(episode, LESSONS)
        present = torch.as_tensor(presence(p), dtype=torch.float32, device=self.device).cumsum(0)
        gain = p.feedback if p.teacher == "model" else 0.0  # queues that prices have changed are no deviation
        falling = max(p.distil_episodes, 1) * p.distil_updates
        for update in range(p.distil_updates):
            lesson, uniform = self.choose_lesson(lessons, chooser.random()), draws[:, update]
            k = (uniform[..., 0] * lesson.backlog.shape[1]).long()
            t = (uniform[..., 1] * lesson.backlog.shape[2]).long()
            n = torch.searchsorted(present, uniform[..., 2:] * present[-1]).clamp(max=p.num_tasks - 1)
            row, q, view = lesson.rows[self.row, k], lesson.backlog[self.row, k, t], lesson.view
            label = lesson.table.log_probabilities(row, t, n, q, view.capacity[row], gain).softmax(-1)
            done = (episode * p.distil_updates + update) / falling
            left = max(1 - done, 0.0) if p.teacher == "model" else 1 / (1 + done)  # prices have no last episode
            self.adam.lr = p.distil_rate * left**0.5
            states = States(row, t, view.workload[row[..., None], n], q, n)
            self.advance(Distillation(view, states, label))

    def tune(self, episode: int, lessons: list[Lessons]) -> None:
        """Steps along the gradient of everybody's cost, at the states of an episode, through the queue model."""
        p, chooser = self.params, self.chooser(episode, LESSONS)
        number = torch.arange(p.num_tasks, device=self.device)
        self.adam.lr = p.tune_rate / (1 + (episode - p.distil_episodes) / p.tune_halving)
        for _ in range(p.tune_updates):
            lesson = self.choose_lesson(lessons, chooser.random())
            slots = lesson.params.num_slots - 1
            t = torch.arange(slots, device=self.device).expand(len(self.seeds), -1)
            n = number.expand(len(self.seeds), slots, -1)
            k = (self.draw("uniform", 1) * lesson.backlog.shape[1]).long()
            row, q, tasks = (part[self.row, k][:, 0] for part in (lesson.rows, lesson.backlog, lesson.tasks))
            rows = row[:, None].expand(-1, slots)
            states = States(rows, t, lesson.view.workload[rows], q, n)
            scenario, mask = lesson.scenario.rows(row.cpu().numpy()), in_classes(lesson.params, tasks)
            self.advance(Tuning(lesson.params, lesson.view, states, scenario, mask))

    def advance(self, step: Step) -> None:
        """One step of Adam along the gradient of a step's loss, for all seeds."""
        parts = []
        for seeds in self.actor.together(len(self.seeds)):
            theta = self.theta[seeds].detach().requires_grad_()
            losses, entropy = step.losses(self.actor, theta, seeds)
            (gradient,) = torch.autograd.grad(losses.sum(), theta)
            parts.append((gradient, losses.detach(), entropy))
        gradient, losses, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        self.adam.step(gradient)
        norms = norm(gradient).view(len(self.seeds), -1)
        self.metrics.add(**{step.name: losses}, entropy=entropy[:, None], grad_norm=norms)

    def modules(self) -> dict[str, object]:
        """Parts with state, by their names in a checkpoint."""
        parts: dict[str, object] = {"adam": self.adam, "fitted": self.fitted}
        parts |= {"log_table": self.table.log_table, "nominal": self.table.nominal}
        parts |= {"wait": self.prices.wait, "price": self.prices.price, "priced": self.prices.episodes}
        return parts | {"backlog": self.backlog, "tasks": self.tasks, "recorded": self.recorded}

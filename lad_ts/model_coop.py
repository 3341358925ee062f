"""Cooperative LAD-TS: diffusion agents that are trained to keep everybody's delay short, not each task's own.

Each BS decides as in LAD-TS, from the queues at the slot's start and its own tasks; what it learns from differs. A
routing table is fitted through the queue model, centrally and before the first episode (routing_table.py); the agents
distil it, corrected by the queues that they meet, and are then tuned by the queue model's gradient through their own
decisions. Not part of the LAD-TS paper. Start reading at `CoopAgents.act`, then at `CoopAgents.finish_episode`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.parameters import ParameterError, parameter
from lad_ts.agents import SeededLearner
from lad_ts.congestion import CongestionPrices, measured_costs
from lad_ts.coop_actors import ServerActor, StationActors, View
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.practice import REHEARSED, Lessons, practice_lessons, rehearsed
from lad_ts.queue_model import QueueModel, offered_load, presence
from lad_ts.references import VirtualOpt
from lad_ts.routing_table import (
    PRACTICE,
    TASKS_BY_CAPACITY,
    RoutingTable,
    TableParameters,
    coordinated_uniforms,
    fit_tables,
    make_objective,
    scenario_rows,
    size_matched_logits,
)
from lad_ts.stacked import StackedAdam

KEPT = 10  # episodes whose backlogs the agents remember
PAIRS_AT_ONCE = 2**18  # pairs of a task and a server that the shared network takes together, which bounds its memory


@dataclasses.dataclass(kw_only=True)
class CoopParameters(TableParameters):
    """Parameters of Cooperative LAD-TS."""

    actor: str = parameter(
        "shared",
        "shared: one network for all BSs that takes any number of servers; per_bs: a network at each BS, as in LAD-TS",
        choices=("shared", "per_bs"),
    )
    teacher: str = parameter(
        "model",
        "model: a table fitted through the queue model, then its gradient; prices: measured prices, no model",
        choices=("model", "prices"),
    )
    takeover: float = parameter(
        1.05, "offered load below which every BS replays the greedy rule instead (virtual Opt); 0: never", low=0
    )
    hidden: int = parameter(32, "width of the two hidden layers", low=1)
    denoising_steps: int = parameter(5, "denoising steps I of the policy", unit="steps", low=1, high=1000)
    beta_schedule: str = parameter("vp", "noise schedule of the policy", choices=("vp", "cosine", "linear"))
    distil_episodes: int = parameter(20, "first episodes, which distil the table", unit="episodes", low=0)
    distil_updates: int = parameter(240, "distillation steps after each episode", low=0)
    distil_rate: float = parameter(0.01, "learning rate of distillation, falling to 0", above=0)
    batch_states: int = parameter(16, "states, with queues of their own, in a distillation step", low=1)
    batch_tasks: int = parameter(8, "tasks of each of these states", low=1)
    tune_updates: int = parameter(6, "steps along the queue model's gradient after each later episode", low=0)
    tune_rate: float = parameter(0.001, "learning rate of these steps in the first such episode", above=0)
    tune_halving: float = parameter(
        10.0, "tune_rate is divided by 1 + e / this, e episodes later", unit="episodes", above=0
    )
    practice: int = parameter(
        0,
        "further scenarios, drawn at random, that the shared network also learns from, for use on any scenario; best "
        "without tuning, so with as many distil_episodes as episodes",
        low=0,
        high=10_000,
    )
    price_rate: float = parameter(0.01, "step of the table against measured prices, falling with time", above=0)
    price_memory: float = parameter(0.5, "share of the newest episode in the mean of measured prices", above=0, high=1)
    evaluation_action: str = parameter(
        "sample", "action in evaluation: drawn from the policy or its best", choices=("sample", "argmax")
    )

    def check(self) -> None:
        super().check()
        if self.practice and (self.actor != "shared" or self.teacher != "model"):
            raise ParameterError("practice", self.practice, "must be 0 without --actor shared and --teacher model")


class CoopAgents(SeededLearner):
    """The agents of all BSs, for S training seeds. A row of an episode is a training seed."""

    needs = (
        "q at the slot's start, t, the BS's own tasks, a common random seed; from training f, v, w, distribution of N"
    )
    params: CoopParameters

    def __init__(self, params: CoopParameters, seeds: Sequence[int], device: torch.device | str) -> None:
        super().__init__(params, seeds, device)
        self.shared = params.actor == "shared"
        sizes = (params.hidden, params.denoising_steps, params.beta_schedule, self.device)
        self.actor = ServerActor(*sizes) if self.shared else StationActors(params.num_bs, *sizes)
        self.theta = self.actor.draw(self.generators, self.device)
        self.weights = self.actor.split(self.theta) if self.shared else []
        self.adam = StackedAdam(self.theta, params.distil_rate, beta2=0.99)
        seeds_, slots, tasks, servers = len(self.seeds), params.num_slots - 1, params.num_tasks, params.num_bs
        zeros = self.theta.new_zeros
        self.table = RoutingTable(zeros(seeds_, slots, tasks, servers), zeros(seeds_, slots, servers))
        self.fitted = zeros(seeds_, servers)  # capacities that the table was fitted for; 0: none yet
        self.prices = CongestionPrices(self.table, params.price_rate, params.price_memory)
        self.backlog, self.tasks = zeros(seeds_, KEPT, slots, servers), zeros(seeds_, KEPT, slots, servers)
        self.recorded = torch.zeros(1, dtype=torch.int64)  # episodes
        self.practice: list[Lessons] | None = None
        self.memory = zeros(0)
        if not self.shared:  # [S, B, B, T, N]: the action probabilities that each BS remembers, at first noise
            self.memory = self.draw_rows("normal", servers, servers, params.num_slots, tasks)
        self.down: torch.Tensor | None = None  # [S, B], servers that are known to have failed
        self.virtual = VirtualOpt(params)
        self.decision: dict[str, torch.Tensor] = {}
        self.met: list[tuple[torch.Tensor, ...]] = []

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        self.num_bs = scenario.capacity.shape[1]
        self.row = torch.arange(len(self.seeds), device=self.device)[:, None]
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
            logits = self.slot_logits(slot, q)  # [S, C, B] where C are the N task numbers, or all cells of the slot
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

    def slot_logits(self, slot: Slot, q: torch.Tensor) -> torch.Tensor:
        """x_0 [S, C, B] of a slot's tasks. C is N where all BSs have the same tasks and one network, else B N."""
        seeds, stations = slot.mask.shape[:2]
        now = torch.full_like(self.row, slot.t)
        same = self.shared and slot.workload.stride(1) == 0  # the environment's tasks are the same at all BSs
        workload = (slot.workload[:, :1] if same else slot.workload).to(self.device, torch.float32)
        if self.shared:
            parts = workload.reshape(seeds, 1, -1).split(max(1, PAIRS_AT_ONCE // self.num_bs), dim=2)
            given = (self.weights, self.view, None, now)
            return torch.cat([self.actor.logits(*given, part, q[:, None])[:, 0] for part in parts], 1)
        row, now, q = self.row.expand(-1, stations), now.expand(-1, stations), q[:, None].expand(-1, stations, -1)
        state = self.actor.state(self.view, row, now, workload.contiguous(), q)
        x0 = self.actor.logits(self.theta, state, self.memory[:, :, :, slot.t])  # [S, B, N, B]
        scheduled = slot.mask.to(self.device)[:, :, None]
        self.memory[:, :, :, slot.t] = torch.where(
            scheduled, x0.softmax(-1).transpose(2, 3), self.memory[:, :, :, slot.t]
        )
        return x0.flatten(1, 2)

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        """Remember the slot's queues and counts; learn once those of a whole episode are there, which come in order."""
        if slot.t == 0:
            self.met = []
        work = (slot.workload * slot.mask).flatten(1).float()
        one_hot = torch.zeros(len(self.seeds), 2, self.num_bs, device=self.device)
        flat = action.flatten(1)
        one_hot[:, 0].scatter_add_(1, flat, work.to(self.device))
        one_hot[:, 1].scatter_add_(1, flat, slot.mask.flatten(1).to(self.device, torch.float32))
        self.met.append((slot.backlog.float(), slot.mask.sum(2).float(), one_hot[:, 0], one_hot[:, 1]))
        if len(self.met) == slot.t + 1 == self.params.num_slots - 1:
            self.finish_episode()

    def finish_episode(self) -> None:
        """Distil the table in the first episodes, and follow the queue model's gradient in the later ones."""
        p = self.params
        if self.greedy.all():  # nothing that is learned would be used
            self.met = []
            return
        backlog, tasks, work, sent = (torch.stack(parts, 1).to(self.device) for parts in zip(*self.met, strict=True))
        self.met = []
        if backlog.shape[2:] != self.backlog.shape[3:]:
            raise ValueError(f"trained for {self.backlog.shape[3]} servers, cannot learn from {backlog.shape[2]}")
        episode = int(self.recorded)
        place = episode % KEPT
        self.backlog[:, place], self.tasks[:, place] = backlog, tasks
        self.recorded += 1
        prices = p.teacher == "prices"
        if prices or episode < p.distil_episodes:
            self.prepare()
            if prices:
                model = QueueModel(self.scenario, p.slot_length, torch.float32, self.device)
                wait, price = measured_costs(backlog, work, sent, model.capacity, p.slot_length)
                self.prices.learn(wait, price, backlog, model.own, model.workload)
            self.distil(episode)
        else:
            self.tune(episode)

    def prepare(self) -> None:
        """Fit the tables of the present scenario, and those of the practice scenarios, where that is not done yet."""
        prices = self.params.teacher == "prices"
        if not (self.fitted.any() if prices else torch.equal(self.fitted, self._capacity.float())):
            if prices:
                fitted = unfitted_table(self.params, self.scenario)
            else:
                fitted, _ = fit_tables(self.params, self.scenario, self.seeds)
            self.table.log_table.copy_(fitted.log_table)
            self.table.nominal.copy_(fitted.nominal)
            self.fitted.copy_(self._capacity)

    def lessons(self, episode: int) -> list[Lessons]:
        """The agents' own episodes, practice episodes, and some of these as the agents now go through them."""
        seeds = len(self.seeds)
        if self.practice is None:
            self.practice = practice_lessons(self.params, self.device, self.params.practice, seeds)
        known = min(int(self.recorded), KEPT)
        met = self.row.expand(-1, known), self.backlog[:, :known], self.tasks[:, :known]
        own = Lessons(self.params, self.scenario, self.view, self.table, *met)
        chooser = self.lesson_chooser(episode, 2)
        gone_through = []
        for lesson in self.practice:
            chosen = torch.from_numpy(chooser.choice(lesson.rows.shape[1], REHEARSED)).expand(seeds, -1)

            def logits(row: torch.Tensor, t: torch.Tensor, q: torch.Tensor, view: View = lesson.view) -> torch.Tensor:
                return self.actor.logits(self.weights, view, row, t, view.workload[row], q)

            with torch.no_grad():
                gone_through.append(rehearsed(lesson, logits, chosen.to(self.device)))
        return [own, *self.practice, *gone_through]

    def choose_lesson(self, lessons: list[Lessons], uniform: float) -> Lessons:
        """One of the lessons, in proportion to their scenarios; the agents' own counts as one."""
        weight = np.array([1.0] + [lesson.view.capacity.shape[0] for lesson in lessons[1:]]).cumsum()
        return lessons[int(np.searchsorted(weight, uniform * weight[-1], side="right"))]

    def lesson_chooser(self, episode: int, purpose: int) -> np.random.Generator:
        """What chooses an episode's lessons, for all seeds alike, so that a seed learns the same beside any others."""
        return np.random.default_rng(np.random.SeedSequence([PRACTICE, self.params.scenario_seed, episode, purpose]))

    def distil(self, episode: int) -> None:
        """Cross entropy to the table's probabilities, at states that were met."""
        p, lessons = self.params, self.lessons(episode)
        states, cells = p.batch_states, p.batch_tasks
        draws = self.draw_rows("uniform", p.distil_updates, states, 2 + cells)
        chooser = self.lesson_chooser(episode, 1)
        present = torch.as_tensor(presence(p), dtype=torch.float32, device=self.device).cumsum(0)
        gain = p.feedback if p.teacher == "model" else 0.0  # queues that prices have changed are no deviation
        falling = max(p.distil_episodes, 1) * p.distil_updates
        for update in range(p.distil_updates):
            lesson = self.choose_lesson(lessons, chooser.random())
            uniform = draws[:, update]
            k = (uniform[..., 0] * lesson.backlog.shape[1]).long()
            t = (uniform[..., 1] * lesson.backlog.shape[2]).long()
            n = torch.searchsorted(present, uniform[..., 2:] * present[-1]).clamp(max=p.num_tasks - 1)
            row, q, view = lesson.rows[self.row, k], lesson.backlog[self.row, k, t], lesson.view
            label = lesson.table.log_probabilities(row, t, n, q, view.capacity[row], gain).softmax(-1)
            workload = view.workload[row[..., None], n]

            def loss(theta: torch.Tensor, s: slice, view=view, row=row, t=t, workload=workload, n=n, q=q, label=label):
                x0 = self.logits_at(theta, view, row[s], t[s], workload[s], n[s], q[s])
                return -(label[s, None] * x0.log_softmax(-1)).sum(-1).mean((2, 3)).sum()

            done = (episode * p.distil_updates + update) / falling
            left = max(1 - done, 0.0) if p.teacher == "model" else 1 / (1 + done)  # prices have no last episode
            self.adam.lr = p.distil_rate * left**0.5
            self.adam.step(self.gradient(loss))

    def gradient(self, loss: Callable[[torch.Tensor, slice], torch.Tensor]) -> torch.Tensor:
        """The gradient of loss(theta, seeds) for all seeds. Shared networks take turns: their tensors fit the cache."""
        every = range(len(self.seeds)) if self.shared else range(1)
        parts = []
        for k in every:
            seeds = slice(k, k + 1) if self.shared else slice(None)
            theta = self.theta[seeds].detach().requires_grad_()
            parts.append(torch.autograd.grad(loss(theta, seeds), theta)[0])
        return torch.cat(parts)

    def logits_at(
        self,
        theta: torch.Tensor,
        view: View,
        row: torch.Tensor,
        t: torch.Tensor,
        workload: torch.Tensor,
        n: torch.Tensor,
        q: torch.Tensor,
    ) -> torch.Tensor:
        """x_0 [S, A, M, C, B] of tasks n [S, M, C] with their workload in M states; A is 1, or B with per_bs."""
        if self.shared:
            return self.actor.logits(self.actor.split(theta), view, row, t, workload, q)[:, None]
        state = self.actor.state(view, row, t, workload, q).flatten(1, 2)[:, None].expand(-1, self.num_bs, -1, -1)
        seed = self.row[..., None]
        latent = self.memory.permute(0, 3, 4, 1, 2)[seed, t[..., None], n]  # [S, M, C, BS, B]
        latent = latent.flatten(1, 2).permute(0, 2, 3, 1)
        return self.actor.logits(theta, state, latent).unflatten(2, n.shape[1:])

    def tune(self, episode: int) -> None:
        """Steps along the gradient of everybody's cost, at the states of an episode, through the queue model."""
        p, lessons = self.params, self.lessons(episode)
        chooser = self.lesson_chooser(episode, 1)
        number = torch.arange(p.num_tasks, device=self.device)
        self.adam.lr = p.tune_rate / (1 + (episode - p.distil_episodes) / p.tune_halving)
        for _ in range(p.tune_updates):
            lesson = self.choose_lesson(lessons, chooser.random())
            slots = lesson.params.num_slots - 1
            t = torch.arange(slots, device=self.device).expand(len(self.seeds), -1)
            n = number.expand(len(self.seeds), slots, -1)
            k = (self.draw_rows("uniform", 1) * lesson.backlog.shape[1]).long()
            row, q, tasks = (part[self.row, k][:, 0] for part in (lesson.rows, lesson.backlog, lesson.tasks))
            mask = tasks[..., None] > number  # [S, T - 1, B, N]
            chosen = scenario_rows(lesson.scenario, row.cpu().numpy())
            rows = row[:, None].expand(-1, slots)
            workload = lesson.view.workload[rows]

            def loss(
                theta: torch.Tensor,
                s: slice,
                lesson=lesson,
                scenario=chosen,
                rows=rows,
                workload=workload,
                t=t,
                n=n,
                q=q,
                mask=mask,
            ) -> torch.Tensor:
                probabilities = self.logits_at(theta, lesson.view, rows[s], t[s], workload[s], n[s], q[s]).softmax(-1)
                costs = self.episode_cost(lesson.params, probabilities, scenario_rows(scenario, s), mask[s])
                return costs.clamp(min=1e-6).log().sum()

            self.adam.step(self.gradient(loss))  # relative costs, so that all scenarios count alike

    def episode_cost(
        self, p: TableParameters, probabilities: torch.Tensor, scenario: Scenario, mask: torch.Tensor
    ) -> torch.Tensor:
        """The mean cost of a task [S] through the queue model.

        probabilities [S, A, T - 1, N, B] as from `logits_at`, mask [S, T - 1, B, N] the tasks of the episode.
        """
        size = (p.input_min + p.input_max) / 2
        model = QueueModel(scenario, p.slot_length, torch.float32, self.device)
        objective = make_objective(p, scenario)
        if self.shared:
            return model.table_cost(probabilities[:, 0], mask.sum(2)[:, None].float(), size, objective)
        table = probabilities.transpose(1, 2)  # [S, T - 1, BS, N, B]
        delays = model.delays(table, mask, torch.full_like(table[..., 0], size))
        cost = (table * objective.cost(delays, model.alone)).sum(-1) * mask
        return cost.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)

    def modules(self) -> dict[str, object]:
        parts = {"theta": self.theta, "adam": self.adam, "memory": self.memory, "fitted": self.fitted}
        parts |= {"log_table": self.table.log_table, "nominal": self.table.nominal}
        parts |= {"wait": self.prices.wait, "price": self.prices.price, "priced": self.prices.episodes}
        return parts | {"backlog": self.backlog, "tasks": self.tasks, "recorded": self.recorded}


def unfitted_table(params: CoopParameters, scenario: Scenario) -> RoutingTable:
    """Where measured prices start from: sizes matched to capacities, and no model of the queues."""
    model = QueueModel(scenario, params.slot_length, torch.float32)
    start = size_matched_logits(params, model, TASKS_BY_CAPACITY[params.objective])
    table = start.log_softmax(-1)[:, None].repeat(1, params.num_slots - 1, 1, 1)
    return RoutingTable(table, torch.zeros_like(table[:, :, 0]))

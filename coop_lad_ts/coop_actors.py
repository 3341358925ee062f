"""The diffusion networks of Cooperative LAD-TS: one that is the same for any number of servers, and one for each BS.

Both denoise a latent action in the steps of LAD-TS's chain (diffusion_lad.py) and predict x_0 instead of the noise.
Both see the queues at the slot's start, the time, and a task's place among the task sizes, as `View` tells them.
`ServerActor` looks at every server with the same small network and at the others through their mean; `StationActors`
are LAD-TS's networks, one for each BS. `Actor` is what they have in common. Start reading at `ServerActor.x0`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from coop_lad_ts.queue_model import Objective, QueueModel
from coop_lad_ts.view import PLACE_WAVES, TIME_WAVES, View, of_rows, waves
from lad_ts.diffusion_lad import Denoiser, Schedule, posterior_schedule, step_embedding
from lad_ts.environment_lad import Slot

PAIRS_AT_ONCE = 2**18  # pairs of a task and a server that the shared network takes together, which bounds its memory

Weights = list[torch.Tensor]
Draw = Callable[..., torch.Tensor]  # draw(kind, *shape): numbers [S, *shape], each seed's from its own generator


@dataclasses.dataclass(frozen=True)
class States:
    """C tasks in each of M states, for S seeds.

    A state is a scenario of a view, row [S, M] (None: M is 1, and seed s is in the s-th scenario), its slot t [S, M],
    and its backlogs q [S, M, B] in Gcycles. A task has a workload [S, M, C] in Gcycles and a number n [S, M, C] in its
    slot, which only agents that remember need.
    """

    row: torch.Tensor | None
    t: torch.Tensor
    workload: torch.Tensor
    q: torch.Tensor
    n: torch.Tensor | None = None

    def of(self, seeds: slice) -> "States":
        """The states of some of the seeds."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return States(*(None if part is None else part[seeds] for part in parts))


class Actor(Protocol):
    """What agents ask of their networks; theta [.., P] holds all parameters, and `split` gives views of it."""

    memory: torch.Tensor  # what agents remember of earlier episodes; empty where they need nothing

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        """Initial theta."""

    def split(self, theta: torch.Tensor) -> Weights:
        """The weights that the other methods take."""

    def start_memory(self, draw: Draw, num_slots: int, num_tasks: int) -> None:
        """Fill the memory as it is before the first episode."""

    def slot_logits(self, weights: Weights, view: View, slot: Slot, q: torch.Tensor) -> torch.Tensor:
        """x_0 [S, C, B] of a slot's tasks at backlogs q [S, B], and what is remembered of them.

        C is N where all BSs have the same tasks and one network, else B N.
        """

    def logits(self, weights: Weights, view: View, states: States) -> torch.Tensor:
        """x_0 [S, A, M, C, B] of tasks in M states; A is 1, or B with a network at each BS."""

    def together(self, seeds: int) -> list[slice]:
        """The seeds whose gradients are best taken at once."""

    def mean_cost(
        self, model: QueueModel, objective: Objective, probabilities: torch.Tensor, mask: torch.Tensor, size: float
    ) -> torch.Tensor:
        """The mean cost of a task [S] through the queue model.

        probabilities [S, A, T - 1, N, B] as from `logits`, mask [S, T - 1, B, N] the tasks of an episode, size the mean
        input in Mbit.
        """


def predicting_x0(schedule: Schedule) -> Schedule:
    """The schedule of a network whose output is x_0 itself instead of the noise in x_i."""
    steps = schedule.steps
    return dataclasses.replace(schedule, from_latent=[0.0] * steps, from_noise=[-1.0] * steps)


class ServerActor:
    """A policy for any number of servers, one network theta [S, P] for each training seed.

    For each task and server a network of two hidden layers sees [x_i, step, task, server], and in its second layer also
    all servers together: the mean, weighted by capacity, of what its first layer makes of the task and each server. Its
    output is the server's part of x_0. The chain starts from zeros, the same for every server, and adds no noise: it
    needs no memory, and tasks of the same size have the same probabilities at all BSs.
    """

    def __init__(self, hidden: int, steps: int, schedule: str, device: torch.device | str) -> None:
        self.schedule = posterior_schedule(schedule, steps)
        self.embedding = step_embedding(steps, Denoiser.EMBEDDING).to(device)
        inputs = (View.server_width, View.task_width, Denoiser.EMBEDDING, 1, 1)  # the last are x_i and the bias
        self.shapes = [*((width, hidden) for width in inputs), (hidden, hidden), (hidden, hidden), (1, hidden)]
        self.shapes += [(hidden, 1)]  # no bias: the same for all servers, it would change nothing
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.fans = [sum(inputs)] * 5 + [2 * hidden] * 3 + [hidden]
        self.memory = torch.zeros(0, device=device)
        self.network: Callable[..., torch.Tensor] | None = None  # the fused engine's, where it is used

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        """Initial theta [S, P]: uniform in +-1/sqrt(fan in), as torch.nn.Linear does."""
        bound = torch.cat([torch.full((size,), fan**-0.5) for size, fan in zip(self.sizes, self.fans, strict=True)])
        draws = torch.stack([torch.rand(bound.numel(), generator=g, device=device) for g in generators])
        return (2 * draws - 1) * bound.to(device)

    def split(self, theta: torch.Tensor) -> Weights:
        """The weights of `x0`, views of theta [S, P]."""
        return [p.view(-1, *shape) for p, shape in zip(theta.split(self.sizes, 1), self.shapes, strict=True)]

    def start_memory(self, draw: Draw, num_slots: int, num_tasks: int) -> None:
        """Nothing: the chain starts from zeros."""

    def slot_logits(self, weights: Weights, view: View, slot: Slot, q: torch.Tensor) -> torch.Tensor:
        seeds, num_bs = q.shape
        same = slot.workload.stride(1) == 0  # the environment's tasks are the same at all BSs
        workload = (slot.workload[:, :1] if same else slot.workload).to(q.device, torch.float32)
        now = torch.full((seeds, 1), slot.t, device=q.device)
        parts = workload.reshape(seeds, 1, -1).split(max(1, PAIRS_AT_ONCE // num_bs), dim=2)
        return torch.cat([self.x0(weights, view, States(None, now, part, q[:, None]))[:, 0] for part in parts], 1)

    def logits(self, weights: Weights, view: View, states: States) -> torch.Tensor:
        return self.x0(weights, view, states)[:, None]

    def together(self, seeds: int) -> list[slice]:
        """Seeds take turns: the tensors of one fit the cache."""
        return [slice(k, k + 1) for k in range(seeds)]

    def mean_cost(
        self, model: QueueModel, objective: Objective, probabilities: torch.Tensor, mask: torch.Tensor, size: float
    ) -> torch.Tensor:
        return model.table_cost(probabilities[:, 0], mask.sum(2)[:, None].float(), size, objective)

    def x0(self, weights: Weights, view: View, states: States) -> torch.Tensor:
        """x_0 [S, M, C, B] of tasks in M states; weights from `split`."""
        row, t, workload, q = states.row, states.t, states.workload, states.q
        if self.network and not torch.compiler.is_exporting():
            theta, share = torch.cat([weight.flatten(1) for weight in weights], 1), of_rows(view.share, row)
            seen = view.servers(row, q), view.tasks(row, t, workload), share.expand_as(q)
            return torch.stack([self.network(*parts) for parts in zip(theta, *seen, strict=True)])
        seeds, count, tasks = workload.shape
        steps, num_bs = self.schedule.steps, q.shape[-1]

        def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            """x [S, .., in] times weight [S, in, out] as [S, rows, out]."""
            return torch.bmm(x.reshape(seeds, -1, x.shape[-1]), weight)

        server, task, step, latent, bias1, own, mean, bias2, out = weights
        step_part = torch.baddbmm(bias1, self.embedding.expand(seeds, -1, -1), step)  # [S, I, K]
        task_part = product(view.tasks(row, t, workload), task).view(seeds, count, tasks, 1, -1)
        server_part = product(view.servers(row, q), server).view(seeds, count, 1, num_bs, -1)
        first = (server_part + task_part).flatten(1, 2)  # [S, M C, B, K]
        share = of_rows(view.share, row).reshape(-1, 1, 1, num_bs).expand(-1, tasks, -1, -1).flatten(0, 2)
        pooled = torch.bmm(share[:, None], first.relu().flatten(0, 1))  # [S M C, 1, K], the mean over all servers
        second = torch.baddbmm(bias2, pooled.view(seeds, count * tasks, -1), mean)[:, :, None]
        x = first.new_zeros(seeds, count * tasks * num_bs, 1)
        for i in reversed(range(steps)):
            h = first + step_part[:, i, None, None]
            if i + 1 < steps:  # the chain starts from zeros
                h = torch.addcmul(h, x.view(seeds, -1, num_bs, 1), latent[:, None])
            h = product(h.relu_(), own).view_as(h).add_(second).relu_()
            now, before = self.schedule.mean_hat[i], self.schedule.mean_latent[i]
            x = torch.baddbmm(x, h.flatten(1, 2), out, beta=before, alpha=now)
        return x.view(seeds, count, tasks, num_bs)


class StationActors:
    """LAD-TS's diffusion network at every BS, theta [S * B, P], for a fixed number of servers.

    The chain of a task starts from the probabilities that its BS remembers for the slot and the task's number, as in
    LAD-TS, and adds no noise. The memory is [S, B, B, T, N]: seed, BS, server, slot, task number.
    """

    def __init__(self, num_bs: int, hidden: int, steps: int, schedule: str, device: torch.device | str) -> None:
        self.denoiser = Denoiser(
            num_bs + 2 * PLACE_WAVES + 2 * TIME_WAVES,
            num_bs,
            hidden,
            predicting_x0(posterior_schedule(schedule, steps)),
            device=device,
        )
        self.num_bs = num_bs
        self.memory = torch.zeros(0, device=device)

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        """Initial theta [S * B, P]."""
        return self.denoiser.layout.draw(generators, self.num_bs, torch.device(device))

    def split(self, theta: torch.Tensor) -> Weights:
        """theta as it is."""
        return [theta]

    def start_memory(self, draw: Draw, num_slots: int, num_tasks: int) -> None:
        """Normal noise, as in LAD-TS."""
        self.memory = draw("normal", self.num_bs, self.num_bs, num_slots, num_tasks)

    def slot_logits(self, weights: Weights, view: View, slot: Slot, q: torch.Tensor) -> torch.Tensor:
        seeds, stations = slot.mask.shape[:2]
        row = torch.arange(seeds, device=q.device)[:, None].expand(-1, stations)
        workload = slot.workload.to(q.device, torch.float32).contiguous()
        states = States(row, torch.full_like(row, slot.t), workload, q[:, None].expand(-1, stations, -1))
        before = self.memory[:, :, :, slot.t]
        x0 = self.x0(weights[0], self.state(view, states), before)  # [S, B, N, B]
        scheduled = slot.mask.to(q.device)[:, :, None]
        self.memory[:, :, :, slot.t] = torch.where(scheduled, x0.softmax(-1).transpose(2, 3), before)
        return x0.flatten(1, 2)

    def state(self, view: View, states: States) -> torch.Tensor:
        """What the network sees of tasks in M states, [S, M, C, F]."""
        size = waves(view.place(states.row, states.workload), view.place_frequency)
        capacity = of_rows(view.capacity, states.row)
        common = torch.cat([(states.q / capacity).log1p(), waves(states.t, view.time_frequency)], -1)
        return torch.cat([size, common[:, :, None].expand(*size.shape[:-1], -1)], -1)

    def x0(self, theta: torch.Tensor, state: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """x_0 [S, B, C, B] from each BS's own tasks' state [S, B, C, F] and latent actions [S, B, B, C]."""
        flat = state.flatten(0, 1).transpose(1, 2).contiguous()
        x0 = self.denoiser.forward_fast(theta, latent.flatten(0, 1).contiguous(), flat, None)
        return x0.transpose(1, 2).unflatten(0, state.shape[:2])

    def logits(self, weights: Weights, view: View, states: States) -> torch.Tensor:
        assert states.n is not None
        t, n = states.t[..., None], states.n
        state = self.state(view, states).flatten(1, 2)[:, None].expand(-1, self.num_bs, -1, -1)
        seed = torch.arange(len(n), device=n.device)[:, None, None]
        latent = self.memory.permute(0, 3, 4, 1, 2)[seed, t, n]  # [S, M, C, BS, B]
        latent = latent.flatten(1, 2).permute(0, 2, 3, 1)
        return self.x0(weights[0], state, latent).unflatten(2, n.shape[1:])

    def together(self, seeds: int) -> list[slice]:
        """All at once, in batched products."""
        return [slice(None)]

    def mean_cost(
        self, model: QueueModel, objective: Objective, probabilities: torch.Tensor, mask: torch.Tensor, size: float
    ) -> torch.Tensor:
        table = probabilities.transpose(1, 2)  # [S, T - 1, BS, N, B]
        delays = model.delays(table, mask, torch.full_like(table[..., 0], size))
        cost = (table * objective.cost(delays, model.alone)).sum(-1) * mask
        return cost.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)

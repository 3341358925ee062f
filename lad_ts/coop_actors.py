"""The diffusion policies of Cooperative LAD-TS: one that is the same for any number of servers, and one for each BS.

Both denoise a latent action in the steps of LAD-TS's chain (diffusion_lad.py) and predict x_0 instead of the noise.
Both see the queues at the slot's start, the time, and a task's place among the task sizes, as `View` tells them.
`ServerActor` looks at every server with the same small network and at the others through their mean; `StationActors`
are LAD-TS's networks, one for each BS. Start reading at `ServerActor.logits`.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from lad_ts.diffusion_lad import Denoiser, Schedule, posterior_schedule, step_embedding
from lad_ts.environment_lad import EnvironmentParameters, Scenario
from lad_ts.queue_model import offered_load, presence
from lad_ts.routing_table import middle_ranks

PLACE_WAVES, TIME_WAVES = 10, 2  # sine and cosine features of a place in an order, and of the time


def predicting_x0(schedule: Schedule) -> Schedule:
    """The schedule of a network whose output is x_0 itself instead of the noise in x_i."""
    steps = schedule.steps
    return dataclasses.replace(schedule, from_latent=[0.0] * steps, from_noise=[-1.0] * steps)


def waves(x: torch.Tensor, count: int) -> torch.Tensor:
    """sin and cos of pi k x for k = 1..count, [.., 2 count], for x in 0..1."""
    angle = math.pi * x[..., None] * torch.arange(1, count + 1, device=x.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


class View:
    """What agents see of R scenarios, as float32 features. Needs f, w and the distribution of the task counts.

    A server's place is its place among the servers by capacity, in 0..1 of the whole capacity; a task's place is its
    place by size in 0..1 of the whole work.
    """

    server_width = 2 * PLACE_WAVES + 4
    task_width = 2 * PLACE_WAVES + 2 * TIME_WAVES + 2

    def __init__(self, params: EnvironmentParameters, scenario: Scenario, device: torch.device | str = "cpu") -> None:
        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self.slot_length, self.num_slots = params.slot_length, params.num_slots
        self.capacity, self.workload = tensor(scenario.capacity), tensor(scenario.workload)
        self.num_bs = self.capacity.shape[1]
        self.share = self.capacity / self.capacity.sum(1, keepdim=True)
        self.relative = (self.share * self.num_bs).log()
        self.server_place = waves(middle_ranks(self.capacity, self.capacity), PLACE_WAVES)
        work = self.workload * tensor(presence(params))
        order = self.workload.argsort(dim=1, stable=True)
        self.sizes = self.workload.gather(1, order).contiguous()
        self.places = middle_ranks(self.workload, work).gather(1, order)
        load = tensor(offered_load(params, scenario))
        wait = (load - 1).clamp(min=0) * (params.num_slots - 1) * params.slot_length
        self.load = torch.stack([load - 1, wait.log1p()], -1)  # [R, 2]

    def servers(self, row: torch.Tensor, backlog: torch.Tensor) -> torch.Tensor:
        """Features [.., B, F] of the servers of scenarios row [..] with backlog [.., B] in Gcycles."""
        seconds = backlog / self.capacity[row]
        mean = (self.share[row] * seconds).sum(-1, keepdim=True).expand_as(seconds)
        numbers = [seconds.log1p(), mean.log1p(), (seconds - mean) / 5, self.relative[row]]
        return torch.cat([self.server_place[row], torch.stack(numbers, -1)], -1)

    def place(self, row: torch.Tensor, workload: torch.Tensor) -> torch.Tensor:
        """The place [.., C] of workloads [.., C] in Gcycles, between those of the scenario's task sizes."""
        sizes, places = self.sizes[row], self.places[row]
        above = torch.searchsorted(sizes, workload.contiguous()).clamp(max=sizes.shape[-1] - 1)
        below = (above - 1).clamp(min=0)
        low, high = sizes.gather(-1, below), sizes.gather(-1, above)
        part = ((workload - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        return places.gather(-1, below).lerp(places.gather(-1, above), part)

    def tasks(self, row: torch.Tensor, t: torch.Tensor, workload: torch.Tensor) -> torch.Tensor:
        """Features [.., C, F] of tasks with workload [.., C] in Gcycles in slot t [..] of scenarios row [..]."""
        common = torch.cat([waves(t / self.num_slots, TIME_WAVES), self.load[row]], -1)
        size = waves(self.place(row, workload), PLACE_WAVES)
        return torch.cat([size, common[..., None, :].expand(*size.shape[:-1], -1)], -1)


class ServerActor:
    """A policy for any number of servers, one network theta [S, P] for each training seed.

    For each task and server a network of two hidden layers sees [x_i, step, task, server], and in its second layer also
    the mean of its first over all servers, weighted by capacity; its output is the server's part of x_0. The chain
    starts from zeros, the same for every server, and adds no noise: it needs no memory, and tasks of the same size have
    the same probabilities at all BSs.
    """

    def __init__(self, hidden: int, steps: int, schedule: str, device: torch.device | str) -> None:
        self.schedule = posterior_schedule(schedule, steps)
        self.embedding = step_embedding(steps, Denoiser.EMBEDDING).to(device)
        inputs = (View.server_width, View.task_width, Denoiser.EMBEDDING, 1, 1)  # the last are x_i and the bias
        self.shapes = [*((width, hidden) for width in inputs), (hidden, hidden), (hidden, hidden), (1, hidden)]
        self.shapes += [(hidden, 1), (1, 1)]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.fans = [sum(inputs)] * 5 + [2 * hidden] * 3 + [hidden] * 2

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        """Initial theta [S, P]: uniform in +-1/sqrt(fan in), as torch.nn.Linear does."""
        bound = torch.cat([torch.full((size,), fan**-0.5) for size, fan in zip(self.sizes, self.fans, strict=True)])
        draws = torch.stack([torch.rand(bound.numel(), generator=g, device=device) for g in generators])
        return (2 * draws - 1) * bound.to(device)

    def logits(
        self,
        theta: torch.Tensor,
        view: View,
        row: torch.Tensor,
        t: torch.Tensor,
        workload: torch.Tensor,
        q: torch.Tensor,
    ) -> torch.Tensor:
        """x_0 [S, M, C, B] of tasks with workload [S, M, C] in Gcycles, M states for each seed.

        A state is a scenario of the view, row [S, M], its slot t [S, M], and its backlogs q [S, M, B] in Gcycles.
        """

        def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            """x [S, .., in] times weight [S, in, out]."""
            return torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[2])

        parts = [p.view(-1, *shape) for p, shape in zip(theta.split(self.sizes, 1), self.shapes, strict=True)]
        server, task, step, latent, bias1, own, mean, bias2, out, bias3 = parts
        share = view.share[row][:, :, None, None]  # [S, M, 1, 1, B]
        step_part = product(self.embedding.expand(theta.shape[0], -1, -1), step) + bias1  # [S, I, K]
        task_part = product(view.tasks(row, t, workload), task)[:, :, :, None]  # [S, M, C, 1, K]
        first = product(view.servers(row, q), server)[:, :, None] + task_part
        x = first.new_zeros(first.shape[:-1])
        for i in reversed(range(self.schedule.steps)):
            h = first + step_part[:, i, None, None, None]
            if i + 1 < self.schedule.steps:  # the chain starts from zeros
                h = torch.addcmul(h, x[..., None], latent[:, None, None])
            h = h.relu()
            pooled = product(share @ h, mean) + bias2[:, None, None]
            h = (product(h, own) + pooled).relu()
            predicted = (product(h, out) + bias3[:, None, None]).squeeze(-1)
            x = self.schedule.mean_hat[i] * predicted + self.schedule.mean_latent[i] * x
        return x


class StationActors:
    """LAD-TS's diffusion network at every BS, theta [S * B, P], for a fixed number of servers.

    The chain of a task starts from the probabilities that its BS remembers for the slot and the task's number, as in
    LAD-TS, and adds no noise.
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

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        return self.denoiser.layout.draw(generators, self.num_bs, torch.device(device))

    def state(
        self, view: View, row: torch.Tensor, t: torch.Tensor, workload: torch.Tensor, q: torch.Tensor
    ) -> torch.Tensor:
        """The state [S, M, C, F] of tasks with workload [S, M, C]; row, t and q as for `ServerActor.logits`."""
        size = waves(view.place(row, workload), PLACE_WAVES)
        common = torch.cat([(q / view.capacity[row]).log1p(), waves(t / view.num_slots, TIME_WAVES)], -1)
        return torch.cat([size, common[:, :, None].expand(*size.shape[:-1], -1)], -1)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """x_0 [S, B, C, B] from each BS's own tasks' state [S, B, C, F] and latent actions [S, B, B, C]."""
        flat = state.flatten(0, 1).transpose(1, 2).contiguous()
        x0 = self.denoiser.forward_fast(theta, latent.flatten(0, 1).contiguous(), flat, None)
        return x0.transpose(1, 2).unflatten(0, state.shape[:2])

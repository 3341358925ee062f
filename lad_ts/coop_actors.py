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


def waves(x: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """sin and cos of x [..] times each frequency [K] in rad, [.., 2 K]."""
    angle = x[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def of_rows(values: torch.Tensor, row: torch.Tensor | None) -> torch.Tensor:
    """values [R, ..] of scenarios row [S, M], [S, M, ..]; of scenario s for seed s where row is None, [S, 1, ..]."""
    return values[:, None] if row is None else values[row]


class View:
    """What agents see of R scenarios, as float32 features. Needs f, w and the distribution of the task counts.

    A server's place is its place among the servers by capacity, in 0..1 of the whole capacity; a task's place is its
    place by size in 0..1 of the whole work.
    """

    server_width = 2 * PLACE_WAVES + 4
    task_width = 2 * PLACE_WAVES + 2 * TIME_WAVES + 5

    def __init__(self, params: EnvironmentParameters, scenario: Scenario, device: torch.device | str = "cpu") -> None:
        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self.place_frequency = math.pi * torch.arange(1, PLACE_WAVES + 1, device=device)
        self.time_frequency = math.pi / params.num_slots * torch.arange(1, TIME_WAVES + 1, device=device)
        self.capacity, self.workload = tensor(scenario.capacity), tensor(scenario.workload)
        num_bs = self.capacity.shape[1]
        self.share = self.capacity / self.capacity.sum(1, keepdim=True)
        place = waves(middle_ranks(self.capacity, self.capacity), self.place_frequency)
        self.fixed = torch.cat([place, (self.share * num_bs).log()[..., None]], -1)  # [R, B, 2 PLACE_WAVES + 1]
        work = self.workload * tensor(presence(params))
        order = self.workload.argsort(dim=1, stable=True)
        self.sizes = self.workload.gather(1, order).contiguous()
        self.places = middle_ranks(self.workload, work).gather(1, order)
        load = tensor(offered_load(params, scenario))
        wait = (load - 1).clamp(min=0) * (params.num_slots - 1) * params.slot_length
        size = (self.workload * work).sum(1) / work.sum(1)  # of the task that a Gcycle of work belongs to, on average
        self.log_size = size.log()
        common = torch.stack([load - 1, wait.log1p(), torch.full_like(load, math.log(num_bs / 20))], -1)[:, None]
        t = torch.arange(params.num_slots, device=device)
        time = torch.cat([waves(t, self.time_frequency), t.flip(0).log1p()[:, None]], -1).expand(len(load), -1, -1)
        self.common = torch.cat([time, common.expand(*time.shape[:2], -1)], -1)  # [R, T, 2 TIME_WAVES + 4]

    def servers(self, row: torch.Tensor | None, backlog: torch.Tensor) -> torch.Tensor:
        """Features [S, M, B, F] of the servers of scenarios row [S, M] with backlog [S, M, B] in Gcycles."""
        seconds = backlog / of_rows(self.capacity, row)
        mean = (of_rows(self.share, row) * seconds).sum(-1, keepdim=True).expand_as(seconds)
        times = torch.stack([seconds, mean], -1)
        fixed = of_rows(self.fixed, row).expand(*seconds.shape, -1)
        return torch.cat([fixed, times.log1p(), (seconds - mean)[..., None] / 5], -1)

    def place(self, row: torch.Tensor | None, workload: torch.Tensor) -> torch.Tensor:
        """The place [S, M, C] of workloads [S, M, C] in Gcycles, between those of the scenario's task sizes."""
        sizes, places = of_rows(self.sizes, row), of_rows(self.places, row)
        above = torch.searchsorted(sizes, workload.contiguous()).clamp(max=sizes.shape[-1] - 1)
        below = (above - 1).clamp(min=0)
        low, high = sizes.gather(-1, below), sizes.gather(-1, above)
        part = ((workload - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        return places.gather(-1, below).lerp(places.gather(-1, above), part)

    def tasks(self, row: torch.Tensor | None, t: torch.Tensor, workload: torch.Tensor) -> torch.Tensor:
        """Features [S, M, C, F] of tasks with workload [S, M, C] in Gcycles, in slots t [S, M] of scenarios row."""
        common = self.common.take_along_dim(t[..., None], 1) if row is None else self.common[row, t]
        size = waves(self.place(row, workload), self.place_frequency)
        sizes = of_rows(self.sizes, row)
        relative = workload.clamp(sizes[..., :1], sizes[..., -1:]).log() - of_rows(self.log_size, row)[..., None]
        return torch.cat([size, relative[..., None], common[..., None, :].expand(*size.shape[:-1], -1)], -1)


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

    def draw(self, generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
        """Initial theta [S, P]: uniform in +-1/sqrt(fan in), as torch.nn.Linear does."""
        bound = torch.cat([torch.full((size,), fan**-0.5) for size, fan in zip(self.sizes, self.fans, strict=True)])
        draws = torch.stack([torch.rand(bound.numel(), generator=g, device=device) for g in generators])
        return (2 * draws - 1) * bound.to(device)

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """The weights of `logits`, views of theta [S, P]."""
        return [p.view(-1, *shape) for p, shape in zip(theta.split(self.sizes, 1), self.shapes, strict=True)]

    def logits(
        self,
        weights: list[torch.Tensor],
        view: View,
        row: torch.Tensor | None,
        t: torch.Tensor,
        workload: torch.Tensor,
        q: torch.Tensor,
    ) -> torch.Tensor:
        """x_0 [S, M, C, B] of tasks with workload [S, M, C] in Gcycles, M states for each seed; weights from `split`.

        A state is a scenario of the view, row [S, M], its slot t [S, M], and its backlogs q [S, M, B] in Gcycles. With
        row None, M is 1, and seed s is in the s-th scenario.
        """
        seeds, states, tasks = workload.shape
        steps, num_bs = self.schedule.steps, q.shape[-1]

        def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            """x [S, .., in] times weight [S, in, out] as [S, rows, out]."""
            return torch.bmm(x.reshape(seeds, -1, x.shape[-1]), weight)

        server, task, step, latent, bias1, own, mean, bias2, out = weights
        step_part = torch.baddbmm(bias1, self.embedding.expand(seeds, -1, -1), step)  # [S, I, K]
        task_part = product(view.tasks(row, t, workload), task).view(seeds, states, tasks, 1, -1)
        server_part = product(view.servers(row, q), server).view(seeds, states, 1, num_bs, -1)
        first = (server_part + task_part).flatten(1, 2)  # [S, M C, B, K]
        share = of_rows(view.share, row).reshape(-1, 1, 1, num_bs).expand(-1, tasks, -1, -1).flatten(0, 2)
        pooled = torch.bmm(share[:, None], first.relu().flatten(0, 1))  # [S M C, 1, K], the mean over all servers
        second = torch.baddbmm(bias2, pooled.view(seeds, states * tasks, -1), mean)[:, :, None]
        x = first.new_zeros(seeds, states * tasks * num_bs, 1)
        for i in reversed(range(steps)):
            h = first + step_part[:, i, None, None]
            if i + 1 < steps:  # the chain starts from zeros
                h = torch.addcmul(h, x.view(seeds, -1, num_bs, 1), latent[:, None])
            h = product(h.relu_(), own).view_as(h).add_(second).relu_()
            now, before = self.schedule.mean_hat[i], self.schedule.mean_latent[i]
            x = torch.baddbmm(x, h.flatten(1, 2), out, beta=before, alpha=now)
        return x.view(seeds, states, tasks, num_bs)


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
        size = waves(view.place(row, workload), view.place_frequency)
        common = torch.cat([(q / view.capacity[row]).log1p(), waves(t, view.time_frequency)], -1)
        return torch.cat([size, common[:, :, None].expand(*size.shape[:-1], -1)], -1)

    def logits(self, theta: torch.Tensor, state: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """x_0 [S, B, C, B] from each BS's own tasks' state [S, B, C, F] and latent actions [S, B, B, C]."""
        flat = state.flatten(0, 1).transpose(1, 2).contiguous()
        x0 = self.denoiser.forward_fast(theta, latent.flatten(0, 1).contiguous(), flat, None)
        return x0.transpose(1, 2).unflatten(0, state.shape[:2])

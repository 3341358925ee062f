"""What agents of Cooperative LAD-TS see, as numbers: servers, tasks and the time, for any number of servers.

Start reading at `View`.
"""

import math

import numpy as np
import torch

from coop_lad_ts.routing_table import middle_ranks
from lad_ts.environment_lad import EnvironmentParameters, Scenario, offered_load, presence

PLACE_WAVES, TIME_WAVES = 10, 2  # sine and cosine features of a place in an order, and of the time


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
            return torch.tensor(values, dtype=torch.float32, device=device)

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
        if torch.compiler.is_exporting():  # a file knows no search
            above = (sizes[..., None, :] < workload[..., None]).sum(-1)
        else:
            above = torch.searchsorted(sizes, workload.contiguous())
        above = above.clamp(max=sizes.shape[-1] - 1)
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

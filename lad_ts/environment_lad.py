"""The collaborative mobile edge computing (MEC) environment of LAD-TS, batched over seeds, BSs and tasks.

B base stations (BSs), each with an edge server (ES), receive text-to-image tasks in every time slot; an agent at each
BS sends each task to one ES (arXiv 2412.18212, system model). `Scenario` holds what stays fixed (capacities, link
rates, task classes), `Arrivals` what comes in an episode, and `CollaborativeMEC` advances the queues: one call of
`step` schedules a whole slot. Delays and queues are float64. Start reading at `CollaborativeMEC.step`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.random_streams import Stream, random_generator
from lad_ts.arrivals import Arrivals, presence
from lad_ts.arrivals import draw_arrivals as draw_arrivals  # where its users look for it
from lad_ts.environment_parameters import EnvironmentParameters


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What stays fixed over episodes, for S independent rows (seeds); arrays are float64 copies that refuse writing.

    capacity [S, B] in Gcycles/s, link_rate [S, B] in Mbit/s, and for the n-th task of a slot density [S, N] in
    Gcycles/step, steps [S, N] (denoising steps) and result_size [S, N] in Mbit. Raises ValueError for arrays whose
    shapes differ or whose values are not finite or out of range.
    """

    capacity: np.ndarray
    link_rate: np.ndarray
    density: np.ndarray
    steps: np.ndarray
    result_size: np.ndarray

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = np.array(getattr(self, field.name), dtype=np.float64)
            if values.ndim != 2 or values.size == 0:
                raise ValueError(f"{field.name}: shape {values.shape}, must be [seeds, values]")
            lowest = 0.0 if field.name == "result_size" else np.nextafter(0.0, 1.0)
            if not (np.isfinite(values).all() and (values >= lowest).all()):
                raise ValueError(f"{field.name}: values must be finite and positive")
            values.setflags(write=False)  # schedulers see it, and what they see must stay what the simulator has
            object.__setattr__(self, field.name, values)
        if self.capacity.shape != self.link_rate.shape:
            raise ValueError(f"capacity {self.capacity.shape} and link_rate {self.link_rate.shape} must agree")
        if not self.density.shape == self.steps.shape == self.result_size.shape:
            raise ValueError("density, steps and result_size must have one shape [S, N]")
        if self.capacity.shape[0] != self.density.shape[0]:
            raise ValueError("capacity and density must have the same number of seeds")

    @property
    def workload(self) -> np.ndarray:
        """w = rho * z, [S, N] in Gcycles."""
        return self.density * self.steps

    def rows(self, rows: slice | np.ndarray) -> "Scenario":
        """Some of the rows, in the given order."""
        return Scenario(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def repeated(self, times: int) -> "Scenario":
        """All rows, one after another, `times` over."""
        return Scenario(*(np.tile(getattr(self, field.name), (times, 1)) for field in dataclasses.fields(self)))

    @staticmethod
    def stacked(scenarios: Sequence["Scenario"]) -> "Scenario":
        """Scenarios of the same sizes as the rows of one."""
        names = [field.name for field in dataclasses.fields(Scenario)]
        return Scenario(*(np.concatenate([getattr(scenario, name) for scenario in scenarios]) for name in names))


def draw_scenario(params: EnvironmentParameters, seeds: Sequence[int], num_bs: int | None = None) -> Scenario:
    """The scenario of each training seed: one for all, or one each with `scenario_per_seed`.

    With num_bs, it has another number of BSs than the parameters, and drawn capacities.
    """

    def draw(seed: int) -> tuple[np.ndarray, ...]:
        rng = random_generator(Stream.SCENARIO, params.scenario_seed, seed)
        b, n = num_bs or params.num_bs, params.num_tasks
        capacity = rng.integers(params.capacity_min, params.capacity_max, b, endpoint=True)
        if params.fixed_capacities is not None and num_bs is None:
            capacity = params.fixed_capacities
        link_rate = rng.integers(params.rate_min, params.rate_max, b, endpoint=True)
        steps = rng.integers(params.quality_min, params.quality_max, n, endpoint=True)
        density_draw, result_draw = rng.random(n), rng.random(n)
        if params.file_tasks is not None:
            # Classes of a file come in any order, so that a number says nothing of the size.
            order = rng.permutation(n)
            return capacity, link_rate, *(values[order] for values in params.file_tasks.classes(n))
        if params.tied_sizes:
            result_draw = density_draw
        density = params.density_min + (params.density_max - params.density_min) * density_draw
        result = params.result_min + (params.result_max - params.result_min) * result_draw
        return capacity, link_rate, density, steps, result

    rows = [draw(1 + seed if params.scenario_per_seed else 0) for seed in seeds]
    return Scenario(*(np.stack(column).astype(np.float64) for column in zip(*rows, strict=True)))


def offered_load(params: EnvironmentParameters, scenario: Scenario) -> np.ndarray:
    """Mean work that arrives in a slot over what all ESs can do in it, [R]."""
    work = scenario.capacity.shape[1] * (presence(params) * scenario.workload).sum(1)
    return work / (scenario.capacity.sum(1) * params.slot_length)


@dataclasses.dataclass(frozen=True)
class Slot:
    """What is known when slot t starts: the tasks of every BS and the backlog of every ES.

    mask [S, B, N] marks the tasks that exist (a prefix of each BS's N cells), size [S, B, N] in Mbit,
    workload [S, B, N] in Gcycles, backlog q[t] [S, B] in Gcycles. Tasks with result sizes of their own have these in
    result_size [S, B, N], in Mbit; without, they are the scenario's.
    """

    t: int
    mask: torch.Tensor
    size: torch.Tensor
    workload: torch.Tensor
    backlog: torch.Tensor
    result_size: torch.Tensor | None = None

    def copy(self) -> "Slot":
        """The same numbers in tensors of their own, to be shown to whoever might write into them."""
        same = self.workload.stride(1) == 0  # the same tasks at every BS take the memory of one
        workload = self.workload[:, :1].clone().expand_as(self.workload) if same else self.workload.clone()
        result = None if self.result_size is None else self.result_size.clone()
        return Slot(self.t, self.mask.clone(), self.size.clone(), workload, self.backlog.clone(), result)


def work_ahead(workload: torch.Tensor, action: torch.Tensor, num_es: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Work sent to a task's ES earlier in the slot, and the slot's total per ES.

    workload [S, K] in Gcycles (0 where there is no task) and action [S, K], tasks in scheduling order. Returns
    in_slot [S, K] and total [S, num_es] in Gcycles. On the CPU, the running sum adds in a loop's order.
    """
    sent = workload.new_zeros(workload.shape[0], num_es, workload.shape[1] + 1)
    position = torch.arange(workload.shape[1], device=workload.device).expand_as(action)
    row = torch.arange(workload.shape[0], device=workload.device)[:, None]
    sent[row, action, position + 1] = workload
    sent = sent.cumsum(-1)
    return sent[row, action, position], sent[:, :, -1]


class CollaborativeMEC:
    """S independent copies of the environment, advanced together slot by slot."""

    def __init__(self, scenario: Scenario, device: str | torch.device = "cpu", slot_length: float = 1.0) -> None:
        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self.scenario, self.device, self.slot_length = scenario, torch.device(device), slot_length
        self.capacity, self.link_rate = tensor(scenario.capacity), tensor(scenario.link_rate)
        self.result_size = tensor(scenario.result_size)
        self.result_at_all = self.result_size[:, None]  # the same at every BS, [S, 1, N]
        self.num_seeds, self.num_bs = scenario.capacity.shape
        self.workload = tensor(scenario.workload)[:, None].expand(-1, self.num_bs, -1)  # the same tasks at every BS
        self.num_tasks = scenario.density.shape[1]
        # s that the n-th task takes alone on its best ES, without upload, [S, N]
        own = tensor(scenario.workload)[:, :, None] / self.capacity[:, None]
        self.alone = (own + self.result_size[:, :, None] / self.link_rate[:, None]).amin(2)
        self.own_tasks: tuple[torch.Tensor, torch.Tensor] | None = None  # workload and result size, [S, T, B, N] each
        self.sent = torch.zeros_like(self.capacity)  # work that came to each ES in the last slot
        self.compiled = False  # whether compiled functions do the same in less time, on the CPU
        self.slots: Any = None  # these

    def reset(self, arrivals: Arrivals) -> Slot:
        """Empty the queues and start an episode. Returns the first slot; raises ValueError on a misfit."""
        expected = (self.num_seeds, arrivals.size.shape[1], self.num_bs, self.num_tasks)
        if arrivals.size.shape != expected:
            raise ValueError(f"arrivals: size {arrivals.size.shape} does not fit the scenario, {expected}")
        self.num_slots = arrivals.size.shape[1]
        self._size = torch.as_tensor(arrivals.size, dtype=torch.float64, device=self.device)
        count = torch.as_tensor(arrivals.count, device=self.device)
        self._mask = torch.arange(self.num_tasks, device=self.device) < count[..., None]
        self.own_tasks = None
        if arrivals.workload is not None and arrivals.result_size is not None:
            parts = (arrivals.workload, arrivals.result_size)
            workload, result = (torch.as_tensor(part, dtype=torch.float64, device=self.device) for part in parts)
            self.own_tasks = workload, result
        self.backlog = torch.zeros_like(self.capacity)
        self.t = 0
        return self.slot()

    def least_delays(self) -> torch.Tensor:
        """s that a task takes alone on its best ES, without upload: [S, N], or [S, T - 1, B, N] of tasks of their own.

        This is what slowdowns are relative to.
        """
        if self.own_tasks is None:
            return self.alone
        workload, result = (part[:, :-1] for part in self.own_tasks)
        least = torch.full_like(workload, torch.inf)
        for f, v in zip(self.capacity.T, self.link_rate.T, strict=True):  # one by one, which bounds the memory
            least = torch.minimum(least, workload / f.view(-1, 1, 1, 1) + result / v.view(-1, 1, 1, 1))
        return least

    def slot(self) -> Slot:
        """The slot that is to be scheduled next."""
        workload, result = self.workload, None
        if self.own_tasks is not None:
            workload, result = (part[:, self.t] for part in self.own_tasks)
        return Slot(self.t, self._mask[:, self.t], self._size[:, self.t], workload, self.backlog, result)

    def step(self, action: torch.Tensor) -> tuple[torch.Tensor, Slot]:
        """Schedule every task of the current slot and go on to the next.

        action [S, B, N]: the ES of each task (any valid ES where the mask is False). Returns the service delay
        [S, B, N] in s (0 where the mask is False) and the next slot. With b the task's BS and a its ES,

            delay = [a != b] d / v[a] + w / f[a] + r / v[a] + (q[t, a] + in_slot[a]) / f[a]
            q[t+1] = max(q[t] + in_slot - f * slot length, 0)

        where in_slot[a] is the work sent to a earlier in the slot, in the order BS 0, 1, .. and task 1, 2, ..
        (arXiv 2412.18212, service delay model).
        """
        now = self.slot()
        advance = self.compiled_step if self.compiled else self.torch_step
        delay, self.backlog, self.sent = advance(now, action)
        self.t += 1
        return delay, self.slot()

    def torch_step(self, now: Slot, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The delays of a slot, the following backlogs, and the work sent to each ES."""
        flat = action.reshape(self.num_seeds, -1)
        work = (now.workload * now.mask).reshape(self.num_seeds, -1)
        in_slot, total = work_ahead(work, flat, self.num_bs)
        f, v = self.capacity.gather(1, flat), self.link_rate.gather(1, flat)
        queue = (self.backlog.gather(1, flat) + in_slot) / f
        home = torch.arange(self.num_bs, device=self.device)[:, None]
        upload = (action != home) * now.size
        result = self.result_at_all if now.result_size is None else now.result_size
        transmission = (upload + result).view_as(flat) / v
        delay = (transmission + work / f + queue).view_as(action) * now.mask
        return delay, (self.backlog + total - self.capacity * self.slot_length).clamp(min=0), total

    def compiled_step(self, now: Slot, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `torch_step`, to the last bit."""
        if self.slots is None:
            from fused.environment import Steps

            self.slots = Steps()
        result = self.result_at_all if now.result_size is None else now.result_size
        tasks = now.mask, now.size, now.workload, result
        return self.slots(tasks, action, self.capacity, self.link_rate, self.slot_length, self.backlog)

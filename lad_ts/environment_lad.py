"""The collaborative mobile edge computing (MEC) environment of LAD-TS, batched over seeds, BSs and tasks.

B base stations (BSs), each with an edge server (ES), receive text-to-image tasks in every time slot; an agent at each
BS sends each task to one ES (arXiv 2412.18212, system model). `Scenario` holds what stays fixed (capacities, link
rates, task classes), `Arrivals` what comes in an episode, and `CollaborativeMEC` advances the queues: one call of
`step` schedules a whole slot. Delays and queues are float64. Start reading at `CollaborativeMEC.step`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from common.parameters import ParameterError, Parameters, numbers, parameter
from common.random_streams import Stream, random_generator


@dataclasses.dataclass(kw_only=True)
class EnvironmentParameters(Parameters):
    """Every number of the paper's environment. Defaults are the paper's; it does not give scenario_seed."""

    GROUP: ClassVar[str] = "environment"

    num_bs: int = parameter(20, "base stations, each with one edge server", low=1, high=10_000)
    num_tasks: int = parameter(50, "most tasks that a BS receives in a slot (N)", low=1, high=10_000)
    min_tasks: int = parameter(1, "fewest tasks that a BS receives in a slot", low=0)
    num_slots: int = parameter(60, "time slots of an episode (T); T - 1 of them are scheduled", low=2)
    slot_length: float = parameter(1.0, "length of a time slot", unit="s", above=0)
    input_min: float = parameter(2.0, "smallest input size d", unit="Mbit", low=0)
    input_max: float = parameter(5.0, "largest input size d", unit="Mbit", above=0)
    quality_min: int = parameter(1, "fewest denoising steps z that a task asks for", unit="steps", low=1)
    quality_max: int = parameter(14, "most denoising steps z that a task asks for", unit="steps", low=1)
    density_min: float = parameter(0.1024, "smallest computing density rho", unit="Gcycles/step", above=0)
    density_max: float = parameter(0.3072, "largest computing density rho", unit="Gcycles/step", above=0)
    result_min: float = parameter(0.6, "smallest result size r", unit="Mbit", low=0)
    result_max: float = parameter(1.0, "largest result size r", unit="Mbit", above=0)
    capacity_min: int = parameter(10, "least capacity f of an ES", unit="Gcycles/s", low=1)
    capacity_max: int = parameter(50, "greatest capacity f of an ES", unit="Gcycles/s", low=1)
    capacities: str | None = parameter(
        None, "capacity f of each ES, as in 10,20.5,40, instead of drawn ones", unit="Gcycles/s"
    )
    rate_min: int = parameter(400, "least link rate v", unit="Mbit/s", low=1)
    rate_max: int = parameter(500, "greatest link rate v", unit="Mbit/s", low=1)
    tied_sizes: bool = parameter(
        False,
        "draw rho and r from the same uniform numbers",
        more="The published code does so by seeding twice.",
    )
    scenario_seed: int = parameter(
        4,
        "seed of capacities, link rates and task classes, shared by all training seeds",
        low=0,
        more="4 is the first whose offered load, 1.25 of the capacity, is about that of the published script's draw "
        "(1.24).",
    )
    scenario_per_seed: bool = parameter(False, "give every training seed a scenario of its own")

    def check(self) -> None:
        for name in ("input", "quality", "density", "result", "capacity", "rate"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ParameterError(f"{name}_min", low, f"the range is empty; must be at most --{name}_max={high}")
        if self.min_tasks > self.num_tasks:
            raise ParameterError(
                "min_tasks", self.min_tasks, f"the range is empty; must be at most --num_tasks={self.num_tasks}"
            )
        _ = self.fixed_capacities
        super().check()

    @functools.cached_property
    def fixed_capacities(self) -> np.ndarray | None:
        """The numbers [B] of --capacities, None without it. Raises ParameterError unless every ES has one."""
        if self.capacities is None:
            return None
        return np.array(numbers("capacities", self.capacities, "num_bs", self.num_bs))


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


def draw_scenario(params: EnvironmentParameters, seeds: Sequence[int]) -> Scenario:
    """The scenario of each training seed: one for all, or one each with `scenario_per_seed`."""

    def draw(seed: int) -> tuple[np.ndarray, ...]:
        rng = random_generator(Stream.SCENARIO, params.scenario_seed, seed)
        b, n = params.num_bs, params.num_tasks
        capacity = rng.integers(params.capacity_min, params.capacity_max, b, endpoint=True)
        if params.fixed_capacities is not None:
            capacity = params.fixed_capacities
        link_rate = rng.integers(params.rate_min, params.rate_max, b, endpoint=True)
        steps = rng.integers(params.quality_min, params.quality_max, n, endpoint=True)
        density_draw, result_draw = rng.random(n), rng.random(n)
        if params.tied_sizes:
            result_draw = density_draw
        density = params.density_min + (params.density_max - params.density_min) * density_draw
        result = params.result_min + (params.result_max - params.result_min) * result_draw
        return capacity, link_rate, density, steps, result

    rows = [draw(1 + seed if params.scenario_per_seed else 0) for seed in seeds]
    return Scenario(*(np.stack(column).astype(np.float64) for column in zip(*rows, strict=True)))


def presence(params: EnvironmentParameters) -> np.ndarray:
    """The probability [N] that a BS receives an n-th task in a slot; counts are uniform in min_tasks..num_tasks."""
    n = np.arange(1, params.num_tasks + 1)
    return np.minimum(1, (params.num_tasks - n + 1) / (params.num_tasks - params.min_tasks + 1))


def offered_load(params: EnvironmentParameters, scenario: Scenario) -> np.ndarray:
    """Mean work that arrives in a slot over what all ESs can do in it, [R]."""
    work = scenario.capacity.shape[1] * (presence(params) * scenario.workload).sum(1)
    return work / (scenario.capacity.sum(1) * params.slot_length)


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """The tasks of one episode in S rows: count [S, T, B] (int64) and input size [S, T, B, N] in Mbit (float64)."""

    count: np.ndarray
    size: np.ndarray

    def __post_init__(self) -> None:
        if self.size.ndim != 4 or self.count.shape != self.size.shape[:3]:
            raise ValueError(f"count {self.count.shape} and size {self.size.shape}: need [S, T, B], [S, T, B, N]")
        if not ((self.count >= 0) & (self.count <= self.size.shape[3])).all():
            raise ValueError(f"count: must lie in 0..{self.size.shape[3]}")
        if not (np.isfinite(self.size).all() and (self.size >= 0).all()):
            raise ValueError("size: values must be finite and not negative")


def draw_arrivals(
    params: EnvironmentParameters, rows: Sequence[tuple[int, int]], stream: Stream = Stream.TRAINING_ARRIVALS
) -> Arrivals:
    """The arrivals of the given (seed, episode) rows, each from a generator of its own."""
    shape = (params.num_slots, params.num_bs)
    count = np.empty((len(rows), *shape), dtype=np.int64)
    size = np.empty((len(rows), *shape, params.num_tasks))
    for row, (seed, episode) in enumerate(rows):
        rng = random_generator(stream, seed, episode)
        count[row] = rng.integers(params.min_tasks, params.num_tasks, shape, endpoint=True)
        size[row] = rng.uniform(params.input_min, params.input_max, size[row].shape)
    return Arrivals(count, size)


@dataclasses.dataclass(frozen=True)
class Slot:
    """What is known when slot t starts: the tasks of every BS and the backlog of every ES.

    mask [S, B, N] marks the tasks that exist (a prefix of each BS's N cells), size [S, B, N] in Mbit,
    workload [S, B, N] in Gcycles, backlog q[t] [S, B] in Gcycles.
    """

    t: int
    mask: torch.Tensor
    size: torch.Tensor
    workload: torch.Tensor
    backlog: torch.Tensor

    def copy(self) -> "Slot":
        """The same numbers in tensors of their own, to be shown to whoever might write into them."""
        same = self.workload.stride(1) == 0  # the same tasks at every BS take the memory of one
        workload = self.workload[:, :1].clone().expand_as(self.workload) if same else self.workload.clone()
        return Slot(self.t, self.mask.clone(), self.size.clone(), workload, self.backlog.clone())


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
        self.num_seeds, self.num_bs = scenario.capacity.shape
        self.workload = tensor(scenario.workload)[:, None].expand(-1, self.num_bs, -1)  # the same tasks at every BS
        self.num_tasks = scenario.density.shape[1]
        # s that the n-th task takes alone on its best ES, without upload, [S, N]: what slowdowns are relative to
        own = tensor(scenario.workload)[:, :, None] / self.capacity[:, None]
        self.alone = (own + self.result_size[:, :, None] / self.link_rate[:, None]).amin(2)

    def reset(self, arrivals: Arrivals) -> Slot:
        """Empty the queues and start an episode. Returns the first slot; raises ValueError on a misfit."""
        expected = (self.num_seeds, arrivals.size.shape[1], self.num_bs, self.num_tasks)
        if arrivals.size.shape != expected:
            raise ValueError(f"arrivals: size {arrivals.size.shape} does not fit the scenario, {expected}")
        self.num_slots = arrivals.size.shape[1]
        self._size = torch.as_tensor(arrivals.size, dtype=torch.float64, device=self.device)
        count = torch.as_tensor(arrivals.count, device=self.device)
        self._mask = torch.arange(self.num_tasks, device=self.device) < count[..., None]
        self.backlog = torch.zeros_like(self.capacity)
        self.t = 0
        return self.slot()

    def slot(self) -> Slot:
        """The slot that is to be scheduled next."""
        return Slot(self.t, self._mask[:, self.t], self._size[:, self.t], self.workload, self.backlog)

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
        flat = action.reshape(self.num_seeds, -1)
        work = (now.workload * now.mask).reshape(self.num_seeds, -1)
        in_slot, total = work_ahead(work, flat, self.num_bs)
        f, v = self.capacity.gather(1, flat), self.link_rate.gather(1, flat)
        queue = (self.backlog.gather(1, flat) + in_slot) / f
        home = torch.arange(self.num_bs, device=self.device)[:, None]
        upload = (action != home) * now.size
        transmission = (upload + self.result_size[:, None]).view_as(flat) / v
        delay = (transmission + work / f + queue).view_as(action) * now.mask
        self.backlog = (self.backlog + total - self.capacity * self.slot_length).clamp(min=0)
        self.t += 1
        return delay, self.slot()

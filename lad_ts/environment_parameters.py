"""The parameters of the environment: sizes, ranges, and where arrivals come from."""

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np

from common.parameters import ParameterError, Parameters, numbers, parameter
from lad_ts.arrival_file import Cutting, FileTasks, read_tasks, tell_short
from lad_ts.scenarios import DESCRIPTIONS, SCENARIOS

KINDS = ("uniform", "poisson", "bursty", "diurnal")


@dataclasses.dataclass(kw_only=True)
class EnvironmentParameters(Parameters):
    """Every number of the paper's environment. Defaults are the paper's; it does not give scenario_seed."""

    GROUP: ClassVar[str] = "environment"
    FILLS: ClassVar = {"scenario": SCENARIOS}

    scenario: str = parameter(
        "paper",
        "fills in what is not given",
        choices=tuple(SCENARIOS),
        more="; ".join(f"{name}: {words}" for name, words in DESCRIPTIONS.items()) + ".",
    )
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

    arrivals: str = parameter(
        "uniform",
        "how tasks arrive: uniform, poisson, bursty, diurnal, or a CSV file of tasks",
        more="uniform: min_tasks to num_tasks, equally likely. poisson: Poisson counts. bursty: Poisson, with "
        "bursts at each BS. diurnal: Poisson, with the rate of a day. Those above num_tasks are cut off.",
        path=True,
    )
    arrival_mean: float | None = parameter(
        None,
        "mean tasks of a BS in a slot, for poisson, bursty and diurnal; default that of uniform",
        above=0,
    )
    burst_factor: float = parameter(3.0, "bursty: rate in a burst over the rate outside", low=1)
    burst_share: float = parameter(0.3, "bursty: share of the slots in bursts", above=0, high=0.99)
    burst_length: float = parameter(5.0, "bursty: mean length of a burst", unit="slots", low=1)
    day_length: int | None = parameter(
        None, "diurnal: length of a day; default the scheduled slots of an episode", unit="slots", low=1
    )
    day_swing: float = parameter(0.8, "diurnal: swing of the rate about its mean, as a share of it", low=0, high=1)
    day_spread: float = parameter(
        0.0, "diurnal: how far the peaks of the first and last BS lie apart, in days", low=0, high=1
    )
    arrivals_held_out: float = parameter(
        0.2, "share of a file's slots, its last ones, that no training sees", above=0, high=0.9
    )
    arrivals_sha256: str | None = parameter(
        None, "SHA-256 that the file of arrivals must have; filled in for config.json"
    )

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
        self.check_arrivals()
        super().check()

    def check_arrivals(self) -> None:
        """Refuse arrivals that do not fit, and a file that has changed; its SHA-256 is filled in."""
        if self.arrival_mean is not None and (self.arrivals == "uniform" or self.file_tasks is not None):
            raise ParameterError("arrival_mean", self.arrival_mean, f"must come with --arrivals {', '.join(KINDS[1:])}")
        if self.file_tasks is not None:
            digest = self.file_tasks.digest
            if self.arrivals_sha256 not in (None, digest):
                reason = f"has changed; its SHA-256 must be {self.arrivals_sha256}, but is {digest}"
                raise ParameterError("arrivals", self.arrivals, reason)
            self.arrivals_sha256 = digest
            tasks = self.file_tasks
            tell_short(self.arrivals, tasks.training, tasks.slots - tasks.training, self.num_slots)
            return
        if self.arrivals_sha256 is not None:
            raise ParameterError("arrivals_sha256", self.arrivals_sha256, "must come with --arrivals FILE")
        if self.mean_count > self.num_tasks:
            reason = f"the mean must be at most --num_tasks={self.num_tasks}"
            raise ParameterError("arrival_mean", self.arrival_mean, reason)
        least = self.burst_share / (1 - self.burst_share)
        if self.arrivals == "bursty" and self.burst_length < least:
            reason = f"must be at least {least:g} for --burst_share={self.burst_share:g}"
            raise ParameterError("burst_length", self.burst_length, reason)

    @property
    def mean_count(self) -> float:
        """Mean tasks of a BS in a slot, before counts are cut off; of a file, over its training."""
        if self.file_tasks is not None:
            tasks = self.file_tasks
            slots = max(tasks.training, self.num_slots - 1)  # a shorter part ends with empty ones
            return tasks.learnt["size"].size / (slots * self.num_bs)
        uniform = (self.num_tasks + self.min_tasks) / 2
        return uniform if self.arrivals == "uniform" or self.arrival_mean is None else self.arrival_mean

    @property
    def mean_input(self) -> float:
        """The mean input size in Mbit."""
        return (self.input_min + self.input_max) / 2 if self.file_tasks is None else self.file_tasks.mean("size")

    @functools.cached_property
    def file_tasks(self) -> FileTasks | None:
        """The tasks of --arrivals FILE, None for the kinds that are drawn. Raises ParameterError."""
        if self.arrivals in KINDS:
            return None
        if not Path(self.arrivals).is_file():
            close = difflib.get_close_matches(self.arrivals, KINDS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ParameterError("arrivals", self.arrivals, f"must be one of {', '.join(KINDS)}, or a CSV file{hint}")
        density, result = (self.density_min + self.density_max) / 2, (self.result_min + self.result_max) / 2
        sizes = (self.num_bs, self.num_tasks, self.slot_length)
        return read_tasks(self.arrivals, Cutting(*sizes, density, result, self.arrivals_held_out))

    @functools.cached_property
    def fixed_capacities(self) -> np.ndarray | None:
        """The numbers [B] of --capacities, None without it. Raises ParameterError unless every ES has one."""
        if self.capacities is None:
            return None
        return np.array(numbers("capacities", self.capacities, "num_bs", self.num_bs))

"""The tasks that come in an episode: drawn by their kind, or a window of a file.

Start reading at `draw_arrivals`. `presence` tells what methods may know of the counts in advance.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import pdtrc

from common.random_streams import Stream, random_generator
from lad_ts.arrival_file import FileTasks
from lad_ts.environment_parameters import EnvironmentParameters


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """The tasks of one episode in S rows: count [S, T, B] (int64) and input size [S, T, B, N] in Mbit (float64).

    Tasks of their own kind also have a workload in Gcycles and a result size in Mbit, both [S, T, B, N]; without them,
    they are of the scenario's classes. Raises ValueError for arrays that do not fit or are out of range.
    """

    count: np.ndarray
    size: np.ndarray
    workload: np.ndarray | None = None
    result_size: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.size.ndim != 4 or self.count.shape != self.size.shape[:3]:
            raise ValueError(f"count {self.count.shape} and size {self.size.shape}: need [S, T, B], [S, T, B, N]")
        if not ((self.count >= 0) & (self.count <= self.size.shape[3])).all():
            raise ValueError(f"count: must lie in 0..{self.size.shape[3]}")
        if not (np.isfinite(self.size).all() and (self.size >= 0).all()):
            raise ValueError("size: values must be finite and not negative")
        if (self.workload is None) != (self.result_size is None):
            raise ValueError("workload and result_size: need both or none")
        for name, values in (("workload", self.workload), ("result_size", self.result_size)):
            if values is None:
                continue
            if values.shape != self.size.shape:
                raise ValueError(f"{name} {values.shape}: must have the shape of size, {self.size.shape}")
            if not (np.isfinite(values).all() and (values >= 0).all() and (name != "workload" or (values > 0).all())):
                raise ValueError(f"{name}: values must be finite and positive")


def draw_arrivals(
    params: EnvironmentParameters, rows: Sequence[tuple[int, int]], stream: Stream = Stream.TRAINING_ARRIVALS
) -> Arrivals:
    """The arrivals of the given (seed, episode) rows, each from a generator of its own."""
    if params.file_tasks is not None:
        return file_arrivals(params, params.file_tasks, rows, stream)
    shape = (params.num_slots, params.num_bs)
    count = np.empty((len(rows), *shape), dtype=np.int64)
    size = np.empty((len(rows), *shape, params.num_tasks))
    for row, (seed, episode) in enumerate(rows):
        rng = random_generator(stream, seed, episode)
        count[row] = draw_counts(params, rng, *shape)
        size[row] = rng.uniform(params.input_min, params.input_max, size[row].shape)
    return Arrivals(count, size)


def file_arrivals(
    params: EnvironmentParameters, tasks: FileTasks, rows: Sequence[tuple[int, int]], stream: Stream
) -> Arrivals:
    """A random window of the file for each row, of its held-out part for the streams of evaluations.

    Cells without a task hold the means of the training.
    """
    held_out = stream in (Stream.HELD_OUT_ARRIVALS, Stream.VALIDATION_ARRIVALS)
    shape = (len(rows), params.num_slots, params.num_bs, params.num_tasks)
    count = np.zeros(shape[:3], dtype=np.int64)
    size, workload, result = (np.full(shape, tasks.mean(name)) for name in ("size", "workload", "result"))
    for row, (seed, episode) in enumerate(rows):
        start, part = tasks.window(random_generator(stream, seed, episode), params.num_slots, held_out)
        slot, station = tasks.slot[part] - start, tasks.station[part]
        np.add.at(count[row], (slot, station), 1)
        cell = (row, slot, station, tasks.number[part])
        size[cell], workload[cell], result[cell] = tasks.size[part], tasks.workload[part], tasks.result[part]
    return Arrivals(count, size, workload, result)


def draw_counts(params: EnvironmentParameters, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """How many tasks each BS receives, [.., slots, BSs] (int64), in training; the slots follow each other from 0."""
    kind = params.arrivals
    if kind == "uniform":
        return rng.integers(params.min_tasks, params.num_tasks, shape, endpoint=True)
    if params.file_tasks is not None:
        *paths, slots, num_bs = shape
        drawn = [params.file_tasks.counts(rng, slots, num_bs) for _ in range(math.prod(paths))]
        return np.stack(drawn).reshape(shape)
    if kind == "bursty":
        outside, inside = burst_rates(params)
        rate = np.where(bursts(params, rng, *shape), inside, outside)
    else:
        rate = np.broadcast_to(slot_rates(params, *shape[-2:]), shape)
    return np.minimum(rng.poisson(rate), params.num_tasks)


def burst_rates(params: EnvironmentParameters) -> tuple[float, float]:
    """Mean tasks of a slot outside and inside a burst, which have the mean of the parameters."""
    outside = params.mean_count / (1 + params.burst_share * (params.burst_factor - 1))
    return outside, outside * params.burst_factor


def bursts(params: EnvironmentParameters, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Which slots of [.., slots, BSs] lie in a burst: a Markov chain at each BS, from its stationary distribution."""
    ends = 1 / params.burst_length
    begins = ends * params.burst_share / (1 - params.burst_share)
    uniform = rng.random(shape)
    inside = np.empty(shape, dtype=bool)
    now = uniform[..., 0, :] < params.burst_share
    for t in range(shape[-2]):
        if t:
            now = np.where(now, uniform[..., t, :] >= ends, uniform[..., t, :] < begins)
        inside[..., t, :] = now
    return inside


def slot_rates(params: EnvironmentParameters, slots: int, num_bs: int) -> np.ndarray:
    """The mean tasks of each slot and BS [slots, num_bs], before counts are cut off, for poisson and diurnal.

    The peak of a day is in its middle; those of the BSs are spread about it by day_spread.
    """
    if params.arrivals != "diurnal":
        return np.full((slots, num_bs), params.mean_count)
    day = params.day_length or params.num_slots - 1
    late = params.day_spread * (np.arange(num_bs) / max(num_bs - 1, 1) - 0.5) * (num_bs > 1)
    time = (np.arange(slots)[:, None] + 0.5) / day - late
    return params.mean_count * (1 - params.day_swing * np.cos(2 * np.pi * time))


def presence(params: EnvironmentParameters) -> np.ndarray:
    """The probability [N] that a BS receives an n-th task in a slot, over all scheduled slots and BSs.

    Of a file, how many tasks of the n-th class a BS receives in a slot on average.
    """
    if params.arrivals == "uniform":
        n = np.arange(1, params.num_tasks + 1)
        return np.minimum(1, (params.num_tasks - n + 1) / (params.num_tasks - params.min_tasks + 1))
    return slot_presence(params).mean(0)


def slot_presence(params: EnvironmentParameters) -> np.ndarray:
    """`presence` in each scheduled slot, [T - 1, N]."""
    slots, before = params.num_slots - 1, np.arange(params.num_tasks)
    if params.arrivals == "uniform":
        return np.broadcast_to(presence(params), (slots, params.num_tasks))
    if params.file_tasks is not None:
        return np.full((slots, params.num_tasks), params.mean_count / params.num_tasks)
    if params.arrivals == "bursty":
        outside, inside = burst_rates(params)
        mixed = (1 - params.burst_share) * pdtrc(before, outside) + params.burst_share * pdtrc(before, inside)
        return np.broadcast_to(mixed, (slots, params.num_tasks))
    return pdtrc(before, slot_rates(params, slots, params.num_bs)[..., None]).mean(1)

"""Running one episode, and the statistics of its delays. Every scheduler is run by `run_episode`."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from common.parameters import ParameterError
from lad_ts.environment_lad import Arrivals, CollaborativeMEC, Scenario, Slot

PERCENTILES = (50, 95, 99)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Decides(Protocol):
    """What an episode needs of a scheduler; scheduler.py tells what each part does."""

    learns: bool
    training: bool

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None: ...

    def act(self, slot: Slot) -> np.ndarray | torch.Tensor: ...

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None: ...


@dataclasses.dataclass(frozen=True)
class EpisodeStatistics:
    """Delays of R rows: mean, p50, p95, p99 and max [R] in s, and what it took to get them.

    slowdown [R] is the mean of delay over the least delay of the same task alone, without upload.

    utilisation [R, B] is the share of its capacity that each ES used, tasks [R] the number scheduled, and
    decision_seconds [R] the scheduler's wall time per decision (all rows together).
    """

    mean: np.ndarray
    p50: np.ndarray
    p95: np.ndarray
    p99: np.ndarray
    max: np.ndarray
    slowdown: np.ndarray
    utilisation: np.ndarray
    tasks: np.ndarray
    decision_seconds: np.ndarray

    def rows(self, part: slice) -> "EpisodeStatistics":
        """The statistics of some of the rows."""
        return EpisodeStatistics(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))


def summarise(
    delay: torch.Tensor, mask: torch.Tensor, alone: torch.Tensor, utilisation: torch.Tensor, seconds: float
) -> EpisodeStatistics:
    """Statistics of delay [R, .., N] in s where mask [R, .., N] is True.

    alone [R, N], or as delay, in s is the least delay of each task number or task, `seconds` the scheduler's wall time.
    """
    rows = [d[m] for d, m in zip(delay.cpu().numpy(), mask.cpu().numpy(), strict=True)]
    if alone.dim() < delay.dim():
        alone = alone.view(len(rows), *[1] * (delay.dim() - 2), -1)
    share = (delay / alone).flatten(1).sum(1).cpu().numpy()
    columns = [(row.mean(), *np.percentile(row, PERCENTILES), row.max()) if row.size else (np.nan,) * 5 for row in rows]
    mean, p50, p95, p99, largest = np.array(columns).T
    tasks = np.array([row.size for row in rows])
    per_decision = np.full(len(rows), seconds / max(tasks.sum(), 1))
    slowdown = np.where(tasks > 0, share / np.maximum(tasks, 1), np.nan)
    used = utilisation.cpu().numpy()
    return EpisodeStatistics(mean, p50, p95, p99, largest, slowdown, used, tasks, per_decision)


def check_action(action: torch.Tensor, slot: Slot, name: str) -> None:
    """Raise ParameterError unless every task of the slot gets a number of an edge server."""
    shape, servers = tuple(slot.mask.shape), slot.backlog.shape[1]
    if tuple(action.shape) != shape or action.dtype not in INTEGERS:
        found = f"{action.dtype} {list(action.shape)}"
        raise ParameterError(None, None, f"{name}.act returned {found}; must be integers {list(shape)}")
    if action.numel() and not 0 <= int(action.min()) <= int(action.max()) < servers:
        found = f"servers {int(action.min())}..{int(action.max())}"
        raise ParameterError(None, None, f"{name}.act returned {found}; must be within 0..{servers - 1}")


def play(
    env: CollaborativeMEC, scheduler: Decides, arrivals: Arrivals, rows: Sequence[tuple[int, int]]
) -> Iterator[tuple[Slot, torch.Tensor, torch.Tensor, Slot, float]]:
    """An episode in every row of (seed, episode), slot by slot; one that is training learns on the way.

    Yields the slot, action and delay [R, B, N], the next slot, and the seconds that the decisions took.
    """
    slot = env.reset(arrivals)
    scheduler.begin(env.scenario, rows)
    for _ in range(env.num_slots - 1):
        began = time.perf_counter()
        # What a scheduler is shown is its own to change; and what it returns may be its own to use again.
        shown = slot if getattr(scheduler, "leaves_slots", False) else slot.copy()
        action = torch.as_tensor(scheduler.act(shown), device=env.device)
        if not scheduler.learns:
            check_action(action, slot, type(scheduler).__name__)
            action = action.to(torch.int64, copy=True)
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)  # the clock must see the decision's end
        seconds = time.perf_counter() - began
        delay, following = env.step(action)
        if scheduler.training:
            scheduler.learn(slot, action, delay, following)
        yield slot, action, delay, following, seconds
        slot = following


def run_episode(
    env: CollaborativeMEC, scheduler: Decides, arrivals: Arrivals, rows: Sequence[tuple[int, int]]
) -> EpisodeStatistics:
    """Schedule one episode in every row of (seed, episode); one that is training learns on the way."""
    delays, masks = [], []
    worked, deciding = torch.zeros_like(env.capacity), 0.0
    for slot, _, delay, following, seconds in play(env, scheduler, arrivals, rows):
        deciding += seconds
        worked += slot.backlog + env.sent - following.backlog
        delays.append(delay)
        masks.append(slot.mask)
    utilisation = worked / (env.capacity * env.slot_length * (env.num_slots - 1))
    return summarise(torch.stack(delays, 1), torch.stack(masks, 1), env.least_delays(), utilisation, deciding)

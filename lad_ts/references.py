"""The yardsticks of every run, Opt-TS and a lower bound on the mean delay, and Opt-TS without messages.

Opt-TS takes the tasks in order and gives each the server that is best for that task alone, knowing all queues exactly
(arXiv 2412.18212). It is greedy, not optimal. The bound pools all servers into one and serves the shortest remaining
work first, which no scheduler can beat. Both work on many rows of (seed, episode) at once.
"""

from collections.abc import Sequence

import numpy as np

from lad_ts.arrivals import slot_presence
from lad_ts.environment_lad import Arrivals, CollaborativeMEC, Scenario, Slot
from lad_ts.episodes import EpisodeStatistics
from lad_ts.scheduler import Scheduler


def result_sizes(slot: Slot, scenario: Scenario) -> np.ndarray:
    """The result sizes [R, B, N] in Mbit of a slot's tasks: their own, or those of the scenario's classes."""
    if slot.result_size is not None:
        return slot.result_size.cpu().numpy()
    return np.broadcast_to(scenario.result_size[:, None], slot.mask.shape)


class OptTS(Scheduler):
    """Opt-TS: for each task in order, the ES with the least delay, knowing q and in_slot exactly."""

    needs = "everything, in the order of scheduling"

    def act(self, slot: Slot) -> np.ndarray:
        mask, size = slot.mask.cpu().numpy(), slot.size.cpu().numpy()
        rows, num_bs, num_tasks = mask.shape
        f, v = self.scenario.capacity, self.scenario.link_rate
        flat_mask = mask.reshape(rows, -1)
        # Only cells with a task are visited: cell[:, k] is the k-th task of each row, in order.
        cells = int(flat_mask.sum(1).max())
        cell = np.argsort(~flat_mask, axis=1, kind="stable")[:, :cells]
        row = np.arange(rows)
        bs, n = cell // num_tasks, cell % num_tasks
        workload = slot.workload.cpu().numpy().reshape(rows, -1)
        work = np.take_along_axis(flat_mask, cell, 1) * np.take_along_axis(workload, cell, 1)
        upload = size.reshape(rows, -1)[row[:, None], cell]
        result = result_sizes(slot, self.scenario)[row[:, None], bs, n]
        chosen = np.zeros((rows, cells), dtype=np.int64)
        wait = slot.backlog.cpu().numpy() / f  # seconds until an ES would start a new task
        block = max(1, 2_000_000 // (rows * num_bs))  # bounds the memory for many rows or servers
        for start in range(0, cells, block):
            part = slice(start, start + block)
            hop = bs[:, part, None] != np.arange(num_bs)
            # own [k, R, B]: the part of the delay that does not depend on the queues
            own = (upload[:, part, None] * hop + result[:, part, None]) / v[:, None]
            own = np.ascontiguousarray((own + work[:, part, None] / f[:, None]).swapaxes(0, 1))
            for k, fixed in enumerate(own, start):
                best = (fixed + wait).argmin(1)
                wait[row, best] += work[:, k] / f[row, best]
                chosen[:, k] = best
        action = np.zeros((rows, num_bs * num_tasks), dtype=np.int64)
        np.put_along_axis(action, cell, chosen, 1)
        return action.reshape(mask.shape)


class VirtualOpt(Scheduler):
    """Opt-TS without messages: each BS replays the greedy rule with the expected tasks of the BSs before it.

    A BS before it is taken to bring every n-th task with that task's probability as a fraction of it. Then the BS gives
    its own tasks, one after the other, the ES with the least delay.
    """

    needs = "q at the slot's start, f, v, w, distribution of the task counts"

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        self.present = slot_presence(self.params)

    def act(self, slot: Slot) -> np.ndarray:
        f, v = self.scenario.capacity, self.scenario.link_rate
        mask, size, workload = (x.cpu().numpy() for x in (slot.mask, slot.size, slot.workload))
        rows, num_bs, num_tasks = mask.shape
        row, away = np.arange(rows), 1 - np.eye(num_bs)
        typical, mean = self.scenario.workload, self.params.mean_input
        result = self.scenario.result_size[:, :, None] / v[:, None]
        own = typical[:, :, None] / f[:, None] + result  # [R, N, B]
        added = self.present[slot.t, :, None] * typical[:, :, None] / f[:, None]
        wait = slot.backlog.cpu().numpy() / f
        waits = np.empty((rows, num_bs, num_bs))  # before each BS's turn
        for b in range(num_bs):
            waits[:, b] = wait
            upload = mean * away[b] / v
            for n in range(num_tasks):
                best = (wait + own[:, n] + upload).argmin(1)
                wait[row, best] += added[row, n, best]
        action, results = np.zeros(mask.shape, dtype=np.int64), result_sizes(slot, self.scenario)
        for n in range(num_tasks):
            work, result = workload[:, :, n, None] / f[:, None], results[:, :, n, None] / v[:, None]
            delay = waits + work + size[:, :, n, None] * away / v[:, None] + result
            action[:, :, n] = best = delay.argmin(-1)
            chosen = (row[:, None], np.arange(num_bs), best)
            waits[chosen] += mask[:, :, n] * work[chosen]
        return action


class LowerBound:
    """The bound as a method: run like a scheduler, but it schedules nothing, so it has a mean delay and no tails."""

    learns = False
    needs = "everything, and one server that may interrupt tasks: a bound, not a scheduler"

    def __init__(self, params: object = None, seeds: Sequence[int] = (), device: object = "cpu") -> None:
        """The arguments are a scheduler's; the bound needs none of them."""

    def run(self, env: CollaborativeMEC, arrivals: Arrivals, rows: Sequence[tuple[int, int]]) -> EpisodeStatistics:
        """The bound on the mean delay in every row; percentiles, utilisation and time per decision are NaN."""
        mean = pooled_srpt_bound(env.scenario, arrivals, env.slot_length)
        none, used = np.full_like(mean, np.nan), np.full_like(env.scenario.capacity, np.nan)
        tasks = arrivals.count[:, :-1].sum((1, 2))
        return EpisodeStatistics(mean, none, none, none, none, none, used, tasks, none)


def pooled_srpt_bound(scenario: Scenario, arrivals: Arrivals, slot_length: float = 1.0) -> np.ndarray:
    """A lower bound on each row's mean delay [R] in s, for any scheduler on the same arrivals.

    One server with the capacity of all ESs together serves the shortest remaining work first, which minimises the sum
    of completion times among all ways of sharing that capacity; every task also sends its result over the fastest
    link. A bound on the mean only: the percentiles of this imaginary server bound nothing.
    """
    pool = scenario.capacity.sum(1)
    rows, slots, num_bs, num_tasks = arrivals.size.shape
    mask = np.arange(num_tasks) < arrivals.count[..., None]
    bounds = np.empty(rows)
    for row in range(rows):
        work = scenario.workload[row] if arrivals.workload is None else arrivals.workload[row]
        work = np.broadcast_to(work, (slots, num_bs, num_tasks))
        remaining = np.empty(0)
        tasks, total = 0, 0.0
        for t in range(slots - 1):
            new = work[t][mask[row, t]]
            tasks += new.size
            total -= new.size * t * slot_length
            remaining = np.sort(np.concatenate([remaining, new]), kind="stable")
            finish = remaining.cumsum() / pool[row]  # seconds after the slot's start
            last = t == slots - 2
            done = remaining.size if last else int(np.searchsorted(finish, slot_length, side="right"))
            total += (t * slot_length + finish[:done]).sum()
            if not last and done < remaining.size:
                remaining[done] = (finish[done] - slot_length) * pool[row]
            remaining = remaining[done:]
        sizes = scenario.result_size[row] if arrivals.result_size is None else arrivals.result_size[row, :-1]
        result = (mask[row, :-1] * sizes).sum() / scenario.link_rate[row].max()
        bounds[row] = (total + result) / tasks if tasks else np.nan
    return bounds

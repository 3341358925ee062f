"""The dispatcher: from the tasks at the base stations and the servers' backlogs to a server for every task.

It builds the same `Slot` that schedulers were trained on, and is the same for live and for simulated servers; it knows
nothing of Ray or clocks. Start reading at `Dispatcher.decide`.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edge_sim.server_profile import Profile
from edge_sim.servers import Asked, Known
from edge_sim.task_stream import place_of
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.episodes import check_action

CHOICE = 1000  # waiting tasks that are decided about where tasks are held back, the oldest ones


@dataclasses.dataclass(frozen=True)
class ClusterScheduler:
    """A scheduler that is ready to act on a cluster, and the sizes that it was made for.

    `num_tasks` N is the most tasks of a base station in a round, `num_rounds` the rounds of an episode, after which the
    next one begins. `scenario` has a row for each seed that was trained together, of which the first decides. Its unit
    of time is a slot of `slot_seconds`, so that schedulers see the same numbers whether an image takes 0.1 s or 10 s.
    One that `knows_models` has no scenario, and slots of 0 s: it decides tasks when they come.
    """

    name: str
    scheduler: Any
    scenario: Scenario | None
    seeds: Sequence[int]
    num_tasks: int
    num_rounds: int
    slot_seconds: float
    first_episode: int = 0  # of the run: what was trained goes on where its training ended
    checkpoint: dict[str, Any] = dataclasses.field(default_factory=dict)  # of one that learns: method and parameters
    knows_models: bool = False  # it is one of trace_scheduler.py, which `decide_knowing` takes
    holds_back: bool = False  # it may leave tasks for later, and is asked again when a server is idle


class Backlog:
    """Backlogs [B] in Gcycles as the profile has them: work sent, less what nominal capacities did meanwhile."""

    def __init__(self, profile: Profile) -> None:
        self.capacity = profile.capacity
        self.gcycles = np.zeros(profile.servers)
        self.now = 0.0

    def at(self, now: float) -> np.ndarray:
        """The backlogs [B] at a time in s, which is not before that of the last call."""
        self.gcycles = np.maximum(self.gcycles - self.capacity * max(0.0, now - self.now), 0)
        self.now = max(now, self.now)
        return self.gcycles

    def add(self, server: np.ndarray, work: np.ndarray) -> None:
        """Take in tasks that are sent now: their servers [K] and w [K] in Gcycles."""
        self.gcycles = self.gcycles + np.bincount(server, work, self.gcycles.size)


@dataclasses.dataclass(frozen=True)
class Decided:
    """A round that may still be learned from: what was seen, done, and known, and where its tasks stand."""

    slot: Slot
    action: torch.Tensor
    decision: dict[str, torch.Tensor]
    base_station: np.ndarray


class Dispatcher:
    """The agents of all base stations. Each decides from its own tasks and the backlogs at the round's start.

    With `learn` a scheduler of one seed goes on learning, in `learn_from`.
    """

    def __init__(self, ready: ClusterScheduler, learn: bool = False) -> None:
        self.ready, self.learn = ready, learn
        self.round = 0
        self.seconds: deque[tuple[float, int]] = deque(maxlen=1_000_000)  # what each decision took, for how many tasks
        self.decided: dict[int, Decided] = {}
        self.learned = 0  # rounds that were learned from
        ready.scheduler.training = learn

    def decide(self, base_station: np.ndarray, work: np.ndarray, size: np.ndarray, backlog: np.ndarray) -> np.ndarray:
        """The server [K] of each of a round's tasks: their base station, w in Gcycles and d in Mbit, all [K].

        No base station may have more than `num_tasks`; backlog is [B] in Gcycles.
        """
        began = time.perf_counter()
        ready = self.ready
        episode, t = divmod(self.round, ready.num_rounds)
        if t == 0:
            rows = [(seed, ready.first_episode + episode) for seed in ready.seeds]
            ready.scheduler.begin(ready.scenario, rows)
        slot = self.slot(t, base_station, work, size, backlog)
        action = torch.as_tensor(ready.scheduler.act(slot.copy()))
        if not ready.scheduler.learns:
            check_action(action, slot, ready.name)
        if self.learn:
            decision = getattr(ready.scheduler, "decision", {})
            self.decided[self.round] = Decided(slot, action, decision, base_station)
        self.round += 1
        server = action[0].numpy()[base_station, place_of(base_station)]
        self.seconds.append((time.perf_counter() - began, base_station.size))
        return server

    def decide_knowing(self, base_station: np.ndarray, asked: Asked, known: Known) -> np.ndarray:
        """`decide` of a scheduler that `knows_models`: the server [K] of each task, one after another.

        Of one that `holds_back`, -1 where a task is to wait.
        """
        began = time.perf_counter()
        server = self.ready.scheduler.choose(base_station, asked, known)
        self.round += 1
        self.seconds.append((time.perf_counter() - began, np.count_nonzero(server >= 0)))
        return server

    def learn_from(self, number: int, delay: np.ndarray) -> None:
        """Learn from a round, whose tasks had these delays [K] in s since it was decided, in the order of `decide`.

        The round after it must have been decided; each round is learned from once.
        """
        now = self.decided.pop(number)
        seconds = np.zeros(now.slot.mask.shape[1:])
        seconds[now.base_station, place_of(now.base_station)] = delay / self.ready.slot_seconds
        scheduler = self.ready.scheduler
        if now.decision:
            scheduler.decision = now.decision
        following = self.decided[number + 1].slot
        scheduler.learn(now.slot, now.action, torch.from_numpy(seconds)[None], following)
        self.learned += 1

    def slot(self, t: int, base_station: np.ndarray, work: np.ndarray, size: np.ndarray, backlog: np.ndarray) -> Slot:
        """The round as slot `t` of an episode, with the same tasks and backlogs in every row."""
        rows, servers = self.ready.scenario.capacity.shape
        cells = (servers, self.ready.num_tasks)
        place = place_of(base_station)

        def tensor(values: np.ndarray) -> torch.Tensor:
            full = np.zeros(cells, dtype=values.dtype)
            full[base_station, place] = values
            return torch.from_numpy(full).expand(rows, *cells)

        mask = tensor(np.ones(base_station.size, dtype=bool))
        return Slot(t, mask, tensor(size), tensor(work), torch.tensor(backlog, dtype=torch.float64).expand(rows, -1))

"""The dispatcher: from the tasks at the base stations and the servers' backlogs to a server for every task.

It builds the same `Slot` that the policies were trained on, and is the same for live and for simulated servers; it
knows nothing of Ray or clocks. Start reading at `Dispatcher.decide`.
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch

from dedgeai.arrivals import place_of
from dedgeai.profile import Profile
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.episodes import check_action
from lad_ts.scheduler import Learner, Scheduler


@dataclasses.dataclass(frozen=True)
class Policy:
    """A scheduler that is ready to act, and the sizes that it was made for.

    `num_tasks` N is the most tasks of a base station in a round, `num_rounds` the rounds of an episode, after which the
    next one begins. `scenario` has a row for each seed that was trained together, of which the first decides. Its unit
    of time is a slot of `slot_seconds`, so that policies see the same numbers whether an image takes 0.1 s or 10 s.
    """

    name: str
    scheduler: Scheduler
    scenario: Scenario
    seeds: Sequence[int]
    num_tasks: int
    num_rounds: int
    slot_seconds: float


class Backlog:
    """Backlogs [B] in Gcycles as the profile has them: work sent, less what nominal capacities did meanwhile."""

    def __init__(self, profile: Profile) -> None:
        self.capacity = profile.capacity
        self.gcycles = np.zeros(profile.servers)
        self.now = 0.0

    def at(self, now: float) -> np.ndarray:
        self.gcycles = np.maximum(self.gcycles - self.capacity * max(0.0, now - self.now), 0)
        self.now = max(now, self.now)
        return self.gcycles

    def add(self, server: np.ndarray, work: np.ndarray) -> None:
        self.gcycles = self.gcycles + np.bincount(server, work, self.gcycles.size)


class Dispatcher:
    """The agents of all base stations. Each decides from its own tasks and the backlogs at the round's start."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.round = 0
        self.seconds: list[tuple[float, int]] = []  # what each decision took, and for how many tasks
        if isinstance(policy.scheduler, Learner):
            policy.scheduler.training = False

    def decide(self, base_station: np.ndarray, work: np.ndarray, size: np.ndarray, backlog: np.ndarray) -> np.ndarray:
        """The server [K] of each of a round's tasks: their base station, w in Gcycles and d in Mbit, all [K].

        No base station may have more than `num_tasks`; backlog is [B] in Gcycles.
        """
        began = time.perf_counter()
        policy = self.policy
        episode, t = divmod(self.round, policy.num_rounds)
        if t == 0:
            policy.scheduler.begin(policy.scenario, [(seed, episode) for seed in policy.seeds])
        slot = self.slot(t, base_station, work, size, backlog)
        action = torch.as_tensor(policy.scheduler.act(slot))
        if not isinstance(policy.scheduler, Learner):
            check_action(action, slot, policy.name)
        self.round += 1
        server = action[0].numpy()[base_station, place_of(base_station)]
        self.seconds.append((time.perf_counter() - began, base_station.size))
        return server

    def slot(self, t: int, base_station: np.ndarray, work: np.ndarray, size: np.ndarray, backlog: np.ndarray) -> Slot:
        rows, servers = self.policy.scenario.capacity.shape
        cells = (servers, self.policy.num_tasks)
        place = place_of(base_station)

        def tensor(values: np.ndarray) -> torch.Tensor:
            full = np.zeros(cells, dtype=values.dtype)
            full[base_station, place] = values
            return torch.from_numpy(full).expand(rows, *cells)

        mask = tensor(np.ones(base_station.size, dtype=bool))
        return Slot(t, mask, tensor(size), tensor(work), torch.tensor(backlog, dtype=torch.float64).expand(rows, -1))

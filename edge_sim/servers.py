"""Edge servers as numbers: when each has done what it was sent, and which models it holds then.

Start reading at `Servers.take`.
"""

import dataclasses

import numpy as np

from edge_sim.catalogue import use
from edge_sim.server_profile import Profile
from edge_sim.task_stream import TaskStream


@dataclasses.dataclass(frozen=True)
class Models:
    """The models that tasks may ask for, by their numbers from 0.

    seconds [N] is how long each loads. A server holds at most `most` of them, and at its start those of `held`. With a
    catalogue, `names` are its names.
    """

    seconds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
    most: int = 1
    held: tuple[int, ...] = (0,)
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of B servers when tasks are to be decided.

    seconds [B] until each has done what it has, with the loads of models; tasks [B] that it has; planned [B, M] the
    models that it holds after that, the last used one first, then -1; whether it is up [B]. loads [N] are the seconds
    that each model loads.
    """

    seconds: np.ndarray
    tasks: np.ndarray
    planned: np.ndarray
    up: np.ndarray
    loads: np.ndarray


@dataclasses.dataclass(frozen=True)
class Asked:
    """What K tasks that are to be decided ask for: work [K] in image-steps, model [K], and who asks, user [K].

    What a task costs besides its steps counts as the steps that would take as long. `again` [K]: decided before.
    """

    work: np.ndarray
    model: np.ndarray
    user: np.ndarray
    again: np.ndarray

    def part(self, chosen: np.ndarray) -> "Asked":
        """Some of the tasks, by their indices."""
        return Asked(self.work[chosen], self.model[chosen], self.user[chosen], self.again[chosen])


def asked_of(stream: TaskStream, profile: Profile) -> Asked:
    """What the tasks of a stream ask for: where that is not known, the first model, for one user."""
    none = np.zeros(len(stream), dtype=np.int64)
    model = none if stream.model is None else stream.model
    user = none if stream.user is None else stream.user
    return Asked(stream.steps + profile.overhead, model, user, none.astype(bool))


def first_in_first_out(
    server: np.ndarray, now: float, seconds: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Start and finish [K] of tasks that are sent to servers at one time, in order, and take `seconds` [K].

    free [B] is when each server has done what it had before; it is brought up to date.
    """
    order = np.argsort(server, kind="stable")
    chosen, total = server[order], seconds[order].cumsum()
    first = np.flatnonzero(np.diff(chosen, prepend=-1))
    before = np.repeat(np.where(first > 0, total[first - 1], 0.0), np.diff(first, append=chosen.size))
    finish = np.empty(server.size)
    finish[order] = np.maximum(free[chosen], now) + (total - before)
    np.maximum.at(free, server, finish)
    return finish - seconds, finish


class Servers:
    """Edge servers of a profile. Each works on its tasks in the order in which they were sent, and holds models."""

    def __init__(self, profile: Profile, models: Models) -> None:
        self.profile, self.models = profile, models
        self.free = np.zeros(profile.servers)  # s, when each has done what it has
        self.held = [[*models.held] for _ in range(profile.servers)]  # by then; the last used one last
        self.planned = np.full((profile.servers, models.most), -1)  # the same, the last used one first, then -1
        self.planned[:, : len(models.held)] = models.held[::-1]
        self.count = np.zeros(profile.servers, dtype=np.int64)  # its tasks
        self.server, self.finish = np.empty(0, dtype=np.int64), np.empty(0)  # of the tasks that are not done

    def at(self, now: float) -> None:
        """Bring the numbers of tasks up to a time in s, which must not go back."""
        done = self.finish <= now
        self.count -= np.bincount(self.server[done], minlength=self.count.size)
        self.server, self.finish = self.server[~done], self.finish[~done]

    def known(self, now: float) -> Known:
        """What is known of them at a time in s, which must not go back."""
        self.at(now)
        seconds, up = np.maximum(self.free - now, 0), np.ones(self.count.size, dtype=bool)
        return Known(seconds, self.count.copy(), self.planned.copy(), up, self.models.seconds)

    def take(
        self, server: np.ndarray, now: float, seconds: np.ndarray, model: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start and finish [K] in s of tasks that are sent to servers [K] now, in order, and whether they load [K].

        `seconds` [K] are what they take without loading their models, model [K], which comes first.
        """
        loads = np.zeros(server.size, dtype=bool)
        if self.models.seconds.size > len(self.models.held):
            for k, (b, name) in enumerate(zip(server.tolist(), model.tolist(), strict=True)):
                loads[k] = use(self.held[b], name, self.models.most)
                self.planned[b, : len(self.held[b])] = self.held[b][::-1]
        start, finish = first_in_first_out(server, now, seconds + loads * self.models.seconds[model], self.free)
        self.count += np.bincount(server, minlength=self.count.size)
        self.server, self.finish = np.concatenate([self.server, server]), np.concatenate([self.finish, finish])
        return start, finish, loads

    def send(self, server: np.ndarray, now: float, asked: Asked) -> None:
        """`take` tasks that take as long as the profile says."""
        self.take(server, now, asked.work * self.profile.seconds_per_step[server], asked.model)

"""Trials of schedulers away from where they were trained: other scenarios, wrong beliefs, and a server that fails.

A trial runs a scheduler and Opt-TS on the same held-out arrivals, a row for each training seed, and gives the ratios of
their statistics. Start reading at `run_trial`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from common.random_streams import Stream, random_generator
from coop_lad_ts.model_coop import CoopAgents
from coop_lad_ts.practice import drawn_scenario
from lad_ts.environment_lad import Arrivals, CollaborativeMEC, Scenario, draw_arrivals
from lad_ts.episodes import EpisodeStatistics, run_episode
from lad_ts.references import OptTS
from lad_ts.scheduler import Scheduler

STATISTICS = ("mean", "p50", "p95", "p99", "max", "slowdown")
TEST_SCENARIOS = 2_000_000  # scenario seeds of trials, from here on; practice_lessons has others
BROKEN = 1e-3  # capacity of a server that has failed, relative to what it was


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is tried: parameters, a scenario with a row for each seed, what schedulers believe, and what fails.

    `believed` is the scenario that schedulers other than Opt-TS are told. From slot `fails_at` on each row's
    fastest server does next to nothing; Opt-TS knows it, the others where `told`. What was sent there before has the
    delay that it was given when it was scheduled.
    """

    params: Any
    scenario: Scenario
    seeds: Sequence[int]
    believed: Scenario | None = None
    fails_at: int | None = None
    told: bool = True


def unseen_scenarios(params: Any, seeds: Sequence[int], num_bs: int, load: float, spread: float) -> Scenario:
    """A test scenario for each seed: its own capacities, link rates and task classes, and the given load."""
    return Scenario.stacked([drawn_scenario(params, TEST_SCENARIOS + seed, num_bs, load, spread) for seed in seeds])


def scaled_to(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with all capacities multiplied."""
    return dataclasses.replace(scenario, capacity=scenario.capacity * factor)


def misjudged(scenario: Scenario, seeds: Sequence[int], most: float) -> Scenario:
    """The scenario with each capacity off by a factor that is uniform in 1 - most .. 1 + most."""
    rows = [random_generator(Stream.BELIEFS, seed) for seed in seeds]
    factor = np.stack([rng.uniform(1 - most, 1 + most, scenario.capacity.shape[1]) for rng in rows])
    return dataclasses.replace(scenario, capacity=scenario.capacity * factor)


def moved(agents: CoopAgents, params: Any) -> CoopAgents:
    """Trained agents for other parameters of the environment: any number of servers and slots if they are shared."""
    other = CoopAgents(params, agents.seeds, agents.device)
    other.theta.copy_(agents.theta)
    if agents.actor.memory.shape == other.actor.memory.shape:
        other.actor.memory.copy_(agents.actor.memory)
    other.training = False
    return other


class Told(Scheduler):
    """Plays another scheduler on a believed scenario, and tells it of a failure in the middle, or not."""

    def __init__(self, scheduler: Scheduler, trial: Trial, env: CollaborativeMEC) -> None:
        self.scheduler, self.trial, self.env = scheduler, trial, env
        self.omniscient = isinstance(scheduler, OptTS)

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        believed = self.trial.believed
        self.scheduler.begin(scenario if self.omniscient or believed is None else believed, rows)

    def act(self, slot: Any) -> np.ndarray | torch.Tensor:
        if slot.t == self.trial.fails_at:
            fastest = self.env.capacity.argmax(1, keepdim=True)
            down = torch.zeros_like(self.env.capacity, dtype=torch.bool).scatter_(1, fastest, True)
            # A new tensor, not changed in place: the scenario has the old one, too.
            self.env.capacity = torch.where(down, self.env.capacity * BROKEN, self.env.capacity)
            if self.omniscient or self.trial.told:
                known = self.scheduler.scenario
                capacity = np.where(down.numpy(), known.capacity * BROKEN, known.capacity)
                self.scheduler.lose(down.numpy(), dataclasses.replace(known, capacity=capacity))
        return self.scheduler.act(slot)


def episodes_of(trial: Trial, episodes: int) -> Iterator[tuple[Arrivals, list[tuple[int, int]]]]:
    """Held-out arrivals and rows of each episode."""
    for episode in range(episodes):
        rows = [(seed, episode) for seed in trial.seeds]
        params = dataclasses.replace(trial.params, num_bs=trial.scenario.capacity.shape[1], capacities=None)
        yield draw_arrivals(params, rows, Stream.HELD_OUT_ARRIVALS), rows


def run_trial(trial: Trial, scheduler: Scheduler, episodes: int) -> list[EpisodeStatistics]:
    """The statistics of each episode."""
    results = []
    for arrivals, rows in episodes_of(trial, episodes):
        env = CollaborativeMEC(trial.scenario, slot_length=trial.params.slot_length)
        results.append(run_episode(env, Told(scheduler, trial, env), arrivals, rows))
    return results


def ratios(ours: list[EpisodeStatistics], opt: list[EpisodeStatistics]) -> dict[str, np.ndarray]:
    """Each statistic's ratio to Opt-TS's on the same arrivals, averaged over episodes, [S]."""
    return {
        name: np.mean([getattr(a, name) / getattr(b, name) for a, b in zip(ours, opt, strict=True)], 0)
        for name in STATISTICS
    }


def compare_in(
    trial: Trial, schedulers: dict[str, Callable[[Trial], Scheduler]], episodes: int
) -> dict[str, dict[str, np.ndarray]]:
    """The ratios to Opt-TS of every scheduler in a trial."""
    opt = run_trial(trial, OptTS(), episodes)
    return {name: ratios(run_trial(trial, make(trial), episodes), opt) for name, make in schedulers.items()}

"""Simulations of a trace under a policy: arrays in, delays out, many draws on several threads.

Start reading at `simulate`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from common.random_streams import Stream, random_generator
from common.threads import cores
from trace_ts.choosing import Policy
from trace_ts.cluster import Cluster, Tasks, new_cluster, unsent
from trace_ts.event_loop import Course, Seen, new_course, new_seen, run
from trace_ts.memory import Memory, new_memory
from trace_ts.scenario import Scenario, draw_noise, draw_outages, draw_rates
from trace_ts.score import Network
from trace_ts.time_scale import base_stations, unit_time
from trace_ts.view import View, new_view
from trace_ts.workload import Requests


class TracePolicy(Protocol):
    """What decides: a rule with its constants, or a network with its weights."""

    def arrays(self, scenario: Scenario, rate: np.ndarray, requests: Requests) -> tuple[Policy, Network]:
        """What the compiled event loop needs to decide on servers of these rates [B] in image-steps/s."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of K tasks: arrival, start, finish [K] in s, server [K], loads [K] (whether a model was loaded).

    service [K] is what a task took without its loading, attempts [K] how often it was sent. rate [B] are the servers'.
    """

    time: np.ndarray
    start: np.ndarray
    finish: np.ndarray
    server: np.ndarray
    loads: np.ndarray
    service: np.ndarray
    attempts: np.ndarray
    rate: np.ndarray

    @property
    def delay(self) -> np.ndarray:
        """Seconds [K] from a task's arrival to its end."""
        return self.finish - self.time


@functools.lru_cache(maxsize=8)
def times_of(requests: Requests, scale: str) -> np.ndarray:
    """`unit_time` [K] of requests, kept. Compressed, the part that trains and the rest are each at the load.

    With one factor for both, what is measured would be at a load that nobody asked for. A part without a duration
    leaves no other choice.
    """
    middle, time, work = len(requests.training()), requests.time, requests.work
    parts = [part for part in (slice(middle), slice(middle, None)) if len(time[part])]
    if scale == "flat" or not parts or any(time[part][0] == time[part][-1] for part in parts):
        return unit_time(time, work, scale)
    found = [unit_time(time[part], work[part], scale) for part in parts]
    if len(found) > 1:
        gap = (time[middle] - time[middle - 1]) * work.sum() / (time[-1] - time[0])
        found[1] += found[0][-1] + gap
    return np.concatenate(found)


class State(NamedTuple):
    """A simulation as it stands: the first arguments of event_loop.py's `run`."""

    policy: Policy
    network: Network
    cluster: Cluster
    view: View
    memory: Memory
    tasks: Tasks
    uniform: np.ndarray


def new_tasks(requests: Requests, scenario: Scenario, draw: int, part: slice, rate: np.ndarray) -> Tasks:
    """A part of the requests as tasks that begin at 0 s, for servers of these rates [B] in image-steps/s."""
    time, chosen = times_of(requests, scenario.time_scale)[part] / (scenario.load * rate.sum()), requests.part(part)
    count = len(time)
    return unsent(
        time=time - time[0],
        work=chosen.work,
        model=chosen.model,
        user=chosen.user,
        base_station=base_stations(chosen.user, scenario.num_base_stations, draw),
        noise=draw_noise(count, scenario.noise, draw) if scenario.noise else np.ones(count),
    )


def begin(
    policy: TracePolicy,
    requests: Requests,
    scenario: Scenario,
    draw: int,
    part: slice = slice(None),
    rate: np.ndarray | None = None,
) -> State:
    """A part of the requests before its first task: idle servers without models."""
    rate = draw_rates(scenario.num_servers, draw) if rate is None else rate
    tasks = new_tasks(requests, scenario, draw, part, rate)
    count, servers, models = len(tasks.time), len(rate), requests.num_models
    load_seconds, ageing = np.full(models, scenario.load_time), scenario.ageing or np.inf
    cluster = new_cluster(rate, load_seconds, scenario.resident_models, count, scenario.discipline, ageing)
    view = new_view(servers, models, scenario.num_base_stations, scenario.age, scenario.own_sends)
    memory = new_memory(servers, models, requests.num_users, scenario.num_base_stations)
    chance = random_generator(Stream.TRACE_CHOICES, draw)
    memory.credit[:] = rate * chance.random(memory.credit.shape)  # base stations begin at different servers
    return State(*policy.arrays(scenario, rate, requests), cluster, view, memory, tasks, chance.random(count))


def course_of(tasks: Tasks, scenario: Scenario, draw: int) -> Course:
    """The course of a simulation before its first task, with the outages of its draw."""
    return new_course(len(tasks.time), draw_outages(scenario, tasks.time[-1], draw))


def outcome(tasks: Tasks, rate: np.ndarray) -> Outcome:
    """What became of tasks that have been served, by servers of these rates [B] in image-steps/s."""
    service = tasks.work / rate[tasks.server] * tasks.noise
    return Outcome(tasks.time, tasks.start, tasks.finish, tasks.server, tasks.loads, service, tasks.attempts, rate)


def simulate(
    policy: TracePolicy,
    requests: Requests,
    scenario: Scenario,
    draw: int,
    part: slice = slice(None),
    rate: np.ndarray | None = None,
    seen: Seen | None = None,
) -> Outcome:
    """Schedule and serve a part of the requests, from idle servers without models.

    The policy is a rule of `rules.RULES`, or a file's: of `policy_file.load_policy` or `policy_file.read_rule`. What
    is fitted or trained has seen the first half of the requests, so measure on slice(len(requests) // 2, None).
    The draw gives rates, base stations, noise, outages and what rules draw; `rate` [B] in image-steps/s takes the place
    of the drawn rates. `seen` is filled with what a network saw of each task.
    """
    state = begin(policy, requests, scenario, draw, part, rate)
    rate = state.cluster.rate
    course = course_of(state.tasks, scenario, draw)
    run(*state, course, np.empty(len(rate)), seen or new_seen(0, len(rate)))
    return outcome(state.tasks, rate)


def simulate_all(
    policy: TracePolicy, requests: Requests, scenario: Scenario, draws: Iterable[int], part: slice = slice(None)
) -> list[Outcome]:
    """`simulate` for each draw, as many at a time as there are cores."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda draw: simulate(policy, requests, scenario, draw, part), draws))

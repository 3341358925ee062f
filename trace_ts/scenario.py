"""The scenario: servers, their models and queues, what agents know, and what fails. Start reading at `Scenario`."""

import dataclasses
from typing import ClassVar

import numpy as np

from common.parameters import ParameterError, Parameters, parameter
from common.random_streams import Stream, random_generator
from trace_ts.cluster import DISCIPLINES

RATE = 17.2  # image-steps/s of a server of mean speed: the trace's requests take 0.058 s a step
FASTEST, SLOWEST = 50, 10  # of the speeds that are drawn
LAST_FAILURE = 20.0  # last arrivals: a queue that takes longer ends without failures
MOST_LOAD = 100.0
MOST_OUTAGES = 1_000_000  # that are drawn for a simulation


@dataclasses.dataclass(kw_only=True)
class Scenario(Parameters):
    """The trace's requests on edge servers."""

    GROUP: ClassVar[str] = "scenario"

    load: float = parameter(
        0.8,
        "offered load: work per second over what all servers do in a second, loading not counted",
        low=0.001,
        high=MOST_LOAD,
    )
    time_scale: str = parameter(
        "flat",
        "how the trace's time is scaled to that load",
        choices=("flat", "compress"),
        more="flat: every hour lasts as long as its work takes, so that bursts below an hour stay. compress: all times "
        "of a half by one factor, so that days and nights stay.",
    )
    num_servers: int = parameter(20, "edge servers", low=1, high=1000)
    num_base_stations: int = parameter(20, "base stations over which users are spread", low=1, high=1000)
    load_time: float = parameter(12.0, "time to load a model", unit="s", low=0, high=1e6)
    resident_models: int = parameter(1, "models in a server's memory; the least recently used goes", low=1, high=1000)
    discipline: str = parameter(
        "fcfs",
        "which of its tasks a server takes next",
        choices=tuple(DISCIPLINES),
        more="fcfs: first come first served. shortest: the shortest, with its loading. resident_first: those of "
        "resident models before others, and the shortest of them.",
    )
    ageing: float = parameter(
        0.0, "a task that has waited for longer is taken next whatever the discipline; 0: never", unit="s", low=0
    )
    age: float = parameter(
        0.0,
        "time between two news of backlogs and held models",
        unit="s",
        low=0,
        high=1e6,
        more="0: all is known at once.",
    )
    own_sends: bool = parameter(True, "whether agents count what they have sent since the last news")
    noise: float = parameter(0.0, "standard deviation of the log of service times; their mean stays", low=0, high=3)
    up_time: float = parameter(
        0.0,
        "mean time until a server fails; 0: none fails",
        unit="s",
        low=0,
        more="None fails later than 20 times the last request's arrival, so that all is served at last.",
    )
    down_time: float = parameter(60.0, "mean time until it comes back, without a model", unit="s", above=0)

    @property
    def total_rate(self) -> float:
        """Image-steps/s of all servers together, in every draw."""
        return RATE * self.num_servers


def draw_rates(servers: int, draw: int) -> np.ndarray:
    """The servers' rates [B] in image-steps/s of one draw: U{10..50}, scaled to a mean of `RATE`."""
    speed = random_generator(Stream.SCENARIO, draw).integers(SLOWEST, FASTEST + 1, servers)
    return RATE * speed / speed.mean()


def draw_noise(tasks: int, noise: float, draw: int) -> np.ndarray:
    """Factors [K] of mean 1 by which service times differ from nominal ones."""
    normal = random_generator(Stream.TRACE_NOISE, draw).standard_normal(tasks)
    return np.exp(noise * normal - noise**2 / 2)


def draw_outages(scenario: Scenario, last: float, draw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When which server goes down or comes back: time in s, server and whether it comes back, each [E].

    Times between are exponential. No server goes down later than `LAST_FAILURE` times the `last` arrival in s, and
    every one that goes down comes back, be it after that time. Raises ParameterError
    of --up_time for more than `MOST_OUTAGES`.
    """
    if scenario.up_time == 0:
        return np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
    seconds = LAST_FAILURE * last
    least = scenario.num_servers * seconds / MOST_OUTAGES - scenario.down_time
    if scenario.up_time < least:
        words = f"must be 0, or at least {least:.3g} for these requests, lest servers fail over {MOST_OUTAGES} times"
        raise ParameterError("up_time", scenario.up_time, words)
    generator, events = random_generator(Stream.TRACE_OUTAGES, draw), []
    for b in range(scenario.num_servers):
        at = generator.exponential(scenario.up_time)
        while at < seconds:
            events.append((at, b, False))
            at += generator.exponential(scenario.down_time)
            events.append((at, b, True))
            at += generator.exponential(scenario.up_time)
    events.sort()
    time, server, up = zip(*events, strict=True) if events else ((), (), ())
    return np.array(time, dtype=np.float64), np.array(server, dtype=np.int64), np.array(up, dtype=np.bool_)

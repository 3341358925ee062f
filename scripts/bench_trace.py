"""How many decisions a second the trace's simulator takes, rule by rule, against the edge system's simulation.

Each rule schedules the same requests, without loading and with news of no age, first come first served, on one thread;
then once more with models to load. The edge system's simulation schedules the first of them under Opt-TS, each in a
slot of its own, which is the same schedule: both mean delays are printed. Compilation is not counted, seconds are those
that the processor worked on it, and the least of some repeats counts, since other programs only ever add. Examples:
python scripts/bench_trace.py
python scripts/bench_trace.py --requests data/gentd26/lora_request_trace.csv --load 0.95
"""

import common.quiet_start  # noqa: F401

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import command_line
from common.parameters import Parameters, parameter
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import SchedulerOptions, make_scheduler, method_of
from edge_sim.server_profile import Profile
from edge_sim.simulation import Simulated
from edge_sim.simulation import simulate as simulate_edge
from edge_sim.task_stream import TaskStream
from trace_ts.rules import RULES
from trace_ts.scenario import Scenario, draw_rates
from trace_ts.simulation import new_tasks, simulate
from trace_ts.synthetic import generate
from trace_ts.workload import Requests, read_trace

SLOT = 1e-6  # s, so short that requests are decided when they come
LINK_RATE = 450.0  # Mbit/s; nothing is sent over it


@dataclasses.dataclass(kw_only=True)
class BenchConfig(Parameters):
    """Every parameter of bench_trace.py."""

    requests: str | None = parameter(
        None, "file of requests, as of main_trace.py; default: the synthetic generator", path=True
    )
    num_requests: int = parameter(200_000, "synthetic requests", low=2, high=10_000_000)
    edge_requests: int = parameter(2000, "requests that the edge system's simulation schedules", low=1)
    load: float = parameter(
        0.8,
        "offered load: work per second over what all servers do in a second, loading not counted",
        low=0.001,
        high=100,
    )
    load_time: float = parameter(12.0, "time to load a model, in the last column", unit="s", low=0, high=1e6)
    num_servers: int = parameter(20, "edge servers", low=1, high=200)
    repeats: int = parameter(5, "timed runs of each rule", low=1)
    seed: int = parameter(0, "seed of requests and rates", low=0)


def least_time(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the processor of the fastest of some runs."""
    least = float("inf")
    for _ in range(repeats):
        began = time.thread_time()
        run()
        least = min(least, time.thread_time() - began)
    return least


def edge_simulation(requests: Requests, scenario: Scenario, draw: int, part: slice) -> tuple[Simulated, float]:
    """The same requests under Opt-TS in the edge system's simulation, and the processor's seconds for it."""
    rate = draw_rates(scenario.num_servers, draw)
    tasks, zeros = new_tasks(requests, scenario, draw, part, rate), np.zeros(len(rate))
    steps = np.round(tasks.work).astype(np.int64)
    profile = Profile(1 / rate, zeros, zeros, 0.0, {"compute": "simulated"})
    with tempfile.TemporaryDirectory() as folder:
        of_work = (int(steps.min()), int(steps.max()))
        method = method_of("opt_ts")
        options = SchedulerOptions("opt_ts", method, None, Path(folder), 1, 4, of_work, 1e-9, LINK_RATE, 0)
        ready = dataclasses.replace(make_scheduler(options, profile), slot_seconds=SLOT)
    stream = TaskStream(tasks.time, tasks.base_station, steps, np.zeros(len(steps)))
    began = time.thread_time()
    found = simulate_edge(Dispatcher(ready), profile, stream, LINK_RATE, 0, progress=False)
    return found, time.thread_time() - began


def main(config: BenchConfig, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    file = config.requests
    requests = generate(config.num_requests, config.seed) if file is None else read_trace(file, least=2)
    places = {"num_servers": config.num_servers, "num_base_stations": config.num_servers}
    plain = Scenario(load=config.load, load_time=0.0, **places)
    loading = dataclasses.replace(plain, load_time=config.load_time)
    part = slice(0, config.edge_requests)
    found, seconds = edge_simulation(requests, plain, config.seed, part)
    edge = len(found.delay) / seconds
    ours = simulate(RULES["opt_ts"], requests, plain, config.seed, part).delay.mean()
    count = len(requests)
    print(f"edge system's simulation, Opt-TS: {edge:,.0f} decisions a second")
    print(f"mean delay of the first {len(found.delay)} requests: {found.delay.mean():.4f} s there, {ours:.4f} s here")
    print(f"{count} requests, {config.num_servers} servers, load {config.load:g}, draw {config.seed}\n")
    header = ("rule", "million decisions a second", "/ edge system", f"with {config.load_time:g} s to load")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for name, rule in RULES.items():
        rates = []
        for scenario in (plain, loading):
            once = simulate(rule, requests, scenario, config.seed)  # compiles, and keeps the times
            assert len(once.finish) == count
            took = least_time(lambda s=scenario, r=rule: simulate(r, requests, s, config.seed), config.repeats)
            rates.append(count / took)
        print(f"| {name} | {rates[0] / 1e6:.2f} | {rates[0] / edge:,.0f} | {rates[1] / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    command_line(BenchConfig, main, __doc__)

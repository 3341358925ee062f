"""A run on simulated servers and a virtual clock: every number of tasks, its tables and its plots.

Start reading at `run_simulation`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.figures import plt, save_figure
from common.run_folder import new_folder, peak_memory, write_config
from common.tables import write_csv
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import SchedulerOptions, make_scheduler
from edge_sim.server_profile import Profile
from edge_sim.servers import Models
from edge_sim.simulation import Simulated, simulate
from edge_sim.task_stream import Demand, TaskStream

LISTED = 100_000  # most tasks that are written one by one


def run_simulation(
    demand: Demand,
    scheduler: SchedulerOptions,
    profile: Profile,
    by_profile: bool,
    out: str | None,
    default: Path,
    config: tuple[str, dict[str, Any]],
) -> None:
    """Simulate every run of the demand on servers of this profile; write tables and plots of each.

    `by_profile` shows the scheduler the profile's backlogs; `config` are title and parameters for config.json. Raises
    ParameterError for a scheduler or a folder `out` that cannot be used, before anything is written.
    """
    name, link_rate = scheduler.name, scheduler.link_rate
    schedulers = [make_scheduler(scheduler, profile) for _ in demand.counts]
    with new_folder(out, default) as folder:
        write_config(folder, *config)
        for ready, (_, stream) in zip(schedulers, demand.runs(profile), strict=True):
            dispatcher, count = Dispatcher(ready), len(stream)
            found = simulate(dispatcher, profile, stream, link_rate, demand.seed, by_profile, scheduler.models)
            part = folder if len(demand.counts) == 1 else folder / str(count)
            part.mkdir(exist_ok=True)
            print(f"{name}: {count} tasks on {demand.servers} simulated servers")
            report_simulation(part, stream, found, dispatcher.seconds, scheduler.models)
    print(f"results in {folder}; peak memory {peak_memory()}")


def report_simulation(
    folder: Path, stream: TaskStream, found: Simulated, seconds: Sequence[tuple[float, int]], models: Models
) -> None:
    """Print and write decision times, queue lengths and delay percentiles, and plot queues and delays.

    `seconds` holds what each decision took in s, for how many tasks.
    """
    took, tasks = np.array(seconds).T
    quantiles = {f"p{q:g}": np.percentile(found.delay, q) for q in (50, 95, 99, 99.9)}
    rows = [
        ("tasks", found.delay.size, ""),
        ("last task finished", found.finish.max(), "s"),
        ("delay mean", found.delay.mean(), "s"),
        *((f"delay {name}", value, "s") for name, value in quantiles.items()),
        ("delay maximum", found.delay.max(), "s"),
        ("queue length mean", found.queue_length[:, 0].mean(), "tasks"),
        ("queue length p95 over servers, mean over slots", found.queue_length[:, 1].mean(), "tasks"),
        ("queue length maximum", found.queue_length[:, 2].max(), "tasks"),
        ("decision time of a round, median", 1e3 * np.median(took), "ms"),
        ("decision time of a round, p99", 1e3 * np.percentile(took, 99), "ms"),
        ("decision time per task", 1e6 * took.sum() / tasks.sum(), "us"),
    ]
    if models.names:
        rows.append(("loads of models", int(found.loads.sum()), ""))
    write_csv(folder / "summary.csv", ("quantity", "value", "unit"), rows)
    for name, value, unit in rows:
        print(f"{name:48} {value:12.6g} {unit}")
    write_csv(
        folder / "queues.csv",
        ("time_s", "mean", "p95", "max"),
        [[now, *lengths] for now, lengths in zip(found.queue_time, found.queue_length.tolist(), strict=True)],
    )
    at = np.linspace(0, 100, 1001)
    delays = np.percentile(found.delay, at)
    write_csv(folder / "delays.csv", ("percent", "delay_s"), list(zip(at.tolist(), delays.tolist(), strict=True)))
    if found.delay.size <= LISTED:
        columns = [stream.time, stream.base_station, stream.steps, found.server, found.start, found.finish, found.delay]
        header = ["task", "submitted_s", "base_station", "steps", "server", "start_s", "finished_s", "delay_s"]
        if models.names:
            asked = np.zeros(len(stream), dtype=np.int64) if stream.model is None else stream.model
            columns += [np.array(models.names)[asked], found.loads.astype(int)]
            header += ["model", "loads"]
        rows = zip(*(column.tolist() for column in columns), strict=True)
        write_csv(folder / "tasks.csv", header, [[k, *row] for k, row in enumerate(rows)])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for column, label in enumerate(("mean", "95th percentile", "maximum")):
        left.step(found.queue_time, found.queue_length[:, column], where="post", label=label)
    left.set(xlabel="time (s)", ylabel="tasks at a server when a slot begins", title="Queues", ylim=(0, None))
    right.plot(delays, at / 100)
    right.set(xlabel="delay (s)", ylabel="share of the tasks", title="Delays", ylim=(0, 1))
    left.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, folder / "simulation")

"""Live runs of given numbers of tasks, one after another, on servers that are up; and their report.

Start reading at `run_counts`.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import Progress
from common.run_folder import peak_memory, save_checkpoint
from common.tables import write_csv
from dedgeai.measurement import measure_tasks
from dedgeai.records import DONE, FAILED
from dedgeai.report import FinishedRun, plot_queues, predict, print_table, sim_to_real, table_rows, write_tasks
from dedgeai.run_options import Model, RunOptions, computes_on
from dedgeai.store import Store
from dedgeai.system import EdgeSystem
from dedgeai.tasks import Task
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import make_scheduler
from edge_sim.task_stream import Demand, TaskStream


def ended(store: Store, numbers: range, folder: Path) -> set[int]:
    """Those of a run's tasks that need not be made again: they failed, or are done and have their image."""
    found = store.records(numbers)
    there = {path.name for path in (folder / "images").glob("*.png")}
    return {r.task.number for r in found if r.state == FAILED or (r.state == DONE and r.image in there)}


async def run_counts(options: RunOptions, model: Model, system: EdgeSystem) -> None:
    """One run for each number of tasks, what is left of them when resumed; then the report."""
    demand, runs, profile = options.demand, {}, system.profile
    alone = await one_task(system, demand.prompts[0], demand.steps, model)
    for first, stream in demand.runs(profile):
        dispatcher = system.dispatcher
        if first and not options.config.learn:  # every run starts alike, as in a simulation
            dispatcher = Dispatcher(make_scheduler(options.scheduler, profile))
        system.start_anew(dispatcher, profile)
        tasks = tasks_of(demand, model, first, stream)
        runs[len(tasks)] = await run_batch(system, tasks, stream)
    report_runs(options, model.name, system, runs, alone)


def tasks_of(demand: Demand, default: Model, first: int, stream: TaskStream) -> list[Task]:
    """The tasks of a run's stream, of which `first` is the number of the first one."""
    models, tasks = default.catalogue or (default,), []
    chosen = np.zeros(len(stream), dtype=np.int64) if stream.model is None else stream.model
    asked = zip(stream.steps.tolist(), stream.base_station.tolist(), chosen.tolist(), strict=True)
    for number, (steps, station, which) in enumerate(asked, first):
        model = models[which]
        more = {"scale": model.width * model.height / (default.width * default.height)}
        more |= {"model": model.id} if default.catalogue else {}
        more |= {} if stream.user is None else {"user": str(stream.user[number - first])}
        asks = demand.prompts[number], steps, demand.seed + number, model.width, model.height, station
        tasks.append(Task(number, *asks, **more))
    return tasks


async def one_task(system: EdgeSystem, prompt: str, steps: tuple[int, int], model: Model) -> float:
    """Seconds of a single task in an idle system, the published table's N = 1; its image is not kept."""
    task = Task(-(2**30), prompt, round(sum(steps) / 2), 0, model.width, model.height, base_station=0)
    fastest = int(np.argmin(system.profile.seconds_per_step))
    began = time.perf_counter()
    await measure_tasks(system.cluster, {fastest: [task]}, quiet=True)
    return time.perf_counter() - began


async def run_batch(system: EdgeSystem, tasks: list[Task], stream: TaskStream) -> FinishedRun:
    """Submit a run's tasks slot by slot, and wait for all. Those that an earlier process has finished are not run."""
    numbers, store = range(tasks[0].number, tasks[-1].number + 1), system.store
    done = ended(store, numbers, system.folder)
    await store.remove([record.task.number for record in store.records(numbers) if record.task.number not in done])
    start: float | None = None  # of the first slot that has something left
    with Progress(total=len(tasks), initial=len(done), unit="image", desc=f"{len(tasks)} tasks") as bar:
        waiting = len(tasks) - len(done)

        async def watch() -> None:
            while True:
                bar.n = len(tasks) - waiting - system.left
                up = sum(server.up for server in system.cluster.servers)
                bar.set_postfix_str(f"{up} of {len(system.cluster.servers)} servers up")
                await asyncio.sleep(0.5)

        watcher = asyncio.create_task(watch())
        try:
            for slot, part in stream.slots(system.dispatcher.ready.slot_seconds):
                left = [k for k in part if tasks[k].number not in done]
                if not left:
                    continue
                start = slot if start is None and done else start or 0.0
                await asyncio.sleep(max(0.0, slot - start - system.now()))
                times = [float(stream.time[k]) - start for k in left]
                await system.submit([tasks[k] for k in left], times, slot - start)
                waiting -= len(left)
            await system.finished()
        finally:
            watcher.cancel()
            bar.n = len(tasks) - waiting - system.left
    records = store.records(numbers)
    for record in records:
        record.recalled = record.task.number in done
    if done:
        return FinishedRun(records, store.totals().get(len(tasks)))
    seconds = max(record.finished for record in records)
    await store.total(len(tasks), seconds)
    return FinishedRun(records, seconds)


def report_runs(
    options: RunOptions, model: str, system: EdgeSystem, runs: dict[int, FinishedRun], alone: float
) -> None:
    """Tables, CSV files and plots of the runs, by number of tasks; `alone` are the seconds of a single task."""
    folder, waiting = system.folder, options.waiting is not None
    records = [record for run in runs.values() for record in run.records]
    models = (system.cluster.load_time, options.config.resident_models)
    predicted = np.concatenate([predict(run.records, system.profile, *models) for run in runs.values()])
    write_tasks(folder, records, predicted)
    plot_queues(folder, system.queues)
    errors = sim_to_real(folder, records, predicted)
    totals = {1: alone} | {count: run.seconds for count, run in runs.items() if run.seconds is not None}
    label = f"this run: {options.config.num_servers} ES, {options.scheduler.name}, {computes_on(options.config)}"
    rows = table_rows(label, model, totals)
    write_csv(folder / "table.csv", rows[0], rows[1:])
    print_table(rows)
    took = np.repeat([seconds for seconds, _ in system.rounds.seconds], [n for _, n in system.rounds.seconds])
    failed = sum(record.state == FAILED for record in records)
    facts: dict[str, Any] = {
        "tasks": len(records),
        "failed": failed,
        "taken over by idle servers": system.moved_tasks,
        "restarts of servers": sum(server.starts - 1 for server in system.cluster.servers),
        "dispatch of a task p50 ms": 1e3 * float(np.percentile(took, 50)) if took.size else 0.0,
        "dispatch of a task p99 ms": 1e3 * float(np.percentile(took, 99)) if took.size else 0.0,
        **errors,
    }
    if options.config.entries:
        loads, seconds = (sum(getattr(s, name) for s in system.cluster.servers) for name in ("loads", "load_seconds"))
        facts |= {"loads of models": loads, "seconds of a load, mean": seconds / max(loads, 1)}
    for count, run in runs.items():
        if run.seconds is not None and waiting:
            steps = np.array([record.task.steps for record in run.records])
            one = system.profile.seconds(np.argmin(system.profile.seconds_per_step), steps).sum()
            facts[f"speed-up of {count} tasks over one of these servers"] = float(one / run.seconds)
    if options.config.learn:
        facts["rounds learned from"] = system.dispatcher.learned
        save_agents(system.dispatcher, folder)
    write_csv(folder / "summary.csv", ("quantity", "value"), list(facts.items()))
    for name, value in facts.items():
        print(f"{name}: {value:.4g}")
    print(f"{len(records) - failed} images and tables in {folder}; peak memory of the driver {peak_memory()}")


def save_agents(dispatcher: Dispatcher, folder: Path) -> None:
    """The agents as they are now, in a checkpoint.pt that --checkpoint reads."""
    state = dispatcher.ready.scheduler.state_dict()
    save_checkpoint(folder / "checkpoint.pt", dispatcher.ready.checkpoint | {"learner": state, "history": []})

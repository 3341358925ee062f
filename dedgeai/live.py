"""A live run, from the servers' start to the report: Ray, profile, policy, tasks or HTTP service, Ctrl-C.

Start reading at `run_live`.
"""

import asyncio
import dataclasses
import hashlib
import json
import platform
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from tqdm import tqdm

from common.command_line import fail
from common.run_folder import describe, peak_memory, save_checkpoint, write_config, write_csv
from dedgeai.arrivals import Arrivals
from dedgeai.cluster import ClusterOptions, connect
from dedgeai.configuration import (
    FOLDER,
    DedgeParameters,
    arrivals_of,
    parse_counts,
    parse_steps,
    policy_options,
    read_prompts,
    simulated_profile,
    uses_pocket,
)
from dedgeai.dispatcher import Dispatcher
from dedgeai.edge_server import Options, SimulatedOptions
from dedgeai.measurement import measure, measure_profile
from dedgeai.policies import check_learning, make_policy
from dedgeai.report import Batch, plot_queues, predict, print_table, sim_to_real, table_rows, write_tasks
from dedgeai.server_profile import Profile
from dedgeai.service import bind, serve
from dedgeai.system import FAILED, EdgeSystem, Record, Stored, SystemOptions, read_stored
from dedgeai.tasks import Task


@dataclasses.dataclass(frozen=True)
class Model:
    """What makes the images: how a server opens it, the size of the images, and what it is."""

    options: Options
    width: int
    height: int
    name: str


async def run_live(config: DedgeParameters, folder: Path, resume: bool) -> None:
    """Everything of a run or of a service. Exits with 130 when Ctrl-C ended it.

    What can be refused is refused before Ray starts, and nothing is written before the servers work.
    """
    counts = parse_counts(config.num_tasks)
    stored = read_stored(folder, "resume") if resume else Stored({}, {}, {})
    if resume and not config.serve and len(stored.finished) == sum(counts):
        print(f"nothing is left of the run in {folder}")
        return
    prompts = read_prompts(config, sum(counts))
    model = choose_model(config)
    listener = bind(config.host, config.port) if config.serve else None
    placing = ClusterOptions(
        config.num_servers,
        config.address,
        config.gpus_per_server,
        config.batch_size,
        config.job_timeout,
        config.rebalance,
    )
    began = time.perf_counter()
    print(f"starting {config.num_servers} edge servers: {model.name}")
    connect(placing)
    try:
        system = EdgeSystem(
            placing, model.options, SystemOptions(config.backlog == "profile", config.attempts, config.learn), folder
        )
        try:
            await system.start()
            print(f"edge servers are up after {time.perf_counter() - began:.1f} s")
            await work(config, model, system, prompts, stored, listener)
        finally:
            await system.close()
    finally:
        ray.shutdown()


def choose_model(config: DedgeParameters) -> Model:
    """The generator of the parameters. Raises ParameterError when it cannot be loaded, before Ray is started."""
    if config.compute == "simulated":
        p = simulated_profile(config)
        options = SimulatedOptions(
            *(tuple(x.tolist()) for x in (p.seconds_per_step, p.seconds_base, p.spread)), config.seed
        )
        return Model(options, 1, 1, "simulated compute")
    from dedgeai.generator import GeneratorOptions, inference_config

    infer = inference_config(
        **{name: getattr(config, name) for name in ("models", "width", "height", "device", "dtype", "offload", "t5")}
    )
    name = f"{'pocket model' if uses_pocket(config) else 'SD3 Medium'}, {infer.width} x {infer.height}"
    return Model(GeneratorOptions(infer, config.threads), infer.width, infer.height, name)


async def work(
    config: DedgeParameters,
    model: Model,
    system: EdgeSystem,
    prompts: list[str],
    stored: Stored,
    listener: socket.socket | None,
) -> None:
    """Measure, schedule, run the tasks or serve; then report. The first Ctrl-C ends it cleanly, a second at once."""
    folder = system.folder
    profile = await find_profile(config, model, system, prompts)
    policy = make_policy(policy_options(config, prompts), profile, Path(config.policies))
    if config.learn:
        check_learning(policy)
    kept = dataclasses.asdict(config) | {"token": None}  # which is a secret
    write_config(folder, f"dedgeai, {'serve' if config.serve else 'run'}, {config.scheduler}", kept)
    await system.schedule_with(Dispatcher(policy, config.learn), profile)
    if listener is not None:
        job = serve(config, (model.width, model.height), system, stored, listener)
    else:
        job = run_counts(config, model, system, prompts, stored)
    task = asyncio.ensure_future(job)
    system.on_error = task.cancel
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends the process
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        await task
    except (asyncio.CancelledError, Exception) as problem:
        if system.error is None and not isinstance(problem, asyncio.CancelledError):
            raise
        if system.error is not None:
            traceback.print_exception(system.error)
            fail(f"the edge system stopped ({describe(system.error)}); go on with --resume {folder}", 1)
        print("\nstopping: running tasks are finished, queued ones are left; Ctrl-C again stops at once")
        await system.cancel_queued()
        if config.learn:
            save_policy(system.dispatcher, folder)
        left = system.left
        if config.serve and not left:
            print("stopped; no task is left")
        else:
            print(f"interrupted with {left} accepted tasks left; go on with --resume {folder}")
        sys.exit(130)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def find_profile(config: DedgeParameters, model: Model, system: EdgeSystem, prompts: Sequence[str]) -> Profile:
    """The servers' speeds: what simulated ones wait, or a file's, or measured now and written to it."""
    if config.compute == "simulated":
        return simulated_profile(config)
    machines = sorted(server.machine for server in system.cluster.servers)
    source: dict[str, Any] = {
        "model": model.name,
        "steps": config.steps,
        "threads": config.threads,
        "batch_size": config.batch_size,
        "servers": config.num_servers,
        "gpus_per_server": config.gpus_per_server,
        **{name: getattr(config, name) for name in ("device", "dtype", "offload", "t5")},
        "machines": machines,
        "processor": platform.processor() or platform.machine(),
    }
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    kind = "pocket" if uses_pocket(config) else "sd3"
    path = Path(config.profile or FOLDER / f"profile_{kind}_{config.num_servers}servers_{key}.json")
    if path.exists():
        return Profile.read(path, config.num_servers, source)
    print(f"measuring the servers' speeds, once; kept in {path}")
    profile = await measure_profile(
        system.cluster, prompts, parse_steps(config.steps), (model.width, model.height), config.profile_repeats, source
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.write(path)
    return profile


async def run_counts(
    config: DedgeParameters, model: Model, system: EdgeSystem, prompts: list[str], stored: Stored
) -> None:
    """One run for each number of tasks, what is left of them when resumed; then the report."""
    batches, first = {}, 0
    alone = await one_task(system, model, prompts[0], parse_steps(config.steps))
    for count in parse_counts(config.num_tasks):
        if first and not config.learn:  # every run starts alike, as in a simulation
            policy = make_policy(policy_options(config, prompts), system.profile, Path(config.policies))
            system.dispatcher = Dispatcher(policy)
        arrivals = arrivals_of(config, count, prompts[first : first + count], system.profile)
        tasks = [
            Task(first + k, prompts[first + k], int(z), config.seed + first + k, model.width, model.height, int(b))
            for k, (z, b) in enumerate(zip(arrivals.steps, arrivals.base_station, strict=True))
        ]
        batches[count] = await run_batch(system, tasks, arrivals, stored)
        first += count
    report(config, model, system, batches, alone)


async def one_task(system: EdgeSystem, model: Model, prompt: str, steps: tuple[int, int]) -> float:
    """Seconds of a single task in an idle system, the published table's N = 1; its image is not kept."""
    task = Task(-(2**30), prompt, round(sum(steps) / 2), 0, model.width, model.height, 0)
    fastest = int(np.argmin(system.profile.seconds_per_step))
    began = time.perf_counter()
    await measure(system.cluster, {fastest: [task]}, quiet=True)
    return time.perf_counter() - began


async def run_batch(system: EdgeSystem, tasks: list[Task], arrivals: Arrivals, stored: Stored) -> Batch:
    """Submit a run's tasks slot by slot, and wait for all. Those that an earlier process has finished are not run."""
    system.restart_clock()
    for task in tasks:
        if task.number in stored.finished:
            system.recall(task, stored.finished[task.number])
    done = {task.number for task in tasks if task.number in stored.finished}
    start: float | None = None  # of the first slot that has something left
    with tqdm(total=len(tasks), initial=len(done), unit="image", desc=f"{len(tasks)} tasks") as bar:
        watcher = asyncio.create_task(watch(system, [task.number for task in tasks], bar))
        try:
            for slot, part in arrivals.slots(system.dispatcher.policy.slot_seconds):
                left = [k for k in part if tasks[k].number not in done]
                if not left:
                    continue
                start = slot if start is None and done else start or 0.0
                await asyncio.sleep(max(0.0, slot - start - system.now()))
                times = [float(arrivals.time[k]) - start for k in left]
                await system.submit([tasks[k] for k in left], times, slot - start)
            await system.wait()
        finally:
            watcher.cancel()
            bar.n = sum(system.records[task.number].final for task in tasks if task.number in system.records)
    records = [system.records[task.number] for task in tasks]
    if done:
        return Batch(records, stored.totals.get(len(tasks)))
    seconds = max(record.finished for record in records)
    await system.journal.write({"event": "total", "tasks": len(tasks), "seconds": seconds})
    return Batch(records, seconds)


async def watch(system: EdgeSystem, numbers: Sequence[int], bar: tqdm) -> None:
    """Keep a progress bar up to date."""
    while True:
        bar.n = sum(number in system.records and system.records[number].final for number in numbers)
        up = sum(server.up for server in system.cluster.servers)
        bar.set_postfix_str(f"{up} of {len(system.cluster.servers)} servers up")
        await asyncio.sleep(0.5)


def save_policy(dispatcher: Dispatcher, folder: Path) -> None:
    """A learner as it is now, which --checkpoint reads."""
    state = dispatcher.policy.scheduler.state_dict()
    save_checkpoint(folder / "checkpoint.pt", dispatcher.policy.checkpoint | {"learner": state, "history": []})


def report(config: DedgeParameters, model: Model, system: EdgeSystem, batches: dict[int, Batch], alone: float) -> None:
    """Tables, CSV files and plots of the runs."""
    folder = system.folder
    records: list[Record] = [record for batch in batches.values() for record in batch.records]
    predicted = np.concatenate([predict(batch.records, system.profile) for batch in batches.values()])
    write_tasks(folder, records, predicted)
    plot_queues(folder, system.queues)
    errors = sim_to_real(folder, records, predicted)
    totals = {1: alone} | {count: batch.seconds for count, batch in batches.items() if batch.seconds is not None}
    gpu = config.gpus_per_server > 0 or (config.device in ("auto", "cuda") and torch.cuda.is_available())
    where = "GPU" if gpu and config.compute == "real" else "CPU"
    rows = table_rows(f"this run: {config.num_servers} ES, {config.scheduler}, {where}", model.name, totals)
    write_csv(folder / "table.csv", rows[0], rows[1:])
    print_table(rows)
    took = np.repeat([seconds for seconds, _ in system.dispatch_seconds], [n for _, n in system.dispatch_seconds])
    failed = sum(record.state == FAILED for record in records)
    starts = sum(server.starts - 1 for server in system.cluster.servers)
    facts = {
        "tasks": len(records),
        "failed": failed,
        "taken over by idle servers": system.moved_tasks,
        "restarts of servers": starts,
        "dispatch of a task p50 ms": 1e3 * float(np.percentile(took, 50)) if took.size else 0.0,
        "dispatch of a task p99 ms": 1e3 * float(np.percentile(took, 99)) if took.size else 0.0,
        **errors,
    }
    for count, batch in batches.items():
        if batch.seconds is not None and config.compute == "simulated":
            steps = np.array([record.task.steps for record in batch.records])
            one = system.profile.seconds(np.argmin(system.profile.seconds_per_step), steps).sum()
            facts[f"speed-up of {count} tasks over one of these servers"] = float(one / batch.seconds)
    if config.learn:
        facts["rounds learned from"] = system.dispatcher.learned
        save_policy(system.dispatcher, folder)
    write_csv(folder / "summary.csv", ("quantity", "value"), list(facts.items()))
    for name, value in facts.items():
        print(f"{name}: {value:.4g}")
    print(f"{len(records) - failed} images and tables in {folder}; peak memory of the driver {peak_memory()}")

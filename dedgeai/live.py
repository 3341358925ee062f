"""A live run, from the servers' start to the report: Ray, profile, scheduler, tasks or HTTP service, Ctrl-C.

Start reading at `run_live`.
"""

import asyncio
import hashlib
import json
import platform
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import ray

from common.failure import fail
from common.run_folder import describe, write_config
from dedgeai.batch_runs import ended, run_counts, save_agents
from dedgeai.configuration import FOLDER
from dedgeai.http_server import bind
from dedgeai.measurement import measure_profile
from dedgeai.ray_start import connect
from dedgeai.run_options import Model, RunOptions, choose_model
from dedgeai.store import Store
from dedgeai.system import EdgeSystem
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import check_learning, make_scheduler
from edge_sim.server_profile import Profile


async def run_live(options: RunOptions, folder: Path, resume: bool) -> None:
    """Everything of a run or of a service. Exits with 130 when Ctrl-C ended it, with 1 after a mistake of its own.

    What can be refused is refused before Ray starts, and nothing is written before the servers work. Raises
    ParameterError.
    """
    store = Store(folder / "tasks.db", "resume" if resume else "out")
    numbers = range(sum(options.demand.counts))
    if resume and not options.config.serve and len(ended(store, numbers, folder)) == len(numbers):
        print(f"nothing is left of the run in {folder}")
        return
    model = choose_model(options)
    config = options.config
    listener = bind(config.host, config.port) if config.serve else None
    began = time.perf_counter()
    print(f"starting {config.num_servers} edge servers: {model.name}")
    connect(config)
    try:
        system = EdgeSystem(config, model.options, folder, store)
        try:
            await system.start()
            print(f"edge servers are up after {time.perf_counter() - began:.1f} s")
            await get_ready(options, model, system)
            if listener is None:
                job = run_counts(options, model, system)
            else:
                from dedgeai.service import serve

                job = serve(options, model, system, listener)
            await until_interrupted(job, system, serving=config.serve)
        finally:
            await system.close()
    finally:
        ray.shutdown()


async def get_ready(options: RunOptions, model: Model, system: EdgeSystem) -> None:
    """Find the servers' speeds, make the scheduler, write config.json, and take tasks. Raises ParameterError."""
    profile = await find_profile(options, model, system)
    ready = make_scheduler(options.scheduler, profile)
    if options.config.learn:
        check_learning(ready)
    write_config(system.folder, options.title, options.stored)
    system.schedule_with(Dispatcher(ready, options.config.learn), profile)


async def find_profile(options: RunOptions, model: Model, system: EdgeSystem) -> Profile:
    """The servers' speeds: what simulated ones wait, or a file's, or measured now and written to it.

    Raises ParameterError for a file that is no profile, or one of other servers.
    """
    if options.waiting is not None:
        return options.waiting
    machines = sorted(server.machine for server in system.cluster.servers)
    processor = platform.processor() or platform.machine()
    config = options.config
    names = ("steps", "threads", "batch_size", "gpus_per_server", "device", "dtype", "offload", "t5")
    source = {"model": model.name, "servers": config.num_servers, "machines": machines, "processor": processor}
    source |= {name: getattr(config, name) for name in names}
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    servers, kind = config.num_servers, "pocket" if options.pocket else "sd3"
    path = Path(config.profile or FOLDER / f"profile_{kind}_{servers}servers_{key}.json")
    if path.exists():
        return Profile.read(path, servers, source)
    print(f"measuring the servers' speeds, once; kept in {path}")
    demand, size = options.demand, (model.width, model.height)
    profile = await measure_profile(system.cluster, demand.prompts, demand.steps, size, config.profile_repeats, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.write(path)
    return profile


async def until_interrupted(job: Coroutine[Any, Any, None], system: EdgeSystem, serving: bool) -> None:
    """Run the tasks or serve. The first Ctrl-C ends it cleanly, a second one at once."""
    again = f"--resume {shlex.quote(str(system.folder))}"
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
            fail(f"the edge system stopped ({describe(system.error)}); go on with {again}", 1)
        print("\nstopping: running tasks are finished, queued ones are left; Ctrl-C again stops at once")
        await system.stop()
        if system.config.learn:
            save_agents(system.dispatcher, system.folder)
        if serving and not system.left:
            print("stopped; no task is left")
        else:
            print(f"interrupted with {system.left} accepted tasks left; go on with {again}")
        sys.exit(130)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

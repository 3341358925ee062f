"""A live run, from the servers' start to the report: Ray, profile, scheduler, tasks or HTTP service, Ctrl-C.

Start reading at `run_live`.
"""

import asyncio
import dataclasses
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
from dedgeai.batch_runs import run_counts, save_agents
from dedgeai.configuration import FOLDER
from dedgeai.dispatcher import Dispatcher
from dedgeai.edge_server import ComputeOptions, SimulatedOptions
from dedgeai.http_server import bind
from dedgeai.measurement import measure_profile
from dedgeai.ray_start import connect
from dedgeai.records import Stored, read_stored
from dedgeai.run_options import RunOptions
from dedgeai.schedulers import check_learning, make_scheduler
from dedgeai.server_profile import Profile
from dedgeai.service import serve
from dedgeai.system import EdgeSystem


@dataclasses.dataclass(frozen=True)
class Model:
    """What makes the images: how a server opens it, width and height of the images in pixels, and what it is."""

    options: ComputeOptions
    size: tuple[int, int]
    name: str


async def run_live(options: RunOptions, folder: Path, resume: bool) -> None:
    """Everything of a run or of a service. Exits with 130 when Ctrl-C ended it, with 1 after a mistake of its own.

    What can be refused is refused before Ray starts, and nothing is written before the servers work. Raises
    ParameterError.
    """
    stored = read_stored(folder, "resume") if resume else Stored({}, {}, {})
    if resume and options.service is None and len(stored.finished) == sum(options.demand.counts):
        print(f"nothing is left of the run in {folder}")
        return
    model = choose_model(options)
    listener = None if options.service is None else bind(options.service.host, options.service.port)
    began = time.perf_counter()
    print(f"starting {options.cluster.servers} edge servers: {model.name}")
    connect(options.cluster)
    try:
        system = EdgeSystem(options.cluster, model.options, options.system, folder)
        try:
            await system.start()
            print(f"edge servers are up after {time.perf_counter() - began:.1f} s")
            await get_ready(options, model, system)
            if options.service is None or listener is None:
                job = run_counts(options, model.size, model.name, system, stored)
            else:
                job = serve(options.service, model.size, system, stored, listener)
            await until_interrupted(job, system, serving=options.service is not None)
        finally:
            await system.close()
    finally:
        ray.shutdown()


def choose_model(options: RunOptions) -> Model:
    """The generator of the servers. Raises ParameterError when it cannot be loaded, before Ray is started."""
    if options.waiting is not None:
        p = options.waiting
        times = (tuple(x.tolist()) for x in (p.seconds_per_step, p.seconds_base, p.spread))
        return Model(SimulatedOptions(*times, options.demand.seed), (1, 1), "simulated compute")
    from dedgeai.generator import RealOptions, inference_config

    infer = inference_config(**options.model.inference)
    name = f"{'pocket model' if options.model.pocket else 'SD3 Medium'}, {infer.width} x {infer.height}"
    return Model(RealOptions(infer, options.model.threads), (infer.width, infer.height), name)


async def get_ready(options: RunOptions, model: Model, system: EdgeSystem) -> None:
    """Find the servers' speeds, make the scheduler, write config.json, and take tasks. Raises ParameterError."""
    profile = await find_profile(options, model, system)
    ready = make_scheduler(options.scheduler, profile)
    if options.system.learn:
        check_learning(ready)
    write_config(system.folder, options.title, options.stored)
    await system.schedule_with(Dispatcher(ready, options.system.learn), profile)


async def find_profile(options: RunOptions, model: Model, system: EdgeSystem) -> Profile:
    """The servers' speeds: what simulated ones wait, or a file's, or measured now and written to it.

    Raises ParameterError for a file that is no profile, or one of other servers.
    """
    if options.waiting is not None:
        return options.waiting
    machines = sorted(server.machine for server in system.cluster.servers)
    processor = platform.processor() or platform.machine()
    source = {"model": model.name, **options.measured.source, "machines": machines, "processor": processor}
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
    servers, kind = options.cluster.servers, "pocket" if options.model.pocket else "sd3"
    path = options.measured.path or FOLDER / f"profile_{kind}_{servers}servers_{key}.json"
    if path.exists():
        return Profile.read(path, servers, source)
    print(f"measuring the servers' speeds, once; kept in {path}")
    demand = options.demand
    profile = await measure_profile(
        system.cluster, demand.prompts, demand.steps, model.size, options.measured.repeats, source
    )
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
        await system.cancel_queued()
        if system.options.learn:
            save_agents(system.dispatcher, system.folder)
        if serving and not system.left:
            print("stopped; no task is left")
        else:
            print(f"interrupted with {system.left} accepted tasks left; go on with {again}")
        sys.exit(130)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

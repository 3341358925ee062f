"""A live run or a service, from its start to its end: what is refused, Ray, servers, speeds, scheduler, and signals.

Start reading at `run_live`.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import shlex
import signal
import socket
import sys
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import uvloop

from common import quiet_start
from common.interruption import handled, set_handler
from common.parameters import ParameterError
from common.run_folder import describe, write_config
from dedgeai.batch_runs import ended, run_counts, save_agents
from dedgeai.configuration import FOLDER, DedgeParameters
from dedgeai.http_server import bind
from dedgeai.measurement import measure_profile
from dedgeai.ray_start import RayLink
from dedgeai.run_options import Model, RunOptions, choose_model
from dedgeai.store import Store, StoreError
from dedgeai.system import EdgeSystem
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import check_learning, make_scheduler
from edge_sim.server_profile import Profile


def run_live(options: RunOptions, place: AbstractContextManager[Path]) -> None:
    """Everything of a run or of a service, in the folder of `place`. Exits with 128 + the number of a signal.

    What can be refused is refused before Ray starts, and mostly before there is a folder. Raises ParameterError.
    """
    config, model = options.config, choose_model(options)
    given_token(config)
    listener = bind(config.host, config.port) if config.serve else None
    if config.serve:
        os.umask(0o077)  # prompts, images and the record are the service's alone
    with place as folder:
        store = Store(folder / "tasks.db", "resume" if config.resume else "out")
        numbers = range(sum(options.demand.counts))
        if config.resume and not config.serve and len(ended(store, numbers, folder)) == len(numbers):
            print(f"nothing is left of the run in {folder}")
            return
        live = Live(options, model, folder, store, service_token(config, store))
        factory = uvloop.new_event_loop if config.serve else None
        with handled(live.signalled), asyncio.Runner(loop_factory=factory) as runner:
            code = runner.run(live.run(listener))
    if code:
        sys.exit(code)


def given_token(config: DedgeParameters) -> str | None:
    """The SHA-256 of the token that is given, None for none. Raises ParameterError for a file that holds none."""
    token = config.token
    if config.token_file is not None:
        try:
            token = Path(config.token_file).read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, ValueError) as error:
            raise ParameterError("token_file", config.token_file, f"must be a text file ({describe(error)})") from None
        if not token:
            raise ParameterError("token_file", config.token_file, "must hold the token in its first line")
    return None if token is None else hashlib.sha256(token.encode()).hexdigest()


def service_token(config: DedgeParameters, store: Store) -> str | None:
    """The SHA-256 of the token that requests must bring. Raises ParameterError when it is not the one of before."""
    given, known = given_token(config), store.setting("token")
    if known not in (None, given) and not config.change_token:
        words = "must be given, as this service has one" if given is None else "must be the one that this service has"
        raise ParameterError("token", None, f"{words}, or come with --change_token")
    return given


class Live:
    """A run or a service that starts, works and ends, and what signals and the death of Ray do at each moment."""

    def __init__(self, options: RunOptions, model: Model, folder: Path, store: Store, token: str | None) -> None:
        self.options, self.model, self.folder, self.store, self.token = options, model, folder, store, token
        self.link = RayLink(options.config, self.tidy)
        self.job: asyncio.Future[None] | None = None  # taking tasks
        self.code = 0  # the exit code, once there was a signal

    async def run(self, listener: socket.socket | None) -> int:
        """Start everything, and work until the tasks or a signal end it; returns the exit code.

        Raises ParameterError.
        """
        config, began = self.options.config, time.perf_counter()
        print(f"starting {config.num_servers} edge servers: {self.model.name}", flush=True)
        if models := self.model.catalogue:
            told = (f"{m.id} ({m.size:g} MB)" if m.size is not None else m.id for m in models)
            print(f"each holds at most {config.resident_models} of {len(models)} models: {', '.join(told)}", flush=True)
        try:
            await asyncio.to_thread(self.link.connect)  # so that signals are answered here meanwhile
            set_handler(signal.SIGTERM, self.signalled)  # Ray has set its own
            self.link.watch(self.died)
            system = EdgeSystem(config, self.model.compute, self.folder, self.store)
            try:
                await system.cluster.start()
                print(f"edge servers are up after {time.perf_counter() - began:.1f} s", flush=True)
                await self.get_ready(system)
                return await self.work(system, listener)
            except SystemExit as training:  # that a signal ended
                return int(training.code or 0)
            finally:
                await system.close()
        finally:
            self.link.close()

    async def get_ready(self, system: EdgeSystem) -> None:
        """Find the servers' speeds, make the scheduler, write settings, and take tasks. Raises ParameterError."""
        profile = await find_profile(self.options, self.model, system)
        ready = make_scheduler(self.options.scheduler, profile)
        if self.options.config.learn:
            check_learning(ready)
        self.store.set("token", self.token)
        write_config(self.folder, self.options.title, self.options.stored)
        system.schedule_with(Dispatcher(ready, self.options.config.learn), profile)

    async def work(self, system: EdgeSystem, listener: socket.socket | None) -> int:
        """Run the tasks, or serve, until they or the first signal end it; returns the exit code."""
        if listener is None:
            job = run_counts(self.options, self.model, system)
        else:
            from dedgeai.api import serve

            job = serve(self.options, self.model, system, listener)
        self.job = asyncio.ensure_future(job)
        system.on_error = self.job.cancel
        try:
            await self.job
            return 0
        except StoreError as problem:
            self.link.leave(f"the record cannot be written ({problem}); {self.again}", 2)
        except (asyncio.CancelledError, Exception):
            if system.error is None and not self.code:
                raise
        if system.error is not None:
            traceback.print_exception(system.error)
            self.link.leave(f"the edge system stopped ({describe(system.error)}); {self.again}", 1)
        print("\nstopping: running tasks are finished, queued ones are left; Ctrl-C again stops at once", flush=True)
        await system.stop()
        if self.options.config.learn:
            save_agents(system.dispatcher, self.folder)
        if not (self.folder / "config.json").exists():  # somebody removed it
            with contextlib.suppress(OSError):
                write_config(self.folder, self.options.title, self.options.stored)
        left = f"with {system.left} accepted tasks left" if system.left else "with no task left"
        print(f"{quiet_start.WORDS[self.code - 128]} {left}; {self.again}", flush=True)
        return self.code

    @property
    def again(self) -> str:
        """How to go on, in words."""
        ready = self.job is not None or (self.folder / "config.json").exists()
        return f"go on with --resume {shlex.quote(str(self.folder))}" if ready else "nothing has been accepted yet"

    def signalled(self, number: int, _: Any) -> None:
        """A signal: the first one lets what runs end, once there is a job; else the process ends at once."""
        first, self.code = not self.code, 128 + number
        if first and self.job is not None:
            self.job.get_loop().call_soon_threadsafe(self.job.cancel)
        else:
            self.link.leave(f"{quiet_start.WORDS[number]}; {self.again}", self.code)

    def died(self, name: str) -> None:
        """One of Ray's processes is dead, as watched in another thread: the process ends."""
        time.sleep(0.2)  # a signal to both may be on its way
        words = quiet_start.WORDS[self.code - 128] if self.code else f"{name} of Ray died; what was accepted is kept"
        self.link.leave(f"{words}; {self.again}", self.code or 1)

    def tidy(self) -> None:
        """Remove what a start that came to nothing has written."""
        if self.store.last < 0 and not (self.folder / "config.json").exists():
            for path in self.folder.glob("tasks.db*"):
                path.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()


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
    print(f"measuring the servers' speeds, once; kept in {path}", flush=True)
    demand, size = options.demand, (model.width, model.height)
    profile = await measure_profile(system.cluster, demand.prompts, demand.steps, size, config.profile_repeats, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.write(path)
    return profile

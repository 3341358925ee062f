"""A service whose edge servers wait, without Ray, in a thread of the test's process; a real socket leads to it."""

import asyncio
import hashlib
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from edge_helpers import LocalCluster
from helpers import make

from dedgeai import system as system_module
from dedgeai.api import serve
from dedgeai.configuration import DedgeParameters
from dedgeai.http_server import bind
from dedgeai.run_options import choose_model, run_options
from dedgeai.store import Store
from dedgeai.system import EdgeSystem
from edge_sim.dispatcher import Dispatcher
from edge_sim.schedulers import make_scheduler

SIMULATED = {"compute": "simulated", "num_servers": 3, "base_seconds": 0.0, "step_seconds": 0.001}
SIMULATED |= {"scheduler": "water_filling", "serve": True, "access_log": False, "max_prompt": 200, "max_steps": 30}


class LocalService:
    """As a context it answers; `client` is connected to it, `system` and `loop` are its own."""

    def __init__(self, folder: Path, token: str | None = None, **given: Any) -> None:
        self.folder, self.token = folder, token
        self.options = run_options(make(DedgeParameters, **SIMULATED | given))
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> "LocalService":
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        assert self.ready.wait(30)
        host, port = self.listener.getsockname()
        self.url = f"http://{host}:{port}"
        self.client = httpx.Client(base_url=self.url, headers=self.headers, timeout=30)
        return self

    def __exit__(self, *_: Any) -> None:
        self.client.close()
        self.stop()

    def stop(self) -> None:
        """End it, as Ctrl-C does."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(30)
        assert not self.thread.is_alive()

    async def run(self) -> None:
        """Start it, and answer until cancelled."""
        options, self.loop, self.task = self.options, asyncio.get_running_loop(), asyncio.current_task()
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        store, model = Store(self.folder / "tasks.db"), choose_model(options)
        store.set("token", self.token and hashlib.sha256(self.token.encode()).hexdigest())
        with mock.patch.object(system_module, "Cluster", LocalCluster):
            self.system = EdgeSystem(options.config, model.compute, self.folder, store)
        self.listener = bind("127.0.0.1", 0)
        try:
            await self.system.cluster.start()
            ready = make_scheduler(options.scheduler, options.waiting)
            self.system.schedule_with(Dispatcher(ready, False), options.waiting)
            self.loop.call_soon(self.ready.set)
            await serve(options, model, self.system, self.listener)
        except asyncio.CancelledError:
            pass
        finally:
            self.ready.set()
            await self.system.close()

    def call(self, work: Any) -> Any:
        """What a coroutine returns in the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def order(self, **body: Any) -> dict[str, Any]:
        """Submit a task."""
        reply = self.client.post("/api/tasks", json={"prompt": "a fox"} | body)
        assert reply.status_code == 202, reply.text
        return reply.json()

    def settle(self) -> None:
        """Wait until no task is left."""
        self.call(self.system.finished())

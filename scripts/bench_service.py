"""How many requests the edge service answers, beside a bare FastAPI endpoint measured in the same run.

Starts a service whose edge servers wait instead of computing, and a bare endpoint under the same web server; drives
both from a process of its own with many connections, each of which waits for an answer before it asks again. Prints
requests per second and their share of the bare endpoint's, the time of a lone request, and how the driver's memory
grows. Example:
python scripts/bench_service.py --seconds 5
"""

import common.quiet_start  # noqa: F401

import asyncio
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from common.command_line import command_line
from common.parameters import Parameters, parameter, resolve
from dedgeai.configuration import ServiceParameters

ROOT = Path(__file__).resolve().parents[1]
ORDER = json.dumps({"prompt": "a red apple", "steps": 14}).encode()


@dataclasses.dataclass(kw_only=True)
class BenchServiceConfig(Parameters):
    """Every parameter of bench_service.py."""

    seconds: float = parameter(5.0, "how long each figure is measured", unit="s", above=0)
    clients: int = parameter(20, "connections", low=1, high=1000)
    num_servers: int = parameter(5, "edge servers that wait instead of computing", low=1, high=100)
    scheduler: str = parameter("lad_ts", "method that decides, see main_dedgeai.py", path=True)
    lone: int = parameter(300, "requests, one after another, of which the time is taken", low=10)
    tasks: int = parameter(0, "tasks that are served to see how the driver's memory grows; 0: none", low=0)


class Client(asyncio.Protocol):
    """A connection that asks again when it is answered, until the time is over."""

    def __init__(self, request: Callable[[], bytes], until: float, times: list[float]) -> None:
        self.request, self.until, self.times = request, until, times
        self.done = asyncio.get_running_loop().create_future()
        self.got, self.length = b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send a request, or end."""
        self.began = time.perf_counter()
        if self.began < self.until:
            self.transport.write(self.request())
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.got += data
        head = self.got.find(b"\r\n\r\n")
        if head < 0:
            return
        length = int(re.search(rb"content-length: (\d+)", self.got[:head].lower())[1])
        if len(self.got) >= head + 4 + length:
            if not self.got.startswith(b"HTTP/1.1 20"):
                self.done.set_exception(RuntimeError(self.got.decode(errors="replace")[:500]))
                self.transport.close()
                return
            self.got = b""
            self.times.append(time.perf_counter() - self.began)
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request_of(port: int, kind: str, tasks: int) -> Callable[[], bytes]:
    """What makes the bytes of requests: "post" or "bare" an order, "get" the status of one of so many tasks in turn."""
    head = f"HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    if kind == "get":
        number = iter(range(10**12))
        return lambda: f"GET /api/tasks/{next(number) % tasks} {head}\r\n".encode()
    length = f"Content-Type: application/json\r\nContent-Length: {len(ORDER)}\r\n\r\n"
    whole = f"POST {'/api/tasks' if kind == 'post' else '/'} {head}{length}".encode() + ORDER
    return lambda: whole


def drive(port: int, kind: str, clients: int, seconds: float, tasks: int) -> list[float]:
    """The seconds that each request took, from so many connections at once."""

    async def story() -> list[float]:
        times: list[float] = []
        request, until = request_of(port, kind, tasks), time.perf_counter() + seconds
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(functools.partial(Client, request, until, times), "127.0.0.1", port)
            for _ in range(clients)
        ]
        await asyncio.gather(*[client.done for _, client in await asyncio.gather(*made)])
        return times

    return uvloop.run(story())


def bare_endpoint(ready: Any) -> None:
    """A FastAPI endpoint that checks an order and echoes it, under the service's web server."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    from dedgeai.http_server import bind, listen

    class Order(BaseModel):
        prompt: str
        steps: int

    app = FastAPI()

    @app.post("/")
    async def echo(order: Order) -> Order:
        return order

    listener = bind("127.0.0.1", 0)
    ready.put(listener.getsockname()[1])
    uvloop.run(listen(app, listener, resolve(ServiceParameters, {})))


@contextmanager
def service(config: BenchServiceConfig, folder: Path, **flags: Any) -> Iterator[tuple[int, int]]:
    """A service in a process of its own: its port, and its process."""
    given = {"serve": True, "compute": "simulated", "num_servers": config.num_servers, "scheduler": config.scheduler}
    given |= {"port": 0, "max_queued": 1_000_000, "out": folder / "run", "policies": folder / "policies"}
    given |= {"policy_episodes": 2} | flags
    command = [sys.executable, ROOT / "dedgeai/main_dedgeai.py"]
    command += [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if found := re.match(r"listening on http://[^:]+:(\d+)", line):
                    yield int(found[1]), process.pid
                    return
            raise RuntimeError("the service did not start")
        finally:
            process.terminate()
            process.stdout.read()


def memory(process: int) -> float:
    """Memory of a process in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def report(name: str, times: list[float], seconds: float, bare: float) -> float:
    """Print a row, and return requests per second."""
    rate = len(times) / seconds
    share = f"{rate / bare:.2f}" if bare else "1"
    milliseconds = 1e3 * np.percentile(times, [50, 99])
    print(f"| {name} | {rate:.0f} | {share} | {milliseconds[0]:.2f} | {milliseconds[1]:.2f} |", flush=True)
    return rate


def main(config: BenchServiceConfig, given: dict[str, Any]) -> None:
    """Measure a bare endpoint, then the service."""
    context = multiprocessing.get_context("spawn")
    print(f"{os.cpu_count()} cores, {config.clients} connections, {config.num_servers} edge servers that wait")
    print("| request | per second | of bare | median ms | 99 % ms |\n|---|---|---|---|---|")
    with context.Pool(1) as pool, tempfile.TemporaryDirectory() as place:

        def measured(port: int, kind: str, clients: int, seconds: float, tasks: int = 1) -> list[float]:
            return pool.apply(drive, (port, kind, clients, seconds, tasks))

        ready = context.Queue()
        process = context.Process(target=bare_endpoint, args=(ready,), daemon=True)
        process.start()
        port = ready.get(timeout=60)
        measured(port, "bare", config.clients, 1.0)
        bare = report("bare endpoint", measured(port, "bare", config.clients, config.seconds), config.seconds, 0)
        process.kill()
        with service(config, Path(place) / "long", step_seconds=1.0) as (port, _):
            measured(port, "post", config.clients, 1.0)
            post = measured(port, "post", config.clients, config.seconds)
            report("POST /api/tasks", post, config.seconds, bare)
            get = measured(port, "get", config.clients, config.seconds, len(post))
            report("GET /api/tasks/N", get, config.seconds, bare)
        with service(config, Path(place) / "lone", step_seconds=0.0001, base_seconds=0.0) as (port, number):
            times = measured(port, "post", 1, config.lone * 0.01)
            report("lone POST, idle servers", times, config.lone * 0.01, bare)
            made, before = 0, memory(number)
            while made < config.tasks:
                made += len(measured(port, "post", config.clients, 5.0))
                print(f"driver after {made} tasks: {memory(number):.0f} MiB ({before:.0f} at first)", flush=True)


if __name__ == "__main__":
    command_line(BenchServiceConfig, main, __doc__)

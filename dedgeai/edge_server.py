"""One edge server (ES): a queue of tasks, a generator that works on it in order, and results that wait to be fetched.

`EdgeServer` becomes a Ray actor in cluster.py, and works without Ray, too. Its methods are coroutines and return at
once, whatever the generator is doing; only `collect` waits for a result. Start reading at `EdgeServer.work`.
"""

import asyncio
import dataclasses
import os
import time
import uuid
from collections import deque
from typing import Protocol

import numpy as np

from dedgeai.tasks import DENSITY, Report, Result, State, Task, batch_of

SMOOTHING = 0.2  # weight of the last batch in the moving average of the server's speed


class Compute(Protocol):
    """What makes the images of an edge server."""

    async def run(self, tasks: list[Task], at_once: bool) -> list[bytes]:
        """PNG files of tasks that have the same steps and size. `at_once`: they waited for the batch before to end."""


class ComputeOptions(Protocol):
    """What describes a `Compute` and can be sent to another machine."""

    def open(self, server: int) -> Compute:
        """The `Compute` of the server with this number. Raises ParameterError when it cannot be had."""


@dataclasses.dataclass(frozen=True)
class SimulatedOptions:
    """Servers that wait instead of computing: for seconds_base + steps * seconds_per_step, varied by `spread`."""

    seconds_per_step: tuple[float, ...]
    seconds_base: tuple[float, ...]
    spread: tuple[float, ...]
    seed: int

    def open(self, server: int) -> "SimulatedCompute":
        """The waiting of the server with this number."""
        return SimulatedCompute(self, server)


class SimulatedCompute:
    """Waits as long as the options say. The image is one grey pixel."""

    def __init__(self, options: SimulatedOptions, server: int) -> None:
        self.step, self.base = options.seconds_per_step[server], options.seconds_base[server]
        self.spread = options.spread[server]
        self.random = np.random.default_rng([options.seed, server])
        self.free = 0.0  # when the last batch's time was over, so that late wake-ups do not add up

    async def run(self, tasks: list[Task], at_once: bool) -> list[bytes]:
        """Wait for the tasks' time, then return an image for each."""
        factor = np.exp(self.spread * self.random.standard_normal() - self.spread**2 / 2)  # of mean 1
        now = time.monotonic()
        self.free = (self.free if at_once else now) + len(tasks) * (self.base + tasks[0].steps * self.step) * factor
        await asyncio.sleep(max(0.0, self.free - now))
        return [GREY_PIXEL] * len(tasks)


GREY_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)


class EdgeServer:
    """The queue and the generator of one ES. A server that is started again is empty and has a new `incarnation`."""

    def __init__(self, number: int, options: ComputeOptions, batch_size: int) -> None:
        self.number, self.batch_size = number, batch_size
        self.incarnation = uuid.uuid4().hex
        self.queue: deque[Task] = deque()
        self.running: list[Task] = []
        self.finished: list[Result] = []
        self.fetched = 0  # results before this one have been fetched and may be forgotten
        self.seconds_per_step, self.overhead = 0.0, 0.0
        self.options = options
        self.compute: Compute | None = None
        self.worker: asyncio.Task | None = None

    async def hello(self, seconds_per_step: float, overhead: float) -> tuple[str, int, str]:
        """Take up the profile, and start working. Returns incarnation, process and name of the machine.

        `overhead` is what a task costs besides its denoising steps (encoding, decoding), counted in steps. The first
        call opens the generator, whose mistakes reach the caller as they are; raises ParameterError.
        """
        if self.compute is None:
            self.compute = self.options.open(self.number)
        self.seconds_per_step, self.overhead = seconds_per_step, overhead
        if self.worker is None:
            self.arrived, self.changed = asyncio.Event(), asyncio.Event()
            self.worker = asyncio.create_task(self.work())
        return self.incarnation, os.getpid(), os.uname().nodename

    async def enqueue(self, tasks: list[Task]) -> None:
        """Put tasks at the queue's end."""
        self.queue.extend(tasks)
        self.arrived.set()

    async def withdraw(self, count: int) -> list[Task]:
        """Take up to `count` tasks back from the queue's end, in their order."""
        return [self.queue.pop() for _ in range(min(count, len(self.queue)))][::-1]

    async def collect(self, last: int) -> Report:
        """Results after the `last` one that the caller has, as soon as there is one."""
        self.finished = self.finished[max(0, last - self.fetched) :]
        self.fetched = max(self.fetched, last)
        while not self.finished:
            self.changed.clear()
            await self.changed.wait()
        return Report(self.fetched + len(self.finished), list(self.finished), self.state())

    def state(self) -> State:
        """What the server says of itself now."""
        steps = sum(task.steps + self.overhead for task in (*self.running, *self.queue))
        seconds = steps * self.seconds_per_step
        return State(len(self.queue), len(self.running), seconds, DENSITY * steps, self.seconds_per_step)

    def next_batch(self) -> list[Task]:
        """The oldest task, and behind it those that fit into one batch with it: same steps, same size."""
        batch = batch_of(self.queue, self.batch_size)
        numbers = {task.number for task in batch}
        self.queue = deque(task for task in self.queue if task.number not in numbers)
        return batch

    async def work(self) -> None:
        """Make image after image for ever. What fails becomes a result that says so."""
        at_once = False
        while True:
            while not self.queue:
                self.arrived.clear()
                await self.arrived.wait()
            self.running = [self.queue.popleft()] if self.batch_size == 1 else self.next_batch()
            began = time.monotonic()
            try:
                images, error = await self.compute.run(self.running, at_once), ""
            except Exception as problem:  # whatever happens to a batch, the server goes on
                images = [b""] * len(self.running)
                error = (str(problem).splitlines() or [""])[0][:200] or type(problem).__name__
            seconds = (time.monotonic() - began) / len(self.running)
            measured = seconds / (self.running[0].steps + self.overhead)
            self.seconds_per_step += SMOOTHING * (measured - self.seconds_per_step) if not error else 0.0
            self.finished += [
                Result(task.number, image, error, seconds) for task, image in zip(self.running, images, strict=True)
            ]
            self.running = []
            at_once = bool(self.queue)
            self.changed.set()

"""One edge server (ES): a generator that works on one batch after another, as the driver sends them.

`EdgeServer` becomes a Ray actor in cluster.py, and works without Ray, too. Whatever the generator is doing, its methods
answer at once, but for `run`. Start reading at `EdgeServer.run`.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dedgeai.tasks import Made, Task


class EarlyEndError(Exception):
    """Raised by a generator that ends early because all tasks of its batch were cancelled."""


class Batch:
    """Tasks that are denoised together, of one kind; `over` is set when all of them are cancelled."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks, self.left = tasks, {task.number for task in tasks}
        self.over = asyncio.Event()

    def cancel(self, numbers: set[int]) -> None:
        """Cancel those of its tasks that have these numbers."""
        self.left -= numbers
        if not self.left:
            self.over.set()


class BatchError(RuntimeError):
    """What failed of a batch, in one line; `args` then has `loading` and `resident` as `Made` has them."""

    def __str__(self) -> str:
        return str(self.args[0])


class Compute(Protocol):
    """What makes the images of an edge server."""

    resident: Sequence[str] = ()  # the models of a catalogue that it holds, the last used one last
    loading: float = 0.0  # s that the model of the last batch took to load

    async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
        """PNG files of a batch. `at_once`: it waited for another to end. Raises EarlyEndError when it is over."""

    def step(self) -> int:
        """Denoising steps of the batch that are done."""


OpenCompute = Callable[[int], Compute]  # by a server's number; raises ParameterError; can be sent to another machine
Floats = Sequence[float]


class SimulatedCompute(Compute):
    """Waits instead of computing, in equal steps: for seconds_base + steps * seconds_per_step, varied by `spread`.

    These hold a number for each server. The image is one grey pixel.
    """

    def __init__(self, seconds_per_step: Floats, seconds_base: Floats, spread: Floats, seed: int, server: int) -> None:
        self.seconds_per_step, self.base, self.spread = seconds_per_step[server], seconds_base[server], spread[server]
        self.random = np.random.default_rng([seed, server])
        self.began, self.seconds, self.steps = 0.0, 0.0, 0  # of the batch
        self.free = 0.0  # when the last batch's time was over, so that late wake-ups do not add up

    async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
        """Wait for the tasks' time, then return an image for each."""
        factor = np.exp(self.spread * self.random.standard_normal() - self.spread**2 / 2)  # of mean 1
        now, first = time.monotonic(), batch.tasks[0]
        self.began, self.steps = self.free if at_once else now, first.steps
        self.seconds = len(batch.tasks) * (self.base + first.work * self.seconds_per_step) * factor
        self.free = self.began + self.seconds
        try:
            await asyncio.wait_for(batch.over.wait(), max(0.0, self.free - now))
        except TimeoutError:
            return [GREY_PIXEL] * len(batch.tasks)
        self.free = self.began + self.seconds * min(1.0, (self.step() + 1) / self.steps)
        await asyncio.sleep(max(0.0, self.free - time.monotonic()))
        raise EarlyEndError

    def step(self) -> int:
        """Steps whose time is over."""
        passed = time.monotonic() - self.began
        return self.steps if passed >= self.seconds else int(self.steps * passed / self.seconds)


def first_line(problem: Exception) -> str:
    """What an error says, in one line that is not long."""
    return (str(problem).splitlines() or [""])[0][:200] or type(problem).__name__


GREY_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)


class EdgeServer:
    """The generator of one ES, and the batches that it was sent. One that is started again has a new `incarnation`."""

    def __init__(self, number: int, opened: OpenCompute) -> None:
        self.number, self.opened = number, opened
        self.incarnation = uuid.uuid4().hex
        self.compute: Compute | None = None
        self.batches: list[Batch] = []  # in the order in which they are worked on
        self.cancelled: set[int] = set()  # also of tasks that are still on their way
        self.turn = asyncio.Lock()

    async def hello(self) -> tuple[str, int, str, list[str]]:
        """Drop what was sent before, and be ready to work. Returns incarnation, process, name of the machine, and the
        models that are held.

        The first call opens the generator, whose mistakes reach the caller as they are; raises ParameterError.
        """
        if self.compute is None:
            self.compute = self.opened(self.number)
        for batch in self.batches:
            batch.cancel(batch.left)
        return self.incarnation, os.getpid(), os.uname().nodename, list(self.compute.resident)

    async def live(self) -> None:
        """Never return, so that the caller learns of this server's end at once."""
        await asyncio.Event().wait()

    async def run(self, tasks: list[Task]) -> Made:
        """Work on a batch, after those that came before. Raises BatchError that says in one line what failed."""
        batch, at_once = Batch(tasks), self.turn.locked()
        images: list[bytes | None] = [None] * len(tasks)
        batch.cancel(self.cancelled)
        self.batches.append(batch)
        try:
            async with self.turn:
                began, ran = time.monotonic(), not batch.over.is_set()
                if ran:
                    images = await self.compute.run(batch, at_once)
        except EarlyEndError:
            pass
        except Exception as problem:  # whatever happens to a batch, the server goes on
            resident = list(getattr(self.compute, "resident", ()))
            raise BatchError(first_line(problem), getattr(self.compute, "loading", 0.0), resident) from None
        finally:
            self.batches.remove(batch)
            self.cancelled -= {task.number for task in tasks}
        kept = [image if task.number in batch.left else None for task, image in zip(tasks, images, strict=True)]
        seconds, loading = (time.monotonic() - began) / len(tasks), self.compute.loading if ran else 0.0
        return Made(kept, seconds, loading, list(self.compute.resident))

    async def cancel(self, numbers: list[int]) -> None:
        """Cancel tasks: a batch ends at its next step when all of it is cancelled, else their images are dropped."""
        self.cancelled |= set(numbers)
        for batch in self.batches:
            batch.cancel(set(numbers))

    async def steps(self) -> dict[int, int]:
        """Denoising steps done of the tasks that it works on, by their numbers."""
        return {task.number: self.compute.step() for batch in self.batches[:1] for task in batch.tasks}

"""The models that an edge server holds: a task's model is loaded on demand, and the least recently used one goes.

Start reading at `Resident.run`.
"""

import asyncio
import gc
import time

from dedgeai.edge_server import Batch, Compute, OpenCompute, first_line
from edge_sim.catalogue import use


class Resident(Compute):
    """At most `most` models of a catalogue, by their names; at the start there is the first, which is the default.

    `waits` are the load times in s of models that wait instead of computing; it is empty for those that compute. Raises
    ParameterError when the default model cannot be loaded.
    """

    def __init__(self, opened: dict[str, OpenCompute], waits: dict[str, float], most: int, server: int) -> None:
        self.opened, self.waits, self.most, self.server = opened, waits, most, server
        self.default = next(iter(opened))
        if not waits:
            gc.freeze()  # what is there already need not be looked at whenever a model goes
        self.resident = [self.default]
        self.computes = {self.default: opened[self.default](server)}
        self.waiting = self.computes[self.default] if waits else None  # the same for all models
        self.working: Compute | None = None

    async def run(self, batch: Batch, at_once: bool) -> list[bytes]:
        """PNG files of a batch, by its model. Raises RuntimeError when that cannot be loaded, in words."""
        name, self.working, self.loading = batch.tasks[0].model or self.default, None, 0.0
        if name not in self.opened:
            raise RuntimeError(f"there is no model {name}")
        if loads := use(self.resident, name, self.most):
            began = time.monotonic()
            self.computes = {other: self.computes[other] for other in self.resident[:-1]}
            try:
                self.computes[name] = await self.load(name)
            except Exception as problem:
                self.resident.remove(name)
                raise RuntimeError(f"model {name} cannot be loaded: {first_line(problem)}") from None
            self.loading = time.monotonic() - began
        self.working = self.computes[name]
        return await self.working.run(batch, at_once and not loads)

    async def load(self, name: str) -> Compute:
        """A model that is not held."""
        if self.waiting is not None:
            await asyncio.sleep(self.waits[name])
            return self.waiting

        def open_model() -> Compute:
            gc.collect()  # its parts know each other; there is room, then, before more is loaded
            return self.opened[name](self.server)

        return await asyncio.to_thread(open_model)

    def step(self) -> int:
        """Denoising steps of the batch that are done."""
        return 0 if self.working is None else self.working.step()

"""The service: what it accepts, what it tells of tasks and servers, and how long it keeps images.

Runs in the driver's event loop beside the edge system. Limits are checked before anything is kept. api.py puts it on
HTTP. Start reading at `Service.accept`.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from fastapi import HTTPException

from common.parameters import LARGEST
from dedgeai.configuration import DedgeParameters
from dedgeai.events import Event, Events
from dedgeai.forms import ClusterStatus, ModelStatus, ServerStatus, Status, unavailable
from dedgeai.metrics import Metrics
from dedgeai.records import CANCELLED, DONE, FAILED, FINAL, Record
from dedgeai.run_options import Model
from dedgeai.system import EdgeSystem
from dedgeai.tasks import Task

RETENTION_SECONDS, RETENTION_IMAGES = 10.0, 100  # what is past --keep_images is deleted that often
CLUSTER_SECONDS = 1.0  # s between events about the servers


class Service:
    """An edge system as its users see it. `model` is what makes the images."""

    def __init__(self, config: DedgeParameters, model: Model, system: EdgeSystem) -> None:
        self.config, self.model, self.system = config, model, system
        self.default_steps = sum(config.step_range) // 2
        self.events, self.metrics = Events(), Metrics()
        self.metrics.watch(system)
        system.watchers.append(self.changed)
        self.number = system.store.last + 1  # of the next task
        self.keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.images, self.many_images = 0, asyncio.Event()  # made since the last look for old ones
        self.stopping = asyncio.Event()

    # --- tasks come in ---

    async def accept(self, order: Any, key: str | None) -> tuple[list[Record], bool]:
        """The tasks of a request of forms.py, and whether it is a repetition: one with a key that came before.

        They are in the record when this returns. Raises HTTPException for what cannot be accepted, and StoreError.
        """
        if key is None:
            return await self.submit(order), False
        said = f"{type(order).__name__} {order.model_dump_json(exclude_unset=True)}"
        digest = hashlib.sha256(said.encode()).hexdigest()
        async with self.keys.setdefault(key, asyncio.Lock()):
            if (found := self.system.store.key(key)) is None:
                return await self.submit(order, key, digest), False
        if found[0] != digest:
            raise HTTPException(409, "Idempotency-Key: it came with another request before")
        records = [record for number in found[1] if (record := self.system.find(number)) is not None]
        if len(records) < len(found[1]):
            raise HTTPException(409, "Idempotency-Key: the tasks of the request that it came with have been removed")
        return records, True

    async def submit(self, order: Any, key: str = "", digest: str = "") -> list[Record]:
        """New tasks for a request."""
        config, first, left = self.config, self.number, self.system.left
        model = self.model.choice[order.model or self.model.id]
        if trouble := self.system.trouble:
            raise unavailable(trouble, any(word in trouble for word in ("space", "full", "quota")))
        if left + order.images > config.max_queued:
            most = f"{left} tasks wait or run, and no more than {config.max_queued} (max_queued) may"
            raise unavailable(f"{most}; try again later")
        width, height = order.width or model.width, order.height or model.height
        seed = config.seed + first if order.seed is None else order.seed
        task = Task(
            number=first,
            prompt=order.prompt.strip(),
            steps=order.steps or self.default_steps,
            seed=seed % (LARGEST + 1),
            width=width,
            height=height,
            base_station=first % config.num_servers if order.base_station is None else order.base_station,
            negative_prompt=order.negative_prompt,
            cfg_scale=order.cfg_scale,
            request=first if order.images > 1 else None,
            user=order.user or "",
            scale=width * height / (self.model.width * self.model.height),
            model=model.id if self.model.catalogue else "",
        )
        self.number += order.images
        tasks = [
            dataclasses.replace(task, number=first + k, seed=(seed + k) % (LARGEST + 1)) for k in range(order.images)
        ]
        return await self.system.submit(tasks, key=key, digest=digest)

    # --- what is told ---

    def status(self, record: Record, form: type[Status] = Status, **more: Any) -> Status:
        """What is known of a task, in a form that may have `more` fields."""
        task, number, named = record.task, record.task.number, record.task.model or self.model.id
        model = self.model.choice.get(named, self.model)
        ahead, seconds = self.system.place(record)
        same = ("prompt", "steps", "seed", "width", "height", "base_station", "user")
        return form(
            **more,
            **{name: getattr(task, name) for name in same},
            task=number,
            model=named,
            state=record.state,
            negative_prompt=model.negative_prompt if task.negative_prompt is None else task.negative_prompt,
            step=task.steps if record.state == DONE else record.step,
            cfg_scale=model.cfg_scale if task.cfg_scale is None else task.cfg_scale,
            request=number if task.request is None else task.request,
            edge_server=record.server,
            ahead=ahead,
            estimated_s=seconds,
            cancelling=record.cancelling,
            accepted_at=record.accepted_at,
            finished_at=record.finished_at if record.final else None,
            queueing_s=record.queueing,
            delay_s=record.delay if record.final else None,
            image=f"{self.config.root_path}/api/tasks/{number}/image" if record.image else None,
            error=record.error or None,
        )

    def page(self, states: Sequence[str], before: int | None, limit: int) -> list[Record]:
        """The newest tasks in one of these states, of those with numbers below `before`."""
        live = [
            record
            for number, record in self.system.records.items()
            if record.state in states and (before is None or number < before)
        ]
        ended = [state for state in states if state in FINAL]
        found = self.system.store.page(ended, before, limit) if ended else []
        both = {record.task.number: record for record in (*found, *live)}
        return [both[number] for number in sorted(both, reverse=True)[:limit]]

    def cluster_status(self) -> ClusterStatus:
        """All servers as the dispatcher sees them now, and the counts of tasks."""
        cluster, rates = self.system.cluster, self.system.profile.seconds_per_step.tolist()
        seconds, gcycles = cluster.backlog_seconds().tolist(), cluster.backlog().tolist()
        counts = self.system.store.counts
        servers = [
            ServerStatus(
                edge_server=number,
                up=server.up,
                machine=server.machine,
                tasks=len(server),
                backlog_s=seconds[number],
                backlog_gcycles=round(gcycles[number], 4),
                seconds_per_step=round(float(server.seconds_per_step), 6),
                profile_seconds_per_step=round(rates[number], 6),
                restarts=max(server.starts - 1, 0),
                models=server.resident,
                loads=server.loads,
                loading_s=server.load_seconds,
            )
            for number, server in enumerate(cluster.servers)
        ]
        return ClusterStatus(
            scheduler=self.system.dispatcher.ready.name,
            servers=servers,
            unfinished=self.system.left,
            done=counts[DONE],
            failed=counts[FAILED],
            cancelled=counts[CANCELLED],
            trouble=self.system.trouble,
        )

    def model_status(self) -> ModelStatus:
        """What makes the images, and what may be asked of it."""
        most = ("max_prompt", "max_steps", "max_images", "max_queued")
        limits = {name: getattr(self.config, name) for name in most} | {"max_side": self.model.largest}
        known = {name: getattr(self.model, name) for name in ModelStatus.model_fields if hasattr(self.model, name)}
        models = {name: model.size for name, model in self.model.choice.items()}
        return ModelStatus(default_steps=self.default_steps, limits=limits, models=models, **known)

    async def image_of(self, record: Record) -> bytes:
        """The PNG of a task. Raises HTTPException where there is none."""
        number = record.task.number
        if record.state != DONE:
            raise HTTPException(404, f"task {number} has no image: it is {record.state}")
        if not record.image:
            raise HTTPException(410, f"the image of task {number} was removed by --keep_images")
        try:
            return await asyncio.to_thread((self.system.folder / "images" / record.image).read_bytes)
        except FileNotFoundError:
            raise HTTPException(410, f"the image of task {number} is gone: its file is no longer in images/") from None
        except OSError as error:
            raise unavailable(f"the image of task {number} cannot be read ({error.strerror})") from None

    def event_of(self, record: Record) -> Event:
        """The event that says how a task is now."""
        return Event("task", self.events.mark, lambda: self.status(record).model_dump_json(), record.final)

    def changed(self, record: Record) -> None:
        """Tell who listens of a change of a task."""
        self.events.tell("task", lambda: self.status(record).model_dump_json(), record.task.number, record.final)
        self.images += record.state == DONE
        if self.images >= RETENTION_IMAGES:
            self.many_images.set()

    async def tell_of_servers(self) -> None:
        """Tell who listens of the servers for ever, when something has changed."""
        told = ""
        while True:
            await asyncio.sleep(CLUSTER_SECONDS)
            if self.events.listeners.get(None) and (now := self.cluster_status().model_dump_json()) != told:
                told = now
                self.events.tell("cluster", lambda now=now: now)

    # --- images go ---

    async def delete_old_images(self) -> None:
        """Delete for ever what is past --keep_images."""
        number, age = self.config.kept
        while number is not None or age is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.many_images.wait(), RETENTION_SECONDS)
            self.many_images.clear()
            self.images, more = 0, True
            while more:
                try:
                    old = self.system.store.images_beyond(number, None if age is None else time.time() - age)
                    gone = await asyncio.to_thread(self.delete_files, old)
                    await self.system.store.drop_images(gone)
                except OSError:
                    break  # the next look finds them again
                more = len(old) == 1000 and bool(gone)

    def delete_files(self, records: list[Record]) -> list[int]:
        """Delete the images of these tasks; returns the numbers of those that have none any more."""
        gone = []
        for record in records:
            with contextlib.suppress(OSError):
                (self.system.folder / "images" / record.image).unlink(missing_ok=True)
                gone.append(record.task.number)
        return gone

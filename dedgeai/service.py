"""The service: submit a task, ask for its status, fetch its image, see the servers, over HTTP; and a web page for it.

Runs in the driver's event loop beside the edge system, so a request is accepted once it is in the journal. Limits are
checked before anything is kept, and refused with a status that says which. Start reading at `create_app`.
"""

import itertools
import secrets
import socket
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from common.parameters import LARGEST
from dedgeai.http_server import BodyLimit, listen
from dedgeai.options import ServiceOptions
from dedgeai.records import DONE, FAILED, SENT, Record, Stored
from dedgeai.system import EdgeSystem
from dedgeai.tasks import Task

PAGE = Path(__file__).with_name("page.html")
BODY_BYTES = 65_536  # a request with more is refused before it is read; a prompt may add to it


class Status(BaseModel):
    """What is known of a task. Times are in s."""

    task: int
    state: str = Field(description="waiting, queued, running, done or failed")
    prompt: str
    steps: int
    seed: int
    base_station: int
    edge_server: int | None = Field(description="which has it, or has done it")
    ahead: int | None = Field(description="tasks before it at its server, while it is queued")
    delay_s: float | None = Field(description="from its acceptance to its image or failure")
    image: str | None = Field(description="where its image is, once it is done")
    error: str | None


class ServerStatus(BaseModel):
    """An edge server as the dispatcher sees it."""

    edge_server: int
    up: bool
    machine: str
    tasks: int = Field(description="tasks that it has, the running one included")
    backlog_s: float
    backlog_gcycles: float
    seconds_per_step: float = Field(description="as it last reported")
    profile_seconds_per_step: float
    restarts: int


class ClusterStatus(BaseModel):
    """All servers, and counts of tasks."""

    scheduler: str
    servers: list[ServerStatus]
    unfinished: int
    done: int
    failed: int


def submission(options: ServiceOptions) -> type[BaseModel]:
    """The body of a request for an image, with the options' limits in its description."""

    class Submission(BaseModel):
        """A task. Unknown fields are refused."""

        model_config = ConfigDict(extra="forbid")

        prompt: Annotated[
            StrictStr, StringConstraints(strip_whitespace=True, min_length=1, max_length=options.prompt)
        ] = Field(description="what the image shows")
        steps: StrictInt = Field(options.default_steps, ge=1, le=options.steps, description="denoising steps")
        seed: StrictInt | None = Field(None, ge=0, le=LARGEST, description="seed of the image; default one of its own")
        base_station: StrictInt | None = Field(None, ge=0, description="where the task arrives; default each in turn")

    return Submission


def create_app(system: EdgeSystem, options: ServiceOptions, size: tuple[int, int], first: int) -> FastAPI:
    """The application. `size` is width and height of all images in pixels, `first` the first task's number."""
    app = FastAPIOffline(
        title="DEdgeAI",
        description="Text-to-image tasks on edge servers, scheduled by trained agents.",
        version="1",
        redoc_url=None,
    )
    numbers = itertools.count(first)
    base_stations = len(system.cluster.servers)
    accept = submission(options)
    app.add_middleware(BodyLimit, most=BODY_BYTES + 8 * options.prompt)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=options.hosts)

    async def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if options.token and not secrets.compare_digest(given.encode(), options.token.encode()):
            raise HTTPException(401, "a request needs the header 'Authorization: Bearer <token>'")

    guarded = [Depends(allowed)]

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> Response:
        """Which field is wrong and why, without echoing it: it may be huge, or no text at all."""
        problems = [
            f"{'.'.join(str(part)[:50] for part in p['loc'][1:]) or 'body'}: {p['msg']}" for p in error.errors()[:5]
        ]
        text = "; ".join(problems).encode(errors="replace").decode()
        return JSONResponse({"detail": text}, 422)

    def record(task: int) -> Record:
        if task not in system.records:
            raise HTTPException(404, f"no task {task}" if abs(task) < 2**63 else "no such task")
        return system.records[task]

    @app.post("/api/tasks", status_code=202, response_model=Status, dependencies=guarded, tags=["tasks"])
    async def submit(order: accept) -> Status:  # type: ignore[valid-type]
        """Accept a task. It is then in the journal, and will end in an image or a stated failure."""
        if order.base_station is not None and order.base_station >= base_stations:
            raise HTTPException(422, f"base_station: must be at most {base_stations - 1}")
        if system.left >= options.queued:
            message = f"{system.left} tasks wait or run, and no more than {options.queued} may; try again later"
            raise HTTPException(503, message, headers={"Retry-After": "5"})
        number = next(numbers)
        task = Task(
            number,
            order.prompt,
            order.steps,
            (options.seed + number) % LARGEST if order.seed is None else order.seed,
            *size,
            number % base_stations if order.base_station is None else order.base_station,
        )
        await system.submit([task], slot=system.now())
        return status_of(system, system.records[number])

    @app.get("/api/tasks/{task}", response_model=Status, dependencies=guarded, tags=["tasks"])
    async def status(task: int) -> Status:
        """What has become of a task."""
        return status_of(system, record(task))

    @app.get(
        "/api/tasks/{task}/image",
        dependencies=guarded,
        tags=["tasks"],
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}}}, 404: {"description": "no such task, or it has no image yet"}},
    )
    async def image(task: int) -> Response:
        """The image of a task that is done, as PNG, with its settings in its text chunks."""
        found = record(task)
        if found.state != DONE:
            raise HTTPException(404, f"task {task} has no image: it is {status_of(system, found).state}")
        return FileResponse(system.folder / "images" / found.image, media_type="image/png")

    @app.get("/api/cluster", response_model=ClusterStatus, dependencies=guarded, tags=["cluster"])
    async def cluster() -> ClusterStatus:
        """The servers and their queues."""
        return cluster_status(system)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        filled = {"MAX_PROMPT": options.prompt, "MAX_STEPS": options.steps, "STEPS": options.default_steps}
        text = PAGE.read_text(encoding="utf-8")
        for name, value in filled.items():
            text = text.replace(f"%{name}%", str(value))
        return text

    return app


def status_of(system: EdgeSystem, record: Record) -> Status:
    """A task's status; a task at a server is running if it is of the first of those that the server has."""
    state, ahead, task = record.state, None, record.task
    if state == SENT:
        server = system.cluster.servers[record.server]
        if task in system.cluster.running(server) or task.number not in server.outstanding:
            state = "running"
        else:
            state, ahead = "queued", list(server.outstanding).index(task.number)
    return Status(
        task=task.number,
        state=state,
        prompt=task.prompt,
        steps=task.steps,
        seed=task.seed,
        base_station=task.base_station,
        edge_server=record.server,
        ahead=ahead,
        delay_s=record.delay if record.final else None,
        image=f"/api/tasks/{task.number}/image" if state == DONE else None,
        error=record.error or None,
    )


def cluster_status(system: EdgeSystem) -> ClusterStatus:
    """All servers as the dispatcher sees them now, and the counts of tasks."""
    seconds, gcycles = system.cluster.backlog_seconds(), system.cluster.backlog()
    servers = [
        ServerStatus(
            edge_server=server.number,
            up=server.up,
            machine=server.machine,
            tasks=len(server.outstanding),
            backlog_s=round(float(seconds[server.number]), 4),
            backlog_gcycles=round(float(gcycles[server.number]), 4),
            seconds_per_step=round(server.seconds_per_step, 6),
            profile_seconds_per_step=round(float(system.profile.seconds_per_step[server.number]), 6),
            restarts=server.starts - 1,
        )
        for server in system.cluster.servers
    ]
    return ClusterStatus(
        scheduler=system.dispatcher.ready.name,
        servers=servers,
        unfinished=system.left,
        done=system.counts[DONE],
        failed=system.counts[FAILED],
    )


async def serve(
    options: ServiceOptions, size: tuple[int, int], system: EdgeSystem, stored: Stored, listener: socket.socket
) -> None:
    """Take up what an earlier process left, then answer requests at a bound socket until cancelled.

    `size` is width and height of all images in pixels.
    """
    left = [task for number, task in stored.tasks.items() if number not in stored.finished]
    for number in stored.finished.keys() & stored.tasks.keys():
        system.recall(stored.tasks[number], stored.finished[number])
    if left:
        print(f"going on with {len(left)} tasks of an earlier start")
        await system.submit(left)
    app = create_app(system, options, size, first=max(stored.tasks, default=-1) + 1)
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    print(f"listening on {url}; its API is at {url}/docs", flush=True)
    await listen(app, listener)

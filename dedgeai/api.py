"""The HTTP API: paths and what they answer, the page, and a description of it all for programs.

Every mistake is answered in words, `{"detail": ...}`, without echoing what was sent: it may be huge, or no text at all.
Start reading at `create_app`.
"""

import asyncio
import errno
import hashlib
import mimetypes
import socket
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Match

from dedgeai import forms
from dedgeai.forms import Accepted, Key, Number, Problem, Status, unavailable
from dedgeai.gate import Gate, refusal
from dedgeai.http_server import listen
from dedgeai.openai_api import Links, add_openai
from dedgeai.records import Record
from dedgeai.run_options import Model, RunOptions
from dedgeai.service import Service
from dedgeai.system import EdgeSystem

PAGE = Path(__file__).with_name("page")
POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
DESCRIPTION = """Text-to-image tasks on edge servers, and a scheduler that says which server makes which image.

Server-sent events: `GET /api/events` tells of all tasks and servers, `GET /api/tasks/3/events` of one task until it
ends. Events are `task` with its status, `removed`, `cluster`, `hello` at first, and `reset` after a `Last-Event-ID`
that is no longer known."""
IMAGE: dict[int | str, Any] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "it is as it was"},
}


def create_app(service: Service) -> Gate:
    """The application behind its gate. Reads the page's files."""
    config, system, store, events = service.config, service.system, service.system.store, service.events
    token_hash = store.setting("token")
    answers = forms.ANSWERS | ({401: "no token, or a wrong one"} if token_hash else {})
    app = FastAPIOffline(
        title="DEdgeAI",
        description=DESCRIPTION,
        version="2",
        static_url="/docs/static",
        redirect_slashes=False,
        responses={status: {"model": Problem, "description": words} for status, words in answers.items()},
    )
    (wishes, submission), links = forms.request_forms(config, service.model), Links(store)

    def found(number: int) -> Record:
        record = system.find(number)
        if record is None:
            raise HTTPException(404, f"no task {number}" if abs(number) < 2**63 else "no such task")
        return record

    @app.post("/api/tasks", status_code=202, response_model=Accepted, responses=refusals(409), tags=["tasks"])
    async def submit(order: submission, key: Key = None) -> Response:  # type: ignore[valid-type]
        """Accept a request for images. Its tasks are then in the record, and each will end in an image, a stated
        failure or a cancellation. A request that comes again with its Idempotency-Key gets the same tasks again."""
        records, again = await service.accept(order, key)
        tasks = [record.task.number for record in records]
        accepted = service.status(records[0], Accepted, tasks=tasks)
        return accepted.answer(202, {"Idempotent-Replay": "true"} if again else None)

    @app.get("/api/tasks", response_model=forms.TaskPage, tags=["tasks"])
    async def tasks(chosen: Annotated[forms.Selection, Query()]) -> Response:
        """The tasks, the newest first, in pages."""
        names = ",".join(chosen.state or ["unfinished,finished"]).split(",")
        states = [state for name in names for state in forms.FILTERS[name]]
        records = service.page(states, chosen.before, chosen.limit + 1)
        shown = [service.status(record) for record in records[: chosen.limit]]
        return forms.TaskPage(tasks=shown, next=shown[-1].task if len(records) > chosen.limit else None).answer()

    @app.get("/api/tasks/{number}", response_model=Status, responses=refusals(404), tags=["tasks"])
    async def status(number: Number) -> Response:
        """What has become of a task."""
        return service.status(found(number)).answer()

    @app.delete("/api/tasks/{number}", response_model=Status, responses=refusals(404, 409), tags=["tasks"])
    async def remove(number: Number, unfinished: bool = False) -> Response:
        """End an unfinished task, at once or, if a server works on it, at its next step; remove a finished one, or
        with `unfinished` refuse that."""
        record = found(number)
        if not record.final:
            return service.status(await system.cancel(number)).answer()
        if unfinished:
            raise HTTPException(409, f"task {number} has ended: it is {record.state}")
        await system.archive.remove(number)
        service.events.tell("removed", lambda: f'{{"task":{number}}}', number, last=True)
        return service.status(record).model_copy(update={"state": "removed", "image": None}).answer()

    @app.get("/api/tasks/{number}/image", response_class=Response, responses=IMAGE | refusals(404, 410), tags=["tasks"])
    async def image(number: Number, request: Request) -> Response:
        """The image of a task that is done, as PNG, with its settings in its text chunks."""
        content = await service.image_of(found(number))
        return unchanged(request, content, "image/png", "private, no-cache")

    @app.get("/api/tasks/{number}/events", include_in_schema=False)
    async def task_events(number: Number) -> Response:
        record = found(number)
        return stream(events.follow(number, lambda: [events.hello(), service.event_of(system.find(number) or record)]))

    @app.get("/api/events", include_in_schema=False)
    async def all_events(last: Annotated[str, Header(alias="Last-Event-ID")] = "") -> Response:
        return stream(events.follow(None, lambda: events.since(last)))

    @app.get("/api/cluster", response_model=forms.ClusterStatus, tags=["service"])
    async def cluster() -> Response:
        """The servers and their queues."""
        return service.cluster_status().answer()

    @app.get("/api/model", response_model=forms.ModelStatus, tags=["service"])
    async def model_status() -> Response:
        """What makes the images, and what may be asked of it."""
        return service.model_status().answer()

    @app.get("/healthz", response_model=forms.Health, openapi_extra={"security": []}, tags=["service"])
    async def healthz() -> Response:
        """Whether requests are answered."""
        return forms.Health().answer()

    @app.get("/readyz", response_model=forms.Health, openapi_extra={"security": []}, tags=["service"])
    async def readyz() -> Response:
        """Whether tasks are accepted and made."""
        if system.trouble or not any(server.up for server in system.cluster.servers):
            raise unavailable(system.trouble or "no edge server is up")
        return forms.Health().answer()

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    add_openai(app, service, wishes, links, answers)
    add_page(app)

    @app.exception_handler(OSError)
    async def unwritten(request: Request, error: OSError) -> Response:
        """Nothing was accepted or changed, because of the disk."""
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503
        words = f"images or the record cannot be written or read ({error.strerror})"
        return refusal(request.scope["bare"], status, words, headers=forms.RETRY)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        """What was refused in words already."""
        headers = dict(error.headers or {})
        if error.status_code == 405:  # a path may have several routes, each with a method
            here = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = {method for route in here for method in getattr(route, "methods", ())}
            headers |= {"Allow": ", ".join(sorted(methods))} if methods else {}
        code = getattr(error, "code", "")
        return refusal(request.scope["bare"], error.status_code, error.detail, headers=headers, code=code)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """Which fields are wrong and why."""
        problems = [told(problem) for problem in error.errors()[:5]]
        message = "; ".join(f"{name}: {words}" for name, words in problems)
        openai = request.scope["bare"].startswith("/v1/")
        return refusal(request.scope["bare"], 400 if openai else 422, message, param=problems[0][0])

    @app.exception_handler(Exception)
    async def mistaken(request: Request, error: Exception) -> Response:
        """A mistake of this program's own."""
        traceback.print_exception(error)
        return refusal(request.scope["bare"], 500, "a mistake of the service's own; what it printed says more")

    schema = app.openapi()  # made once, and kept; the gate sees to the token
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"token": []}] if token_hash else [{}, {"token": []}]
    log = system.folder / "access.log" if config.access_log else None
    return Gate(app, config, token_hash, log, service.metrics, links.allow)


def refusals(*statuses: int) -> dict[int, Any]:
    """How a path may refuse, besides what all do."""
    words = {
        404: "no such task, or not yet",
        409: "the key came with another request, or the task has ended",
        410: "its image was removed",
    }
    return {status: {"model": Problem, "description": words[status]} for status in statuses}


def told(problem: dict[str, Any]) -> tuple[str, str]:
    """The field that is wrong, and why, as text that can be sent."""
    words, name = problem["msg"].removeprefix("Value error, "), ".".join(str(part)[:50] for part in problem["loc"][1:])
    if problem["type"] == "json_invalid":
        words, name = f"must be JSON ({problem['ctx']['error']} at character {problem['loc'][1]})", ""
    elif problem["type"] == "model_attributes_type":
        words = "must be a JSON object, sent with the header Content-Type: application/json"
    return (name or "body").encode(errors="replace").decode(), words.encode(errors="replace").decode()


def stream(lines: AsyncIterator[bytes]) -> Response:
    """An answer that goes on, and that proxies shall not hold back."""
    return StreamingResponse(
        lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type="text/event-stream"
    )


def unchanged(request: Request, content: bytes, kind: str, cache: str, more: dict[str, str] | None = None) -> Response:
    """Content, or that the asker has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": cache, "X-Content-Type-Options": "nosniff"} | (more or {})
    if tag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(content, 200, headers, kind)


def add_page(app: FastAPI) -> None:
    """The page at / and its files at /static/NAME, as they are now."""
    files = {file.name: file.read_bytes() for file in PAGE.glob("*.*")}
    files.setdefault("index.html", b"The page's files are missing; the API is at /docs.")

    @app.get("/", include_in_schema=False)
    @app.get("/static/{name}", include_in_schema=False)
    async def page(request: Request, name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return unchanged(request, files[name], kind, "no-cache", {"Content-Security-Policy": POLICY})


async def serve(options: RunOptions, model: Model, system: EdgeSystem, listener: socket.socket) -> None:
    """Take up what an earlier process left, then answer requests at a bound socket until cancelled."""
    service = Service(options.config, model, system)
    if left := system.recall():
        print(f"going on with {left} tasks of an earlier start")
    app = create_app(service)
    for work in (service.tell_of_servers(), service.delete_old_images()):
        system.cluster.spawn(work)
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    listener.listen(2048)  # from here on requests wait for their answers
    print(f"listening on {url}; its API is at {url}/docs", flush=True)
    answering = asyncio.ensure_future(listen(app, listener, options.config))
    try:
        await asyncio.shield(answering)
    finally:
        service.stopping.set()
        service.events.close()
        answering.cancel()
        await asyncio.wait([answering])
        app.close()

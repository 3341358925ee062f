"""A small stand-in for the edge service: its API for the web page, with tasks that go on when a test says so.

It keeps the page's requests, ends and starts again on the same port, and sends what a test wants to see. Start reading
at `PageService`.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parents[1] / "dedgeai/page"
PICTURE = Path(__file__).parent / "data/two_blue_rockets.png"
POLICY = "default-src 'self'; img-src 'self' blob: data:"
FINAL = ("done", "failed", "cancelled")
LIMITS = {"max_prompt": 1000, "max_steps": 50, "max_images": 4, "max_side": 128, "max_queued": 1000}
MODEL = {
    "id": "pocket",
    "name": "Pocket model",
    "width": 64,
    "height": 64,
    "default_steps": 14,
    "cfg_scale": 4.5,
    "negative_prompt": "",
    "limits": LIMITS,
    "examples": ["two blue apples", "a green umbrella on a yellow background", "dog face"],
    "words": "It draws emoji of 64 x 64 pixels: a name, with a colour, a background, a count, a size or a side.",
}


class PageService:
    """The stand-in. `task` and `set` make and change tasks; every change is told to the page as an event."""

    def __init__(self, token: str = "", prefix: str = "") -> None:
        self.token, self.prefix, self.model = token, prefix, dict(MODEL)
        self.tasks: dict[int, dict[str, Any]] = {}
        self.removed: set[int] = set()
        self.keys: dict[str, list[int]] = {}
        self.requests: list[str] = []  # METHOD /path of each
        self.images_now = self.images_most = 0  # image requests at a time
        self.slow = 0.0  # s that each answer of the API takes longer
        self.refuse: tuple[int, str] | None = None  # status and detail of every answer to a new order
        self.drop = False  # whether the answer to a new order is lost on its way
        self.cluster: dict[str, Any] = {"scheduler": "lad_ts", "trouble": "", "servers": []}
        self.boots, self.port = itertools.count(1), 0
        self.start()

    # process

    def start(self) -> None:
        """Listen, as a new start of the service would: with its tasks, and with no memory of events."""
        self.boot, self.ring, self.streams = f"boot-{next(self.boots)}", [], set()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{self.prefix}/"
        server = uvicorn.Server(uvicorn.Config(self.app(), log_level="critical", lifespan="off", ws="none"))
        self.server, started = server, threading.Event()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self.loop.call_soon(started.set)
            await server.serve([self.listener])

        self.thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self.thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        """Break all connections off, as a killed process does."""
        self.server.should_exit = self.server.force_exit = True
        self.loop.call_soon_threadsafe(lambda: [stream.put_nowait(None) for stream in self.streams])
        self.thread.join(10)
        self.listener.close()

    # tasks, from the test's thread

    def task(self, prompt: str = "a red apple", **more: Any) -> int:
        """A new task, with what a test wants of its status. Returns its number."""
        number = max([*self.tasks, *self.removed], default=-1) + 1
        status = {
            "task": number, "state": "waiting", "prompt": prompt, "negative_prompt": "", "steps": 14, "step": 0,
            "seed": number, "width": 64, "height": 64, "cfg_scale": 4.5, "base_station": 0, "user": "",
            "request": number, "edge_server": None, "ahead": None, "estimated_s": None, "cancelling": False,
            "accepted_at": "2025-05-04T10:20:30Z", "finished_at": None, "queueing_s": None, "delay_s": None,
            "image": None, "error": None,
        }  # fmt: skip
        self.tasks[number] = status
        self.set(number, **more)
        return number

    def set(self, number: int, **more: Any) -> None:
        """Change a task's status, and tell the page."""
        status = self.tasks[number]
        status.update(more)
        if status["state"] == "done":
            done = {"edge_server": 0, "delay_s": 1.25, "queueing_s": 0.5, "step": status["steps"]}
            done["image"] = f"{self.prefix}/api/tasks/{number}/image"
            status.update({name: value for name, value in done.items() if name not in more})
        self.tell("task", status)

    def tell(self, kind: str, data: Any) -> None:
        """Send an event to every page."""
        event = f"event: {kind}\r\nid: {self.boot}-{len(self.ring) + 1}\r\ndata: {json.dumps(data)}\r\n\r\n"
        self.ring.append(event)
        self.loop.call_soon_threadsafe(lambda: [stream.put_nowait(event) for stream in self.streams])

    def asked(self, part: str) -> int:
        """How many requests' METHOD /path had this in it."""
        return sum(part in request for request in self.requests)

    # answers

    def app(self) -> Starlette:
        api = [
            Route("/api/model", lambda _: JSONResponse(self.model)),
            Route("/api/cluster", lambda _: JSONResponse(self.state())),
            Route("/api/events", self.events),
            Route("/api/tasks", self.page),
            Route("/api/tasks", self.submit, methods=["POST"]),
            Route("/api/tasks/{task:int}", self.one, methods=["GET", "DELETE"]),
            Route("/api/tasks/{task:int}/image", self.image),
            Route("/", lambda _: FileResponse(PAGE / "index.html")),
            Mount("/static", StaticFiles(directory=PAGE)),
        ]
        inner = Starlette(routes=[Mount(self.prefix, routes=api)] if self.prefix else api)

        async def gate(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope)
            self.requests.append(f"{request.method} {request.url.path}")

            async def guarded(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"content-security-policy", POLICY.encode()))
                await send(message)

            given = request.headers.get("authorization", "").encode("latin-1")
            if "/api/" in scope["path"]:
                await asyncio.sleep(self.slow)
                if self.token and given != f"Bearer {self.token}".encode():
                    return await JSONResponse({"detail": "a token is needed"}, 401)(scope, receive, guarded)
            await inner(scope, receive, guarded)

        return gate

    def state(self) -> dict[str, Any]:
        states = [status["state"] for status in self.tasks.values()]
        counts = {state: states.count(state) for state in FINAL}
        return self.cluster | counts | {"unfinished": len(states) - sum(counts.values())}

    async def events(self, request: Request) -> Response:
        boot, _, number = request.headers.get("last-event-id", "").rpartition("-")
        stream: asyncio.Queue[str | None] = asyncio.Queue()
        missed = self.ring[int(number) :] if boot == self.boot else []
        first = [f"event: hello\r\nid: {self.boot}-{len(self.ring)}\r\ndata: {{}}\r\n\r\n", *missed]
        if boot not in ("", self.boot):
            first.insert(1, f"event: reset\r\nid: {self.boot}-{len(self.ring)}\r\ndata: {{}}\r\n\r\n")
        self.streams.add(stream)

        async def chunks() -> AsyncIterator[str]:
            with contextlib.suppress(asyncio.CancelledError):
                for event in first:
                    yield event
                while (event := await stream.get()) is not None:
                    half = len(event) // 2  # a network cuts where it likes
                    yield event[:half]
                    yield event[half:]
            self.streams.discard(stream)

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def page(self, request: Request) -> Response:
        limit, before = int(request.query_params["limit"]), int(request.query_params.get("before", 1 << 60))
        state = request.query_params.get("state")
        found = [status for number, status in sorted(self.tasks.items(), reverse=True) if number < before]
        if state:
            found = [status for status in found if (state == "finished") == (status["state"] in FINAL)]
        following = found[limit - 1]["task"] if len(found) > limit else None
        return JSONResponse({"tasks": found[:limit], "next": following})

    async def submit(self, request: Request) -> Response:
        order, key = await request.json(), request.headers["idempotency-key"]
        if self.refuse:
            return JSONResponse({"detail": self.refuse[1]}, self.refuse[0])
        if key not in self.keys:
            seed, images = order.pop("seed", 1000), order.pop("images", 1)
            self.keys[key] = [self.task(**order, seed=seed + k) for k in range(images)]
        if self.drop:
            raise ConnectionError("the answer is lost")
        return JSONResponse(self.tasks[self.keys[key][0]] | {"tasks": self.keys[key]}, 202)

    async def one(self, request: Request) -> Response:
        number = request.path_params["task"]
        if number not in self.tasks:
            return JSONResponse({"detail": f"no task {number}"}, 404)
        if request.method == "DELETE" and self.tasks[number]["state"] in FINAL:
            self.removed.add(number)
            self.tell("removed", {"task": number})
            return JSONResponse(self.tasks.pop(number) | {"state": "removed"})
        if request.method == "DELETE":
            running = self.tasks[number]["state"] == "running"
            self.set(number, **({"cancelling": True} if running else {"state": "cancelled", "ahead": None}))
        return JSONResponse(self.tasks[number])

    async def image(self, request: Request) -> Response:
        self.images_now += 1
        self.images_most = max(self.images_most, self.images_now)
        try:
            await asyncio.sleep(0.02)
            status = self.tasks.get(request.path_params["task"], {"prompt": "gone"})
            if status["prompt"] == "gone":
                return JSONResponse({"detail": "its file was deleted"}, 410)
            return FileResponse(status.get("file") or PICTURE)
        finally:
            self.images_now -= 1

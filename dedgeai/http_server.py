"""HTTP without the application: a socket, a server that leaves signals alone, and a limit on what is sent to it."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from common.parameters import ParameterError


class BodyLimit:
    """Refuses bodies of more than `most` bytes, told or sent."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        told = dict(scope["headers"]).get(b"content-length", b"0")
        too_much = not told.isdigit() or int(told[:12]) > self.most
        while more and not too_much:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more, too_much = message.get("more_body", False), len(body) > self.most
        if too_much:
            refusal = JSONResponse({"detail": f"the body must have at most {self.most} bytes"}, 413)
            await refusal(scope, receive, send)
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: Ctrl-C is the run's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ParameterError when it cannot be had."""
    try:
        # The protocol is named, because asyncio sends small packets at once only where it is; else each answer
        # waits 40 ms for an acknowledgement.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError("port", port, f"must be free on --host={host} ({reason})") from None
    return listener


async def listen(app: FastAPI, listener: socket.socket) -> None:
    """Answer until cancelled."""
    server = HttpServer(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.shield(task)
    finally:
        server.should_exit = True
        await task

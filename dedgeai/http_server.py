"""HTTP without the application: a socket, limits on connections, and a server that leaves signals alone.

Start reading at `Connection`.
"""

import asyncio
import functools
import resource
import socket
from asyncio import TimerHandle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.parameters import ParameterError
from dedgeai.configuration import ServiceParameters

HEAD_BYTES = 65_536  # most of a request before its body
RESERVE = 200  # open files for everything but connections
IDLE_SECONDS = 65  # s for which a connection waits for its next request; more than proxies' 60
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """uvicorn's connection, whose requests must arrive whole within `seconds`.

    `arriving` holds all connections from which a request is awaited, the oldest first, with the ends of their time. One
    connection more than `most` closes the oldest of them.
    """

    def __init__(self, *, most: int, seconds: float, arriving: dict["Connection", TimerHandle], **given: Any) -> None:
        super().__init__(**given)
        self.most, self.seconds, self.arriving = most, seconds, arriving
        self.head: int | None = 0  # bytes so far; None after a request's head

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            next(iter(self.arriving), self).transport.abort()
        self.expect()

    def expect(self) -> None:
        """From now on a request must come."""
        self.head = 0
        self.arrived()
        self.arriving[self] = self.loop.call_later(self.seconds, self.refuse, LATE)

    def arrived(self) -> None:
        """The request is there, or none will come."""
        if timer := self.arriving.pop(self, None):
            timer.cancel()

    def refuse(self, answer: bytes) -> None:
        """Answer, unless an answer is under way, and close."""
        self.arrived()
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(answer)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.head is not None:
            self.head += len(data)
        super().data_received(data)
        if self.head is not None and self.head > HEAD_BYTES:
            self.refuse(LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self not in self.arriving:
            self.expect()

    def on_headers_complete(self) -> None:
        self.head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.arrived()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrived()
        super().connection_lost(exc)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: Ctrl-C is the run's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises ParameterError when it cannot be had."""
    try:
        # The protocol is named, because asyncio sends small packets at once only where it is; else each answer
        # waits 40 ms for an acknowledgement.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError("port", port, f"must be free on --host={host} ({reason})") from None
    return listener


def most_connections(config: ServiceParameters) -> int:
    """How many connections there may be, by the limits of the service and of its process, which are raised."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.max_connections + RESERVE
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    most = max(10, files - RESERVE)
    if most < config.max_connections:
        print(f"at most {most} connections, since this process may have {hard} files open")
    return most


async def listen(app: Any, listener: socket.socket, config: ServiceParameters) -> None:
    """Answer until cancelled."""
    arriving: dict[Connection, TimerHandle] = {}
    protocol = functools.partial(
        Connection, most=most_connections(config), seconds=config.request_seconds, arriving=arriving
    )
    server = HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            log_level="critical",
            lifespan="off",
            backlog=2048,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=2,
        )
    )
    listener.listen(2048)
    task = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.shield(task)
    finally:
        server.should_exit = True
        await task

"""HTTP without the application: a socket, limits on connections, and a server that leaves signals alone.

Start reading at `Connection`.
"""

import asyncio
import contextlib
import functools
import json
import math
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common.parameters import ParameterError
from dedgeai.configuration import ServiceParameters

HEAD_BYTES = 65_536  # most of a request before its body
RESERVE = 200  # open files for everything but connections
BURST, QUEUE = 100, 2048  # connections that are taken at once, and that the system keeps for us meanwhile
IDLE_SECONDS = 65.0  # s for which a connection waits for its next request; more than proxies' 60
STUCK_SECONDS = 65.0  # s after which a client that takes nothing of its answer is given up
LINGER_SECONDS = 2.0  # s in which a client that still sends may read why it is refused
CHECK_TICKS = 5  # tenths of a second between looks at these times
UPGRADE = re.compile(rb"\nupgrade:", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a limit to all that its client may leave undone.

    `awaited` holds all connections whose clients shall send something, the first request, the rest of one or the next,
    those first that let wait longest. One connection more than `most` closes the first of them. A request must arrive
    whole within `seconds`. uvicorn takes the connection for its transport, so that `close` is ours.
    """

    def __init__(self, *, most: int, seconds: float, awaited: dict["Connection", None], **given: Any) -> None:
        super().__init__(**given)
        self.most, self.seconds, self.awaited = most, seconds, awaited
        self.due = math.inf  # when what is awaited must have come
        self.head: int | None = 0  # bytes so far of a request's head; None after it
        self.idle = self.ending = False  # it waits for the next request; what still comes is thrown away
        self.unsent, self.unsent_since = 0, 0.0  # bytes that the client has not taken

    # --- what uvicorn takes for its transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.wire, self.write, self.transport = transport, transport.write, self
        self.expect(self.seconds)
        if len(self.connections) > self.most:
            oldest = next(iter(self.awaited))
            oldest.arrived()
            oldest.wire.abort()

    def is_closing(self) -> bool:
        return self.ending or self.wire.is_closing()

    def close(self) -> None:
        """Close, but let a client that is still sending read its answer first: else the network throws it away."""
        if self not in self.awaited or self.is_closing():
            self.wire.close()
            return
        self.ending = True
        self.expect(LINGER_SECONDS)
        self.flow.resume_reading()
        with contextlib.suppress(OSError):  # it has gone
            self.wire.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrived()
        super().connection_lost(exc)
        self.transport, self.cycle = self.wire, None  # no circle of references stays

    # --- what is awaited, and until when ---

    def expect(self, seconds: float, idle: bool = False) -> None:
        """The client has so long to send something; `idle`: the first byte of its next request."""
        self.arrived()
        self.awaited[self], self.due, self.idle = None, self.loop.time() + seconds, idle

    def arrived(self) -> None:
        """Nothing is awaited any more."""
        self.awaited.pop(self, None)
        self.due = math.inf

    def check(self, now: float) -> None:
        """See whether the client has let too much time pass."""
        unsent = self.wire.get_write_buffer_size()
        if unsent == 0 or unsent != self.unsent:
            self.unsent, self.unsent_since = unsent, now
        elif now - self.unsent_since > STUCK_SECONDS:
            self.wire.abort()
        if now > self.due and (self.idle or self.ending):
            self.wire.close()
        elif now > self.due:
            self.refuse(408, f"the request did not arrive within {self.seconds:g} s")
            self.wire.close()

    def refuse(self, status: int, words: str) -> None:
        """Answer, unless an answer is under way, and close."""
        if self.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not (self.cycle.response_started or self.pipeline):
            body = json.dumps({"detail": words}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.write(STATUS_LINE[status] + head.encode() + body)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.expect(LINGER_SECONDS)
        self.close()

    def send_400_response(self, msg: str) -> None:
        if (self.head or 0) <= HEAD_BYTES:
            self.refuse(400, "this is no HTTP request that is understood here")

    def shutdown(self) -> None:
        if self in self.awaited:
            self.wire.close()
        else:
            super().shutdown()

    # --- a request comes ---

    def data_received(self, data: bytes) -> None:
        if self.ending:
            return
        if self.head is not None:
            self.head += len(data)
            if UPGRADE.search(data):  # to a protocol that is not spoken here: as if it did not say so
                head, end, rest = data.partition(b"\r\n\r\n")
                data = UPGRADE.sub(b"\nignored:", head) + end + rest
        super().data_received(data)
        if self.head is not None and self.head > HEAD_BYTES:
            self.refuse(431, f"what comes before the body must have at most {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head = self.head or 0
        self.expect(self.seconds)

    def on_headers_complete(self) -> None:
        if self.head > HEAD_BYTES:  # or the body's begin came with it
            self.head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if self.head > HEAD_BYTES:
                raise ValueError("the head is too long")  # which ends the parsing
        self.head = None
        super().on_headers_complete()
        self.cycle.keep_alive &= not self.parser.should_upgrade()

    def on_message_complete(self) -> None:
        self.arrived()
        super().on_message_complete()
        if self.cycle.response_complete:
            self.wait()

    def on_response_complete(self) -> None:
        if self.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self not in self.awaited:
            self.wait()

    def wait(self) -> None:
        """For the next request."""
        self.head = 0
        self.expect(IDLE_SECONDS, idle=True)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, since Ctrl-C is the run's, and with a look at its connections."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer at these sockets."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUE)

    async def on_tick(self, counter: int) -> bool:
        """End what has taken too long."""
        if counter % CHECK_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in [*self.server_state.connections]:
                connection.check(now)
        return await super().on_tick(counter)


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
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    spare = hard - RESERVE - len([*Path("/dev/fd").iterdir()])  # which are open
    most = config.max_connections if hard == resource.RLIM_INFINITY else max(10, min(config.max_connections, spare))
    if most < config.max_connections:
        print(f"at most {most} connections, since this process may have {hard} files open")
    return most


async def listen(app: Any, listener: socket.socket, config: ServiceParameters) -> None:
    """Answer until cancelled."""
    awaited: dict[Connection, None] = {}
    protocol = functools.partial(
        Connection, most=most_connections(config), seconds=config.request_seconds, awaited=awaited
    )
    server = HttpServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="critical",
            lifespan="off",
            backlog=BURST,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    task = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.shield(task)
    finally:
        server.should_exit = True
        await task

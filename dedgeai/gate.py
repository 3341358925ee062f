"""What stands between the network and the application: who may ask for what, and what is noted of each request.

A request is refused here before a byte of its body is read. The path that is judged is the path that the application
routes. Start reading at `Gate.__call__`.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import logging.handlers
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.middleware.cors import CORSMiddleware

from dedgeai.configuration import LOOPBACK, ServiceParameters
from dedgeai.http_server import body_bytes
from dedgeai.metrics import Metrics

OPEN = re.compile(r"/|/static/[^/]*|/docs(/.*)?|/openapi\.json|/healthz|/readyz")  # paths that need no token
LOG_BYTES, LOG_FILES, LOG_LINES, LOG_SECONDS = 10_000_000, 5, 100_000, 1.0  # lines: of those not written yet
LOG_TEXT = 2000  # most bytes of a header that are kept
GONE = 499  # in log and metrics, for requests whose clients went away before an answer
ADDRESS = re.compile(r"[\w.:%-]{1,100}", re.ASCII)
SECRET = re.compile(r"(signature|token)=", re.IGNORECASE)
CODES = {400: "invalid_request", 401: "invalid_api_key", 404: "not_found", 503: "overloaded"}
App = Callable[[dict[str, Any], Any, Any], Any]


def refusal(
    path: str,
    status: int,
    message: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    code: str = "",
) -> Response:
    """An answer that says why not: in OpenAI's form to those who use its API, else as {"detail": ...}."""
    if not path.startswith("/v1/"):
        return JSONResponse({"detail": message}, status, headers)
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}
    return JSONResponse({"error": error}, status, headers)


class AccessLog:
    """A line for each request in Apache's combined form, with its seconds at the end; written once a second."""

    def __init__(self, path: Path) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.file = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8", errors="replace", delay=True
        )
        self.file.handleError = lambda record: None  # a log that cannot be written stops nothing

    def note(self, scope: dict[str, Any], status: int, sent: int, seconds: float) -> None:
        """Keep a request's line until it is written."""
        if not self.lines:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self.flush)
            self.when = time.strftime("%d/%b/%Y:%H:%M:%S %z")
        headers, query = dict(scope["headers"]), scope["query_string"]
        asked = b"%s %s HTTP/%s" % (
            scope["method"].encode(),
            scope["raw_path"] + (b"?" if query else b"") + query,
            scope["http_version"].encode(),
        )
        request, referer, agent = (
            json.dumps(masked(text[:LOG_TEXT].decode("latin-1")))
            for text in (asked, headers.get(b"referer", b"-"), headers.get(b"user-agent", b"-"))
        )
        who = (scope["client"] or ["-"])[0]  # a proxy may say anything
        who = who if ADDRESS.fullmatch(who) else "-"
        self.lines.append(f"{who} - - [{self.when}] {request} {status} {sent} {referer} {agent} {seconds:.4f}")

    def flush(self) -> None:
        """Have a thread write what has come."""
        asyncio.get_running_loop().run_in_executor(None, self.write)

    def write(self) -> None:
        """Write what has come, to the file that has the log's name now."""
        if lines := [self.lines.popleft() for _ in range(len(self.lines))]:
            self.file.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))
            with contextlib.suppress(OSError):  # what a full disk did not take
                self.file.close()


class Gate:
    """An application behind its checks. `signed` says of a request without the token whether its address will do."""

    def __init__(
        self,
        app: App,
        config: ServiceParameters,
        token_hash: str | None,
        log: Path | None,
        metrics: Metrics | None,
        signed: Callable[[dict[str, Any]], bool],
    ) -> None:
        self.app, self.token_hash, self.signed, self.metrics = app, token_hash, signed, metrics
        self.root, self.log = config.root_path, AccessLog(log) if log else None
        self.most = body_bytes(config)
        named = config.allowed_hosts or (",".join(LOOPBACK) if config.host in LOOPBACK else "*")
        self.hosts = {host_name(text.strip()) for text in named.split(",")} - {""}
        self.below = tuple(name[1:] for name in self.hosts if name.startswith("*."))
        self.inner: App = self.authorised
        if config.cors:
            origins = [origin.strip().rstrip("/") for origin in config.cors.split(",")]
            exposed = ["Retry-After", "Idempotent-Replay", "ETag"]
            methods = ["GET", "HEAD", "POST", "DELETE"]
            self.inner = CORSMiddleware(
                self.inner, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=exposed
            )

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, and note what it was and how it ended."""
        began, status, sent = time.perf_counter(), GONE, 0
        whole, path = scope, scope["path"]
        bare = path[len(self.root) :] if self.root and f"{path}/".startswith(f"{self.root}/") else path
        scope = {**scope, "root_path": self.root, "path": self.root + bare, "bare": bare}

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            if not self.serves(scope):
                words = "the header Host names another service, or none or several (see --allowed_hosts)"
                await refusal(bare, 400, words)(scope, receive, noted)
            elif self.root and not bare:
                await RedirectResponse(f"{self.root}/", 308)(scope, receive, noted)
            elif scope["method"] == "HEAD":
                scope["method"] = "GET"
                await self.head(scope, noted)
            else:
                await self.inner(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            if self.log:
                self.log.note(whole, status, sent, seconds)
            if self.metrics:
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.request(whole["method"], route, status, seconds)

    def close(self) -> None:
        """Write what is left of the access log."""
        if self.log:
            self.log.write()

    def serves(self, scope: dict[str, Any]) -> bool:
        """Whether the Host header names this service; before HTTP/1.1 there may be none."""
        given = [value.decode("latin-1") for header, value in scope["headers"] if header == b"host"]
        if len(given) != 1:
            return not given and scope["http_version"] == "1.0"
        name = host_name(given[0])
        return "*" in self.hosts or name in self.hosts or name.endswith(self.below)

    async def head(self, scope: dict[str, Any], send: Any) -> None:
        """Answer as to a GET, without the body; streams end at once."""
        begun, body = asyncio.Event(), [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def bare(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        await self.inner(scope, receive, bare)

    async def authorised(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let a request through that has the token, where it needs one, and its body, if that is not too long."""
        path, headers = scope["bare"], dict(scope["headers"])
        if self.token_hash and not OPEN.fullmatch(path) and not self.signed(scope):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = hashlib.sha256(given.strip()).hexdigest()
            if kind.lower() != b"bearer" or not secrets.compare_digest(known, self.token_hash):
                words = "a request needs the header 'Authorization: Bearer TOKEN' with the token of this service"
                needs = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                await refusal(path, 401, words, headers=needs)(scope, receive, send)
                return
        length, body = int(headers.get(b"content-length", 0)), bytearray()
        more = length > 0 or b"transfer-encoding" in headers
        while more and max(length, len(body)) <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        if more or len(body) > self.most:
            words = f"the body must have at most {self.most} bytes"
            await refusal(path, 413, words, headers={"Connection": "close"})(scope, receive, send)
            return
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay if body else receive, send)


def masked(text: str) -> str:
    """A text for the log, without the query of a URL that may hold a secret."""
    if not SECRET.search(unquote(text)):
        return text
    address, _, rest = text.partition("?")
    return f"{address}?-{rest[rest.rfind(' ') :] if ' ' in rest else ''}"


def host_name(text: str) -> str:
    """The name in a Host header, or the address without brackets; without port."""
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*)(:\d*)?", text.lower())
    return found[1].strip("[]").removesuffix(".") if found else text

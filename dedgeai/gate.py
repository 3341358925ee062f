"""What stands between the network and the application: who may ask for what, and what is noted of each request.

A request is refused here before a byte of its body is read. The path that is judged is the path that the application
routes. Start reading at `Gate.__call__`.
"""

import asyncio
import functools
import hashlib
import json
import logging
import logging.handlers
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.middleware.cors import CORSMiddleware

from dedgeai.configuration import LOOPBACK, ServiceParameters
from dedgeai.metrics import Metrics

BODY_BYTES = 65_536  # of a request without its prompts
OPEN = re.compile(r"/|/static/[^/]*|/docs(/.*)?|/openapi\.json|/healthz|/readyz")  # paths that need no token
LOG_BYTES, LOG_FILES, LOG_SECONDS = 10_000_000, 5, 1.0
SECRET = re.compile(r"(signature=)[^&]*", re.IGNORECASE)
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
        self.path, self.lines = path, []
        self.file = logging.handlers.RotatingFileHandler(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8", errors="replace", delay=True
        )
        self.file.handleError = lambda record: None  # a log that cannot be written stops nothing

    def note(self, scope: dict[str, Any], status: int, sent: int, seconds: float) -> None:
        """Keep a request's line until it is written."""
        headers = dict(scope["headers"])
        query = scope["query_string"].decode("latin-1")
        asked = scope["raw_path"].decode("latin-1") + ("?" if query else "") + SECRET.sub(r"\1-", query)
        who, when = (scope["client"] or ["-"])[0], time.strftime("%d/%b/%Y:%H:%M:%S %z")
        quoted = [
            json.dumps(text)
            for text in (
                f"{scope['method']} {asked} HTTP/{scope['http_version']}",
                headers.get(b"referer", b"-").decode("latin-1"),
                headers.get(b"user-agent", b"-").decode("latin-1"),
            )
        ]
        if not self.lines:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self.flush)
        self.lines.append(f"{who} - - [{when}] {quoted[0]} {status} {sent} {quoted[1]} {quoted[2]} {seconds:.4f}")

    def flush(self) -> None:
        """Have a thread write what has come."""
        lines, self.lines = self.lines, []
        asyncio.get_running_loop().run_in_executor(None, self.write, lines)

    def write(self, lines: list[str]) -> None:
        """Write lines; to a new file where somebody removed the old one."""
        if not self.path.exists():
            self.file.close()
        self.file.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))


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
        self.most = BODY_BYTES + 16 * config.max_prompt
        named = config.allowed_hosts or (",".join(LOOPBACK) if config.host in LOOPBACK else "*")
        self.hosts = [name.strip().lower() for name in named.split(",")]
        self.served = functools.lru_cache(1000)(self.serves)
        inner: App = self.authorised
        if config.cors:
            origins = [origin.strip() for origin in config.cors.split(",")]
            exposed = ["Retry-After", "Idempotent-Replay", "ETag"]
            methods = ["GET", "HEAD", "POST", "DELETE"]
            inner = CORSMiddleware(
                inner, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=exposed
            )
        self.inner = inner

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, and note what it was and how it ended."""
        if scope["type"] != "http":
            return
        began, status, sent = time.perf_counter(), 0, 0
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
            if not self.served(next((value for name, value in scope["headers"] if name == b"host"), b"")):
                await refusal(bare, 400, "the header Host names another service (see --allowed_hosts)")(
                    scope, receive, noted
                )
            elif self.root and not bare:
                await RedirectResponse(f"{self.root}/", 308)(scope, receive, noted)
            elif scope["method"] == "HEAD":
                await self.head(scope | {"method": "GET"}, noted)
            else:
                await self.inner(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            if self.log:
                self.log.note(whole, status, sent, seconds)
            if self.metrics:
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.request(scope["method"], route, status, seconds)

    def serves(self, host: bytes) -> bool:
        """Whether a Host header names this service."""
        text = host.decode("latin-1").lower()
        name = re.sub(r":\d*$", "", text).strip("[]")
        below = [allowed[1:] for allowed in self.hosts if allowed.startswith("*.")]
        return "*" in self.hosts or name in self.hosts or any(name.endswith(ending) for ending in below)

    async def head(self, scope: dict[str, Any], send: Any) -> None:
        """Answer as to a GET, without the body; streams end at once."""
        begun = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await begun.wait()
            return {"type": "http.disconnect"}

        async def bare(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        await self.inner(scope, receive, bare)

    async def authorised(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Let a request through that has the token, where it needs one, and a body that is not too long."""
        path, headers = scope["bare"], dict(scope["headers"])
        refused = None
        if self.token_hash and not OPEN.fullmatch(path) and not self.signed(scope):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = hashlib.sha256(given.strip()).hexdigest()
            if kind.lower() != b"bearer" or not secrets.compare_digest(known, self.token_hash):
                needs = {"WWW-Authenticate": "Bearer", "Connection": "close"}
                words = "a request needs the header 'Authorization: Bearer TOKEN' with the token of this service"
                refused = refusal(path, 401, words, headers=needs)
        length = headers.get(b"content-length", b"0")
        told = int(length) if length.isdigit() and len(length) < 19 else self.most + 1
        if refused is None and told <= self.most and b"transfer-encoding" in headers:
            receive = await self.read(receive)
        if refused is None and (told > self.most or receive is None):
            words = f"the body must have at most {self.most} bytes"
            refused = refusal(path, 413, words, headers={"Connection": "close"})
        await (refused or self.app)(scope, receive, send)

    async def read(self, receive: Any) -> Any:
        """A body of untold length, read up to the limit: what gives it to the application, or None if it is longer."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                return None
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        return replay


def gate(
    app: App,
    config: ServiceParameters,
    token_hash: str | None,
    log: Path | None,
    metrics: Metrics | None,
    signed: Callable[[dict[str, Any]], bool],
) -> Gate:
    """The application behind its checks."""
    return Gate(app, config, token_hash, log, metrics, signed)

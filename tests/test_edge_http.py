"""HTTP as outsiders misuse it: a toy application behind the gate, at a real socket, and clients that are no good."""

import asyncio
import contextlib
import gc
import hashlib
import json
import re
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from edge_helpers_api import LocalService
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from helpers import make
from prometheus_client.parser import text_string_to_metric_families

from dedgeai import gate as gate_module
from dedgeai import http_server
from dedgeai.configuration import ServiceParameters
from dedgeai.gate import Gate
from dedgeai.http_server import bind, listen
from dedgeai.metrics import Metrics

TOKEN = "sesame"
KEY = f"Authorization: Bearer {TOKEN}\r\n"
CLOSE = "Connection: close\r\n"


def toy() -> FastAPI:
    """An application that notes whom it was asked by."""
    app = FastAPI(redirect_slashes=False)
    app.state.asked = []

    @app.post("/api/echo")
    async def echo(request: Request) -> str:
        app.state.asked.append("echo")
        return (await request.body()).decode()

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/api/things/{number}")
    async def thing(number: int) -> int:
        app.state.asked.append("thing")
        return number

    @app.get("/big")
    async def big() -> str:
        return "x" * 20_000_000

    @app.get("/api/events")
    async def events() -> StreamingResponse:
        async def lines() -> Any:
            while True:
                yield b": nothing new\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(lines(), media_type="text/event-stream")

    return app


class Toy:
    """As a context it answers, in a thread."""

    def __init__(
        self, token: str | None = None, log: Path | None = None, loop: Any = uvloop.new_event_loop, **given: Any
    ):
        self.config, self.log, self.factory = make(ServiceParameters, **given), log, loop
        self.token_hash = token and hashlib.sha256(token.encode()).hexdigest()
        self.app, self.metrics = toy(), Metrics()

    def __enter__(self) -> "Toy":
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        ready = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(ready,))
        self.thread.start()
        assert ready.wait(10)
        return self

    def run(self, ready: threading.Event) -> None:
        """Answer until cancelled."""

        async def story() -> None:
            self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
            self.gate = Gate(self.app, self.config, self.token_hash, self.log, self.metrics, lambda scope: False)
            self.listener.listen(2048)
            self.loop.call_soon(ready.set)
            with contextlib.suppress(asyncio.CancelledError):
                await listen(self.gate, self.listener, self.config)
            self.gate.close()

        with asyncio.Runner(loop_factory=self.factory) as runner:
            runner.run(story())

    def __exit__(self, *_: Any) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def connect(self, raw: bytes | str = b"") -> socket.socket:
        """A client that has sent this."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.sendall(raw if isinstance(raw, bytes) else raw.encode("latin-1"))
        return client

    def ask(self, raw: bytes | str) -> bytes:
        """All that a client hears that sends this and then reads; raises OSError when it is reset."""
        with self.connect(raw) as client:
            return b"".join(iter(lambda: client.recv(65_536), b""))

    def get(self, path: str, more: str = "", method: str = "GET", host: str = "localhost") -> bytes:
        """The answer to a request."""
        return self.ask(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}{CLOSE}\r\n")


def open_files() -> int:
    """How many files this process has open."""
    return len([*Path("/dev/fd").iterdir()])


def asked(service: Toy) -> int:
    """Tasks of the service's loop besides its own two."""
    return len(asyncio.all_tasks(service.loop)) - 2


def wait_for(condition: Callable[[], bool]) -> None:
    """Until something is so."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(answer: bytes) -> int:
    """The one status of an answer."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer[:500]
    return int(answer[9:12])


def detail(answer: bytes) -> str:
    """Why something was refused."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


def post(size: int | str, more: str = "", path: str = "/api/echo") -> str:
    """The head of a POST."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {size}\r\n\r\n"


CHUNKED = "POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def plain() -> Iterator[Toy]:
    """One without a token, at which requests must arrive within 0.5 s."""
    with Toy(request_seconds=0.5) as service:
        yield service


@pytest.fixture(scope="module")
def guarded() -> Iterator[Toy]:
    """One with a token, for pages of a.org."""
    with Toy(TOKEN, cors="https://a.org/, https://b.org") as service:
        yield service


# --- clients that leave something undone ---

HALVES = {
    "nothing": b"",
    "half a head": b"GET /healthz HT",
    "head without its body": post(100).encode(),
    "idle": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "hello of TLS": b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03",
}


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("raw", HALVES.values(), ids=HALVES)
def test_too_many_halves_close_the_oldest_of_them_and_no_other(raw, loop):
    with Toy(max_connections=50, loop=loop) as service:
        assert status(service.get("/healthz")) == 200
        files = open_files()
        streams = [service.connect("GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(5)]
        assert all(stream.recv(20).startswith(b"HTTP/1.1 200") for stream in streams)
        halves = [service.connect() for _ in range(300)]
        for client in halves:
            with contextlib.suppress(ConnectionError):  # it is closed already
                client.sendall(raw)
        assert status(service.get("/healthz")) == 200
        assert open_files() - files - len(halves) - len(streams) <= 50  # the rest are ours
        with contextlib.suppress(ConnectionResetError):
            assert len(list(iter(lambda: halves[0].recv(65_536), b""))) <= 1  # it ends
        assert all(stream.recv(20) for stream in streams)
        for client in (*halves, *streams):
            client.close()
        wait_for(lambda: open_files() <= files and not asked(service))
        assert status(service.get("/healthz")) == 200


def test_the_limit_leaves_files_for_everything_else(monkeypatch, capsys):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    assert 700 < http_server.most_connections(make(ServiceParameters)) <= 1024 - http_server.RESERVE
    assert raised == [(1024, 1024)] and "1024 files" in capsys.readouterr().out
    assert http_server.most_connections(make(ServiceParameters, max_connections=300)) == 300


@pytest.mark.parametrize(
    "raw",
    ["GET /healthz HT", post(100), post(100) + "x" * 50, CHUNKED + "\r\n3\r\nabc\r\n"],
    ids=["half a head", "no body", "half a body", "half a chunked body"],
)
def test_a_request_that_does_not_arrive_is_told_so_and_does_nothing(plain, raw):
    asked = len(plain.app.state.asked)
    began = time.monotonic()
    answer = plain.ask(raw)
    assert 0.4 < time.monotonic() - began < 3 and status(answer) == 408 and "0.5 s" in detail(answer)
    assert len(plain.app.state.asked) == asked


def test_a_byte_now_and_then_does_not_help(plain):
    began = time.monotonic()
    with plain.connect("GET /healthz HTTP/1.1\r\nX: ") as client, contextlib.suppress(OSError):
        client.settimeout(0.1)
        while time.monotonic() - began < 5:
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not client.recv(1000):
                    break
    assert time.monotonic() - began < 3


def test_idle_connections_end_also_those_that_send_empty_lines(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    with Toy() as service, service.connect("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        began, got = time.monotonic(), b""
        client.settimeout(0.1)
        while time.monotonic() - began < 5:
            with contextlib.suppress(TimeoutError):
                more = client.recv(1000)
                got += more
                if not more:
                    break
            client.sendall(b"\r\n")
        assert 0.4 < time.monotonic() - began < 3 and status(got) == 200


def test_who_takes_nothing_of_an_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(http_server, "STUCK_SECONDS", 0.5)
    with Toy() as service, service.connect("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        time.sleep(2)
        with pytest.raises(ConnectionError):
            while client.recv(65_536):
                pass
            raise ConnectionError


def test_the_end_waits_for_answers_but_not_for_clients(plain):
    service = Toy()
    with service:
        clients = [service.connect(raw) for raw in HALVES.values() for _ in range(20)]
        stuck = service.connect("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
    assert time.monotonic() - began < 2
    for client in (*clients, stuck):
        client.close()


# --- bodies and heads that lie ---


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("kind", ["announced", "chunked", "endless"])
def test_too_much_is_refused_and_the_refusal_arrives(kind, token, plain, guarded):
    service, size = (guarded, 5_000_000) if token else (plain, 5_000_000)
    more = KEY if token else ""
    raw = post(size, more) if kind == "announced" else f"{CHUNKED}{more}\r\n{size:x}\r\n"
    raw += "x" * size + ("\r\n0\r\n\r\n" if kind == "chunked" else "")
    answer = service.ask(raw)
    assert status(answer) == 413 and "81536 bytes" in detail(answer) and b"connection: close" in answer.lower()


def test_who_has_no_token_is_refused_before_the_body_comes(guarded):
    for raw in (post(1000), post(5_000_000) + "x" * 5_000_000, CHUNKED + "\r\n", post(5, "Expect: 100-continue\r\n")):
        began = time.monotonic()
        answer = guarded.ask(raw)
        assert status(answer) == 401 and time.monotonic() - began < 2 and b"100 Continue" not in answer
    assert status(guarded.ask(post(5, KEY + CLOSE) + "hello")) == 200


def test_bodies_that_are_whole_arrive(plain):
    assert plain.ask(post(5, CLOSE) + "hello").endswith(b'"hello"')
    assert plain.ask(f"{CHUNKED}{CLOSE}\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n").endswith(b'"hello"')
    for upgrade in ("h2c", "websocket"):  # Java's client asks for the first of these with every first request
        more = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\n"
        answer = plain.ask(post(5, more) + "hello" + post(6, CLOSE) + "\nupgra")
        assert answer.count(b"HTTP/1.1 200") == 2 and b'"hello"' in answer and answer.endswith(b'"\\nupgra"')
    with plain.connect(post(5, f"Expect: 100-continue\r\n{CLOSE}")) as client:
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert b"".join(iter(lambda: client.recv(1000), b"")).endswith(b'"hello"')
    many = plain.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500 + post(2, CLOSE) + "ok")
    assert many.count(b"HTTP/1.1 200") == 501


@pytest.mark.parametrize(
    "raw",
    [
        *(post(size) + "hello" for size in ("-5", "+5", "5, 6", "9" * 30, "0x5", "", "5\r\nContent-Length: 6")),
        f"{CHUNKED}Content-Length: 5\r\n\r\n0\r\n\r\n",
        f"{CHUNKED}\r\nzz\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /\xe9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CONNECT evil.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01" + "x" * 3_000_000,
        "GET / HTTP/1.1\r\nX: " + "x" * 3_000_000,
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 100_000 + "\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_what_is_no_request_is_refused_in_words(plain, raw):
    asked = len(plain.app.state.asked)
    answer = plain.ask(raw)
    assert status(answer) in (400, 431) and detail(answer) and len(plain.app.state.asked) == asked


def test_odd_requests_are_answered(plain):
    for odd in ("X: " + "y" * 60_000 + "\r\n", "a:b\r\n" * 10_000, "X: \xff\r\n"):
        assert status(plain.get("/healthz", odd)) == 200
    assert (
        status(plain.ask("GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
        == 200
    )
    assert plain.ask("GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").endswith(b'"ok"')
    assert {status(plain.get("/healthz", method=method)) for method in ("TRACE", "PROPFIND", "DELETE")} == {405}
    assert {status(plain.get(path)) for path in ("*", "/%00", "/%ff", "//healthz", "/healthz/")} <= {400, 404}


def test_head_is_get_without_the_body(plain):
    for path in ("/healthz", "/api/things/3", "/nothing", "/api/echo", "/api/events"):
        head, _, body = plain.get(path, method="HEAD").partition(b"\r\n\r\n")
        with plain.connect(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
            expected = client.recv(1000).partition(b"\r\n\r\n")[0]
        of = [re.findall(rb"content-(?:length|type)[^\r]*|HTTP[^\r]*", text) for text in (head, expected)]
        assert of[0] == of[1] and body == b""
    assert status(plain.get("/healthz", "Content-Length: 2\r\n", method="HEAD")) == 200
    assert (
        status(plain.ask(f"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n{CLOSE}Content-Length: 2\r\n\r\n{{}}")) == 200
    )


@pytest.mark.parametrize(
    "endless", ["0\r\n" + "a: xxxxxxxxxxxx\r\n" * 200_000, "1;xxxxxxxxxxxxxxxx\r\nx\r\n" * 200_000]
)
def test_what_stands_beside_a_body_is_limited_too(plain, endless):
    head = f"POST /api/echo HTTP/1.1\r\nHost: localhost\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n"
    assert status(plain.ask(head + endless)) == 413


# --- who may ask for what ---


AROUND = """
//T /api/../T /%2e%2e/T /T/ /API/things/3 /%61pi/things/3 /api%2fthings/3 /api;/things/3 /T;/docs /docs/../T
/docs/%2e%2e/T /docs//T /docs%0a/T /static/../T /static/..%2fapi%2fthings%2f3 /static/%2e%2e/T /healthz/../T /T?x=/docs
/T#/docs /images/T /images/images/T /imagesapi/things/3 /images//T /images/docs/../../T http://localhost/T /T"""


@pytest.mark.parametrize("root_path", ["", "/images"])
def test_no_path_leads_around_the_token(root_path):
    with Toy(TOKEN, root_path=root_path) as service:
        for path in AROUND.replace("T", "api/things/3").split():
            assert status(service.get(path)) in (401, 404), path
        assert not service.app.state.asked
        assert status(service.get("/api/things/3", KEY)) == 200


def test_a_token_is_taken_in_its_one_form(guarded):
    asked = len(guarded.app.state.asked)
    for header in (
        "",
        "sesame",
        "Basic sesame",
        "Bearer",
        "Bearer sesam",
        "Bearer sesamee",
        "Bearer Sesame",
        "Bearer \xff",
    ):
        assert status(guarded.get("/api/things/3", f"Authorization: {header}\r\n")) == 401
    assert len(guarded.app.state.asked) == asked
    assert (
        status(guarded.get("/api/things/3", KEY))
        == status(guarded.get("/api/things/3", KEY.replace("Be", "bE")))
        == 200
    )
    assert status(guarded.get("/healthz")) == 200


def test_pages_of_other_origins_can_read_refusals(guarded, plain):
    asks = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,idempotency-key\r\n"
    for origin, allowed in (("https://a.org", True), ("https://b.org", True), ("https://evil.org", False)):
        header = f"Origin: {origin}\r\n"
        flight, refused = guarded.get("/api/echo", header + asks, "OPTIONS"), guarded.get("/api/echo", header)
        told = f"access-control-allow-origin: {origin}".encode()
        assert (told in flight, told in refused) == (allowed, allowed) and status(refused) == 401
        assert status(flight) == (200 if allowed else 400)
    flight = plain.get("/api/echo", "Origin: https://a.org\r\n" + asks, "OPTIONS")
    assert status(flight) == 405 and b"access-control" not in flight


LOCAL = {"localhost": True, "LOCALHOST:80": True, "localhost.": True, "127.0.0.1": True, "[::1]:8000": True}
LOCAL |= {"": False, "evil.org": False, "localhost.evil.org": False, "a@localhost": False, "localhost:80:80": False}
LOCAL |= {"localhost\r\nHost: localhost": False, "localhost, evil.org": False, "127.0.0.1:x": False, "\xff": False}
NAMED = {"a.org": True, "A.org:443": True, "x.b.org": True, "x.y.b.org.": True, "b.org": False, "evilb.org": False}
NAMED |= {"x.a.org": False, "localhost": False, "*.b.org.evil": False, "": False}


@pytest.mark.parametrize(
    ("allowed", "names"), [(None, LOCAL), ("a.org:443, *.b.org,", NAMED), ("*", {"evil.org": True})]
)
def test_the_host_header_names_the_service(allowed, names):
    with Toy(allowed_hosts=allowed) as service:
        assert {name: status(service.get("/healthz", host=name)) for name in names} == {
            name: 200 if good else 400 for name, good in names.items()
        }
        assert status(service.ask("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")) == 400
        assert service.ask("GET /healthz HTTP/1.0\r\n\r\n").endswith(b'"ok"')


def test_below_a_path_with_a_proxy_that_strips_it_or_not():
    with Toy(root_path="/ai/images") as service:
        for path in ("/api/things/3", "/ai/images/api/things/3"):
            assert service.get(path).endswith(b"\r\n3")
        moved = service.get("/ai/images")
        assert status(moved) == 308 and b"location: /ai/images/\r\n" in moved
        for path in ("/ai/imagesapi/things/3", "/ai/images/ai/images/api/things/3", "/ai/api/things/3"):
            assert status(service.get(path)) == 404


# --- what is noted ---

LINE = re.compile(r'(\S+) - - \[[^]]+\] ("(?:[^"\\]|\\.)*") (\d+) (\d+) ("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*") [\d.]+')


def test_every_request_has_its_line_also_the_last(tmp_path):
    with Toy(TOKEN, tmp_path / "access.log") as service:
        service.get("/api/things/3?a=b&sign%61ture=secret&c=d", KEY + "Referer: http://x/?Signature=secret\r\n")
        service.get(
            "/healthz", 'User-Agent: a"b\\ \xe9\t' + "c" * 50_000 + "\r\nX-Forwarded-For: 1.2.3.4 - - [now]\r\n"
        )
        service.get("/api/things/4%0d%0aforged", "X-Forwarded-For: 2001:db8::1\r\n")
        service.connect(post(100, KEY) + "x" * 10).close()
        wait_for(lambda: len(service.gate.log.lines) == 4)
    text = (tmp_path / "access.log").read_text()
    assert "secret" not in text and TOKEN not in text and len(text) < 5000
    lines = [LINE.fullmatch(line).groups() for line in text.splitlines()]
    assert [line[:4] for line in lines] == [
        ("127.0.0.1", '"GET /api/things/3?- HTTP/1.1"', "200", "1"),
        ("-", '"GET /healthz HTTP/1.1"', "200", "4"),
        ("2001:db8::1", '"GET /api/things/4%0d%0aforged HTTP/1.1"', "401", "100"),
        ("127.0.0.1", '"POST /api/echo HTTP/1.1"', "499", "0"),
    ]


def test_a_log_that_is_taken_away_or_full_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(gate_module, "LOG_SECONDS", 0.05)
    monkeypatch.setattr(gate_module, "LOG_BYTES", 2000)
    log = tmp_path / "logs" / "access.log"
    log.parent.mkdir()
    with Toy(log=log) as service:

        def written(path: str) -> bool:
            service.get(path)
            return log.exists() and path in log.read_text()

        wait_for(lambda: written("/one"))
        log.unlink()
        wait_for(lambda: written("/two"))
        log.unlink()
        log.symlink_to("/dev/full")
        assert status(service.get("/three")) == 404
        time.sleep(0.2)
        log.unlink()
        wait_for(lambda: written("/four"))
        for k in range(100):
            service.get(f"/{k}-{'x' * 100}")
            time.sleep(0.01)
        files = sorted(path.name for path in log.parent.iterdir())
        assert files == ["access.log", *(f"access.log.{k}" for k in range(1, 5))]
        assert all(path.stat().st_size < 4000 for path in log.parent.iterdir())
        shutil.rmtree(log.parent)
        assert status(service.get("/five")) == 404
        time.sleep(0.2)
    gc.collect()  # when asyncio tells of what went wrong in threads
    assert not caplog.records


def figures(text: bytes) -> dict[tuple[str, ...], float]:
    """Samples by name and values of labels, as Prometheus's own parser finds them."""
    families = text_string_to_metric_families(text.decode())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_requests_are_counted_by_their_routes_and_nothing_else(plain):
    for k in range(20):
        plain.get(f"/nothing/{k}")
        plain.get(f"/api/things/{k}")
        plain.get(f"/api/things/{k}", method="HEAD")
        plain.get("/healthz", method="PROPFIND")
    counts = dict[tuple[str, ...], float]()

    def counted() -> bool:
        found = figures(plain.metrics.text())
        counts.update({key[1:]: value for key, value in found.items() if key[0] == "dedgeai_http_requests_total"})
        return found["dedgeai_http_request_seconds_count",] == sum(counts.values()) and not asked(plain)

    wait_for(counted)  # after its answer
    assert counts["GET", "/api/things/{number}", "200"] >= 20 <= counts["HEAD", "/api/things/{number}", "200"]
    assert counts["GET", "other", "404"] >= 20 and counts["other", "/healthz", "405"] >= 20 and len(counts) < 25


def test_figures_of_tasks_and_servers_tell_what_happened(tmp_path):
    with LocalService(tmp_path, "sesame", step_seconds=0.02, num_servers=2, attempts=2) as service:
        text = service.client.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=")
        assert figures(text.content)["dedgeai_tasks_total", "failed"] == 0
        for family in text_string_to_metric_families(text.text):
            unit = family.name.endswith(("seconds", "bytes")) or family.type in ("counter", "gauge", "unknown")
            assert re.fullmatch(r"[a-z_]+", family.name) and family.documentation and unit
        assert httpx.get(f"{service.url}/metrics").status_code == 401
        tasks = [service.order(steps=10)["task"] for _ in range(6)]
        service.client.delete(f"/api/tasks/{tasks[-1]}")
        service.call(asyncio.sleep(0.05))
        for server in service.system.cluster.servers:
            service.loop.call_soon_threadsafe(server.handle.die)
        service.settle()
        wait_for(lambda: all(server.up for server in service.system.cluster.servers))
        found = figures(service.client.get("/metrics").content)
        assert [found["dedgeai_tasks_total", state] for state in ("accepted", "done", "failed", "cancelled")] == [
            6,
            5,
            0,
            1,
        ]
        assert found["dedgeai_denoising_steps_total",] == 50 and found["dedgeai_delay_seconds_count",] == 5
        assert found["dedgeai_delay_seconds_sum",] >= found["dedgeai_queueing_seconds_sum",] + 5 * 0.2
        assert [found["dedgeai_server_restarts_total", str(k)] for k in range(2)] == [1, 1]
        assert [found["dedgeai_server_up", str(k)] for k in range(2)] == [1, 1]
        assert {found["dedgeai_unfinished_tasks", state] for state in ("waiting", "queued", "running")} == {0}
        assert found["dedgeai_store_trouble",] == 0 and found["dedgeai_decision_seconds_count",] >= 1

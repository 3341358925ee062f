"""The service behind nginx, by the site that docs/deploy/ offers: TLS, events in time, bodies, the root and a sub-path.

Its edge servers only wait, and live in the test's process; nginx is Debian's, and the tests are skipped without it.
"""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from edge_helpers_api import LocalService
from helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

NAME = "images.example.org"
SITE = (ROOT / "docs" / "deploy" / "nginx.conf").read_text()
CERTIFICATE = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
CERTIFICATE += ["-days", "2", "-keyout", "key.pem", "-out", "cert.pem"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def proxied(folder: Path, service: LocalService, site: str) -> Iterator[httpx.Client]:
    """A client of nginx with this site in front of the service; `client.plain` is its address without TLS."""
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
    subprocess.run(CERTIFICATE + names, cwd=folder, check=True, capture_output=True)
    plain, tls = free_port(), free_port()
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen [::]:80;", ""),
        ("listen 443 ssl", f"listen 127.0.0.1:{tls} ssl"),
        ("listen [::]:443 ssl http2;", ""),
        ("127.0.0.1:8000", service.url.removeprefix("http://")),
        ("/etc/dedgeai/tls/", f"{folder}/"),
    ):
        assert old in site
        site = site.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    who = "user root;" if os.getuid() == 0 else ""
    http = f"access_log off;\ntypes {{ text/html html; }}\n{temporary}{site}"
    text = f"daemon off; {who} pid {folder}/pid;\nevents {{ worker_connections 100; }}\nhttp {{\n{http}\n}}\n"
    (folder / "nginx.conf").write_text(text)
    nginx = subprocess.Popen(["nginx", "-e", "errors", "-p", folder, "-c", folder / "nginx.conf"])
    trust = ssl.create_default_context(cafile=folder / "cert.pem")
    headers = {"host": NAME, **service.headers}
    try:
        with httpx.Client(base_url=f"https://127.0.0.1:{tls}", verify=trust, headers=headers, timeout=10) as client:
            client.plain = f"http://127.0.0.1:{plain}"
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", tls)) == 0:
                        break
                time.sleep(0.05)
            yield client
    finally:
        nginx.terminate()
        nginx.wait(10)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[LocalService]:
    """With a token, at a name of its own; steps take 40 ms."""
    given = {"step_seconds": 0.04, "num_servers": 1, "allowed_hosts": NAME, "max_prompt": 50_000, "access_log": True}
    with LocalService(tmp_path_factory.mktemp("service"), "sesame", **given) as service:
        yield service


@pytest.fixture(scope="module")
def client(service, tmp_path_factory) -> Iterator[httpx.Client]:
    with proxied(tmp_path_factory.mktemp("nginx"), service, SITE) as client:
        yield client


def order(client: httpx.Client, **body: object) -> dict:
    reply = client.post("/api/tasks", json={"prompt": "a fox"} | body)
    assert reply.status_code == 202, reply.text
    return reply.json()


def test_page_api_and_head_pass_through(client):
    for path in ("/", "/static/page.js", "/docs", "/openapi.json", "/api/model", "/metrics"):
        whole, head = client.get(path), client.head(path)
        assert whole.status_code == head.status_code == 200 and whole.content and not head.content, path
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert client.head("/api/events").status_code == 200
    assert client.get("/api/cluster", headers={"authorization": ""}).status_code == 401
    assert client.get("/", headers={"host": "elsewhere.example.org"}).status_code == 400


def test_plain_http_is_led_to_tls(client):
    reply = httpx.get(f"{client.plain}/api/model?x=1", headers={"host": NAME})
    assert (reply.status_code, reply.headers["location"]) == (308, f"https://{NAME}/api/model?x=1")


def test_events_come_when_they_happen(client):
    task, ends, seen = order(client, steps=30)["task"], {}, []
    with client.stream("GET", f"/api/tasks/{task}/events") as reply:
        for line in reply.iter_lines():
            if line.startswith("data: ") and '"state":"' in line:
                state = line.partition('"state":"')[2].partition('"')[0]
                seen.append(line)
                ends.setdefault(state, time.monotonic())
    assert ends["done"] - ends["running"] > 0.5  # it works for 1 s; what is held back comes all at once
    assert len(seen) >= 4  # with steps on the way


def test_bodies_of_all_sizes_are_answered_by_the_service(client):
    task = order(client, prompt="ü" * 50_000, steps=1)["task"]
    assert client.get(f"/api/tasks/{task}").json()["prompt"] == "ü" * 50_000
    reply = client.post("/api/tasks", content=b"{" + b" " * 1_500_000 + b"}")
    assert reply.status_code == 413 and "bytes" in reply.json()["detail"]


def test_openai_urls_lead_back_through_the_proxy(service, client):
    ask = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="sesame", http_client=client)
    url = ask.images.generate(prompt="a fox", n=1).data[0].url
    assert url.startswith(f"https://{NAME}/api/tasks/")
    reply = client.get(url.replace(f"https://{NAME}", ""), headers={"authorization": ""})
    assert reply.status_code == 200 and reply.content.startswith(b"\x89PNG")


def test_who_goes_away_from_the_proxy_ends_their_tasks(service, client):
    body = {"prompt": "nobody waits for this", "n": 4, "steps": 15}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=0.3)
    service.settle()
    newest = client.get("/api/tasks?limit=4").json()["tasks"]
    assert {task["prompt"] for task in newest} == {body["prompt"]}
    assert {task["state"] for task in newest} == {"cancelled"}


def test_the_log_names_the_client_and_not_the_proxy(service, client):
    client.get("/api/model", headers={"x-forwarded-for": "192.0.2.7", "user-agent": "who"})
    log = service.folder / "access.log"
    deadline = time.monotonic() + 5
    while not (log.exists() and '"who"' in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    line = next(line for line in log.read_text().splitlines() if '"who"' in line)
    assert line.startswith("127.0.0.1 ")  # a client cannot name another


@pytest.mark.parametrize("stripped", [False, True])
def test_below_a_sub_path(tmp_path, stripped):
    site = SITE.replace("location / {", "location /images/ {")
    if stripped:
        site = site.replace("proxy_pass http://dedgeai;", "proxy_pass http://dedgeai/;")
    given = {"root_path": "/images", "allowed_hosts": NAME}
    with LocalService(tmp_path, **given) as service, proxied(tmp_path, service, site) as client:
        assert client.get("/images").headers["location"].endswith("/images/")
        page = client.get("/images/")
        assert page.status_code == 200 and '="/' not in page.text  # all its links are relative
        assert client.get("/images/static/page.js").status_code == 200
        assert client.get("/images/docs").status_code == 200
        task = client.post("/images/api/tasks", json={"prompt": "a fox"}).json()["task"]
        service.settle()
        status = client.get(f"/images/api/tasks/{task}").json()
        assert status["image"] == f"/images/api/tasks/{task}/image"
        assert client.get(status["image"]).content.startswith(b"\x89PNG")
        made = client.post("/images/v1/images/generations", json={"prompt": "a fox"}).json()
        assert made["data"][0]["url"].startswith(f"https://{NAME}/images/api/tasks/")
        assert client.get("/elsewhere").status_code == 404


def test_a_service_that_is_down_is_told_in_words(tmp_path):
    with LocalService(tmp_path, allowed_hosts=NAME) as service, proxied(tmp_path, service, SITE) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        service.stop()
        reply = client.get("/api/model")
        assert reply.status_code == 503 and "try again" in reply.json()["detail"] and reply.headers["retry-after"]

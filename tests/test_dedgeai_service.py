"""The HTTP service as its users meet it: a page in a browser, floods, and a kill in between.

Starting the service takes some seconds, so the tests share one; the flood's test kills it and starts it again.
"""

import asyncio
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import start_script

from dedgeai.store import Store

SCRIPT = "dedgeai/main_dedgeai.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TOKEN = ["--token", "open sesame"]
SIMULATED = ["--compute", "simulated", "--base_seconds", 0, "--step_seconds", 0.01, "--num_servers", 3]
ALLOWED = {"authorization": "Bearer open sesame"}
SIMULATED += ["--scheduler", "water_filling", "--max_prompt", 200, "--max_steps", 30]


class Service:
    """A service in a process of its own. `client` is connected to it, once `start` has returned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *flags: Any) -> str:
        """Start it, and wait until it answers. Returns what it printed until then."""
        self.process = start_script(SCRIPT, "--port", 0, *flags, folder=self.folder)
        said = ""
        for line in self.process.stdout:
            said += line
            if line.startswith("listening on "):
                self.url = line.split()[2].rstrip(";")
                self.client = httpx.Client(base_url=self.url, headers=ALLOWED)
                return said
        raise AssertionError(self.process.stderr.read()[-2000:])

    def kill(self) -> None:
        """End it as a lack of memory does."""
        self.client.close()
        self.process.kill()
        self.process.communicate()

    def stop(self) -> tuple[int, str]:
        """End it by Ctrl-C. Returns the exit code, and what it printed since it listened."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    try:
        service.start("--serve", *SIMULATED, *TOKEN, "--max_queued", 150, "--out", service.folder / "run")
        yield service
    finally:
        code, out = service.stop()
    assert code == 130 and ("with no task left" in out or "accepted tasks left" in out)


@pytest.fixture(scope="module")
def client(service) -> httpx.Client:
    return service.client


def settled(client: httpx.Client, seconds: float = 60) -> dict:
    """The cluster's state once no task is left."""
    deadline = time.monotonic() + seconds
    while (state := client.get("/api/cluster").json())["unfinished"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def flood_and_kill(service: Service, count: int, most: int) -> None:
    """Send so many requests at once to a service that takes `most`; kill it meanwhile, start it again, and check."""
    run, replies = service.folder / "run", []
    settled(service.client)

    async def order(client: httpx.AsyncClient, k: int) -> None:
        try:
            replies.append(await client.post("/api/tasks", json={"prompt": f"{k}", "steps": 30}))
        except httpx.TransportError:
            return  # it is dead
        if sum(reply.status_code == 202 for reply in replies) == most - 10:
            service.kill()

    async def flood() -> None:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=service.url, headers=ALLOWED, limits=limits, timeout=60) as client:
            await asyncio.gather(*(order(client, k) for k in range(count)))

    asyncio.run(flood())
    accepted = [reply.json()["task"] for reply in replies if reply.status_code == 202]
    refused = [reply for reply in replies if reply.status_code != 202]
    assert len(set(accepted)) == len(accepted) >= most - 10 and refused
    assert all(reply.status_code == 503 and reply.headers["retry-after"] for reply in refused)
    assert "going on with" in service.start(
        "--serve", "--resume", run, *TOKEN, "--step_seconds", 0.001
    )  # settings may change
    client = service.client
    settled(client)
    for task in accepted:
        status = client.get(f"/api/tasks/{task}").json()
        assert status["state"] == "done" and client.get(status["image"]).status_code == 200
    more = client.post("/api/tasks", json={"prompt": "one more"}).json()["task"]
    assert more > max(accepted)
    settled(client)
    store = Store(run / "tasks.db")
    done = {record.task.number for record in store.page(["done"], None, 10_000)}
    assert {*accepted, more} <= done and store.last == more == max(done)


def test_no_accepted_request_is_lost_though_the_service_is_flooded_and_killed(service):
    flood_and_kill(service, 300, most=150)


@pytest.mark.slow
def test_a_service_takes_what_it_may_of_a_thousand_requests_at_once_and_loses_none_though_it_is_killed(tmp_path):
    service = Service(tmp_path)
    service.start("--serve", *SIMULATED, *TOKEN, "--max_queued", 400, "--out", tmp_path / "run")
    flood_and_kill(service, 1000, most=400)
    assert service.stop()[0] == 130


def make_image_in_browser(url: str) -> list[int]:
    """Give the token, type a prompt on the page, wait for its image. Returns its width and height in pixels."""
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None) or pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=path, args=QUIET).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        page.get_by_label("Token").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Token")).to_be_hidden()  # until then, what is typed goes into the dialog
        page.get_by_label("Prompt", exact=True).fill("red apple <b>on</b> blue")
        page.get_by_role("button", name="Make", exact=True).click()
        image = page.get_by_role("img", name="red apple <b>on</b> blue")
        expect(image).to_be_visible(timeout=30_000)
        size = image.evaluate(
            "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight] }"
        )
        assert not problems
    return size


def test_the_page_asks_for_the_token_and_shows_the_image_of_a_prompt(service):
    done = settled(service.client)["done"]
    assert make_image_in_browser(service.url) == [1, 1]  # a grey pixel
    assert settled(service.client)["done"] == done + 1


@pytest.mark.slow
def test_the_page_shows_an_image_of_the_pocket_model(tmp_path):
    service = Service(tmp_path)
    flags = ["--serve", "--num_servers", 2, "--scheduler", "lad_ts", "--policy_episodes", 2, "--profile_repeats", 1]
    flags += ["--steps", "4-8", *TOKEN, "--policies", tmp_path / "policies"]
    service.start(*flags, "--profile", tmp_path / "profile.json", "--out", tmp_path / "run")
    assert make_image_in_browser(service.url) == [64, 64]
    assert service.stop()[0] == 130
    assert len(list((tmp_path / "run/images").iterdir())) == 1

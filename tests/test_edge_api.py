"""The HTTP API at a real socket: what it accepts, refuses, tells and keeps, to httpx, openai and schemathesis.

Its edge servers only wait, and live in the test's process.
"""

import asyncio
import base64
import contextlib
import errno
import itertools
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from edge_helpers_api import LocalService
from hypothesis import given, settings
from hypothesis import strategies as st

from dedgeai.events import MOST_WAITING
from dedgeai.store import StoreError
from dedgeai.tasks import Task

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[LocalService]:
    """A fast one, without a token."""
    with LocalService(tmp_path_factory.mktemp("service"), max_side=256) as service:
        yield service


@pytest.fixture
def slow(tmp_path) -> Iterator[LocalService]:
    """One server whose steps take 50 ms; with a token."""
    with LocalService(tmp_path, "sesame", step_seconds=0.05, num_servers=1, max_queued=10) as service:
        yield service


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, str, dict]]:
    """Id, name and data of each server-sent event."""
    event: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event.get("id", ""), event["event"], json.loads(event["data"])
            event = {}


# --- tasks ---


def test_a_task_from_the_order_to_its_image(service):
    before = time.time()
    task = service.order(prompt="  a red fox\n", steps=12)["task"]
    service.settle()
    status = service.client.get(f"/api/tasks/{task}").json()
    assert (status["state"], status["prompt"], status["step"], status["request"]) == ("done", "a red fox", 12, task)
    assert (status["seed"], status["base_station"]) == (task, task % 3)  # seed 0 + number, and each station in turn
    assert 0 <= status["queueing_s"] <= status["delay_s"] - 0.011 and status["edge_server"] in range(3)
    times = [datetime.fromisoformat(status[name]).timestamp() for name in ("accepted_at", "finished_at")]
    assert before - 0.01 <= times[0] <= times[1] <= time.time() + 0.01
    image = service.client.get(status["image"])
    assert image.headers["content-type"] == "image/png" and image.content.startswith(PNG)
    assert image.headers["cache-control"] == "private, no-cache"
    known = service.client.get(status["image"], headers={"if-none-match": image.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_every_wish_reaches_the_servers(service):
    wishes = {"prompt": "x", "negative_prompt": "y", "steps": 3, "seed": 2**31 - 2, "width": 128, "height": 32}
    reply = service.order(**wishes, cfg_scale=2, images=3, base_station=2, user="ü")
    numbers = reply["tasks"]
    assert numbers == [reply["task"] + k for k in range(3)]
    seeds = [2**31 - 2, 2**31 - 1, 0]
    service.settle()
    for number, seed in zip(numbers, seeds, strict=True):
        expected = Task(number, "x", 3, seed, 128, 32, 2, "y", 2.0, numbers[0], "ü", scale=1.0)
        assert service.call(found(service, number)).task == expected


async def found(service: LocalService, number: int) -> Any:
    """A record, looked up in the service's thread."""
    return service.system.find(number)


def test_lists_are_paged_newest_first_and_filtered(service):
    first = service.order(images=4)["tasks"][0]
    service.settle()
    numbers, before = [], None
    while True:
        query = {"limit": 3, "state": "done"} | ({} if before is None else {"before": before})
        page = service.client.get("/api/tasks", params=query).json()
        numbers += [task["task"] for task in page["tasks"]]
        if (before := page["next"]) is None:
            break
        assert len(page["tasks"]) == 3
    assert numbers == sorted(numbers, reverse=True) and {first + k for k in range(4)} <= set(numbers)
    get = lambda **query: service.client.get("/api/tasks", params=query).json()["tasks"]  # noqa: E731
    assert get(state="unfinished") == get(state="queued,failed") == get(before=0) == []
    assert get(state=["finished", "queued"], limit=1)[0]["task"] == numbers[0]
    for wrong in ({"state": "don"}, {"limit": 0}, {"limit": 501}, {"before": -1}, {"before": "1_0"}, {"color": 3}):
        reply = service.client.get("/api/tasks", params=wrong)
        assert reply.status_code == 422 and next(iter(wrong)) in reply.json()["detail"]


def test_a_task_is_cancelled_where_it_is_and_removed_once_it_has_ended(slow):
    running, waiting = slow.order(steps=30)["task"], slow.order(steps=30)["task"]
    state = lambda task: slow.client.get(f"/api/tasks/{task}").json()  # noqa: E731
    wait_for(lambda: state(running)["state"] == "running")
    place = state(running)
    assert place["ahead"] == 0 and 0 < place["estimated_s"] < 1.6
    listed = slow.client.get("/api/tasks?state=unfinished").json()["tasks"]
    assert [task["task"] for task in listed] == [waiting, running]
    assert slow.client.delete(f"/api/tasks/{waiting}").json()["state"] == "cancelled"
    cancelling = slow.client.delete(f"/api/tasks/{running}").json()
    assert (cancelling["state"], cancelling["cancelling"]) == ("running", True)
    wait_for(lambda: state(running)["state"] == "cancelled", 1)
    assert not state(running)["cancelling"]
    assert slow.client.delete(f"/api/tasks/{running}?unfinished=true").status_code == 409
    assert slow.client.delete(f"/api/tasks/{running}").json()["state"] == "removed"
    assert slow.client.get(f"/api/tasks/{running}").status_code == 404
    assert slow.client.delete(f"/api/tasks/{running}").status_code == 404


def test_what_the_disk_refuses_to_change_is_as_it_was(service, monkeypatch):
    """An image that cannot be deleted keeps its task; a cancellation that cannot be stored is under way."""
    number = service.order()["task"]
    service.settle()
    image = service.folder / "images" / service.call(found(service, number)).image
    content = image.read_bytes()
    image.unlink()
    image.mkdir()
    assert service.client.delete(f"/api/tasks/{number}").status_code == 503
    image.rmdir()
    image.write_bytes(content)
    assert service.client.get(f"/api/tasks/{number}/image").content == content

    async def fails(*_: Any) -> None:
        raise StoreError(errno.ENOSPC, "no luck")

    monkeypatch.setattr("dedgeai.system.RETRY_SECONDS", 0.01)
    monkeypatch.setattr(service.system.store, "finish", fails)
    service.system.cluster.paused = True
    stuck = service.order()["task"]
    answer = service.client.delete(f"/api/tasks/{stuck}").json()
    assert answer["cancelling"] and answer["state"] in ("waiting", "queued")
    assert service.client.get("/readyz").status_code == 503
    monkeypatch.undo()
    service.settle()
    ended = service.client.get(f"/api/tasks/{stuck}").json()
    assert ended["state"] == "cancelled" and not ended["cancelling"]


def test_a_task_that_is_cancelled_before_it_could_be_kept_ends_nothing(service, monkeypatch):
    listed: list[int] = []

    async def fails(records: Any, *_: Any) -> None:
        listed.extend(record.task.number for record in records)
        while service.system.left:  # until it was cancelled
            await asyncio.sleep(0.01)
        raise StoreError(errno.EIO, "no luck")

    monkeypatch.setattr(service.system.store, "add", fails)
    refused: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: refused.append(service.client.post("/api/tasks", json={"prompt": "x"})))
    thread.start()
    wait_for(lambda: listed)
    assert service.client.delete(f"/api/tasks/{listed[0]}").json()["state"] == "cancelled"
    thread.join()
    assert refused[0].status_code == 503
    monkeypatch.undo()
    service.order()
    service.settle()
    assert service.system.error is None


def test_a_record_that_cannot_be_read_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("dedgeai.service.RETENTION_SECONDS", 0.05)
    with LocalService(tmp_path, keep_images="1") as service:
        task = service.order()["task"]
        service.settle()
        reader, service.system.store.reader = (
            service.system.store.reader,
            sqlite3.connect(":memory:", check_same_thread=False),
        )
        time.sleep(0.2)  # old images are looked for
        for path in (f"/api/tasks/{task}", "/api/tasks", f"/api/tasks/{task}/image"):
            reply = service.client.get(path)
            assert reply.status_code == 503 and "no such table" in reply.json()["detail"]
        service.system.store.reader = reader
        assert service.client.get(f"/api/tasks/{task}").json()["state"] == "done"


def test_images_that_are_gone_say_why(service):
    images = service.folder / "images"
    numbers = service.order(images=4)["tasks"]
    service.settle()
    names = [service.call(found(service, number)).image for number in numbers]
    (images / names[0]).unlink()
    (images / names[1]).unlink()
    (images / names[1]).mkdir()  # which no file can be read from
    service.call(service.system.store.drop_images([numbers[2]]))
    replies = [service.client.get(f"/api/tasks/{number}/image") for number in numbers]
    assert [reply.status_code for reply in replies] == [410, 503, 410, 200]
    assert "no longer in images/" in replies[0].text and "--keep_images" in replies[2].text
    assert "cannot be read" in replies[1].text
    assert service.client.get(f"/api/tasks/{numbers[2]}").json()["image"] is None
    service.client.delete(f"/api/tasks/{numbers[3]}")
    assert not (images / names[3]).exists()


def test_limits_count_images(slow):
    assert slow.client.post("/api/tasks", json={"prompt": "x", "images": 5}).status_code == 422  # of 4
    for _ in range(2):
        slow.order(images=4)
    refused = slow.client.post("/api/tasks", json={"prompt": "x", "images": 3})
    assert refused.status_code == 503 and "10" in refused.json()["detail"] and refused.headers["retry-after"]
    slow.order(images=2)
    refused = slow.client.post("/v1/images/generations", json={"prompt": "x"})
    assert refused.status_code == 503 and refused.headers["retry-after"] and "10" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EIO, 503)])
def test_what_cannot_be_written_is_refused_and_accepted_later(service, monkeypatch, number, status):
    async def fails(*_: Any) -> None:
        raise StoreError(number, "no luck")

    monkeypatch.setattr(service.system.store, "add", fails)
    for path in ("/api/tasks", "/v1/images/generations"):
        reply = service.client.post(path, json={"prompt": "x"})
        assert reply.status_code == status and "no luck" in reply.text and reply.headers["retry-after"]
    monkeypatch.undo()
    monkeypatch.setattr(service.system.archive, "trouble", "images cannot be written (No space left on device)")
    assert service.client.post("/api/tasks", json={"prompt": "x"}).status_code == 507
    ready = service.client.get("/readyz")
    assert ready.status_code == 503 and "No space" in ready.json()["detail"]
    assert service.client.get("/healthz").status_code == 200
    monkeypatch.undo()
    service.order()
    assert service.client.get("/readyz").json() == {"status": "ok"}


# --- idempotency keys ---


def test_a_key_makes_one_request_of_many_also_after_a_restart(tmp_path):
    key, body = {"Idempotency-Key": "my key"}, {"prompt": "x", "images": 2}
    with LocalService(tmp_path) as service:
        replies: list[httpx.Response] = []
        post = lambda: replies.append(service.client.post("/api/tasks", json=body, headers=key))  # noqa: E731
        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {reply.status_code for reply in replies} == {202}
        assert {tuple(reply.json()["tasks"]) for reply in replies} == {(0, 1)}
        assert sum("idempotent-replay" not in reply.headers for reply in replies) == 1
    with LocalService(tmp_path, steps="5-7") as service:
        again = service.client.post("/api/tasks", json={"images": 2, "prompt": "x"}, headers=key)
        assert again.json()["tasks"] == [0, 1] and again.headers["idempotent-replay"] == "true"
        other = [service.client.post("/api/tasks", json=body | {"seed": 3}, headers=key)]
        other += [service.client.post("/v1/images/generations", json={"prompt": "x", "n": 2}, headers=key)]
        assert [reply.status_code for reply in other] == [409, 409]
        service.settle()
        service.client.delete("/api/tasks/1")
        assert service.client.post("/api/tasks", json=body, headers=key).status_code == 409
        for wrong in ("", "x" * 256, "\u00fc"):
            reply = service.client.post("/api/tasks", json=body, headers={"Idempotency-Key": wrong.encode()})
            assert reply.status_code == 422 and "Idempotency-Key" in reply.json()["detail"]


# --- mistakes ---

MISTAKES = [
    (b'{"prompt": "\\ud800"}', "prompt"),
    (b'{"prompt": 3}', "prompt"),
    (b'{"prompt": " \\u0000\\n"}', "prompt"),
    (b'{"steps": 5}', "prompt"),
    (json.dumps({"prompt": "x" * 201}).encode(), "200"),
    (json.dumps({"prompt": "x", "negative_prompt": "x" * 201}).encode(), "200"),
    (json.dumps({"prompt": "x", "user": "x" * 257}).encode(), "256"),
    (b'{"prompt": "x", "user": "\\udc00"}', "user"),
    (b'{"prompt": "x", "steps": -1}', "steps"),
    (b'{"prompt": "x", "steps": 31}', "30"),
    (b'{"prompt": "x", "steps": 1e999}', "steps"),
    (b'{"prompt": "x", "steps": NaN}', "steps"),
    (b'{"prompt": "x", "steps": "5"}', "steps"),
    (b'{"prompt": "x", "steps": true}', "steps"),
    (b'{"prompt": "x", "seed": 123456789012345678901234567890}', "seed"),
    (b'{"prompt": "x", "seed": 2147483648}', "2147483647"),
    (b'{"prompt": "x", "base_station": 3}', "base_station"),
    (b'{"prompt": "x", "width": 72}', "multiple of 16"),
    (b'{"prompt": "x", "height": 272}', "256"),
    (b'{"prompt": "x", "cfg_scale": 30.1}', "30"),
    (b'{"prompt": "x", "cfg_scale": -Infinity}', "cfg_scale"),
    (b'{"prompt": "x", "images": 0}', "images"),
    (b'{"prompt": "x", "colour": 64}', "colour"),
    (b'{"prompt": "x", "\\ud800": 64}', ""),
    (b'{"prompt": "x"', "JSON"),
    (b"[" * 60_000, ""),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", ""),
    (b"[]", "body"),
    (b"null", "body"),
    (b"", "body"),
    (b"\xff\xfe", ""),
]


@pytest.mark.parametrize(("body", "words"), MISTAKES)
def test_mistakes_are_refused_in_words_and_accept_nothing(service, body, words):
    before = service.client.get("/api/tasks?limit=1").json()["tasks"]
    headers = {"content-type": "application/json"}
    reply = service.client.post("/api/tasks", content=body, headers=headers)
    assert reply.status_code in (400, 422) and words in reply.json()["detail"] and len(reply.content) < 1000
    reply = service.client.post("/v1/images/generations", content=body, headers=headers)
    assert reply.status_code == 400 and reply.json()["error"]["message"]
    after = service.client.get("/api/tasks?limit=1").json()["tasks"]
    assert [task["task"] for task in after] == [task["task"] for task in before]


def test_other_mistakes_have_their_status(service):
    client = service.client
    for path in (
        "/api/tasks/999999",
        "/api/tasks/-1",
        "/api/tasks/1" + 40 * "0",
        "/nothing",
        "/static/x",
        "/api/tasks/",
    ):
        assert client.get(path).status_code == 404
    for path in ("/api/tasks/x", "/api/tasks/1_0/image", "/api/tasks/1.0", "/api/tasks/%00", "/api/tasks/٣"):
        assert client.get(path).status_code == 422
    assert client.get("/v1/nothing").json()["error"]["message"]
    wrong = client.put("/api/tasks/3")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET")
    assert client.put("/v1/models").headers["allow"] == "GET"
    form = client.post("/api/tasks", data={"prompt": "x"})
    assert form.status_code == 422 and "Content-Type" in form.json()["detail"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["prompt", "steps", "seed", "base_station", "width", "images", "cfg_scale", "n", "size", "user", "zzz"]
bodies = st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode())
fields = st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(body=bodies | fields.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_service(service, body):
    headers = {"content-type": "application/json"}
    reply = service.client.post("/api/tasks", content=body, headers=headers)
    assert reply.status_code in (202, 400, 422), reply.text
    reply = service.client.post("/v1/images/generations", content=body, headers=headers)
    assert reply.status_code in (200, 400), reply.text


# --- OpenAI's API ---


def test_openais_client_makes_pictures(slow):
    client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="sesame", max_retries=0)
    assert [model.id for model in client.models.list()] == ["simulated"]
    assert client.models.retrieve("simulated").object == "model"
    made = client.images.generate(model="simulated", prompt="a fox", n=2, size="32x64", extra_body={"steps": 1})
    assert abs(made.created - time.time()) < 10
    for image in made.data:  # by URLs that need no token, but their signature
        assert httpx.get(image.url).content.startswith(PNG)
        assert httpx.get(re.sub("signature=.", "signature=x", image.url)).status_code == 401
        assert httpx.get(re.sub("expires=.", "expires=2", image.url)).status_code == 401
        assert httpx.get(image.url.replace("/image", "")).status_code == 401
        assert httpx.delete(image.url.replace("/image", "")).status_code == 401
    extra = {"steps": 1, "seed": 5, "negative_prompt": "y", "cfg_scale": 1.5}
    made = client.images.generate(
        prompt="b", response_format="b64_json", quality="standard", user="me", output_format="png", extra_body=extra
    )
    assert base64.b64decode(made.data[0].b64_json).startswith(PNG)
    last = slow.client.get("/api/tasks?limit=1").json()["tasks"][0]
    assert {name: last[name] for name in extra} == extra and last["user"] == "me"
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(model="dall-e-9", prompt="a")
    assert refused.value.code == "model_not_found"
    wrong: list[dict[str, Any]] = [
        {"n": 9},
        {"size": "33x64"},
        {"size": "1x1\n"},
        {"quality": "hd"},
        {"style": "vivid"},
    ]
    for mistake in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a", **mistake)
        assert refused.value.param == next(iter(mistake)) and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="wrong").models.list()
    assert refused.value.code == "invalid_api_key"


def test_who_goes_away_ends_their_tasks_unless_they_can_come_back(slow):
    kept = {"Idempotency-Key": "k"}
    for headers in ({}, kept):
        with pytest.raises(httpx.ReadTimeout):
            body = {"prompt": "x", "steps": 10, "n": 2}
            slow.client.post("/v1/images/generations", json=body, headers=headers, timeout=0.2)
    slow.settle()
    states = [task["state"] for task in slow.client.get("/api/tasks").json()["tasks"]]
    assert states == ["done", "done", "cancelled", "cancelled"]
    again = slow.client.post("/v1/images/generations", json=body, headers=kept).json()
    assert "/api/tasks/2/image" in again["data"][0]["url"] and "/api/tasks/3/image" in again["data"][1]["url"]


def test_a_waiting_request_is_told_of_failure_cancellation_and_the_end_of_the_service(slow):
    replies: list[httpx.Response] = []

    def post() -> None:
        replies.append(slow.client.post("/v1/images/generations", json={"prompt": "x", "steps": 30}))

    waiting = [threading.Thread(target=post) for _ in range(3)]
    for k, thread in enumerate(waiting):
        thread.start()
        wait_for(lambda k=k: slow.system.left == k + 1)
    slow.client.delete("/api/tasks/1")
    wait_for(lambda: len(replies) == 1)
    assert replies[0].status_code == 410 and "cancelled" in replies[0].json()["error"]["message"]
    slow.loop.call_soon_threadsafe(slow.system.made, 0, slow.system.records[0].task, None, "out of paint", 1.0)
    wait_for(lambda: len(replies) == 2)
    assert replies[1].status_code == 500 and "out of paint" in replies[1].json()["error"]["message"]
    began = time.monotonic()
    slow.stop()
    assert time.monotonic() - began < 2
    for thread in waiting:
        thread.join()
    assert replies[2].status_code == 503


# --- events ---


def test_events_tell_of_a_task_step_by_step_and_end_with_it(slow):
    task = slow.order(steps=20)["task"]
    with slow.client.stream("GET", f"/api/tasks/{task}/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        heard = list(events_of(reply.iter_lines()))
    assert [name for _, name, _ in heard] == ["hello"] + ["task"] * (len(heard) - 1)
    assert all(data["task"] == task for _, _, data in heard[1:])
    steps = [data["step"] for _, _, data in heard[1:]]
    assert steps == sorted(steps) and 3 <= len(set(steps)) <= 12 and steps[-1] == 20
    assert heard[-1][2]["state"] == "done" and heard[-1][2]["image"]
    with slow.client.stream("GET", f"/api/tasks/{task}/events") as reply:
        assert [data.get("state") for _, _, data in events_of(reply.iter_lines())] == [None, "done"]
    assert slow.client.get("/api/tasks/99/events").status_code == 404
    wait_for(lambda: not service_events(slow).listeners)


def service_events(service: LocalService) -> Any:
    """The events of a service."""
    watcher = next(w for w in service.system.watchers if hasattr(getattr(w, "__self__", None), "events"))
    return watcher.__self__.events


def test_who_comes_back_hears_what_they_missed(service):
    def hear(mark: str, count: int) -> list[tuple[str, str, dict]]:
        with service.client.stream("GET", "/api/events", headers={"Last-Event-ID": mark} if mark else {}) as reply:
            events = events_of(reply.iter_lines())
            return [next(events) for _ in range(count)]

    (mark, name, _), *_ = hear("", 1)
    assert name == "hello"
    task = service.order()["task"]
    service.settle()
    service.client.delete(f"/api/tasks/{task}")
    heard = hear(mark, 6)
    assert heard[0][:2] == (mark, "hello")
    of_task = [event for event in heard[1:] if event[2].get("task") == task]
    assert of_task[-1][1:] == ("removed", {"task": task})
    marks = [int(event[0].split("-")[1]) for event in heard]
    assert marks == list(range(marks[0], marks[0] + 6))
    assert hear(of_task[-2][0], 2)[1] == of_task[-1]  # from the middle
    for unknown in (
        "other-3",
        f"{mark.split('-')[0]}-999999",
        "x",
        "-",
        f"{mark}٣",
        mark.split("-")[0] + "-" + "9" * 99,
    ):
        assert [event[1] for event in hear(unknown.encode(), 2)] == ["hello", "reset"]
    wait_for(lambda: not service_events(service).listeners)


def test_servers_are_told_of_while_something_changes(slow):
    with slow.client.stream("GET", "/api/events") as reply:
        slow.order(steps=30)
        cluster = next(data for _, name, data in events_of(reply.iter_lines()) if name == "cluster")
    assert cluster["unfinished"] == 1 and cluster["servers"][0]["tasks"] == 1
    state = slow.client.get("/api/cluster").json()
    assert state.keys() == cluster.keys() and state["scheduler"] and state["servers"][0]["up"]


def test_who_is_slow_or_hears_of_too_much_at_once_begins_anew(tmp_path):
    with LocalService(tmp_path) as service:
        events = service_events(service)
        with contextlib.ExitStack() as stack:
            lazy, good = (stack.enter_context(service.client.stream("GET", "/api/events")) for _ in range(2))
            wait_for(lambda: len(events.listeners.get(None, ())) == 2)
            heard: list[Any] = []
            listening = threading.Thread(target=lambda: heard.extend(events_of(good.iter_lines())))
            listening.start()
            big = json.dumps({"words": "x" * 10_000})
            for k in range(3 * MOST_WAITING):
                service.loop.call_soon_threadsafe(events.tell, "big", lambda: big)
                if k % 20 == 0:
                    service.call(found(service, 0))  # lets the good one read
                    wait_for(lambda k=k: len(heard) > k - 500)
            wait_for(lambda: len(heard) > 3 * MOST_WAITING)
            for _ in range(MOST_WAITING + 10):
                service.loop.call_soon_threadsafe(events.tell, "small", lambda: "{}")
            wait_for(lambda: heard[-1][1] == "small" and heard[-1][0].endswith(f"-{events.count}"))
            names = list(
                itertools.takewhile(lambda name: name != "small", (n for _, n, _ in events_of(lazy.iter_lines())))
            )
            assert names[0] == "hello" and "reset" in names and len(names) < 3 * MOST_WAITING
            began = time.monotonic()
            service.stop()
            listening.join(5)
            assert not listening.is_alive() and time.monotonic() - began < 2 and not events.listeners


# --- images that are kept ---


def test_only_the_newest_images_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("dedgeai.service.RETENTION_SECONDS", 0.05)
    with LocalService(tmp_path, keep_images="2") as service:
        numbers = service.order(images=4)["tasks"]
        service.settle()
        wait_for(lambda: len(list((tmp_path / "images").iterdir())) == 2)
        (tmp_path / "images" / f"{numbers[2]:06d}.png").unlink()  # an operator's; the next look does not mind
        number = service.order()["task"]
        service.settle()
        wait_for(lambda: service.client.get(f"/api/tasks/{numbers[2]}").json()["image"] is None)
        assert [path.stem for path in (tmp_path / "images").iterdir()] == [f"{n:06d}" for n in (numbers[3], number)]
        statuses = [service.client.get(f"/api/tasks/{n}/image").status_code for n in (*numbers, number)]
        assert statuses == [410, 410, 410, 200, 200]
        kept = tmp_path / "images" / f"{number:06d}.png"
        kept.unlink()
        kept.mkdir()  # which cannot be deleted, and keeps no other from it
        service.order(images=4)
        service.settle()
        wait_for(lambda: len(list((tmp_path / "images").iterdir())) == 3 and kept.exists())


# --- what describes it ---


def test_the_page_and_the_docs_come_without_the_internet(slow):
    page = httpx.get(slow.url)
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.headers["cache-control"] == "no-cache"
    assert httpx.get(slow.url, headers={"if-none-match": page.headers["etag"]}).status_code == 304
    docs = httpx.get(f"{slow.url}/docs").text
    sources = re.findall('(?:src|href)="([^"]*)"', docs)
    assert sources and all(httpx.get(slow.url + source).status_code == 200 for source in sources)
    schema = httpx.get(f"{slow.url}/openapi.json").json()
    assert schema["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    model = slow.client.get("/api/model").json()
    assert model["limits"]["max_queued"] == 10 and model["examples"] and model["id"] == "simulated"


def schemathesis(service: LocalService, folder: Path, *flags: Any) -> str:
    """Have it try the whole schema. Returns what it said, once it has found nothing."""
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{service.url}/openapi.json",
        "--seed",
        "1",
        *flags,
    ]
    if service.token:
        command += ["--header", f"Authorization: Bearer {service.token}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_schemathesis_finds_nothing(tmp_path):
    with LocalService(tmp_path / "run", "sesame", step_seconds=0.0001, max_queued=300) as service:
        service.order(steps=1)
        assert "12 selected" in schemathesis(service, tmp_path, "--phases", "coverage,stateful", "--max-examples", 1)


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "sesame"])
def test_schemathesis_finds_nothing_in_many_more_tries(tmp_path, token):
    with LocalService(tmp_path / "run", token, step_seconds=0.0001, max_queued=300) as service:
        service.order(steps=1)
        schemathesis(service, tmp_path, "--max-examples", 200)

"""Edge servers that hold several models: which are there when, who waits for them, and requests that are replayed.

Servers wait instead of computing, but for one that loads the pocket model and a LoRA of it.
"""

import asyncio
import functools
import io
import json
import sqlite3
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from edge_helpers import LocalCluster, Recorder
from edge_helpers_api import SIMULATED, LocalService
from helpers import make, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from common.parameters import ParameterError
from dedgeai import main_dedgeai
from dedgeai.configuration import DedgeParameters
from dedgeai.edge_server import GREY_PIXEL, BatchError, EdgeServer, SimulatedCompute
from dedgeai.queues import Call, Queues
from dedgeai.resident import Resident
from dedgeai.run_options import choose_model, run_options
from dedgeai.tasks import Task
from edge_sim.catalogue import LOAD_RATE, read_catalogue
from edge_sim.replay import read_replay
from edge_sim.server_profile import equal_servers
from resd3_medium.finding import find_weights
from resd3_medium.folders import POCKET

THREE = [{"name": "a", "load_time": 0.05}, {"name": "b", "size": 20}, {"name": "c", "load_time": 0.03}]


@pytest.fixture
def catalogue(tmp_path) -> str:
    """A file with models a, b and c, which load for 0.05, 0.02 and 0.03 s."""
    return written(tmp_path / "catalogue.json", THREE)


def written(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def task(number: int, model: str, steps: int = 2, **more) -> Task:
    return Task(number, "a red apple", steps, 7, 64, 64, 0, model=model, **more)


# --- the catalogue ---


def test_a_catalogue_says_names_files_and_load_times(catalogue):
    a, b, c = read_catalogue(catalogue)
    assert [entry.name for entry in (a, b, c)] == ["a", "b", "c"]
    assert [entry.seconds for entry in (a, b, c)] == [0.05, 20 / LOAD_RATE, 0.03]


MISTAKES = [
    (None, "must be a JSON file"),
    ("{", "must be a JSON file"),
    ("[" * 100_000, "must be a JSON file"),
    ("{}", "must hold a list of models"),
    ("[]", "must hold a list of models"),
    ('["a"]', "must hold a list of models"),
    ("[{}]", "model 1: must have a name"),
    ('[{"name": 3}]', "model 1: must have a name"),
    ('[{"name": "a b"}]', "model 1: must have a name"),
    ('[{"name": "a\\n"}]', "model 1: must have a name"),
    ('[{"name": "../a"}]', "model 1: must have a name"),
    ('[{"name": "a"}, {"name": "a"}]', "model 2: its name is that of another"),
    ('[{"name": "a", "lorra": "x"}]', "model 1: knows no 'lorra'"),
    ('[{"name": "a", "folder": 3}]', "model 1: its folder must be the text"),
    ('[{"name": "a", "lora": ""}]', "model 1: its lora must be the text"),
    ('[{"name": "a", "size": -1}]', "model 1: its size must be a number from 0"),
    ('[{"name": "a", "load_time": NaN}]', "model 1: its load_time must be a number from 0"),
    ('[{"name": "a", "load_time": true}]', "model 1: its load_time must be a number from 0"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_a_catalogue_that_cannot_be_used_is_refused_in_a_line(text, words, tmp_path, capsys):
    path = tmp_path / "catalogue.json"
    if text is not None:
        path.write_text(text)
    line = refusal(capsys, main_dedgeai, "--catalogue", path, "--compute", "simulated", "--out", tmp_path / "run")
    assert f"--catalogue={path}: {words}" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"folder": "nowhere"}, "model b: --models=nowhere"),
        ({"folder": str(POCKET), "lora": "nowhere.safetensors"}, "model b: --lora=nowhere.safetensors"),
    ],
)
def test_files_that_are_missing_are_refused_before_anything_starts(entry, words, tmp_path, capsys):
    path = written(tmp_path / "catalogue.json", [{"name": "a", "folder": str(POCKET)}, {"name": "b"} | entry])
    assert words in refusal(capsys, main_dedgeai, "--catalogue", path, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name", "x"], "--catalogue=.*: must not be combined with --model_name"),
    ],
)
def test_parameters_that_contradict_a_catalogue_are_refused(flags, words, catalogue, capsys):
    with pytest.raises(ParameterError, match=words):
        make(DedgeParameters, catalogue=catalogue, **{flags[0][2:]: flags[1] if flags[1:] else True})
    assert "--resident_models=2: must come with" in refusal(capsys, main_dedgeai, "--resident_models", 2)


# --- what a server holds ---


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from("abcdx"), max_size=25), st.integers(1, 4))
def test_the_least_recently_used_model_goes_first_and_before_another_is_loaded(names, most):
    """Beside a plain list: x cannot be loaded, which costs a place and fails its task alone."""
    loaded: list[tuple[str, int]] = []

    def opened(name: str, server: int) -> SimulatedCompute:
        loaded.append((name, len(shelf.computes) if len(loaded) else 0))
        if name == "x":
            raise FileNotFoundError("no such file: x")
        return SimulatedCompute([0.0], [0.0], [0.0], 0, server)

    def make_shelf(server: int) -> Resident:
        nonlocal shelf
        shelf = Resident({name: functools.partial(opened, name) for name in "abcdx"}, {}, most, server)
        return shelf

    shelf: Resident = None  # type: ignore[assignment]

    async def story() -> None:
        server, plain, loads = EdgeServer(0, make_shelf), ["a"], 1
        assert (await server.hello())[3] == ["a"]
        for number, name in enumerate(names):
            if new := name not in plain:
                plain = plain[-(most - 1) :] if most > 1 else []
                loads += 1
            else:
                plain.remove(name)
            if name == "x":
                with pytest.raises(BatchError, match=r"^model x cannot be loaded: no such file: x$") as failed:
                    await server.run([task(number, name)])
                resident, loading = failed.value.args[2], failed.value.args[1]
                assert loading == 0
            else:
                plain.append(name)
                made = await server.run([task(number, name)])
                assert made.images == [GREY_PIXEL] and (made.loading > 0) == new and made.loading <= made.seconds
                resident = made.resident
            assert resident == plain and set(shelf.computes) == set(plain) and len(loaded) == loads
            assert loaded[-1][1] < most  # there was room

    with mock.patch("gc.collect"):  # which takes long in a process of many tests
        asyncio.run(story())


def test_a_batch_holds_tasks_of_one_model_and_waits_for_its_load(catalogue):
    options = run_options(make(DedgeParameters, **SIMULATED | {"catalogue": catalogue, "num_servers": 1}))

    async def story() -> None:
        owner = Recorder()
        config = make(DedgeParameters, catalogue=catalogue, num_servers=1, batch_size=3)
        cluster = LocalCluster(config, choose_model(options).compute, owner)
        await cluster.start()
        cluster.calibrate(np.array([0.001]), 0.0)
        assert cluster.servers[0].resident == ["a"]
        cluster.send({0: [task(k, model, 10) for k, model in enumerate("abacb")]})
        server = cluster.servers[0]
        assert [t.model for t in server.calls[0].tasks] == ["a", "a"]
        while cluster.where:
            await asyncio.sleep(0.01)
        assert [t.number for _, t, *_ in owner.of("made")] == [0, 2, 1, 4, 3]
        assert (server.loads, server.resident) == (2, ["c"]) and 0.05 <= server.load_seconds < 0.2
        assert cluster.load_time["b"] >= 0.02 and cluster.load_time["a"] == 0.05  # measured, and as the catalogue says
        assert server.seconds_per_step < 0.003  # a load does not make it slow
        await cluster.close()

    asyncio.run(asyncio.wait_for(story(), 20))


class Idle(Queues):
    """A server that never gets on."""

    def begin(self, server, call: Call) -> None:
        pass


@pytest.mark.parametrize(("model", "moved"), [("a", [3, 2]), ("b", [])])
def test_a_server_without_work_takes_over_what_it_ends_sooner_its_loads_included(model, moved, tmp_path):
    path = written(tmp_path / "catalogue.json", [{"name": "a"}, {"name": "b", "load_time": 50}])

    async def story() -> None:
        queues = Idle(make(DedgeParameters, num_servers=2, catalogue=path), Recorder())
        busy, idle = queues.servers
        busy.up, busy.resident, idle.resident = True, [model], ["a"]
        queues.send({0: [task(k, model, 10) for k in range(4)]})
        idle.up = True
        queues.settle()
        assert sorted(idle.waiting | {t.number: t for call in idle.calls for t in call.tasks}) == sorted(moved)

    asyncio.run(story())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 11))
def test_a_backlog_counts_every_load_that_is_to_come(tmp_path_factory, names, most, gone):
    path = written(tmp_path_factory.getbasetemp() / "catalogue.json", THREE)

    async def story() -> None:
        queues = Idle(make(DedgeParameters, num_servers=1, catalogue=path, resident_models=most), Recorder())
        queues.calibrate(np.array([1.0]), 0.5)
        (server,) = queues.servers
        server.up, server.resident = True, ["c"]
        queues.send({0: [task(k, name, 3) for k, name in enumerate(names)]})
        queues.seconds(server)  # which is kept until something changes
        if cancelled := 0 < gone < len(names) and gone in server.waiting:
            queues.cancel(gone)
        expected, resident = 0.0, ["c"]
        for k, name in enumerate(names):
            if not (cancelled and k == gone):
                expected += 3.5 + (0.0 if name in resident else {"a": 0.05, "b": 0.02, "c": 0.03}[name])
                resident = ([other for other in resident if other != name] + [name])[-most:]
                if k in server.waiting:
                    assert queues.place(k)[1] == pytest.approx(expected, abs=0.01)
        assert queues.backlog_seconds() == pytest.approx([expected], abs=0.01)

    asyncio.run(story())


def test_a_picture_is_the_same_after_its_model_was_gone_and_a_lora_that_fails_spares_the_server(tmp_path):
    wanted, generator, lora = find_weights(POCKET, "auto")["MMDiT"].wanted, torch.Generator().manual_seed(0), {}
    for name, (out, into) in ((n, s) for n, s in wanted.items() if n.endswith("attn.qkv.weight")):
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        lora[f"{module}.lora_down.weight"] = torch.randn(2, into, generator=generator) / 5
        lora[f"{module}.lora_up.weight"] = torch.randn(out, 2, generator=generator) / 5
    file, pocket = tmp_path / "odd.safetensors", {"folder": str(POCKET)}
    save_file(lora, file)
    entries = [{"name": "one"} | pocket, {"name": "two"} | pocket, {"name": "odd", "lora": str(file)} | pocket]
    path = written(tmp_path / "catalogue.json", entries)
    options = run_options(make(DedgeParameters, catalogue=path))
    server = EdgeServer(0, choose_model(options).compute)

    async def made(model: str) -> bytes:
        return (await server.run([task(0, model)])).images[0]

    async def story() -> None:
        await server.hello()
        first, odd, two, again = [await made(model) for model in ("one", "odd", "two", "one")]
        with Image.open(io.BytesIO(odd)) as image:
            said = json.loads(image.text["dedgeai"])
            assert said["model"] == "odd" and said["lora"] == [{"file": "odd.safetensors", "strength": 1.0}]
        assert again == first and (pixels(two) == pixels(first)).all() and (pixels(odd) != pixels(first)).any()
        file.unlink()
        with pytest.raises(BatchError, match=r"^model odd cannot be loaded: --lora="):
            await made("odd")
        assert await made("one") == first

    asyncio.run(story())


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


# --- the service ---


def test_tasks_name_their_model_and_others_are_refused(catalogue, tmp_path):
    with LocalService(tmp_path / "run", catalogue=catalogue, num_servers=1, resident_models=2) as service:
        client = service.client
        assert [service.order(**more)["model"] for more in ({}, {"model": "c"}, {"model": "b"})] == ["a", "c", "b"]
        reply = client.post("/v1/images/generations", json={"prompt": "a fox", "model": "c"})
        assert reply.status_code == 200 and client.get("/api/tasks/3").json()["model"] == "c"
        wrong = client.post("/api/tasks", json={"prompt": "a fox", "model": "d"})
        assert wrong.status_code == 422 and all(f"'{name}'" in wrong.json()["detail"] for name in "abc")
        wrong = client.post("/v1/images/generations", json={"prompt": "a fox", "model": "d"})
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["a", "b", "c"]
        assert client.get("/v1/models/b").json()["id"] == "b" and client.get("/v1/models/d").status_code == 404
        assert client.get("/api/model").json()["models"] == {"a": None, "b": 20, "c": None}
        (server,) = client.get("/api/cluster").json()["servers"]
        assert (server["models"], server["loads"]) == (["b", "c"], 2) and 0.05 <= server["loading_s"] < 0.5
        assert 'dedgeai_model_loads_total{edge_server="0"} 2.0' in client.get("/metrics").text


def test_a_service_of_one_model_knows_its_name_alone(tmp_path):
    with LocalService(tmp_path / "run", model_name="mine") as service:
        assert service.order(model="mine")["model"] == service.order()["model"] == "mine"
        assert service.client.post("/api/tasks", json={"prompt": "a fox", "model": "a"}).status_code == 422
        assert service.client.get("/api/model").json()["models"] == {"mine": None}
        assert [record.task.model for record in service.system.records.values()] == ["", ""]


def test_models_outlive_a_restart_and_rows_of_before_have_the_default_one(catalogue, tmp_path):
    slow = {"num_servers": 1, "step_seconds": 0.2, "rebalance": False}
    with LocalService(tmp_path / "run", catalogue=catalogue, **slow) as service:
        for model in ("a", "b", "c", "a"):
            service.order(model=model, steps=5)
    with sqlite3.connect(tmp_path / "run/tasks.db") as connection:
        connection.execute("UPDATE tasks SET state = 'queued'")
    smaller = written(tmp_path / "smaller.json", [THREE[2], THREE[0]])
    with LocalService(tmp_path / "run", catalogue=smaller, num_servers=1) as service:
        service.settle()
        found = [service.client.get(f"/api/tasks/{number}").json() for number in range(4)]
    assert [one["state"] for one in found] == ["done", "failed", "done", "done"]
    assert found[1]["error"] == "its model b is no longer in the catalogue"
    assert [found[k]["model"] for k in (0, 2, 3)] == ["a", "c", "a"]
    with sqlite3.connect(tmp_path / "run/tasks.db") as connection:  # as it was before tasks had models
        connection.execute("ALTER TABLE tasks DROP COLUMN model")
        connection.execute("UPDATE tasks SET state = 'waiting'")
    with LocalService(tmp_path / "run", catalogue=catalogue, num_servers=1) as service:
        service.settle()
        found = service.client.get("/api/tasks").json()["tasks"]
        assert {(one["state"], one["model"]) for one in found} == {("done", "a")}


# --- requests that are replayed ---


def requests_file(folder: Path) -> Path:
    rows = ["10,u,30,p", "11,v,5,q", "12,u,0.2,p", "16,w,70,r", "17.5,v,10,q", "30,u,10,p", "31,x,10,s"]
    path = folder / "requests.csv"
    path.write_text("\n".join(["time_s,user,work,model", *rows]) + "\n")
    return path


def test_requests_are_replayed_at_the_load_by_users_and_popularity(tmp_path):
    replay, profile = read_replay(str(requests_file(tmp_path)), 6, 50, 2), equal_servers(0.1, 0.3, 0.0, np.ones(4))
    stream = replay.stream(6, 4, np.zeros(6), 0.8, profile)
    assert stream.steps.tolist() == [30, 5, 1, 50, 10, 10] and len(stream) == 6
    assert np.diff(stream.time) == pytest.approx(np.array([1, 1, 4, 1.5, 12.5]) / 20 * stream.time[-1])
    offered = sum(0.3 + 0.1 * steps for steps in stream.steps) / (4 * stream.time[-1])
    assert stream.time[0] == 0 and offered == pytest.approx(0.8)
    assert stream.model.tolist() == [0, 1, 0, 0, 1, 0]  # p, q, r, s by popularity: a, b, a, b
    station = stream.base_station
    assert station[0] == station[2] == station[5] and station[1] == station[4] and (station < 4).all()
    assert replay.stream(6, 4, np.zeros(6), None, profile).time.tolist() == [0, 1, 2, 6, 7.5, 20]
    assert [(now, part.tolist()) for now, part in stream.slots(99.0)] == [(t, [k]) for k, t in enumerate(stream.time)]
    words = " ".join(replay.told(["a", "b"]))
    assert "14.3 % are cut to --max_steps=50" in words and "a 2 (57.1 %), b 2 (42.9 %)" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_tasks", "8"], "--num_tasks=8: must be at most 7, the requests of --arrivals"),
        (["--serve"], "must not be combined with --serve"),
    ],
)
def test_requests_that_cannot_be_replayed_are_refused(flags, words, tmp_path, capsys):
    command = (capsys, main_dedgeai, "--compute", "simulated", "--arrivals")
    assert words in refusal(*command, requests_file(tmp_path), *flags)
    assert "--arrivals=nowhere.csv: must be a file that can be read" in refusal(*command, "nowhere.csv")

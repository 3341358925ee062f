"""The benchmark of training: its tables, its ratios, and the floor's products against a formula of its own."""

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from helpers import refusal, run_here
from scripts_by_path import load
from torch.utils.flop_counter import FlopCounterMode

from experiments.training_times import Training, in_turns
from fused import agents as fused_agents
from fused import floor
from fused.networks import Matrix
from fused.threads import Room

bench = load("bench_training")
SIZES = {"num_bs": 3, "num_tasks": 70, "num_slots": 3, "hidden": 6, "batch_size": 64, "seeds": 2, "device": "cpu"}


def tables(text: str) -> dict[str, list[list[str]]]:
    """The rows of each table by its title, without the two of its head."""
    found = {}
    for part in text.split("\n## ")[1:]:
        lines = part.splitlines()
        found[lines[0]] = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    return found


def counted(training: Training, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Floating-point operations and random numbers of a slot of the floor, which is run without compiling it."""
    found: Counter = Counter()

    def product(m: Matrix, *_: Any) -> None:
        assert m.at >= 0 and m.at + (m.rows - 1) * m.row_step + (m.columns - 1) * m.column_step < len(m.numbers)
        found["operations"] += 2 * 64 * m.rows * m.columns

    def outer(work: np.ndarray, d0: int, rows: int, x0: int, columns: int, count: int, *places: int) -> None:
        g0, g_step = places[2:4]
        assert g0 + (rows - 1) * g_step + columns <= training.agents.engine.places.end
        found["operations"] += 2 * 64 * rows * columns * count

    def normal_block(*_: Any) -> None:
        found["normal"] += 64

    def uniform_block(*_: Any) -> None:
        found["uniform"] += 64

    for name in ("network", "drawn", "draw_noise"):
        monkeypatch.setattr(floor, name, getattr(floor, name).py_func)
    turns = iter(range(1000))
    monkeypatch.setattr(floor, "taken", lambda turn: next(turns))
    for name, function in (("product", product), ("outer", outer), ("uniform_block", uniform_block)):
        monkeypatch.setattr(floor, name, function)
    monkeypatch.setattr(fused_agents, "normal_block", normal_block)
    one = floor.Floor(training.agents.engine)
    plain, room = floor.floor.py_func, Room(np.zeros(0, np.float32), np.zeros(64, np.int64))
    monkeypatch.setattr(one.crew, "run", lambda function, count, size, *given: plain(None, room, *given))
    one.seconds(1)
    return found


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("lad_ts", {}),
        ("lad_ts", {"posterior_noise": False, "preset": "paper"}),
        ("lad_ts", {"batch_size": 100, "denoising_steps": 2}),
        ("d2sac_ts", {"num_tasks": 7}),
        ("sac_ts", {}),
        ("dqn_ts", {}),
    ],
)
def test_the_floor_has_the_products_and_random_numbers_of_decisions_and_an_update(method, given, monkeypatch):
    """A product takes 2 operations for each weight and sample; its gradient as many, twice: to weights and to units."""
    training = Training(method, engine="fused", **SIZES | given)
    c = training.config
    a, h, f = c.num_bs, c.hidden, training.agents.state_size
    first, others = f * h, h * h + h * a  # weights at the state, and at units
    chain, steps = method in ("lad_ts", "d2sac_ts"), getattr(c, "denoising_steps", 1)
    whole = first + steps * (others + a * h) if chain else first + others
    back = whole + steps * others + (steps - 1) * a * h * chain  # nothing is upstream of states and of x_I
    decisions, samples = (-(-count // 64) for count in (c.num_tasks, c.batch_size))
    critic = 0 if method == "dqn_ts" else 2 * (3 * (first + others) + (first + others) + others)
    weights = whole * decisions + (2 * whole + back + critic) * samples
    found = counted(training, monkeypatch)
    agents = c.seeds * c.num_bs
    assert found["operations"] == 2 * 64 * weights * agents
    noise = {"lad_ts": steps - 1, "d2sac_ts": steps}.get(method, 0) * getattr(c, "posterior_noise", True)
    draws = 1 if method == "dqn_ts" or samples == 1 else 2  # more than 64 samples are drawn once for each loss
    assert found["normal"] == 64 * agents * noise * a * (decisions + draws * samples)
    assert found["uniform"] == 64 * agents * ((2 if method == "dqn_ts" else 1) * decisions + draws * samples)


@pytest.mark.parametrize("method", ["sac_ts", "dqn_ts"])
def test_the_floor_has_the_operations_that_torch_counts(method, monkeypatch):
    """Those of an update: torch counts no product that is added in place, as LAD-TS's are, and pads no decisions."""
    slow, fast = (Training(method, engine=engine, **SIZES | {"num_tasks": 64}) for engine in ("torch", "fused"))
    agents = slow.agents
    with FlopCounterMode(display=False) as counter:
        agents.update(agents.replay.take(agents.draw("uniform", 64)), None)
    decisions = 2 * 64 * agents.agents * (agents.state_size * 6 + 6 * 6 + 6 * 3)
    assert counted(fast, monkeypatch)["operations"] == counter.get_total_flops() + decisions


def test_the_floor_takes_less_time_than_an_episode():
    training = Training("lad_ts", engine="fused", num_slots=10, device="cpu", learning_start=20)
    one = floor.Floor(training.agents.engine)
    found = in_turns({"fused": training.episode, "floor": lambda: one.seconds(9)}, 5)
    assert len(found["fused"]) == len(found["floor"]) == 5
    assert 0 < min(found["floor"]) < min(found["fused"])


def test_what_is_timed_runs_in_turns_and_the_first_round_does_not_count():
    called = []

    def timed(name: str) -> float:
        called.append(name)
        return float(len(called))

    found = in_turns({"one": lambda: timed("one"), "two": lambda: timed("two")}, 2)
    assert called == ["one", "two"] * 3 and found == {"one": [3.0, 5.0], "two": [4.0, 6.0]}


def test_quick_prints_the_first_row_of_each_table(capsys):
    run_here(bench, "--quick", "--plain_slots=1")
    text = capsys.readouterr().out
    found = tables(text)
    assert [len(rows) for rows in found.values()] == [2, 2, 1] and "peak memory" in text
    plain, row = next(iter(found.values()))
    assert plain[:3] == ["LAD-TS, plain per-task loop", "1", "1"] and row[:3] == ["LAD-TS", "1", "1"]
    torch_seconds, fused_seconds, faster, least, above, *against = map(float, row[3:])
    assert faster == pytest.approx(torch_seconds / fused_seconds, rel=0.01)
    assert above == pytest.approx(fused_seconds / least, rel=0.01)
    for ratio, seconds in zip(against, (torch_seconds, fused_seconds), strict=True):
        assert ratio == pytest.approx(float(plain[3]) / seconds, rel=0.1)
    assert against[0] > 4  # 30 or so where nothing else runs: batching is what the project's speed rests on


def test_every_table_has_its_rows(capsys, monkeypatch):
    """With times that are made up, since the true ones take minutes."""
    times = {"torch": 0.3, "fused": 0.1, "floor": 0.08, "plain": 9.0}
    names = "torch", "fused", "floor"
    busy = {"torch | 1": 0.4, "torch | 2": 1.0, "fused | 1": 0.2, "fused | 2": 0.1}
    monkeypatch.setattr(bench, "engine_seconds", lambda *_, **more: {k: times[k] for k in (*names, *more)})
    monkeypatch.setattr(bench, "busy_seconds", lambda repeats: busy)
    monkeypatch.setattr(bench, "busy_processes", contextlib.nullcontext)
    monkeypatch.setattr(bench, "first_runs", lambda: [("torch", 3.0, 400.0), ("fused, compiled", 30.0, 500.0)])
    monkeypatch.setattr(bench, "operator_shares", lambda seeds: {"softmax": 0.1})
    monkeypatch.setattr(bench, "decision_microseconds", lambda *_: 2.0)
    monkeypatch.setattr(bench, "vector_steps", lambda *_: (4.0, 3.0))
    monkeypatch.setattr(bench.multiprocessing, "cpu_count", lambda: 2)
    monkeypatch.setattr(bench, "choose_device", lambda *_: bench.torch.device("cpu"))
    run_here(bench)
    engines, beside, first, *others = tables(capsys.readouterr().out).values()
    settings = [("LAD-TS", 1, 1), ("LAD-TS", 8, 1), ("LAD-TS", 1, 2), ("LAD-TS", 8, 2)]
    settings += [(name, 1, 1) for name in ("SAC-TS", "D2SAC-TS", "DQN-TS")]
    assert [row[:3] for row in engines[1:]] == [[name, str(seeds), str(threads)] for name, seeds, threads in settings]
    assert engines[1][3:] == ["0.3000", "0.1000", "3.00", "0.0800", "1.25", "30", "90"]
    assert engines[-1][-2:] == ["-", "-"]
    assert beside[1] == ["torch", "2", "1.0000", "2.50", "9"] and beside[3] == ["fused", "2", "0.1000", "0.50", "90"]
    assert first[1] == ["fused, compiled", "30.0", "500"]
    assert [len(rows) for rows in others] == [1, 7, 2]


def test_a_device_has_a_table_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr(bench.PlainLoop, "seconds", lambda self, slots: 9.0)
    monkeypatch.setattr(bench, "Training", lambda *_, **given: Training(*_, **given | {"num_slots": 3}))
    run_here(bench, "--device=cpu", "--seeds=1,3", "--repeats=1")
    (rows,) = tables(capsys.readouterr().out).values()
    assert [row[:2] for row in rows] == [["cpu", "1"], ["cpu", "3"]] and float(rows[0][2]) > 0


@pytest.mark.parametrize(
    "flag", ["--seeds=0,8", "--seeds=1,", "--seeds=1001", "--seeds=x", "--seeds=" + "9" * 5000, "--device=cuda:99"]
)
def test_mistakes_are_told_in_a_line(flag, capsys):
    assert refusal(capsys, bench, flag).startswith(f"error: {flag}: must be ")

"""A search on a trace that was stopped or killed goes on to the very numbers of one that was not."""

import contextlib
import itertools
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal, run_here, start_script

from trace_ts import main_trace, search_file, study
from trace_ts.evolution import Evolution
from trace_ts.main_trace import TraceConfig, trained
from trace_ts.policy_file import load_policy, read_rule
from trace_ts.search import Search, improve
from trace_ts.search_file import Part, SearchFile
from trace_ts.study import Training
from trace_ts.synthetic import generate

REQUESTS = generate(600, 0)
SMALL = {"num_requests": 600, "num_servers": 4, "generations": 23, "pairs": 2}
NAMES = ("affinity_fitted", "score", "d2sac_ts")
BY_GRADIENTS = ("lad_ts_ppo", "sac_ts", "dqn_ts")


class StopError(Exception):
    """What ends a search in its middle."""


def stop_at(part: str, generation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bar of a search raise StopError after a generation."""

    class Bar(main_trace.Progress):
        def update(self, more: float | None = 1) -> None:
            super().update(more)
            if self.desc.endswith(f": {part}") and self.n >= generation:
                raise StopError

    monkeypatch.setattr(main_trace, "Progress", Bar)


def policies(folder: Path) -> dict[str, list[float]]:
    """What every file holds: the parameters, or nothing for a search that is not done."""
    found = {}
    for path in (folder / "policies").iterdir():
        if path.suffix == ".json":
            found[path.name] = list(read_rule(path).constants)
        else:
            found[path.name] = [] if ".search." in path.name else load_policy(path).parameters.tolist()
    return found


@pytest.mark.parametrize(
    ("name", "every"), [*itertools.product(NAMES, (0.0, 10.0)), *((name, 10.0) for name in BY_GRADIENTS)]
)
def test_a_stopped_search_goes_on_to_the_same_parameters(name, every, tmp_path, monkeypatch):
    """Stopped in each of its searches: at a validation, after it and at its end."""
    monkeypatch.setattr(search_file, "EVERY", every)
    small = SMALL | ({"generations": 12} if name in BY_GRADIENTS else {})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    trained(TraceConfig(**small), name, REQUESTS, whole)
    assert set(policies(whole)) == {f"{name}.json" if name.endswith("fitted") else f"{name}.safetensors"}
    for part in ("affinity 1/3", "affinity 3/3") if name == "affinity_fitted" else ("priced", name):
        for generation in (10, 11) if name in BY_GRADIENTS else (10, 14, 23):
            with monkeypatch.context() as patch, pytest.raises(StopError):
                stop_at(part, generation, patch)
                trained(TraceConfig(**small), name, REQUESTS, parts)
            assert set(policies(parts)) == {f"{name}.search.safetensors"}
    trained(TraceConfig(**small), name, REQUESTS, parts)
    assert policies(parts) == policies(whole)


def test_what_was_searched_is_not_searched_again(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_at("score", 12, patch)
        trained(TraceConfig(**SMALL), "score", REQUESTS, tmp_path)
    begun = []

    class Bar(main_trace.Progress):
        def __init__(self, *given, **options) -> None:
            begun.append((options["desc"], options["initial"]))
            super().__init__(*given, **options)

    monkeypatch.setattr(main_trace, "Progress", Bar)
    trained(TraceConfig(**SMALL), "score", REQUESTS, tmp_path)
    assert begun == [("score: priced", 23), ("score: score", 10)]
    assert "begins anew" not in capsys.readouterr().out


OTHERS = [
    ({"generations": 24}, "search"),
    ({"pairs": 3}, "search"),
    ({"seed": 1}, "seed"),
    ({"load": 0.7}, "scenarios"),
    ({"every_cell": True}, "scenarios"),
]


@pytest.mark.parametrize(("changes", "word"), [*OTHERS, ({}, "requests")])
def test_a_state_of_another_search_is_told_of_and_not_gone_on_with(changes, word, tmp_path, monkeypatch, capsys):
    other, fresh = tmp_path / "other", tmp_path / "fresh"
    other.mkdir()
    fresh.mkdir()
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_at("affinity 1/3", 20, patch)
        trained(TraceConfig(**SMALL), "affinity_fitted", REQUESTS, other)
    requests = REQUESTS if changes else generate(600, 1)
    config = TraceConfig(**SMALL | {"generations": 2} if "every_cell" in changes else SMALL | changes)
    config.every_cell = "every_cell" in changes
    for folder in (other, fresh):
        capsys.readouterr()
        trained(config, "affinity_fitted", requests, folder)
        told = [line for line in capsys.readouterr().out.splitlines() if "begins anew" in line]
        assert len(told) == (folder == other)
        assert all(word in line for line in told)
    assert policies(other) == policies(fresh)


def damages(content: bytes) -> list[bytes]:
    """The file with its end cut off, with one bit turned in an array and in the header, and others."""
    turned = bytearray(content)
    turned[-5] ^= 1
    return [b"", content[:-8], bytes(turned), content.replace(b"PCG64", b"PCG65"), b"\0" * 100, b"no file of arrays"]


def test_a_damaged_file_is_told_of_in_a_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    with monkeypatch.context() as patch, pytest.raises(StopError):
        stop_at("affinity 1/3", 20, patch)
        run_here(main_trace, *flags, "--policies=affinity_fitted", "--draws=2", f"--out={out}")
    path = out / "policies" / "affinity_fitted.search.safetensors"
    whole = path.read_bytes()
    for content in damages(whole):
        path.write_bytes(content)
        assert f"--resume={path}: must be a search of main_trace.py" in refusal(capsys, main_trace, f"--resume={out}")
        assert path.read_bytes() == content
    path.write_bytes(whole)
    run_here(main_trace, f"--resume={out}")
    assert not path.exists()
    path.write_bytes(b"left by a run that was killed before it removed the file")
    run_here(main_trace, f"--resume={out}")
    assert not path.exists()


def test_a_search_may_stop_after_any_generation(tmp_path, monkeypatch):
    monkeypatch.setattr(search_file, "EVERY", 0.0)

    def kept(path: Path) -> Part:
        return SearchFile(path).part("search")

    def stop_after(last: int) -> Callable[[int, float], None]:
        def progress(generation: int, cost: float) -> None:
            if generation == last:
                raise StopError

        return progress

    def costs(candidates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return ((candidates - generator.normal(size=3)) ** 2).sum(1)

    def validate(point: np.ndarray) -> float:
        return float((point**2).sum())

    search, whole = Search(12, 3, check_every=5), Evolution(np.ones(3), costs, Search(12, 3), 0)
    found = improve(whole, validate, search)
    for generation in range(1, 13):
        path = tmp_path / f"{generation}"
        with pytest.raises(StopError):
            improve(Evolution(np.ones(3), costs, search, 0), validate, search, stop_after(generation), kept(path))
        again = improve(Evolution(np.zeros(3), costs, search, 1), validate, search, kept=kept(path))
        np.testing.assert_array_equal(again.parameters, found.parameters)
        assert (again.cost, again.history) == (found.cost, found.history)
    assert [number for number, _ in found.history] == [0, 5, 10, 12]


def test_a_file_keeps_arrays_of_any_kind_exactly(tmp_path):
    """As of a training by gradients: other shapes and types, no memory in one piece, and values of JSON."""
    values = {"weights": np.arange(12.0).reshape(3, 4).T, "half": np.float32([0.1, np.inf]), "step": np.array(7)}
    state = values | {"epoch": 3, "loss": [0.1, 1e-300], "told": None}
    SearchFile(tmp_path / "a.search.safetensors").part("a/b", lr=(0.1, 1)).of(seed=0).save(state, due=True)
    again = SearchFile(tmp_path / "a.search.safetensors").part("a/b", lr=(0.1, 1)).of(seed=0).load(dict)
    assert again.keys() == state.keys() and all(again[name] == state[name] for name in state.keys() - values)
    for name, value in values.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)


def test_a_study_goes_on_with_its_searches(tmp_path, monkeypatch):
    rule, network = (Training("L 12, load 0.8", name, 0) for name in ("priced", "score"))
    monkeypatch.setattr(study, "_requests", [REQUESTS])
    search, parts = Search(12, 2, threads=1), {"whole": [], "parts": []}
    for place, found in parts.items():
        out = tmp_path / place
        for training in (rule, network):
            (out / "policies").mkdir(parents=True, exist_ok=True)
            if place == "parts":
                with monkeypatch.context() as patch, pytest.raises(StopError):
                    patch.setattr(study, "write_rule", stop)
                    patch.setattr(study, "save_policy", stop)
                    study.train(training, out, search)
                assert training.kept(out).path.exists()
                with monkeypatch.context() as patch:
                    patch.setattr("trace_ts.fitting.simulate", stop)  # nothing is left to be simulated
                    study.train(training, out, search)
            else:
                study.train(training, out, search)
            assert not training.kept(out).path.exists()
        found.append(policies(out))
    assert parts["whole"] == parts["parts"] and len(parts["whole"][0]) == 2


def stop(*given: object) -> None:
    raise StopError


def test_a_killed_command_goes_on_to_the_same_table(tmp_path):
    flags = ["--policies=priced_fitted", "--num_requests=2000", "--generations=60", "--pairs=4", "--draws=2"]
    process = start_script("trace_ts/main_trace.py", *flags, "--out=run", folder=tmp_path)
    path, deadline = tmp_path / "run" / "policies" / "priced_fitted.search.safetensors", time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and path.exists()
    resumed = start_script("trace_ts/main_trace.py", "--resume=run", folder=tmp_path)
    _, told = resumed.communicate()
    assert resumed.returncode == 0 and re.search(r" 1/3: .* [1-6]0/60", told), told
    assert not re.search(r" 1/3: .* [0-9]/60", told), told
    with contextlib.chdir(tmp_path):
        run_here(main_trace, *flags, "--out=whole")
    for name in ("table.csv", "draws.csv", "policies/priced_fitted.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [path.name for path in (tmp_path / "run" / "policies").iterdir()] == ["priced_fitted.json"]

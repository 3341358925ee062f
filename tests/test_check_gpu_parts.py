"""What the parts of a check of a GPU are made of: scripts, tests, time, traces, targets and rows that fail."""

import math
import random
import time

import pytest
import torch
from scripts_by_path import load

from common.command_line import parse
from common.tables import read_csv
from gpu_check import overlap, parity, sd3_levels, training
from gpu_check.parts import PARTS, limit
from gpu_check.processes import Outcome, run_script
from gpu_check.report import TARGETS, report, verdict
from gpu_check.results import COLUMNS, Conditions, Results, SkipError


@pytest.mark.parametrize("code", ["import a_package_that_nobody_has", "1 / 0", "print(7 * 6)"])
def test_scripts_of_a_part_are_skipped_fail_or_tell(code, tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(code)
    monkeypatch.setattr("gpu_check.processes.ROOT", tmp_path)
    if "package" in code:
        with pytest.raises(SkipError, match="needs a_package_that_nobody_has"):
            run_script("script.py")
    elif "/" in code:
        with pytest.raises(RuntimeError, match=r"script.py: ZeroDivisionError: .* \(exit code 1\)"):
            run_script("script.py")
    else:
        assert run_script("script.py") == "42\n"


def test_a_script_is_ended_when_its_time_is_over(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)")
    monkeypatch.setattr("gpu_check.processes.ROOT", tmp_path)
    began = time.monotonic()
    assert run_script("script.py", seconds=1.5) == "begun\n"
    assert time.monotonic() - began < 10


def test_time_that_a_part_leaves_goes_to_the_later_ones():
    names = list(PARTS)
    share = {name: part.share / sum(part.share for part in PARTS.values()) for name, part in PARTS.items()}
    left = 480.0
    for name in names:  # each takes all its time
        assert limit(name, names, left) == pytest.approx(480 * share[name])
        left -= limit(name, names, left)
    assert left == pytest.approx(0)
    assert limit(names[-1], names, 100.0) == 100.0
    assert limit("levels", ["levels"], 60.0) == 60.0


@pytest.mark.parametrize("seed", range(20))
def test_hidden_copies_are_counted_as_on_a_ruler(seed):
    draw = random.Random(seed)

    def spans() -> list[tuple[int, int]]:
        begins = [draw.randrange(50) for _ in range(draw.randrange(1, 8))]
        return [(begin, begin + draw.randrange(1, 12)) for begin in begins]

    copies, kernels = spans(), spans()
    marks = [{t for begin, end in found for t in range(begin, end)} for found in (copies, kernels)]
    assert overlap.total(copies) == len(marks[0])
    assert overlap.hidden(copies, kernels) == pytest.approx(len(marks[0] & marks[1]) / len(marks[0]))
    assert overlap.hidden(copies, []) == 0 and math.isnan(overlap.hidden([], kernels))


def test_targets_are_compared_with_what_was_measured():
    rows = [
        dict(zip(COLUMNS, row, strict=True))
        for row in (
            ("levels", "model 512 float16", "peak", "4.41", "GiB", ""),
            ("levels", "block 512 float16", "peak", "1.3", "GiB", ""),
            ("levels", "none 512 float16", "step", "0.1", "s", ""),
            ("levels", "block 512 float16", "step", "0.125", "s", ""),
            ("levels", "compare 512 float16", "-", "not measured", "", "diffusers is not installed"),
            ("training", "cuda, 512 seeds", "episode and seed", "7", "ms", ""),
        )
    ]
    found = {target.words: verdict(target, rows, dry=False) for target in TARGETS}
    assert found.pop("SD3 512 x 512, `model`, peak GiB") == ("4.41", "met")
    assert found.pop("SD3 512 x 512, `block`, peak GiB") == ("1.3", "missed")
    assert found.pop("a step of `block` over `none` at 512") == ("1.25", "met")
    assert found.pop("LAD-TS, 512 seeds, ms per episode and seed") == ("7", "missed")
    assert set(found.values()) == {("not measured", "-")}
    assert {verdict(target, rows, dry=True) for target in TARGETS} == {("not measured", "-")}
    page = report(
        {"device": "cuda: a card"}, ["levels", "edge"], {"levels": Outcome("failed", 3, "a | b")}, rows, False
    )
    assert "| device | cuda: a card |" in page and "a \\| b" in page and "| edge | the edge" in page
    assert "| not yet |" in page and "## training" not in page


def test_targets_name_cases_that_are_measured():
    cases = {f"{level} {side} {form}" for level, side, form in sd3_levels.CASES}
    wanted = {target.case for target in TARGETS if target.part == "levels"}
    assert len(wanted) == 7 and wanted <= cases and {t.over for t in TARGETS} - {""} <= cases
    assert {"levels", "training"} == {target.part for target in TARGETS}


def test_rows_of_the_training_benchmark_are_those_of_the_device(tmp_path, monkeypatch):
    printed = """
| device | seeds | seconds | plain / this |
|---|---|---|---|
| cpu | 1 | 0.32400 | 30 |
| cuda | 1 | 0.50000 | 19 |
| cuda | 512 | 0.00400 | 2425 |
"""
    called = []
    monkeypatch.setattr(training, "run_script", lambda *arguments: called.append(arguments) or printed)
    given = Conditions("cuda", False, time.time() + 60, str(tmp_path), str(tmp_path))
    training.measure(given, Results(tmp_path, "training"))
    rows = read_csv(tmp_path / "results.csv")
    assert {(row["case"], row["quantity"]): row["value"] for row in rows} == {
        ("cuda, 1 seeds", "episode and seed"): "500",
        ("cuda, 1 seeds", "plain loop / this"): "19",
        ("cuda, 512 seeds", "episode and seed"): "4",
        ("cuda, 512 seeds", "plain loop / this"): "2425",
        ("cuda, 8 seeds", "-"): "not measured",
        ("cuda, 64 seeds", "-"): "not measured",
    }
    config = load("bench_training").BenchConfig
    assert parse(config, list(called[0][1:]), "", "")["seeds"] == "1,8,64,512"  # flags that the script knows
    monkeypatch.setattr(training, "run_script", lambda *_: printed.replace("cuda", "other"))
    with pytest.raises(RuntimeError, match="no row of the device cuda"):
        training.measure(given, Results(tmp_path, "training"))


def test_outcomes_of_tests_are_read_from_pytests_record(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["cuda"]\n')
    start = "import pytest\npytestmark = pytest.mark.cuda\n"
    body = "def test_a():\n    pass\n\ndef test_b():\n    assert 1 == 2\n\ndef test_c():\n    pytest.skip('because')\n"
    (tmp_path / "tests" / "test_cuda_one.py").write_text(start + body)
    (tmp_path / "tests" / "test_cuda_two.py").write_text("import pytest\npytest.importorskip('nowhere_there')\n")
    (tmp_path / "tests" / "test_cuda_wrong.py").write_text("import nowhere_there\n")
    (tmp_path / "tests" / "test_other.py").write_text(start + "def test_d():\n    pass\n")
    monkeypatch.setattr(parity, "ROOT", tmp_path)
    given = Conditions("cpu", True, time.time() + 60, str(tmp_path), str(tmp_path))
    with pytest.raises(RuntimeError, match=r"2 of 5 tests failed: .*test_cuda_wrong.*test_cuda_one: test_b"):
        parity.measure(given, Results(tmp_path, "tests"))
    found = {
        row["case"].rpartition("test_")[2]: (row["value"], row["note"]) for row in read_csv(tmp_path / "results.csv")
    }
    words = {"a": ("passed", ""), "b": ("failed", "1 == 2"), "c": ("skipped", "because")}
    words |= {"cuda_two": ("skipped", "nowhere_there"), "cuda_wrong": ("failed", "collection failure")}
    assert found.keys() == words.keys()
    for name, (outcome, part) in words.items():
        assert found[name][0] == outcome and part in found[name][1], (name, found[name])


def test_a_case_that_fails_leaves_the_others(tmp_path):
    results = Results(tmp_path, "step")
    for name, error in (
        ("wrong", ValueError("broken")),
        ("large", torch.OutOfMemoryError("CUDA out of memory")),
        ("absent", ModuleNotFoundError("no", name="diffusers.loaders")),
        ("own", ModuleNotFoundError("no", name="gpu_check.nothing")),
        ("late", SkipError("no time was left")),
    ):
        with results.case(name):
            raise error
    with results.case("good"):
        results.add("good", "speed", 1)
    rows = {row["case"]: (row["value"], row["note"]) for row in read_csv(tmp_path / "results.csv")}
    assert rows["wrong"] == ("failed", "ValueError: broken") and rows["own"][0] == "failed"
    assert rows["large"][0] == "not measured" and "out of memory" in rows["large"][1]
    assert rows["absent"] == ("not measured", "needs diffusers, which is not installed")
    assert rows["late"] == ("not measured", "no time was left") and rows["good"] == ("1", "")
    with pytest.raises(RuntimeError, match="failed: wrong, own"):
        results.finish()
    Results(tmp_path, "step").finish()

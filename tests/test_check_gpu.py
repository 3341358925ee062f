"""The command that checks a GPU: its parts at tiny sizes, its time limits, interruptions, and its report."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fire
import pytest
import torch
from helpers import ROOT, refusal, run_here
from scripts_by_path import load

from common.tables import read_csv
from gpu_check import one_part
from gpu_check.parts import PARTS, Part
from gpu_check.processes import SKIPPED
from gpu_check.report import TARGETS
from gpu_check.results import Conditions
from gpu_check.stand_in import fire as stand_in

check_gpu = load("check_gpu")
# Parts of other kinds than the real ones: their functions, which a process of its own imports.
HELPER = """
import subprocess, sys, time
from pathlib import Path
from gpu_check.results import SkipError

def fine(given, results):
    results.add("a case", "speed", 2.0, "1/s", f"on {given.device}, {given.dry}")

def broken(given, results):
    results.add("before", "speed", 1.0)
    raise ValueError("these are the last words")

def lacking(given, results):
    import a_package_that_nobody_has

def refusing(given, results):
    raise SkipError("needs a reason")

def greedy(given, results):
    raise MemoryError("out of memory")

def astray(given, results):
    import gpu_check.nothing

def endless(given, results):
    results.add("before", "speed", 3.0)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(given.folder) / "pid").write_text(str(process.pid))
    time.sleep(600)
"""
OTHERS = ("broken", "endless", "fine")


@pytest.fixture
def others(tmp_path, monkeypatch) -> Path:
    """The helper's parts in the place of the real ones; the folder that their module lies in."""
    (tmp_path / "other_parts.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in list(PARTS):
        monkeypatch.delitem(PARTS, name)
    for name in OTHERS:
        monkeypatch.setitem(PARTS, name, Part(f"what {name} shows", 1.0, f"other_parts:{name}"))
    return tmp_path


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def outcomes(folder: Path) -> dict[str, tuple[str, str]]:
    """How each part ended, and its note."""
    rows = read_csv(folder / "results.csv")
    return {row["part"]: (row["value"], row["note"]) for row in rows if row["quantity"] == "outcome"}


def dry_run(folder: Path, *flags: str) -> None:
    """The command with --dry in a process, as people start it; every part that was asked for must be ok."""
    command = ["bash", str(ROOT / "scripts/check_gpu.sh"), "--dry", "--minutes=30", *flags, f"--out={folder}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHON": sys.executable}
    )
    names = [flag.removeprefix("--part=") for flag in flags] or list(PARTS)
    report = folder / "report.md"
    assert done.returncode == 0, done.stdout + done.stderr + (report.read_text() if report.is_file() else "")
    assert {name: word for name, (word, _) in outcomes(folder).items()} == dict.fromkeys(names, "ok")
    page, rows = (folder / "report.md").read_text(), read_csv(folder / "results.csv")
    assert "| device | cpu: " in page and page.count(" | not measured | - |\n") == len(TARGETS)
    for name in names:
        assert f"| {name} | {PARTS[name].what} | ok |" in page and f"## {name}: " in page
        assert len([row for row in rows if row["part"] == name]) > 1 and (folder / "logs" / f"{name}.log").exists()


def test_a_dry_run_measures_the_parts_that_are_asked_for(tmp_path):
    """All but `tests`, whose files stand in this folder."""
    dry_run(tmp_path / "out", *(f"--part={name}" for name in PARTS if name != "tests"))
    rows = read_csv(tmp_path / "out" / "results.csv")
    steps = {row["case"]: float(row["value"]) for row in rows if (row["part"], row["quantity"]) == ("step", "step")}
    assert steps.keys() == {f"32 {form}" for form in ("float16", "bfloat16", "fp8", "int8")} and min(steps.values()) > 0


@pytest.mark.slow
def test_a_dry_run_runs_every_part(tmp_path):
    dry_run(tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "results.csv")
    tests = [row["value"] for row in rows if row["quantity"] == "test"]
    assert len(tests) > 30 and set(tests) == {"passed"}


def test_parts_fail_and_run_out_of_time_each_by_itself(others, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_gpu, "limit", lambda name, names, seconds: 7 if name == "endless" else 60)
    with pytest.raises(SystemExit) as ended:
        run_here(check_gpu, "--dry", "--out", tmp_path / "out")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error == "error: broken, endless did not succeed; report.md says how\n"
    found = outcomes(tmp_path / "out")
    assert list(found) == list(OTHERS)
    assert [word for word, _ in found.values()] == ["failed", "out of time", "ok"]
    assert "ValueError: these are the last words" in found["broken"][1]
    rows = read_csv(tmp_path / "out" / "results.csv")
    assert [row["part"] for row in rows if row["quantity"] == "speed"] == ["broken", "endless", "fine"]
    assert rows[-2]["note"] == "on cpu, True"
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| broken | what broken shows | failed |" in page and "| fine | what fine shows | ok |" in page
    assert not is_alive(int((tmp_path / "out" / "pid").read_text()))


def test_a_part_that_cannot_run_says_why(others, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(others))
    given = Conditions("cpu", True, time.time() + 60, str(tmp_path), str(tmp_path))
    for name, words in (
        ("lacking", "needs a_package_that_nobody_has, which is not installed"),
        ("refusing", "needs a reason"),
    ):
        assert one_part.main(name, f"other_parts:{name}", given.to_json()) == SKIPPED
        assert capsys.readouterr().out == f"{words}\n"
    assert one_part.main("greedy", "other_parts:greedy", given.to_json()) == 1
    assert capsys.readouterr().out.startswith("needs more memory than there is")
    with pytest.raises(ModuleNotFoundError):
        one_part.main("astray", "other_parts:astray", given.to_json())  # a mistake of this project's own


STARTED = """
import sys
sys.path.insert(0, {tests!r})
from scripts_by_path import load
from common.command_line import command_line
from gpu_check.parts import PARTS, Part
PARTS.clear()
PARTS.update({{name: Part(name, 1.0, f"other_parts:{{name}}") for name in ("endless", "broken")}})
module = load("check_gpu")
command_line(module.CheckConfig, module.main, "", ["--dry", "--out", {out!r}])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_its_report_and_no_process(number, others, tmp_path):
    out = tmp_path / "out"
    code = STARTED.format(tests=str(ROOT / "tests"), out=str(out))
    paths = os.pathsep.join([str(ROOT), str(others)])
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not ((out / "pid").exists() and (out / "pid").read_text()) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    sleeper = int((out / "pid").read_text())
    assert is_alive(sleeper)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert error.splitlines()[-1] == "error: interrupted; report.md has what was done"
    assert {name: word for name, (word, _) in outcomes(out).items()} == {
        "endless": "interrupted",
        "broken": "interrupted",
    }
    assert "| endless | endless | interrupted |" in (out / "report.md").read_text()
    assert not is_alive(sleeper)
    assert not list(tmp_path.glob("check_gpu_*"))  # the scratch folder


def test_mistakes_are_told_in_one_line(tmp_path, capsys, monkeypatch):
    out = ("--out", tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refusal(capsys, check_gpu, "--dry", "--part=levels", "--part=speed", *out)
    assert line == f"error: --part=speed: must be one of {', '.join(PARTS)}"
    for minutes in ("0", "-1", "nan", "inf", "soon", "None"):
        assert f"--minutes={minutes}: must be a number" in refusal(
            capsys, check_gpu, "--dry", f"--minutes={minutes}", *out
        )
    assert "no CUDA device" in refusal(capsys, check_gpu, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--dry"],
        ["--dry", "--minutes", "2"],
        ["--minutes=1e-3", "--dry=False"],
        ["--a-b", "x", "--c=None", "--d=-4"],
    ],
)
def test_the_stand_in_for_fire_reads_flags_alike(flags):
    found = []
    for module in (fire, stand_in):
        module.Fire(lambda *positional, **given: found.append((positional, given)), command=list(flags), name="x")
    assert found[0] == found[1]


def test_the_command_runs_where_fire_is_not_installed(tmp_path):
    """A Python whose path has everything but fire: its stand-in reads the flags."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\n"
        "class Hidden:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'fire':\n"
        "            places = [p for p in sys.path if 'stand_in' in p]\n"
        "            found = PathFinder.find_spec(name, places)\n"
        "            if found is None:\n"
        "                raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "            return found\n"
        "sys.meta_path.insert(0, Hidden)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts/check_gpu.sh"), "--dry", "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "error: --minutes=0: must be a number, above 0"
    )

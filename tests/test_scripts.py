"""The scripts over several runs, through the command line with tiny budgets."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import run_here
from scripts_by_path import load

compare = load("compare")
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run(name: str, *flags: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, str(SCRIPTS / name), *flags], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    run("reproduce.py", "--episodes=2", "--seeds=2", "--methods=sac_ts,opt_ts,lower_bound", f"--out={out}")
    return out


def test_reproduce_leaves_a_figure_and_a_table_that_agree_with_the_runs(comparison):
    for name in ("comparison.png", "comparison.pdf", "table.md"):
        assert (comparison / name).stat().st_size > 0
    table = {row["method"]: row for row in rows(comparison / "table.csv")}
    assert set(table) == {"SAC-TS (tuned)", "Opt-TS", "lower bound (bound, not a scheduler)"}
    folders = ("sac_ts_tuned", "opt_ts", "lower_bound")
    runs = {folder: rows(comparison / "runs" / folder / "delay.csv") for folder in folders}
    last = [row for row in runs["sac_ts_tuned"] if row["episode"] == "1"]  # the last half of two episodes
    shown = float(table["SAC-TS (tuned)"]["delay s"].split(" ")[0])
    assert shown == pytest.approx(np.mean([float(row["delay_s"]) for row in last]), abs=0.005)
    for sac, opt, bound in zip(*runs.values(), strict=True):  # one environment, the same arrivals
        assert sac["opt_delay_s"] == opt["delay_s"] == bound["opt_delay_s"]
        assert float(bound["delay_s"]) < float(opt["delay_s"])


def test_reproduce_runs_nothing_twice_and_refuses_other_runs(comparison):
    before = (comparison / "runs" / "sac_ts_tuned" / "checkpoint.pt").stat().st_mtime_ns
    run("reproduce.py", "--episodes=2", "--seeds=2", "--methods=sac_ts,opt_ts,lower_bound", f"--out={comparison}")
    assert (comparison / "runs" / "sac_ts_tuned" / "checkpoint.pt").stat().st_mtime_ns == before
    refused = run("reproduce.py", "--episodes=2", "--seeds=1", "--methods=sac_ts", f"--out={comparison}", code=2)
    assert "seeds=2" in refused.stderr
    assert "unknown_method" in run("reproduce.py", "--methods=unknown_method", code=2).stderr
    assert "--runs" in run("compare.py", f"--runs={comparison / 'nowhere'}", code=2).stderr


@pytest.mark.parametrize("lost", ["summary.json", "seconds.csv", "checkpoint.pt", "config.json"])
def test_reproduce_mends_what_a_kill_left(comparison, tmp_path, lost):
    """A killed run lacks the files that come last; half-written ones have .partial in their names."""
    shutil.copytree(comparison, tmp_path / "copy")
    runs = tmp_path / "copy" / "runs"
    for name in ("sac_ts_tuned", "opt_ts"):
        whole = {path.name for path in (runs / name).iterdir()}
        for file in {lost, "summary.json"} if lost != "config.json" else whole:
            (runs / name / file).unlink(missing_ok=True)
        (runs / name / ".config.partial.json").write_text("{")
    run("reproduce.py", "--episodes=2", "--seeds=2", "--methods=sac_ts,opt_ts", f"--out={tmp_path / 'copy'}")
    for name in ("sac_ts_tuned", "opt_ts"):
        before, after = ({p.name for p in (top / "runs" / name).iterdir()} for top in (comparison, tmp_path / "copy"))
        assert before == after
        delays = [(top / "runs" / name / "delay.csv").read_bytes() for top in (comparison, tmp_path / "copy")]
        assert delays[0] == delays[1]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_reproduce_stops_its_runs_and_goes_on_later(tmp_path, end):
    flags = ["--episodes=2000", "--seeds=1", "--methods=sac_ts", f"--out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "reproduce.py"), *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    log = tmp_path / "runs" / "sac_ts_tuned.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "0/2000" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(end)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "error: interrupted; the same command goes on"
    assert "--resume" in log.read_text().splitlines()[-1]  # the run itself has ended, with a checkpoint
    assert (tmp_path / "runs" / "sac_ts_tuned" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"[]"), ("config.json", b"{}"), ("delay.csv", b"a,b\n"), ("delay.csv", b"\xff")],
)
def test_compare_refuses_damaged_runs(comparison, tmp_path, capsys, name, content):
    shutil.copytree(comparison / "runs" / "opt_ts", tmp_path / "runs" / "opt_ts")
    (tmp_path / "runs" / "opt_ts" / name).write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        run_here(compare, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "opt_ts" in line
    assert not (tmp_path / "out").exists()


def test_compare_refuses_to_draw_what_it_does_not_know(comparison, capsys):
    with pytest.raises(SystemExit):
        run_here(compare, "--runs", comparison / "runs", "--draw", "nothing")
    assert "--draw=nothing" in capsys.readouterr().err


def test_sweep_plots_every_method_at_every_value(tmp_path):
    flags = ("--values=1,3", "--methods=sac_ts,water_filling", "--episodes=2", "--seeds=1", f"--out={tmp_path}")
    run("sweep.py", "--vary=num_tasks", *flags)
    table = rows(tmp_path / "sweep.csv")
    assert {(row["method"], float(row["num_tasks"])) for row in table} == {
        (method, value) for method in ("sac_ts:tuned", "water_filling") for value in (1, 3)
    }
    assert (tmp_path / "sweep.png").stat().st_size > 0
    assert "--vary=nothing" in run("sweep.py", "--vary=nothing", code=2).stderr


def test_benchmark_prints_its_baseline_and_ratios():
    output = run("bench_training.py", "--quick", "--plain_slots=2").stdout
    line = next(line for line in output.splitlines() if line.startswith("| cpu | 1 | 1 |"))
    seconds, ratio = (float(cell) for cell in line.strip("| ").split(" | ")[3:5])
    plain = next(line for line in output.splitlines() if "plain per-task loop" in line)
    assert ratio == pytest.approx(float(plain.strip("| ").split(" | ")[3]) / seconds, rel=0.05)
    assert "peak memory" in output


def test_decision_benchmark_compares_with_lad_ts():
    lines = run("bench_decision.py", "--repeats=2", "--tasks=3").stdout.splitlines()
    cells = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in lines}
    base, shared = cells["LAD-TS"], cells["Cooperative LAD-TS, shared network"]
    assert base[1] == base[3] == "1.00" and len(cells) == 5
    for k in (0, 2):
        assert float(shared[k + 1]) == pytest.approx(float(shared[k]) / float(base[k]), rel=0.1)

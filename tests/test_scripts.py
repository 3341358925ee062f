"""The scripts over several runs, through the command line with tiny budgets."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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

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
import torch
from helpers import refusal, run_here
from scripts_by_path import load

from baselines import main_dqn, main_heuristics, main_opt
from common.parameters import resolve
from common.run_folder import progress_file
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from experiments import jobs
from lad_ts.model_lad import LadAgents, LadConfig

compare, reproduce, sweep = load("compare"), load("reproduce"), load("sweep")
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run(name: str, *flags: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, str(SCRIPTS / name), *flags], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


SMALL = ["--num_bs=3", "--num_tasks=4", "--num_slots=5", "--episodes=8"]
METHODS = "--methods=sac_ts,dqn_ts,opt_ts,lower_bound"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    run("reproduce.py", "--episodes=2", "--seeds=2", METHODS, f"--out={out}")
    return out


def test_reproduce_leaves_a_figure_and_a_table_that_agree_with_the_runs(comparison):
    for name in ("comparison.png", "comparison.pdf", "table.md"):
        assert (comparison / name).stat().st_size > 0
    table = {row["method"]: row for row in rows(comparison / "table.csv")}
    assert set(table) == {"SAC-TS (tuned)", "DQN-TS (tuned)", "Opt-TS", "lower bound (bound, not a scheduler)"}
    folders = ("sac_ts_tuned", "opt_ts", "lower_bound")
    runs = {folder: rows(comparison / "runs" / folder / "delay.csv") for folder in folders}
    last = [row for row in runs["sac_ts_tuned"] if row["episode"] == "1"]  # the last half of two episodes
    shown = float(table["SAC-TS (tuned)"]["delay s"])
    assert shown == pytest.approx(np.mean([float(row["delay_s"]) for row in last]))
    for row in table.values():  # plain numbers, and nothing where there is none
        assert all(text == "" or np.isfinite(float(text)) for name, text in row.items() if name != "method")
    for sac, opt, bound in zip(*runs.values(), strict=True):  # one environment, the same arrivals
        assert sac["opt_delay_s"] == opt["delay_s"] == bound["opt_delay_s"]
        assert float(bound["delay_s"]) < float(opt["delay_s"])


def test_reproduce_refuses_other_runs_and_unknown_methods(comparison, capsys):
    refused = refusal(capsys, reproduce, "--episodes=2", "--seeds=1", "--methods=sac_ts", f"--out={comparison}")
    assert f"--out={comparison / 'runs' / 'sac_ts_tuned'}" in refused and "seeds=2" in refused
    assert "--methods=unknown_method" in refusal(capsys, reproduce, "--methods=unknown_method")
    assert "--methods=lad_ts:best" in refusal(capsys, reproduce, "--methods=lad_ts:best")
    assert "--runs" in refusal(capsys, compare, f"--runs={comparison / 'nowhere'}")


def test_results_of_an_edited_scheduler_are_not_used_again(tmp_path, capsys, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    code = "from baselines.heuristics import LocalOnly\n\nclass Mine(LocalOnly):\n    pass\n"
    (tmp_path / "mine.py").write_text(code)
    folder = tmp_path / "out" / "runs" / "mine.py_Mine"
    run_here(main_heuristics, "--method=mine.py:Mine", "--episodes=2", "--num_slots=4", "--out", folder)
    jobs.Job("mine.py:Mine", folder, {"episodes": 2, "seeds": 1}).check_folder()
    (tmp_path / "mine.py").write_text(code.replace("LocalOnly", "UniformRandom"))
    line = refusal(
        capsys, reproduce, "--methods=mine.py:Mine", "--episodes=2", "--seeds=1", f"--out={tmp_path / 'out'}"
    )
    assert "--methods=mine.py:Mine" in line and "another state of this file" in line


def test_reproduce_mends_what_kills_left_and_runs_nothing_twice(comparison, tmp_path):
    """A killed run lacks the files that come last; half-written ones have .partial in their names."""
    copy = tmp_path / "copy"
    shutil.copytree(comparison, copy)
    lost = {
        "sac_ts_tuned": ["summary.json", "checkpoint.pt"],
        "dqn_ts_tuned": ["summary.json", "seconds.csv"],
        "opt_ts": [path.name for path in (comparison / "runs" / "opt_ts").iterdir()],
    }
    for name, files in lost.items():
        for file in files:
            (copy / "runs" / name / file).unlink()
        (copy / "runs" / name / ".config.partial.json").write_text("{")
        (copy / "runs" / name / ".progress").write_text("1")
    whole = copy / "runs" / "lower_bound" / "delay.csv"
    before = whole.stat().st_mtime_ns
    run_here(reproduce, "--episodes=2", "--seeds=2", METHODS, f"--out={copy}")
    assert whole.stat().st_mtime_ns == before
    for name in lost:
        folders = comparison / "runs" / name, copy / "runs" / name
        assert len({frozenset(path.name for path in folder.iterdir()) for folder in folders}) == 1
        assert len({(folder / "delay.csv").read_bytes() for folder in folders}) == 1


def test_a_jobs_progress_is_followed_between_checkpoints(tmp_path):
    """As bars need it: what a run tells of itself, and where it has ended what its table holds."""
    job = jobs.Job("lad_ts", tmp_path, {"episodes": 9, "seeds": 1})
    assert job.episodes_done() == 0
    with progress_file(tmp_path) as tell:
        tell(4)
        assert job.episodes_done() == 4
    (tmp_path / "delay.csv").write_text("seed,episode\n0,0\n0,1\n")
    assert job.episodes_done() == 2 and not (tmp_path / ".progress").exists()


def test_the_time_that_is_left_follows_the_pace_of_each_kind(tmp_path):
    """By hand: LAD-TS 4 s an episode, Opt-TS 0.1 s; a second method of each kind waits."""
    names = ("lad_ts", "sac_ts", "opt_ts", "local_only")
    every = [jobs.Job(name, tmp_path / name, {"episodes": 10, "seeds": 1}) for name in names]
    forecast = jobs.Forecast(every, parallel=1)
    for job in (every[0], every[2]):
        job.folder.mkdir()
        forecast.start(job, 100.0)
    assert forecast.update([], 101.0) is None
    (every[0].folder / ".progress").write_text("5")
    (every[2].folder / ".progress").write_text("10")
    assert forecast.update([every[2]], 101.0) == pytest.approx(1)  # nothing is known of those that learn
    assert forecast.update([every[0]], 120.0) == pytest.approx(20 + 40 + 0 + 1)
    forecast.parallel = 2
    assert forecast.update([every[0]], 120.0) == pytest.approx(40)  # one job takes that long whatever runs beside it


@pytest.mark.parametrize("end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
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
    assert process.returncode == 128 + end and "Traceback" not in stderr
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


def test_held_out_results_and_trainings_are_not_compared(tmp_path, capsys, no_plots):
    run_here(main_dqn, *SMALL, "--learning_start=5", "--out", tmp_path / "training")
    checkpoint = tmp_path / "training" / "checkpoint.pt"
    held_out = tmp_path / "runs" / "held_out"
    run_here(main_dqn, "--evaluate", checkpoint, "--evaluation_episodes=8", "--out", held_out)
    run_here(main_opt, *SMALL, "--out", tmp_path / "runs" / "opt")
    line = refusal(capsys, compare, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert "held_out=" in line and "must be the same" in line
    shutil.rmtree(tmp_path / "runs" / "opt")
    run_here(main_opt, *SMALL, "--held_out=True", "--out", tmp_path / "runs" / "opt")
    run_here(compare, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert {row["method"] for row in rows(tmp_path / "out" / "table.csv")} == {"DQN-TS (tuned), evaluation", "Opt-TS"}


def test_episodes_without_tasks_and_methods_below_opt_are_drawn(tmp_path, capsys):
    """Two thirds of such episodes have no task at all; and nothing that is shown lies above Opt-TS."""
    rare = ["--num_bs=1", "--num_tasks=1", "--min_tasks=0", "--num_slots=2", "--episodes=12"]
    run_here(main_opt, *rare, "--out", tmp_path / "runs" / "opt")
    run_here(main_heuristics, "--method=lower_bound", *rare, "--out", tmp_path / "runs" / "bound")
    run_here(main_dqn, *rare, "--learning_start=5", "--out", tmp_path / "runs" / "dqn")  # one server: as Opt-TS
    delays = [row["delay_s"] for row in rows(tmp_path / "runs" / "opt" / "delay.csv")]
    assert 0 < delays.count("nan") < 12
    capsys.readouterr()
    run_here(compare, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    table = {row["method"]: row["above Opt-TS %"] for row in rows(tmp_path / "out" / "table.csv")}
    assert float(table["DQN-TS (tuned)"]) == pytest.approx(0, abs=1e-9) and float(table["Opt-TS"]) == 0
    assert (tmp_path / "out" / "comparison.png").is_file()


def test_compare_refuses_to_draw_what_it_does_not_know(comparison, capsys):
    with pytest.raises(SystemExit):
        run_here(compare, "--runs", comparison / "runs", "--draw", "nothing")
    assert "--draw=nothing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def array(tmp_path_factory) -> Path:
    """One rule's seeds 0 to 4 in three runs, and Opt-TS's in one."""
    top = tmp_path_factory.mktemp("array") / "runs"
    for seed, seeds in ((3, 2), (0, 2), (2, 1)):
        flags = ["--method=uniform_random", f"--seed={seed}", f"--seeds={seeds}", *SMALL]
        run_here(main_heuristics, *flags, "--out", top / f"job_{seed}")
    run_here(main_opt, *SMALL, "--seeds=5", "--out", top / "opt")
    return top


def test_seeds_of_several_runs_are_merged(array, tmp_path):
    one = tmp_path / "one"
    run_here(main_heuristics, "--method=uniform_random", *SMALL, "--seeds=5", "--out", one / "uniform_random")
    shutil.copytree(array / "opt", one / "opt")
    for place in (array, one):
        run_here(compare, "--runs", place, "--out", tmp_path / place.name)
    tables = [rows(tmp_path / name / "table.csv") for name in (array.name, "one")]
    for merged, whole in zip(*tables, strict=True):
        assert merged["method"] == whole["method"] and merged["seeds"] == "5"
        for name in merged.keys() - {"method", "s per episode and seed"}:
            assert (merged[name] == whole[name] == "") or float(merged[name]) == pytest.approx(float(whole[name]))
    better = {(row["method"], row["other method"]): row for row in rows(tmp_path / "one" / "improvement.csv")}
    row = better["Opt-TS", "uniform random"]
    assert float(row["low"]) <= float(row["probability of lower delay"]) <= float(row["high"])
    assert "| 1 Opt-TS | - | " in (tmp_path / "one" / "table.md").read_text()


def test_labels_tell_runs_of_one_method_apart(array, tmp_path, capsys):
    top, out = tmp_path / "runs", ("--out", tmp_path / "out")
    shutil.copytree(array, top)
    compare_here = ("--runs", top, *out)
    for hidden in (4, 8):
        run_here(
            main_dqn, *SMALL, "--seeds=5", "--learning_start=5", f"--hidden={hidden}", "--out", top / f"h={hidden}"
        )
    line = refusal(capsys, compare, *compare_here)
    assert "h=8 has hidden=8, h=4 4" in line and "--label FOLDER=LABEL" in line
    labels = ("--label=h=4=DQN $4 | a=b", "--label", "h=8=_DQN 8", "--label=job_*=random")
    run_here(compare, *compare_here, *labels)
    expected = {"DQN $4 | a=b", "_DQN 8", "random", "Opt-TS"}
    assert {row["method"] for row in rows(tmp_path / "out" / "table.csv")} == expected
    for text, words in (("nowhere=a", "job_0"), ("opt=", "must have a text"), ("opt", "FOLDER=LABEL")):
        assert words in refusal(capsys, compare, *compare_here, f"--label={text}")
    assert "must have one label" in refusal(capsys, compare, *compare_here, "--label=opt=a", "--label=o*=b")
    assert "has method=" in refusal(capsys, compare, *compare_here, *labels[:-1], "--label=job_*=Opt-TS")
    line = refusal(capsys, compare, *compare_here, *labels[:-1], "--label=job_0=random")
    assert "seeds=" in line and "must be the same" in line
    shutil.copytree(top / "job_2", top / "again")
    assert "seed 2 is in again and job_2" in refusal(capsys, compare, *compare_here, *labels[:-1])


def test_a_sweep_blames_the_value_that_contradicts_another_parameter(tmp_path, capsys):
    flags = ("--methods=opt_ts", "--episodes=2", "--seeds=1", f"--out={tmp_path}")
    line = refusal(capsys, sweep, "--vary=capacity_max", "--values=5,50", *flags)
    assert line.startswith("error: --values=5: ") and "--capacity_min=10" in line
    line = refusal(capsys, sweep, "--vary=capacity_min", "--values=10,70", *flags)
    assert line.startswith("error: --values=70: ") and "--capacity_max=50" in line


def test_sweep_plots_every_method_at_every_value(tmp_path, capsys):
    flags = ("--values=1,3", "--methods=dqn_ts,water_filling", "--episodes=2", "--seeds=1", f"--out={tmp_path}")
    run_here(sweep, "--vary=num_tasks", *flags)
    table = rows(tmp_path / "sweep.csv")
    assert {(row["method"], float(row["num_tasks"])) for row in table} == {
        (method, value) for method in ("dqn_ts:tuned", "water_filling") for value in (1, 3)
    }
    assert (tmp_path / "sweep.png").stat().st_size > 0
    assert "--vary=nothing" in refusal(capsys, sweep, "--vary=nothing")


def test_the_decision_benchmark_times_the_decisions_that_agents_take():
    """What is timed for one BS by itself gives the probabilities that the agents of all BSs act by."""
    bench = load("bench_decision")
    for actor in ("shared", "per_bs"):
        config = resolve(CoopConfig, {"actor": actor})
        agents = CoopAgents(config, [0], "cpu")
        slot = bench.one_slot(agents, config)
        alone = bench.coop_alone(agents, slot, 3)()
        with torch.inference_mode():
            every = agents.actor.slot_logits(agents.weights, agents.view, slot, slot.backlog.float()).softmax(-1)
        torch.testing.assert_close(alone.flatten(0, -2)[:3], every[0, :3], rtol=1e-4, atol=1e-6)
    config = resolve(LadConfig, {})
    agents = LadAgents(config, [0], "cpu")
    probabilities = bench.lad_alone(agents, bench.one_slot(agents, config), 3)()
    assert probabilities.shape == (1, 20, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 3))


def test_the_decision_benchmark_compares_with_lad_ts():
    lines = run("bench_decision.py", "--repeats=2", "--tasks=3").stdout.splitlines()
    cells = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in lines}
    base, shared = cells["LAD-TS"], cells["Cooperative LAD-TS, shared network"]
    assert base[1] == base[3] == "1.00" and len(cells) == 5
    for k in (0, 2):
        assert float(shared[k]) > 0
        assert float(shared[k + 1]) == pytest.approx(float(shared[k]) / float(base[k]), rel=0.1)

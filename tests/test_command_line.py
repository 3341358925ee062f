"""The scripts as a user runs them: files, tables, evaluation, help, and one line for every mistake."""

import csv
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from helpers import SCHEDULERS, run_here, start_script

from baselines import main_d2sac, main_heuristics, main_opt, main_sac
from baselines.methods import METHODS
from common.command_line import help_text
from common.parameters import ParameterError
from common.random_streams import Stream
from common.run_folder import new_folder
from lad_ts import main_lad
from lad_ts.environment_lad import CollaborativeMEC, draw_arrivals, draw_scenario
from lad_ts.episodes import run_episode
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.references import OptTS

SMALL = ["--num_bs=3", "--num_tasks=4", "--num_slots=5", "--episodes=3", "--seeds=2"]
LEARN = [*SMALL, "--learning_start=10"]
COLUMNS = ["seed", "episode", "delay_s", "opt_delay_s", "p50_s", "p95_s", "p99_s", "max_s"]
ALWAYS = {"config.json", "delay.csv", "seconds.csv", "delay.png", "delay.pdf", "summary.json"}


def check_run(folder: Path, stdout: str, method: str, extra: set[str], episodes: int = 3) -> list[dict[str, str]]:
    """The folder holds what it should, the output ends in the table; returns the rows of delay.csv."""
    assert {path.name for path in folder.iterdir()} == ALWAYS | extra
    assert (folder / "delay.png").read_bytes()[:4] == b"\x89PNG" and (folder / "delay.pdf").read_bytes()[:4] == b"%PDF"
    assert json.loads((folder / "config.json").read_text())["parameters"]["num_bs"] == 3
    with (folder / "delay.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [(row["seed"], row["episode"]) for row in rows] == [(s, str(e)) for e in range(episodes) for s in "01"]
    *_, row, last = stdout.splitlines()
    assert row.startswith(f"| {method}") and row.count("|") == 9
    assert last.startswith("time ") and "peak memory" in last and last.endswith("MiB")
    return rows


def refusal(capsys: pytest.CaptureFixture, module, *arguments) -> str:
    """The one line on standard error with which a run ends; the exit code must be 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_here(module, *arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


OWN_SCHEDULER = """
from __future__ import annotations

import dataclasses

import numpy as np
from lad_ts.scheduler import Scheduler

class FirstServer(Scheduler):
    needs = "nothing"

    def __init__(self, params, seeds, device):
        pass

    def act(self, slot):
        return np.zeros(slot.mask.shape, dtype=int)

@dataclasses.dataclass
class NoScheduler:
    number: int = 0

class NoAct(Scheduler):
    pass

class Misses(FirstServer):
    def act(self, slot):
        return np.full(slot.mask.shape, 3)

class Forgets(FirstServer):
    def begin(self, scenario, rows):
        pass

    def act(self, slot):
        return np.full(slot.mask.shape, self.num_bs - 1)

class Floats(FirstServer):
    def act(self, slot):
        return np.zeros(slot.mask.shape)

class Flat(FirstServer):
    def act(self, slot):
        return np.zeros(slot.mask.numel(), dtype=int)
"""


def test_methods_that_learn_run_as_scripts_from_another_folder(tmp_path):
    processes = [
        start_script("lad_ts/main_lad.py", *LEARN, "--out", "lad", folder=tmp_path),
        start_script("baselines/main_dqn.py", *LEARN, "--out", "dqn", folder=tmp_path),
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check_run(tmp_path / "lad", outputs[0][0], "LAD-TS (tuned)", {"checkpoint.pt", "metrics.csv"})
    check_run(tmp_path / "dqn", outputs[1][0], "DQN-TS (tuned)", {"checkpoint.pt", "metrics.csv"})
    assert {path.name for path in tmp_path.iterdir()} == {"lad", "dqn"}


def test_a_scheduler_of_ones_own_and_a_mistake_as_scripts(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_SCHEDULER)
    own = [*SMALL, "--method", "mine.py:FirstServer", "--out", "own"]
    processes = [
        start_script("baselines/main_heuristics.py", *own, folder=tmp_path),
        start_script("lad_ts/main_lad.py", "--num_bs", "0", folder=tmp_path),
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 2], outputs
    check_run(tmp_path / "own", outputs[0][0], "FirstServer", {"utilisation.csv"})
    assert outputs[1] == ("", "error: --num_bs=0: must be an integer, at least 1 and at most 10000\n")


@pytest.mark.parametrize(
    ("module", "method", "more"),
    [
        (main_lad, "LAD-TS (paper)", ["--preset", "paper"]),
        (main_sac, "SAC-TS (tuned)", []),
        (main_sac, "SAC-TS (paper)", ["--preset=paper"]),
        (main_d2sac, "D2SAC-TS (tuned)", []),
    ],
)
def test_methods_that_learn_leave_a_whole_run(module, method, more, tmp_path, capsys):
    run_here(module, *LEARN, *more, "--out", tmp_path)
    check_run(tmp_path, capsys.readouterr().out, method, {"checkpoint.pt", "metrics.csv"})


@pytest.mark.parametrize("method", ["opt", *SCHEDULERS, "lower_bound"])
def test_fixed_schedulers_leave_a_whole_run(method, tmp_path, capsys):
    module, name = (main_opt, "Opt-TS") if method == "opt" else (main_heuristics, method.replace("_", " "))
    more = [] if method == "opt" else ["--method", method]
    run_here(module, *SMALL, *more, "--out", tmp_path)
    extra = set() if method == "lower_bound" else {"utilisation.csv"}
    rows = check_run(tmp_path, capsys.readouterr().out, name, extra)
    delay, opt = ([float(row[column]) for row in rows] for column in ("delay_s", "opt_delay_s"))
    if method == "opt":
        assert delay == opt
    if method == "lower_bound":
        assert all(d < o for d, o in zip(delay, opt, strict=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "lad"
    run_here(main_lad, *LEARN, "--out", folder)
    return folder / "checkpoint.pt"


def test_evaluation_runs_the_stored_policy_on_held_out_arrivals(checkpoint, capsys):
    before = checkpoint.read_bytes()
    found = {}
    for action in ("sample", "argmax"):
        more = ["--evaluation_action", action, "--evaluation_episodes", "4"]
        run_here(main_lad, "--evaluate", checkpoint, *more)
        folder = checkpoint.parent / f"evaluation_{action}"
        stdout = capsys.readouterr().out
        found[action] = check_run(folder, stdout, "LAD-TS (tuned)", {"utilisation.csv"}, episodes=4)
    run_here(main_lad, "--evaluate", checkpoint, "--evaluation_episodes", "4")  # nothing is overwritten
    again = checkpoint.parent / "evaluation_sample_2" / "delay.csv"
    assert again.read_bytes() == (checkpoint.parent / "evaluation_sample" / "delay.csv").read_bytes()
    assert checkpoint.read_bytes() == before
    opt = {name: [row["opt_delay_s"] for row in rows] for name, rows in found.items()}
    assert opt["sample"] == opt["argmax"]
    assert [row["delay_s"] for row in found["sample"]] != [row["delay_s"] for row in found["argmax"]]

    content = torch.load(checkpoint, weights_only=True)
    config = LadConfig(**content["config"])
    learner, env = LadAgents(config, [0, 1], "cpu"), CollaborativeMEC(draw_scenario(config, [0, 1]))
    learner.load_state_dict(content["learner"])
    learner.training = False
    for episode in range(4):
        rows = [(0, episode), (1, episode)]
        arrivals = draw_arrivals(config, rows, Stream.HELD_OUT_ARRIVALS)
        mean = run_episode(env, learner, arrivals, rows).mean
        assert [float(row["delay_s"]) for row in found["sample"][2 * episode :][:2]] == mean.tolist()
        mean = run_episode(env, OptTS(), arrivals, rows).mean
        assert [float(row["opt_delay_s"]) for row in found["sample"][2 * episode :][:2]] == mean.tolist()


def altered(checkpoint: Path, path: Path, change) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(config=[]), "other content"),
        (lambda c: c.update(learner=None), "other content"),
        (lambda c: c.update(history=None), "other content"),
        (lambda c: c["config"].update(num_bs="x"), "--num_bs=x"),
        (lambda c: c["config"].update(warmth=1), "lacks warmth"),
        (lambda c: c["learner"].pop("theta_actor"), "theta_actor"),
        (lambda c: c["learner"].update(theta_actor=torch.zeros(1)), "theta_actor has shape [1]"),
        (lambda c: c["learner"]["theta_actor"].fill_(float("nan")), "NaN"),
    ],
)
def test_altered_checkpoints_are_refused(checkpoint, tmp_path, capsys, change, told):
    path = altered(checkpoint, tmp_path / "altered.pt", change)
    line = refusal(capsys, main_lad, "--evaluate", path)
    assert f"--evaluate={path}" in line and told in line
    path.rename(tmp_path / "checkpoint.pt")
    assert told in refusal(capsys, main_lad, "--resume", tmp_path, "--episodes", "9")


def test_parameters_added_since_a_checkpoint_take_their_defaults(checkpoint, tmp_path, capsys):
    """As older ones, which know no --capacities; and a default may be the preset's."""

    def older(content: dict) -> None:
        del content["config"]["capacities"], content["config"]["memory"]

    path = altered(checkpoint, tmp_path / "older.pt", older)
    found = []
    for place in (checkpoint, path):
        capsys.readouterr()
        run_here(main_lad, "--evaluate", place, "--evaluation_episodes=2", "--out", tmp_path / f"of_{place.stem}")
        found.append(capsys.readouterr().out)
    assert "older version" not in found[0]
    assert f"{path} is of an older version" in found[1] and "capacities=None, memory=probabilities" in found[1]
    delays = [(tmp_path / f"of_{place.stem}" / "delay.csv").read_bytes() for place in (checkpoint, path)]
    assert delays[0] == delays[1]
    assert "--gamma=0.5" in refusal(capsys, main_lad, "--evaluate", path, "--gamma", 0.5)


@pytest.mark.parametrize("rows", [[[0, 0]], [[0.0] * 9], [["x"] * 9] * 2, [[5.0] * 9] * 2])
def test_a_history_that_does_not_fit_is_refused(checkpoint, tmp_path, capsys, rows):
    altered(checkpoint, tmp_path / "checkpoint.pt", lambda c: c.update(history=rows))
    assert f"--resume={tmp_path}" in refusal(capsys, main_lad, "--resume", tmp_path, "--episodes", "9")


def test_a_damaged_byte_is_found(checkpoint, tmp_path, capsys):
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / "damaged.pt").write_bytes(data)
    assert "damaged" in refusal(capsys, main_lad, "--evaluate", tmp_path / "damaged.pt")


def test_training_that_diverges_says_so_and_keeps_its_rows(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(main_lad, *LEARN, "--actor_lr=1e9", "--critic_lr=1e9", "--out", tmp_path)
    assert ended.value.code == 1
    assert "training diverged in episode" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "delay.csv").is_file()


def test_evaluation_refuses_what_does_not_fit(checkpoint, tmp_path, capsys):
    missing, garbage = tmp_path / "missing.pt", tmp_path / "garbage.pt"
    garbage.write_bytes(bytes(range(256)))
    for path in (missing, garbage, tmp_path):
        assert f"--evaluate={path}" in refusal(capsys, main_lad, "--evaluate", path)
    line = refusal(capsys, main_sac, "--evaluate", checkpoint)
    assert line == f"error: --evaluate={checkpoint}: holds a run of LAD-TS; must be one of SAC-TS"
    assert "--num_bs=5" in refusal(capsys, main_lad, "--evaluate", checkpoint, "--num_bs", 5)
    assert "--preset=paper" in refusal(capsys, main_lad, "--evaluate", checkpoint, "--preset", "paper")
    assert [path.name for path in tmp_path.iterdir()] == ["garbage.pt"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num_bs", "0"], "--num_bs=0"),
        (["--num_bs", "2.5"], "--num_bs=2.5"),
        (["--num_bs", "three"], "--num_bs=three"),
        (["--num_bs", "True"], "--num_bs=True"),
        (["--num_bs"], "--num_bs: must be followed by an integer, at least 1"),
        (["--rate_min=-1"], "--rate_min=-1"),
        (["--quality_min", "0"], "--quality_min=0"),
        (["--input_min", "6"], "--input_min=6"),
        (["--min_tasks", "60"], "--min_tasks=60"),
        (["--input_max", "nan"], "--input_max=nan"),
        (["--input_max", "1e999"], "--input_max=inf"),
        (["--slot_length", "0"], "--slot_length=0"),
        (["--gamma", "1.01"], "--gamma=1.01"),
        (["--tied_sizes", "7"], "--tied_sizes=7"),
        (["--learning_start", "1000"], "--learning_start=1000"),
        (["--replay_capacity", "49", "--learning_start", "0"], "--replay_capacity=49"),
        (["--number_of_bs", "4"], "--number_of_bs=4"),
        (["--episode", "4"], "did you mean --episodes"),
        (["4"], "4: every value needs its parameter's name"),
        (["--preset", "best"], "--preset=best"),
        (["--device", "tpu"], "--device=tpu"),
        (["--resume", "/dev/null"], "--resume=/dev/null"),
        (["--seed", "1", "--seed=2"], "--seed: must be given once"),
        (["--preset", "a\nb"], "--preset=a b"),
        (["--episodes", "0x" + "f" * 5000], "--episodes=inf"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told, tmp_path, capsys):
    assert told in refusal(capsys, main_lad, *arguments, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_folder_is_overwritten_and_unusable_ones_are_refused(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "kept.txt", "/dev/null/x"):
        assert f"--out={out}" in refusal(capsys, main_sac, *LEARN, "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    for name in ("run", "run_2", "run_3"):  # without --out, runs are numbered
        with new_folder(None, tmp_path / "run") as folder:
            assert folder.name == name
            (folder / "delay.csv").touch()


@pytest.mark.parametrize(
    "method", ["nothing", "missing.py:Own", "mine.py:Missing", "mine.py:NoScheduler", "mine.py:NoAct", "mine.py"]
)
def test_unknown_schedulers_are_refused(method, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN_SCHEDULER)
    assert f"--method={method}" in refusal(capsys, main_heuristics, *SMALL, "--method", method, "--out", "new")


@pytest.mark.parametrize(("name", "told"), [("Misses", "0..2"), ("Floats", "integers"), ("Flat", "integers")])
def test_a_scheduler_that_returns_nonsense_is_told_so(name, told, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_SCHEDULER)
    own = ["--method", f"{tmp_path / 'mine.py'}:{name}", "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as ended:
        run_here(main_heuristics, *SMALL, *own)
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and f"{name}.act" in line and told in line
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("method", [METHODS["lad_ts"], METHODS["coop_lad_ts"], METHODS["water_filling"]])
def test_help_tells_every_parameter_in_one_line_of_its_group(method):
    shown = help_text(method.parameters, "What it does.", "script.py").splitlines()
    titles = [line for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert titles[:2] == ["run:", "environment:"] and "method:" in titles
    for field in dataclasses.fields(method.parameters):
        (line,) = (line for line in shown if line.startswith(f"  --{field.name} "))
        assert field.metadata["text"] in line and "an integer" not in line
        assert len(line) <= 170, line


def test_a_begin_that_leaves_out_its_bases_is_told_so(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_SCHEDULER)
    with pytest.raises(SystemExit) as ended:
        run_here(main_heuristics, *SMALL, "--method", f"{tmp_path / 'mine.py'}:Forgets", "--out", tmp_path / "run")
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert line == "error: Forgets.begin must call super().begin(scenario, rows), which sets num_bs"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg"])
def test_scripts_draw_whatever_backend_a_notebook_has_set(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("MPLBACKEND", backend)
    process = start_script("baselines/main_opt.py", *SMALL, "--out", "run", folder=tmp_path)
    assert process.wait(60) == 0, process.stderr.read()
    assert (tmp_path / "run" / "delay.png").stat().st_size > 0


def test_help_is_printed_and_ends_with_0(capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(main_lad, "--help")
    assert ended.value.code == 0 and "--denoising_steps" in capsys.readouterr().out


def test_an_error_keeps_its_parts_whoever_passes_it_on():
    error = ParameterError("evaluate", "a.pt", "must be whole")
    assert str(error) == "--evaluate=a.pt: must be whole"
    assert str(error.renamed(evaluate="checkpoint")) == "--checkpoint=a.pt: must be whole"
    assert str(error.renamed(out="policies")) == str(error)
    again = pickle.loads(pickle.dumps(error))  # as it comes from another process
    assert (again.flag, again.value, again.reason) == (error.flag, error.value, error.reason)

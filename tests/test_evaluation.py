"""Evaluations during a training, best.pt, and evaluation in another environment than that of training."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, refusal, run_here

from baselines import main_dqn, main_opt, main_sac
from common.random_streams import Stream
from coop_lad_ts import main_coop
from lad_ts import main_lad
from lad_ts.checkpoints import restore
from lad_ts.environment_lad import draw_arrivals
from lad_ts.evaluation import elsewhere
from lad_ts.model_lad import METHOD, LadAgents, LadConfig
from lad_ts.setting import Setting

RUN = ["--num_bs=3", "--num_tasks=4", "--num_slots=5", "--learning_start=10", "--seeds=2", "--checkpoint_every=3"]
EVERY = ["--evaluate_every=2", "--evaluation_episodes=3"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def best_of(folder: Path) -> int:
    """The episode whose rows in evaluation.csv have the least mean."""
    delays: dict[int, list[float]] = {}
    for row in read(folder / "evaluation.csv"):
        delays.setdefault(int(row["episode"]), []).append(float(row["delay_s"]))
    return min(delays, key=lambda episode: np.mean(delays[episode]))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    run_here(main_lad, *RUN, *EVERY, "--episodes=9", "--out", folder)
    return folder


def test_evaluations_leave_the_training_alone_and_keep_the_best(evaluated, tmp_path, no_plots):
    run_here(main_lad, *RUN, "--episodes=9", "--out", tmp_path)
    for name in ("delay.csv", "metrics.csv"):
        assert (evaluated / name).read_bytes() == (tmp_path / name).read_bytes()
    states = [torch.load(folder / "checkpoint.pt")["learner"] for folder in (evaluated, tmp_path)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [row["episode"] for row in read(evaluated / "evaluation.csv")] == ["2", "2", "4", "4", "6", "6", "8", "8"]
    assert not (tmp_path / "evaluation.csv").exists() and not (tmp_path / "best.pt").exists()
    content = torch.load(evaluated / "best.pt")
    assert len(content["history"]) == 2 * best_of(evaluated)


def test_the_row_of_best_is_what_its_agents_do_on_arrivals_of_their_own(evaluated):
    content = torch.load(evaluated / "best.pt")
    config = make(LadConfig, **content["config"])
    scheduler, setting = restore(config, content, METHOD, "evaluate", evaluated), Setting.of(config)
    scheduler.training = False
    found = []
    for episode in range(3):
        rows = [(0, episode), (1, episode)]
        arrivals = draw_arrivals(config, rows, Stream.VALIDATION_ARRIVALS)
        found.append(scheduler.run(setting.environment(), arrivals, rows).mean)
    rows = [row for row in read(evaluated / "evaluation.csv") if int(row["episode"]) == best_of(evaluated)]
    assert [float(row["delay_s"]) for row in rows] == pytest.approx(np.mean(found, 0))


def test_evaluations_survive_a_kill_at_any_write(evaluated, tmp_path, no_plots):
    run_here(main_lad, *RUN, *EVERY, "--episodes=6", "--out", tmp_path / "run")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for lost in ([], ["best.pt"], ["evaluation.csv", "best.pt"]):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        for name in kept.keys() - set(lost):
            (tmp_path / "run" / name).write_bytes(kept[name])
        if lost and best_of(evaluated) < 6:
            continue  # only the newest checkpoint can be the best that a kill has left unwritten
        run_here(main_lad, "--resume", tmp_path / "run", "--episodes=9")
        assert (tmp_path / "run" / "evaluation.csv").read_bytes() == (evaluated / "evaluation.csv").read_bytes()
        assert len(torch.load(tmp_path / "run" / "best.pt")["history"]) == 2 * best_of(tmp_path / "run")


def test_best_is_evaluated_in_a_folder_of_its_own(evaluated, no_plots):
    run_here(main_lad, "--evaluate", evaluated / "best.pt", "--evaluation_episodes=1")
    assert json.loads((evaluated / "evaluation_best_sample" / "config.json").read_text())["method"].endswith(
        "(tuned), evaluation"
    )


@pytest.mark.parametrize("module", [main_lad, main_sac, main_dqn])
def test_agents_are_evaluated_elsewhere_and_it_is_told(module, tmp_path, capsys, no_plots):
    run_here(module, *RUN, "--episodes=3", "--out", tmp_path)
    elsewhere = ["--num_tasks=7", "--num_slots=4", "--scenario_seed=9", "--input_max=8"]
    run_here(module, "--evaluate", tmp_path / "checkpoint.pt", *elsewhere, "--evaluation_episodes=2", "--seeds=2")
    (folder,) = tmp_path.glob("evaluation_sample_*")
    assert folder.name == "evaluation_sample_num_tasks_7_num_slots_4_input_max_8.0_scenario_seed_9"
    config = json.loads((folder / "config.json").read_text())
    words = "on num_tasks=7, num_slots=4, input_max=8.0, scenario_seed=9"
    assert config["method"].endswith(f"(tuned) {words}, evaluation") and words in capsys.readouterr().out
    assert config["parameters"]["num_tasks"] == 7
    assert config["parameters"]["evaluate"] == str(tmp_path / "checkpoint.pt")
    opt = ["--num_bs=3", *elsewhere, "--seeds=2", "--episodes=2", "--held_out=True", "--out", tmp_path / "opt"]
    run_here(main_opt, *opt)
    opt_delays = [row["delay_s"] for row in read(tmp_path / "opt" / "delay.csv")]
    assert [row["opt_delay_s"] for row in read(folder / "delay.csv")] == opt_delays
    line = refusal(capsys, module, "--evaluate", tmp_path / "checkpoint.pt", "--num_bs=4")
    assert line.startswith("error: --num_bs=4: must be 3")
    assert "--num_tasks=7" in refusal(capsys, module, "--resume", tmp_path, "--num_tasks=7")


def test_moved_agents_keep_scales_and_memory_and_draw_what_is_new():
    given = {"num_bs": 3, "num_tasks": 4, "num_slots": 5}
    trained = LadAgents(make(LadConfig, **given), [0, 1], "cpu")
    trained.memory.fill_(7.0)
    params = make(LadConfig, num_bs=3, num_tasks=6, num_slots=4, input_max=9)
    moved, fresh = trained.moved(params), LadAgents(params, [0, 1], "cpu")
    assert moved.scales == trained.scales != fresh.scales
    assert (moved.memory[:, :, :, :4] == 7).all() and moved.memory.shape[0] == 4
    assert torch.equal(moved.memory[:, :, :, 4:], fresh.memory[:, :, :, 4:])
    assert torch.equal(moved.theta_actor, trained.theta_actor) and not moved.training


@pytest.mark.parametrize("actor", ["shared", "per_bs"])
def test_only_a_shared_network_goes_over_to_another_number_of_stations(actor, tmp_path, capsys, no_plots):
    small = ["--num_bs=3", "--num_tasks=4", "--num_slots=5", "--takeover=0", "--fit_steps=2", "--distil_updates=3"]
    run_here(main_coop, *small, "--actor", actor, "--episodes=2", "--distil_episodes=1", "--out", tmp_path)
    more = ["--evaluate", tmp_path / "checkpoint.pt", "--evaluation_episodes=2", "--num_tasks=6", "--num_slots=7"]
    run_here(main_coop, *more, "--out", tmp_path / "tasks")
    if actor == "per_bs":
        assert "--num_bs=5: must be 3" in refusal(capsys, main_coop, *more, "--num_bs=5")
    else:
        run_here(main_coop, *more, "--num_bs=5", "--out", tmp_path / "stations")
        assert len(read(tmp_path / "stations" / "utilisation.csv")) == 5


def test_a_named_scenario_takes_back_what_that_of_the_training_filled_in():
    trained = make(LadConfig, scenario="overload", num_bs=4)
    for name, tasks in (("paper", 50), ("light", 20)):
        there = elsewhere(trained, make(LadConfig, scenario=name), {"scenario"})
        assert (there.scenario, there.num_tasks, there.num_bs) == (name, tasks, 4)
    poisson = make(LadConfig, arrivals="poisson", arrival_mean=9.0)
    assert elsewhere(poisson, make(LadConfig, arrivals="bursty"), {"arrivals"}).arrival_mean == 9.0
    assert elsewhere(poisson, make(LadConfig, arrivals="uniform"), {"arrivals"}).arrival_mean is None

"""What learners measure of their learning: the means, metrics.csv, and TensorBoard's event files."""

import csv
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, refusal, run_here

from baselines import main_dqn, main_sac
from baselines.model_dqn import DQNAgents, DQNConfig
from coop_lad_ts import main_coop
from lad_ts import main_lad
from lad_ts.environment_lad import draw_scenario
from lad_ts.metrics import Metrics

RUN = ["--num_bs=2", "--num_tasks=3", "--num_slots=4", "--learning_start=10", "--seeds=2", "--checkpoint_every=2"]
COLUMNS = {
    main_lad: "critic_loss,actor_loss,entropy,temperature,q_mean,critic_grad_norm,actor_grad_norm",
    main_dqn: "loss,q_mean,grad_norm",
}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_means_are_those_of_a_plain_loop():
    """Two seeds of three agents, which begin to learn one after the other; more updates than are kept at once."""
    rng = torch.Generator().manual_seed(0)
    metrics, seen = Metrics(2, ("a", "b")), {("a", s): [] for s in range(2)} | {("b", s): [] for s in range(2)}
    for update in range(150):
        learning = None if update > 100 else torch.tensor([g for g in range(5) if 20 * g <= update])
        a, b = torch.rand(6, 4, generator=rng), torch.rand(2, 6, 3, generator=rng)
        metrics.add(learning, a=a, **({"b": b} if update % 3 else {}))
        for g in range(6) if learning is None else learning.tolist():
            seen["a", g // 3].append(float(a[g].mean()))
            if update % 3:
                seen["b", g // 3].append(float(b[:, g].mean()))
    found = metrics.take()
    for (name, seed), values in seen.items():
        assert found[name][seed] == pytest.approx(np.mean(values), rel=1e-6)
    assert all(np.isnan(values).all() for values in metrics.take().values())


def test_what_dqn_measures_is_what_its_update_is_about():
    config = make(DQNConfig, num_bs=2, num_tasks=3, num_slots=4)
    learner = DQNAgents(config, [0], "cpu")
    learner.begin(draw_scenario(config, [0]), [(0, 0)])
    rng = torch.Generator().manual_seed(1)
    batch = {name: torch.rand(2, 8, width, generator=rng) for name, width in learner.replay.columns.items()}
    batch["action"] = (2 * batch["action"]).floor()
    losses, values, norms = [], [], []
    for g in range(2):
        theta = learner.theta.clone().requires_grad_()
        q, after = (learner.q(theta, batch[name].transpose(1, 2))[g] for name in ("state", "next_state"))
        chosen = q.gather(0, batch["action"][g].long().T)[0]
        target = batch["reward"][g, :, 0] + config.gamma * after.amax(0)
        loss = (chosen - target.detach()).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        losses.append(loss.item())
        values.append(chosen.mean().item())
        norms.append(gradient.norm().item())
    learner.update(batch, None)
    expected = {"loss": np.mean(losses), "q_mean": np.mean(values), "grad_norm": np.mean(norms)}
    assert {name: float(value[0]) for name, value in learner.metrics.take().items()} == pytest.approx(expected)


@pytest.mark.parametrize("module", COLUMNS)
def test_metrics_are_whole_after_a_resumption_and_empty_before_learning(module, tmp_path, no_plots):
    run_here(module, *RUN, "--episodes=6", "--out", tmp_path / "whole")
    run_here(module, *RUN, "--episodes=3", "--out", tmp_path / "parts")
    run_here(module, "--resume", tmp_path / "parts", "--episodes=6")
    whole = (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert whole == (tmp_path / "parts" / "metrics.csv").read_bytes()
    assert whole.decode().splitlines()[0] == f"seed,episode,{COLUMNS[module]},delay_s,above_opt_percent"
    rows, delays = read(tmp_path / "whole" / "metrics.csv"), read(tmp_path / "whole" / "delay.csv")
    assert [row["delay_s"] for row in rows] == [row["delay_s"] for row in delays]
    for row, delay in zip(rows, delays, strict=True):
        above = 100 * (float(delay["delay_s"]) / float(delay["opt_delay_s"]) - 1)
        assert float(row["above_opt_percent"]) == pytest.approx(above)
    learned = [[name for name in COLUMNS[module].split(",") if row[name]] for row in rows]
    assert learned[0] == [] and learned[-1] == COLUMNS[module].split(",")
    if module is main_lad:
        assert 0 < float(rows[-1]["entropy"]) <= math.log(2) and 0.04 < float(rows[-1]["temperature"]) < 0.06


def test_cooperative_agents_tell_of_distillation_and_tuning(tmp_path, no_plots):
    small = ["--num_bs=2", "--num_tasks=3", "--num_slots=4", "--takeover=0", "--fit_steps=2", "--distil_updates=3"]
    for actor in ("shared", "per_bs"):
        out = tmp_path / actor
        run_here(main_coop, *small, "--actor", actor, "--episodes=3", "--distil_episodes=2", "--seeds=2", "--out", out)
        rows = read(out / "metrics.csv")
        filled = [(bool(row["distil_loss"]), bool(row["tune_loss"])) for row in rows if row["seed"] == "1"]
        assert filled == [(True, False), (True, False), (False, True)]
        assert all(0 < float(row["entropy"]) <= math.log(2) + 1e-6 and float(row["grad_norm"]) > 0 for row in rows)


def test_a_checkpoint_of_before_metrics_goes_on(tmp_path, no_plots):
    run_here(main_sac, *RUN, "--episodes=3", "--out", tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt")
    for name in ("metrics", "evaluations"):
        del content[name]
    for name in ("log", "evaluate_every"):
        del content["config"][name]
    torch.save(content, tmp_path / "checkpoint.pt")
    run_here(main_sac, "--resume", tmp_path, "--episodes=5")
    losses = [row["critic_loss"] for row in read(tmp_path / "metrics.csv") if row["seed"] == "0"]
    assert losses[:3] == [""] * 3 and all(losses[3:])


def events(folder: Path) -> dict[str, list]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}


def test_event_files_hold_the_columns_of_metrics_once_each(tmp_path, no_plots):
    run_here(main_lad, *RUN, "--episodes=4", "--log=tensorboard", "--evaluate_every=2", "--out", tmp_path / "run")
    shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path)
    run_here(main_lad, "--resume", tmp_path / "run", "--episodes=6")
    shutil.copy(tmp_path / "checkpoint.pt", tmp_path / "run")  # as after a kill: events beyond the checkpoint
    run_here(main_lad, "--resume", tmp_path / "run", "--episodes=8")
    rows = read(tmp_path / "run" / "metrics.csv")
    for seed in ("0", "1"):
        found = events(tmp_path / "run" / "tensorboard" / f"seed_{seed}")
        assert {*rows[0]} - {"seed", "episode"} <= found.keys()
        for name in {*rows[0]} - {"seed", "episode"}:
            expected = {int(row["episode"]): float(row[name]) for row in rows if row["seed"] == seed and row[name]}
            assert [event.step for event in found[name]] == sorted(expected)
            assert {event.step: event.value for event in found[name]} == pytest.approx(expected, rel=1e-6)
        assert [event.step for event in found["evaluation_delay_s"]] == [1, 3, 5, 7]
    mean = events(tmp_path / "run" / "tensorboard" / "mean")["delay_s"]
    last = np.mean([float(row["delay_s"]) for row in rows if row["episode"] == "7"])
    assert len(mean) == 8 and mean[-1].value == pytest.approx(last, rel=1e-6)


def test_a_log_that_is_asked_for_later_has_the_earlier_episodes(tmp_path, no_plots):
    run_here(main_dqn, *RUN, "--episodes=2", "--out", tmp_path)
    run_here(main_dqn, "--resume", tmp_path, "--episodes=3", "--log=tensorboard")
    assert [event.step for event in events(tmp_path / "tensorboard" / "seed_0")["delay_s"]] == [0, 1, 2]


def test_without_tensorboard_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = refusal(capsys, main_lad, *RUN, "--log=tensorboard", "--out", tmp_path / "new")
    assert "--log=tensorboard" in line and "pip install -r requirements-rl.txt" in line
    assert not (tmp_path / "new").exists()

"""--export: onnxruntime gives what the scheduler itself computes while it decides, and nothing is written too early."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import ROOT, make, refusal, run_here
from pages import FENCE

from baselines import main_dqn
from baselines.model_d2sac import D2SACAgents, D2SACConfig
from baselines.model_dqn import DQNAgents, DQNConfig
from baselines.model_sac import SACAgents, SACConfig
from common.parameters import ParameterError
from coop_lad_ts import main_coop
from coop_lad_ts.coop_parameters import CoopConfig
from coop_lad_ts.model_coop import CoopAgents
from lad_ts import main_lad
from lad_ts.environment_lad import CollaborativeMEC, Slot, draw_arrivals, draw_scenario
from lad_ts.episodes import play, run_episode
from lad_ts.model_lad import LadAgents, LadConfig
from lad_ts.observation import Scales, observe
from lad_ts.policy_export import export_policy, exported_place
from lad_ts.result import Result, with_export
from lad_ts.scheduler import LearningScheduler
from mec_env import example_onnx

TINY = {"num_bs": 3, "num_tasks": 5, "num_slots": 6, "min_tasks": 0}
LEARNS = TINY | {"learning_start": 8, "seeds": 2, "scenario_per_seed": True}
COOP = TINY | {"seeds": 2, "fit_steps": 3, "distil_updates": 3, "distil_episodes": 1, "takeover": 0}
CASES = {
    "lad tuned": (LadConfig, LadAgents, {}),
    "lad paper": (LadConfig, LadAgents, {"preset": "paper"}),
    "lad x0": (LadConfig, LadAgents, {"memory": "x0", "noise_softmax": False}),
    "lad x0_standardised": (LadConfig, LadAgents, {"memory": "x0_standardised", "posterior_noise": False}),
    "lad of one step": (LadConfig, LadAgents, {"denoising_steps": 1, "state_features": "scaled"}),
    "d2sac": (D2SACConfig, D2SACAgents, {}),
    "sac": (SACConfig, SACAgents, {}),
    "sac paper": (SACConfig, SACAgents, {"preset": "paper"}),
    "dqn": (DQNConfig, DQNAgents, {"input_max": 7.0, "density_max": 0.4}),
}


def trained(case: tuple[type, type, dict], common: dict[str, Any]) -> tuple[Any, Any, CollaborativeMEC]:
    """Agents after two episodes, their parameters, and their environment."""
    parameters, kind, more = case
    config = make(parameters, **common | more)
    agents = kind(config, [0, 1], "cpu")
    env = CollaborativeMEC(draw_scenario(config, [0, 1]))
    for episode in range(2):
        rows = [(seed, episode) for seed in (0, 1)]
        run_episode(env, agents, draw_arrivals(config, rows), rows)
    agents.training = False
    return agents, config, env


def exported(agents: Any, config: Any, env: CollaborativeMEC, file: Path) -> onnxruntime.InferenceSession:
    assert exported_place(str(file), agents, env.scenario) == file and not file.exists()
    export_policy(file, agents, env.scenario, config, "name", [0, 1])
    onnx.checker.check_model(str(file), full_check=True)
    return onnxruntime.InferenceSession(file)


def answers(session: onnxruntime.InferenceSession, **known: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """All outputs by name; the inputs that the file does not ask for must be None."""
    feeds = {name: tensor.numpy() for name, tensor in known.items() if tensor is not None}
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, feeds)
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected.contiguous(), rtol=1e-5, atol=1e-5)


def recorded(owner: Any, name: str) -> list[tuple[tuple, torch.Tensor]]:
    """A list that gets the arguments and the result of every later call of a method."""
    calls, method = [], getattr(owner, name)

    def call(*arguments: Any) -> torch.Tensor:
        result = method(*arguments)
        calls.append((arguments, result))
        return result

    setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_act_does(case, tmp_path):
    agents, config, env = trained(CASES[case], LEARNS)
    session = exported(agents, config, env, tmp_path / "policy.onnx")
    values = case.startswith("dqn")
    calls, mine = recorded(agents, "q" if values else "logits"), slice(0, 3)  # the agents of the first seed
    left = agents.memory[:, mine].transpose(2, 3).clone() if case.startswith("lad") else None
    scales = Scales(config.input_max, config.density_max * config.quality_max)
    for episode in (2, 3):  # the second one meets what the first has left in the memory
        rows = [(0, episode), (1, episode)]
        for slot, *_ in play(env, agents, draw_arrivals(config, rows), rows):
            (_, _, *drawn), result = calls.pop()
            latent, noise = drawn or (None, None)
            inputs = {
                "observation": observe(slot, env.scenario, config.state_features, scales)[0],
                "latent": None if latent is None else latent[mine].transpose(1, 2),
                "noise": None if noise is None else noise[mine].permute(0, 3, 1, 2),
            }
            found = answers(session, **inputs)
            result = result[mine].transpose(1, 2)
            same(found["q_values" if values else "probabilities"], result if values else result.softmax(-1))
            if latent is not None:
                assert torch.equal(found.pop("memory"), left)
                there = slot.mask[0]
                same(found["next_latent"][there], agents.memory[slot.t, mine].transpose(1, 2)[there])
            one = answers(session, **{k: None if v is None else v[:, :1].contiguous() for k, v in inputs.items()})
            for name, value in found.items():
                same(one[name], value[:, :1])


@pytest.mark.parametrize("actor", ["shared", "per_bs"])
def test_a_cooperative_file_computes_what_act_does(actor, tmp_path):
    agents, config, env = trained((CoopConfig, CoopAgents, {"actor": actor, "scenario_per_seed": True}), COOP)
    session = exported(agents, config, env, tmp_path / "policy.onnx")
    calls, rows = recorded(agents.actor, "slot_logits"), [(0, 2), (1, 2)]
    before = agents.actor.memory.clone()
    for slot, *_ in play(env, agents, draw_arrivals(config, rows), rows):
        _, logits = calls.pop()
        latent = None if actor == "shared" else before[0, :, :, slot.t].transpose(1, 2)
        known = {"backlog": slot.backlog[0].float(), "t": torch.tensor(slot.t), "latent": latent}
        found = answers(session, workload=slot.workload[0].float(), **known)
        same(found["probabilities"], logits[0].view(-1, 5, 3).expand(3, 5, 3).softmax(-1))
        if actor == "per_bs":
            assert torch.equal(found["memory"][slot.t], latent)
            there = slot.mask[0]
            same(found["next_latent"][there], agents.actor.memory[0, :, :, slot.t].transpose(1, 2)[there])
    rng = np.random.default_rng(0)  # sizes between and beyond those of the scenario, another number of tasks
    workload, backlog = (torch.from_numpy(rng.uniform(0, 9, shape)).float() for shape in ((3, 8), (3,)))
    latent = None if actor == "shared" else torch.rand(3, 8, 3)
    found = answers(session, workload=workload, backlog=backlog, t=torch.tensor(5), latent=latent)["probabilities"]
    slot = Slot(5, torch.ones(2, 3, 8, dtype=torch.bool), workload.expand(2, 3, 8), workload.expand(2, 3, 8), None)
    if actor == "per_bs":
        agents.actor.memory = torch.zeros(2, 3, 3, 6, 8)
        agents.actor.memory[0, :, :, 5] = latent.transpose(1, 2)
    logits = agents.actor.slot_logits(agents.weights, agents.view, slot, backlog.expand(2, 3))
    same(found, logits[0].view(3, 8, 3).softmax(-1))


def test_the_command_line_exports_after_a_training_a_resumption_and_an_evaluation(tmp_path, no_plots, capsys):
    run, files = tmp_path / "run", [tmp_path / "run" / "a.onnx", tmp_path / "b.onnx", tmp_path / "c.onnx"]
    small = ["--num_bs=3", "--num_tasks=5", "--num_slots=6", "--learning_start=8", "--episodes=2", "--seeds=2"]
    run_here(main_lad, *small, "--seed=4", "--out", run, "--export", files[0])
    assert f"policy of seed 4, the first of 2 in {files[0]}" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["parameters"]["export"] is None
    run_here(main_lad, "--resume", run, "--export", files[1])
    run_here(main_lad, "--evaluate", run / "checkpoint.pt", "--evaluation_episodes=1", "--export", files[2])
    weights = [onnx.load(file).graph.initializer[0].SerializeToString() for file in files]
    assert weights[0] == weights[1] == weights[2]
    run_here(main_lad, "--resume", run, "--export", files[1])  # its own files may be written again
    facts = example_onnx.OnnxPolicy(str(files[2])).facts
    assert (facts["method"], facts["seed"], facts["kind"], facts["remembers"]) == (
        "lad_ts",
        4,
        "relative",
        "probabilities",
    )
    assert len(facts["capacity"]) == 3 and not list(tmp_path.rglob("*partial*"))


def test_the_program_on_the_page_decides_as_the_example(tmp_path, no_plots, monkeypatch):
    """Its observation is that of `observe`, and it decides for every task."""
    small = ["--num_bs=3", "--num_tasks=5", "--num_slots=6", "--episodes=1"]
    monkeypatch.chdir(tmp_path)
    run_here(main_lad, *small, "--out", "run", "--export", "policy.onnx")
    blocks = [body for _, language, body in FENCE.findall((ROOT / "docs/scheduling.md").read_text())]
    (program,) = [body for body in blocks if "InferenceSession" in body]
    names: dict[str, Any] = {}
    exec(program, names)
    size, workload = names["size"][None, ..., 0] * 5, names["workload"][None, ..., 0] * 0.3072 * 14
    tensors = (torch.from_numpy(values) for values in (size, workload, np.linspace(0, 60, 3)[None]))
    slot = Slot(0, torch.ones(1, 3, 3, dtype=torch.bool), *tensors)
    expected = observe(slot, draw_scenario(make(LadConfig, num_bs=3, num_tasks=5), [0]))[0]
    same(torch.from_numpy(names["inputs"]["observation"]), expected)
    assert names["action"].shape == (3, 3) and set(names["action"].flat) <= {0, 1, 2}


def test_what_cannot_be_exported_is_refused_before_a_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "own.onnx").write_bytes(b"mine")
    onnx.save(onnx.ModelProto(producer_name="other"), tmp_path / "other.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    out = tmp_path / "run"
    for name in ("policy.pt", ".onnx", "own.onnx", "other.onnx", "folder.onnx", "file/a.onnx", f"{'x' * 250}.onnx"):
        assert refusal(capsys, main_dqn, "--export", tmp_path / name, "--out", out).startswith("error: --export=")
    assert (tmp_path / "own.onnx").read_bytes() == b"mine"
    words = refusal(capsys, main_coop, "--export", tmp_path / "a.onnx", "--takeover=1000", "--out", out)
    assert "offered load 1.25 is below --takeover=1000" in words
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = refusal(capsys, main_dqn, "--export", tmp_path / "a.onnx", "--out", out)
    assert "onnxscript: pip install -r requirements-rl.txt" in words
    assert not out.exists() and not (tmp_path / "a.onnx").exists()
    for name in ("own.onnx", "other.onnx", "none.onnx"):
        assert "must be a file that --export has written" in refusal(capsys, example_onnx, "--policy", tmp_path / name)


def test_a_learner_without_a_policy_and_a_run_without_an_end_export_nothing(tmp_path):
    class Own(LearningScheduler):
        """One without `policy`."""

    agents, config, env = trained(CASES["dqn"], LEARNS)
    file = tmp_path / "policy.onnx"
    with pytest.raises(ParameterError, match="Own does not define policy"):
        exported(Own(), config, env, file)
    result = Result(config, tmp_path, {}, agents, {}, "", 130)
    assert "is not written" in with_export(result, file, env.scenario, "dqn_ts", [0, 1]).report
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (main_lad, ["--learning_start=8"]),
        (main_dqn, ["--learning_start=8"]),
        (main_coop, ["--takeover=0", "--fit_steps=3", "--distil_updates=3"]),
    ],
    ids=["lad", "dqn", "coop"],
)
def test_the_example_decides_with_a_file(module, more, tmp_path, no_plots, capsys):
    small = ["--num_bs=3", "--num_tasks=5", "--num_slots=6", "--episodes=1"]
    run_here(module, *small, *more, "--out", tmp_path / "run", "--export", tmp_path / "policy.onnx")
    capsys.readouterr()
    run_here(example_onnx, "--policy", tmp_path / "policy.onnx")
    method, opt = capsys.readouterr().out.splitlines()
    assert method.startswith(f"{module.__name__.rpartition('main_')[2]}") and opt.startswith("opt_ts: mean delay 0.")
    assert float(method.split()[-2]) >= float(opt.split()[-2]) > 0

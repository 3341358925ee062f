"""Training from Python: the numbers of the scripts, and a process that is left as it was."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers import ROOT, run_here
from pages import FENCE

from baselines import main_heuristics
from baselines.methods import METHODS, method_of, train
from baselines.model_sac import SACConfig
from baselines.rules import HeuristicConfig
from common.parameters import ParameterError, Parameters
from coop_lad_ts.coop_parameters import CoopConfig
from lad_ts import main_lad
from lad_ts.model_lad import LadConfig
from lad_ts.result import DivergedError
from lad_ts.run_parameters import FixedParameters

SMALL = {"num_bs": 2, "num_tasks": 3, "num_slots": 4}
LEARN = SMALL | {"learning_start": 10, "episodes": 4}


def flags(given: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items()]


def test_train_gives_what_the_script_writes(tmp_path, capsys, no_plots):
    run_here(main_lad, *flags(LEARN), "--preset=paper", "--out", tmp_path / "script")
    capsys.readouterr()
    result = train(LadConfig.of(**LEARN, preset="paper", seeds=1, out=str(tmp_path / "python")), progress=False)
    assert capsys.readouterr() == ("", "")
    for name in ("delay.csv", "metrics.csv"):
        assert result.paths[name].read_bytes() == (tmp_path / "script" / name).read_bytes()
    assert result.folder == tmp_path / "python" and result.interrupted == 0
    assert result.history["delay_s"].shape == result.history["critic_loss"].shape == (4, 1)
    assert result.summary["episodes"] == 4 and result.config.tied_sizes
    assert torch.equal(result.learner.theta_actor, torch.load(result.paths["checkpoint.pt"])["learner"]["theta_actor"])


@pytest.mark.parametrize("preset", ["tuned", "paper"])
def test_a_config_that_is_made_directly_is_completed_and_checked(preset, tmp_path, no_plots):
    direct = LadConfig(**LEARN, preset=preset, out=str(tmp_path))
    assert direct == LadConfig.of(**LEARN, preset=preset, out=str(tmp_path))
    assert not LadConfig(preset="paper", tied_sizes=False).tied_sizes
    assert train(direct, progress=False).summary["episodes"] == 4
    for wrong in ({"num_bs": 0}, {"memory": "none"}, {"num_bs": "x"}, {"min_tasks": 60}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            train(LadConfig(**LEARN | wrong, out=str(tmp_path / "new")))
    assert LadConfig.of(episodes=np.int64(3), tied_sizes=np.True_) == LadConfig.of(episodes=3, tied_sizes=True)
    direct.gamma = 2.0
    with pytest.raises(ParameterError, match="gamma"):
        train(direct)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("again", ["of", "replace", "set"])
def test_a_run_is_taken_up_from_python(again, tmp_path, no_plots):
    whole = train(SACConfig.of(**LEARN | {"episodes": 6}, out=str(tmp_path / "whole")), progress=False)
    first = train(SACConfig.of(**LEARN, gamma=0.95, out=str(tmp_path / "parts")), progress=False)
    config = SACConfig.of(resume=str(first.folder), episodes=6)
    if again == "replace":
        config = dataclasses.replace(first.config, resume=str(first.folder), episodes=6)
    elif again == "set":
        config = SACConfig()
        config.resume, config.episodes = str(first.folder), 6
    second = train(config, progress=False)
    for name in ("delay.csv", "metrics.csv"):
        assert second.paths[name].read_bytes() == whole.paths[name].read_bytes()
    with pytest.raises(ParameterError, match="gamma"):
        train(SACConfig.of(resume=str(first.folder), gamma=0.5))


def test_every_method_is_found_by_its_parameters_and_runs(tmp_path, no_plots):
    for key, method in METHODS.items():
        assert method_of(method.parameters.of(**method.flags)).key == key
    with pytest.raises(ParameterError, match="Parameters is no method's"):
        method_of(Parameters())
    coop = {"distil_episodes": 1, "fit_steps": 2, "distil_updates": 2, "episodes": 2, "takeover": 0.0}
    for k, config in enumerate([FixedParameters(**SMALL, episodes=2), CoopConfig.of(**SMALL, **coop)]):
        config.out = str(tmp_path / str(k))
        assert np.isfinite(train(config, progress=False).history["delay_s"]).all()
    run_here(main_heuristics, *flags(SMALL), "--episodes=2", "--method=local_only", "--out", tmp_path / "script")
    result = train(HeuristicConfig(**SMALL, episodes=2, method="local_only", out=str(tmp_path / "rule")))
    assert result.paths["delay.csv"].read_bytes() == (tmp_path / "script" / "delay.csv").read_bytes()


def test_training_in_a_thread_touches_no_handlers(tmp_path, no_plots):
    found = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = LadConfig.of(**LEARN, out=str(tmp_path))
    thread = threading.Thread(target=lambda: found.append(train(config, progress=False)))
    thread.start()
    thread.join()
    assert found[0].summary["episodes"] == 4
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_a_result_and_an_up_to_date_checkpoint(number, tmp_path, no_plots):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    before = signal.getsignal(number)
    result = train(LadConfig.of(**LEARN | {"episodes": 100_000}, out=str(tmp_path)), progress=False)
    assert result.interrupted == 128 + number and signal.getsignal(number) == before
    done = len(result.history["delay_s"])
    assert 0 < done < 100_000 and len(torch.load(result.paths["checkpoint.pt"])["history"]) == done


def test_a_training_that_diverges_raises(tmp_path):
    with pytest.raises(DivergedError, match="training diverged in episode"):
        train(LadConfig.of(**LEARN, actor_lr=1e9, critic_lr=1e9, out=str(tmp_path)), progress=False)


LEFT = """
import os, sys, torch
torch.set_num_threads(3)
from baselines.methods import train
from lad_ts.model_lad import LadConfig
result = train(LadConfig.of(num_bs=2, num_tasks=3, num_slots=4, episodes=2, out="run"), progress=False)
assert torch.get_num_threads() == 3 and "matplotlib.pyplot" not in sys.modules
assert os.environ.get("MPLBACKEND") == (sys.argv[1] or None) and result.paths["delay.png"].stat().st_size
"""


@pytest.mark.parametrize("backend", ["", "module://no_such_notebook.backend"])
def test_the_process_is_left_as_it_was(backend, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"MPLBACKEND": backend} if backend else {})
    command = [sys.executable, "-c", LEFT, backend]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [body for _, _, body in FENCE.findall((ROOT / "docs" / "scheduling.md").read_text())]
    (code,) = (block for block in blocks if "import train" in block)
    names: dict = {}
    exec(re.sub("episodes=60", "episodes=3, num_slots=4", code).replace("episodes=100", "episodes=4"), names)
    assert names["longer"].history["delay_s"].shape == (4, 1)

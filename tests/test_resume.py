"""An interrupted run, killed or stopped, goes on to the very bytes of one that was never interrupted."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import run_here, start_script

from baselines import main_d2sac, main_dqn, main_sac
from lad_ts import main_lad

# At 50 episodes a second this takes seconds, and the first checkpoint comes after two episodes.
EPISODES = 120
RUN = ["--num_bs=2", "--num_tasks=3", "--num_slots=4", "--learning_start=10", "--checkpoint_every=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_here(main_lad, *RUN, "--episodes", EPISODES, "--out", folder)
    assert not list(folder.glob("*partial*")) and not list(folder.glob(".*"))
    return (folder / "delay.csv").read_bytes()


def start_and_wait_for_checkpoint(folder: Path) -> subprocess.Popen:
    process = start_script("lad_ts/main_lad.py", *RUN, "--episodes", EPISODES, "--out", "run", folder=folder)
    deadline = time.monotonic() + 60
    while not (folder / "run" / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return process


def stored_episodes(folder: Path) -> int:
    return len(torch.load(folder / "checkpoint.pt", weights_only=True)["history"])


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, uninterrupted, capsys):
    process = start_and_wait_for_checkpoint(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = tmp_path / "run"
    assert process.returncode == -signal.SIGKILL
    assert 2 <= stored_episodes(folder) < EPISODES

    for contradiction in (("--num_bs", 3), ("--gamma", 0.5), ("--preset", "paper"), ("--episodes", 1)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_here(main_lad, "--resume", folder, *contradiction)
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and f"{contradiction[0]}={contradiction[1]}" in line

    resumed = start_script("lad_ts/main_lad.py", "--resume", "run", folder=tmp_path)
    assert "LAD-TS" in resumed.communicate()[0]
    assert resumed.returncode == 0
    assert (folder / "delay.csv").read_bytes() == uninterrupted
    assert not list(folder.glob("*partial*")) and not list(folder.glob(".*"))


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_run_keeps_its_episodes_and_resumes_to_the_same_bytes(tmp_path, uninterrupted, end):
    process = start_and_wait_for_checkpoint(tmp_path)
    process.send_signal(end)
    stdout, stderr = process.communicate(timeout=60)
    folder = tmp_path / "run"
    assert process.returncode == 128 + end and "Traceback" not in stderr
    assert "--resume run" in stdout.splitlines()[-1]
    done = stored_episodes(folder)
    assert 2 <= done < EPISODES
    assert len((folder / "delay.csv").read_text().splitlines()) == 1 + done
    assert uninterrupted.startswith((folder / "delay.csv").read_bytes())
    run_here(main_lad, "--resume", folder)
    assert (folder / "delay.csv").read_bytes() == uninterrupted


@pytest.mark.parametrize("preset", ["tuned", "paper"])
@pytest.mark.parametrize("module", [main_lad, main_sac, main_d2sac, main_dqn])
def test_every_method_that_learns_goes_on_to_the_same_bytes(module, preset, tmp_path, no_plots):
    """With fast targets, so that a target network that is not stored shows."""
    fast = ["--target_every=7", "--epsilon=0.3"] if module is main_dqn else ["--target_rate=0.2"]
    run = [*RUN, *fast, "--seeds=2", "--preset", preset]
    run_here(module, *run, "--episodes", 5, "--out", tmp_path / "two_parts")
    run_here(module, "--resume", tmp_path / "two_parts", "--episodes", 12)
    run_here(module, *run, "--episodes", 12, "--out", tmp_path / "one_part")
    first, second = ((tmp_path / part / "delay.csv").read_bytes() for part in ("two_parts", "one_part"))
    assert first == second
    paths = [tmp_path / part / "checkpoint.pt" for part in ("two_parts", "one_part")]
    states = [torch.load(path, weights_only=True)["learner"] for path in paths]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_run_that_was_killed_before_its_plots_gets_them(tmp_path):
    run_here(main_lad, *RUN, "--episodes", 3, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("delay.csv", "seconds.csv", "delay.png", "delay.pdf", "summary.json"):
        (tmp_path / name).unlink()
    (tmp_path / ".delay.partial.csv").touch()
    run_here(main_lad, "--resume", tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["delay.csv"] == before["delay.csv"]


def test_two_processes_never_share_a_folder(tmp_path, capsys):
    process = start_and_wait_for_checkpoint(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_here(main_lad, "--resume", tmp_path / "run")
    process.kill()
    process.communicate()
    assert ended.value.code == 2
    assert "another process is working in it" in capsys.readouterr().err


def test_a_fixed_run_and_an_evaluation_end_cleanly_at_ctrl_c(tmp_path):
    run_here(main_lad, *RUN, "--episodes", 2, "--out", tmp_path / "lad")
    large = ["--num_bs=40", "--num_tasks=100", "--episodes=100000", "--out", "opt"]
    starts = [
        start_script("baselines/main_opt.py", *large, folder=tmp_path),
        start_script(
            "lad_ts/main_lad.py", "--evaluate", "lad/checkpoint.pt", "--evaluation_episodes=1000000", folder=tmp_path
        ),
    ]
    for process in starts:
        line = process.stderr.readline()  # the progress bar: the loop has begun
        assert "0/" in line or process.stderr.read(1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    outputs = [process.communicate(timeout=60) for process in starts]
    assert [process.returncode for process in starts] == [130, 130], outputs
    assert all("Traceback" not in stderr and "interrupted after episode" in stdout for stdout, stderr in outputs)
    for folder in ("opt", "lad/evaluation_sample"):
        assert len((tmp_path / folder / "delay.csv").read_text().splitlines()) > 1

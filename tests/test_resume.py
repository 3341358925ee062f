"""An interrupted run, killed or stopped, goes on to the very bytes of one that was never interrupted."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import run_here, start_script

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


def test_an_interrupted_run_keeps_its_episodes_and_resumes_to_the_same_bytes(tmp_path, uninterrupted):
    process = start_and_wait_for_checkpoint(tmp_path)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    folder = tmp_path / "run"
    assert process.returncode == 130 and "Traceback" not in stderr
    assert "--resume run" in stdout.splitlines()[-1]
    done = stored_episodes(folder)
    assert 2 <= done < EPISODES
    assert len((folder / "delay.csv").read_text().splitlines()) == 1 + done
    assert uninterrupted.startswith((folder / "delay.csv").read_bytes())
    run_here(main_lad, "--resume", folder)
    assert (folder / "delay.csv").read_bytes() == uninterrupted


def test_more_episodes_may_be_added_to_a_finished_run(tmp_path):
    run_here(main_lad, *RUN, "--episodes", 5, "--out", tmp_path / "two_parts")
    run_here(main_lad, "--resume", tmp_path / "two_parts", "--episodes", 9)
    run_here(main_lad, *RUN, "--episodes", 9, "--out", tmp_path / "one_part")
    first, second = ((tmp_path / part / "delay.csv").read_bytes() for part in ("two_parts", "one_part"))
    assert first == second

"""What several test files need: scripts, parameters, random cases, and the environment as a plain loop over tasks."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
import pytest

from baselines.rules import RULES
from common.command_line import command_line
from common.parameters import Parameters, resolve
from lad_ts.environment_lad import Arrivals, Scenario

ROOT = Path(__file__).resolve().parents[1]
SCHEDULERS = {name: rule for name, rule in RULES.items() if name != "lower_bound"}


def make(cls: type[Parameters], **given: Any) -> Any:
    """Checked parameters, as a script gets them from its command line."""
    return resolve(cls, given)


def start_script(script: str, *arguments: Any, folder: Path) -> subprocess.Popen:
    """Run a script of this repository in a process of its own, with `folder` as the working directory."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def answers_signals(process: subprocess.Popen) -> subprocess.Popen:
    """A script's process, as soon as quiet_start.py handles signals: before, they end Python itself.

    On busy cores that takes a second. Where there is no /proc, nothing is waited for.
    """
    caught, status = 0, Path(f"/proc/{process.pid}/status")
    while status.exists() and not caught >> (signal.SIGHUP - 1) & 1:  # the last one that it handles
        assert process.poll() is None
        caught = int(status.read_text().partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.01)
    return process


def run_here(module: ModuleType, *arguments: Any) -> None:
    """Run a script's module in this process, as its last line does."""
    config = get_type_hints(module.main)["config"]
    command_line(config, module.main, module.__doc__, arguments=[str(argument) for argument in arguments])


def refusal(capsys: pytest.CaptureFixture, module: ModuleType, *arguments: Any) -> str:
    """The one line that a mistake is told in, with exit code 2; progress bars may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_here(module, *arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def random_scenario(rng: np.random.Generator, seeds: int, num_bs: int, num_tasks: int) -> Scenario:
    return Scenario(
        capacity=rng.uniform(1, 20, (seeds, num_bs)),
        link_rate=rng.uniform(1, 50, (seeds, num_bs)),
        density=rng.uniform(0.1, 2, (seeds, num_tasks)),
        steps=rng.integers(1, 15, (seeds, num_tasks)),
        result_size=rng.uniform(0, 5, (seeds, num_tasks)),
    )


def random_arrivals(rng: np.random.Generator, seeds: int, num_slots: int, num_bs: int, num_tasks: int) -> Arrivals:
    """0 to num_tasks tasks at each BS; every third BS count is 0, so that BSs without a task are common."""
    count = rng.integers(0, num_tasks + 1, (seeds, num_slots, num_bs)) * (rng.random((seeds, num_slots, num_bs)) > 0.3)
    return Arrivals(count, rng.uniform(0, 10, (seeds, num_slots, num_bs, num_tasks)))


def plain_delay(scenario: Scenario, row: int, b: int, n: int, size: float, es: int, ahead: float) -> float:
    """The delay of one task in s, with `ahead` Gcycles before it at the chosen ES."""
    f, v = scenario.capacity[row, es], scenario.link_rate[row, es]
    upload = size / v if es != b else 0.0
    return upload + scenario.density[row, n] * scenario.steps[row, n] / f + scenario.result_size[row, n] / v + ahead / f


def plain_slot(
    scenario: Scenario,
    row: int,
    count: np.ndarray,
    size: np.ndarray,
    action: np.ndarray,
    queue: list[float],
    slot: float,
) -> tuple[dict[tuple[int, int], float], list[float], list[float]]:
    """One slot task by task: the delay of each (b, n), the queues at the next slot's start, and the work sent."""
    delays, sent = {}, [0.0] * len(queue)
    for b in range(len(count)):
        for n in range(count[b]):
            es = int(action[b, n])
            delays[b, n] = plain_delay(scenario, row, b, n, size[b, n], es, queue[es] + sent[es])
            sent[es] += scenario.density[row, n] * scenario.steps[row, n]
    following = [max(q + w - f * slot, 0.0) for q, w, f in zip(queue, sent, scenario.capacity[row], strict=True)]
    return delays, following, sent

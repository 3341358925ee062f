"""Trainings whose episodes are timed, several in turns, so that a machine that grows slower does so for all of them.

Start reading at `in_turns`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from baselines.methods import METHODS
from common.parameters import resolve
from lad_ts.environment_lad import draw_arrivals
from lad_ts.episodes import run_episode
from lad_ts.setting import Setting


class Training:
    """Agents of a method, untrained, with the environment that they learn in."""

    def __init__(self, method: str, **given: Any) -> None:
        """`given` are the method's parameters. Raises ParameterError, as for an engine that cannot be used."""
        self.config: Any = resolve(METHODS[method].parameters, given)
        self.setting = Setting.of(self.config)
        self.agents: Any = METHODS[method].build(self.config, self.setting.seeds, self.setting.device)
        self.env = self.setting.environment()
        self.env.compiled = self.config.engine == "fused"
        self.episodes = 0

    def begin(self) -> None:
        """Have torch use as many threads as in a training of its own; compiled functions have their own."""
        torch.set_num_threads(1 if self.env.compiled else self.config.threads)

    def episode(self) -> float:
        """Seconds per seed of the next training episode, environment included."""
        self.begin()
        rows = [(seed, self.episodes) for seed in self.setting.seeds]
        arrivals = draw_arrivals(self.config, rows)
        began = time.perf_counter()
        run_episode(self.env, self.agents, arrivals, rows)
        self.episodes += 1
        return (time.perf_counter() - began) / len(rows)


def in_turns(timed: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds [repeats] that each function tells, called one after another, `repeats` times.

    Each is called once before, which is not counted: agents fill their replay, and functions are compiled.
    """
    for function in timed.values():
        function()
    rounds = [{name: function() for name, function in timed.items()} for _ in range(repeats)]
    return {name: [one[name] for one in rounds] for name in timed}

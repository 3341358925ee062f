"""Evaluations during a training: a copy of the agents, without learning, on arrivals of their own stream.

They have nothing to do with the arrivals of --evaluate, so what --evaluate tells of best.pt is not chosen for.
"""

from typing import Any

import numpy as np

from common.random_streams import Stream
from common.statistics_seeds import episode_mean
from lad_ts.blocks import OptDelays
from lad_ts.checkpoints import built
from lad_ts.environment_lad import draw_arrivals
from lad_ts.method import Method
from lad_ts.scheduler import LearningScheduler
from lad_ts.setting import Setting


class Validation:
    """The evaluations of a training: `evaluation_episodes` episodes, the same every time."""

    def __init__(self, config: Any, setting: Setting, method: Method) -> None:
        self.config, self.setting, self.method = config, setting, method
        self.opt: np.ndarray | None = None  # Opt-TS's mean delay [S] in s

    def due(self, episodes: int) -> bool:
        """Whether to evaluate after so many episodes."""
        every = self.config.evaluate_every
        return bool(every) and episodes % every == 0

    def run(self, scheduler: LearningScheduler, episodes: int) -> list[list[float]]:
        """Evaluate a copy of agents that have learned from so many episodes: a row of evaluation.csv for each seed."""
        setting, count = self.setting, self.config.evaluation_episodes
        copy = built(self.config, self.method)
        copy.load_state_dict(scheduler.state_dict())
        copy.training = False
        env, results = setting.environment(), []
        for episode in range(count):
            rows = [(seed, episode) for seed in setting.seeds]
            results.append(copy.run(env, draw_arrivals(self.config, rows, Stream.VALIDATION_ARRIVALS), rows))
        if self.opt is None:
            stream = Stream.VALIDATION_ARRIVALS
            opt = OptDelays(self.config, setting.scenario, setting.seeds, count, stream)
            self.opt = episode_mean(np.array([opt.of(episode) for episode in range(count)]))
        of_all = {name: np.array([getattr(stats, name) for stats in results]) for name in ("mean", "p50", "p95", "p99")}
        means = {name: episode_mean(values) for name, values in of_all.items()}
        columns = (means["mean"], self.opt, means["p50"], means["p95"], means["p99"])
        return [[episodes, seed, *map(float, row)] for seed, *row in zip(setting.seeds, *columns, strict=True)]

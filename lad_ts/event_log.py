"""TensorBoard's event files of a training, for `--log tensorboard`: the columns of metrics.csv and evaluation.csv.

Below tensorboard/ in the run's folder, every seed is a run of TensorBoard, and so is the mean over seeds. So
TensorBoard draws a chart for each column, with the seeds as its curves. A step is an episode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lad_ts.history import EVALUATED, History


class EventLog:
    """Writers of TensorBoard, one for each seed, and one for their mean where there are several."""

    def __init__(self, folder: Path, seeds: list[int], first: int) -> None:
        """Events of episodes from `first` on, which a killed run may have left there, no longer count."""
        from torch.utils.tensorboard import SummaryWriter

        runs = [*(f"seed_{seed}" for seed in seeds), *(["mean"] if len(seeds) > 1 else [])]
        self.seeds = seeds
        self.writers = [SummaryWriter(str(folder / run), purge_step=first, flush_secs=10) for run in runs]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """The value [S] of each name at a step. What is NaN is left out."""
        for name, value in values.items():
            for writer, number in zip(self.writers, [*value, np.mean(value)], strict=False):
                if np.isfinite(number):
                    writer.add_scalar(name, number, step)

    def episode(self, history: History, episode: int) -> None:
        """What the history holds of an episode."""
        count = len(self.seeds)
        header, rows = history.metrics(episode * count, (episode + 1) * count)
        table = np.array(rows)
        self.write(episode, {name: table[:, k] for k, name in enumerate(header) if k > 1})
        evaluated = np.array([row for row in history.evaluations if row[0] == episode + 1])
        if len(evaluated):
            values = {f"evaluation_{name}": evaluated[:, k] for k, name in enumerate(EVALUATED) if k > 1}
            self.write(episode, values)

    def close(self) -> None:
        """Write what is left."""
        for writer in self.writers:
            writer.close()


@contextmanager
def event_log(kind: str, folder: Path, seeds: list[int], history: History) -> Iterator[EventLog | None]:
    """The log of a training from its history's end on, None where `kind` is none.

    Where there are no event files yet, those of the history's episodes come first.
    """
    if kind == "none":
        yield None
        return
    place = folder / "tensorboard"
    known = any(place.rglob("events.out.tfevents.*"))
    log = EventLog(place, seeds, history.episodes if known else 0)
    try:
        for episode in range(0 if known else history.episodes):
            log.episode(history, episode)
        yield log
    finally:
        log.close()

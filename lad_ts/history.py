"""What a run has measured, episode by episode: the rows of delay.csv and seconds.csv."""

from pathlib import Path

import numpy as np

from common.run_folder import write_csv
from lad_ts.episodes import EpisodeStatistics

HEADER = ("seed", "episode", "delay_s", "opt_delay_s", "p50_s", "p95_s", "p99_s", "max_s", "seconds")


class History:
    """A row for each seed and episode, with the columns of HEADER."""

    def __init__(self, rows: list[list[float]] | None = None) -> None:
        self.rows = rows or []

    def add(self, seeds: list[int], episode: int, stats: EpisodeStatistics, opt: np.ndarray, seconds: float) -> None:
        """Append an episode: statistics and Opt-TS's mean delay [S] in s, and the seconds that all seeds took."""
        columns = (stats.mean, opt, stats.p50, stats.p95, stats.p99, stats.max)
        for row, seed in enumerate(seeds):
            values = [float(column[row]) for column in columns]
            self.rows.append([seed, episode, *values, seconds / len(seeds)])

    @classmethod
    def stored(cls, rows: list, seeds: list[int]) -> "History":
        """The history of a checkpoint. Raises ValueError when it does not fit the seeds."""
        table = np.array(rows, dtype=float)
        if table.size and (table.ndim != 2 or table.shape[1] != len(HEADER) or len(table) % len(seeds)):
            raise ValueError(f"a history of shape {table.shape}")
        if table.size and not (table[:, 0].reshape(-1, len(seeds)) == seeds).all():
            raise ValueError("a history of other seeds")
        return cls(rows)

    @property
    def episodes(self) -> int:
        """Episodes so far."""
        return int(self.rows[-1][1]) + 1 if self.rows else 0

    def column(self, name: str, seeds: int) -> np.ndarray:
        """A column as [episodes, seeds]."""
        return np.array([row[HEADER.index(name)] for row in self.rows]).reshape(-1, seeds)

    def write(self, folder: Path) -> None:
        """delay.csv holds what the parameters determine; seconds.csv what the machine adds."""
        write_csv(folder / "delay.csv", HEADER[:-1], [[int(r[0]), int(r[1]), *r[2:-1]] for r in self.rows])
        write_csv(
            folder / "seconds.csv",
            ("seed", "episode", "seconds"),
            [[int(r[0]), int(r[1]), round(r[-1], 4)] for r in self.rows],
        )

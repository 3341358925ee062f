"""What a run has measured, episode by episode: the rows of delay.csv, seconds.csv, metrics.csv and evaluation.csv."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.tables import Table
from lad_ts.episodes import EpisodeStatistics

HEADER = ("seed", "episode", "delay_s", "opt_delay_s", "p50_s", "p95_s", "p99_s", "max_s", "seconds")
EVALUATED = ("episode", "seed", "delay_s", "opt_delay_s", "p50_s", "p95_s", "p99_s")  # columns of evaluation.csv
OUTCOME = ("delay_s", "above_opt_percent")  # what metrics.csv has after what learners measure


class History:
    """A row for each seed and episode, with the columns of HEADER.

    `measured` has as many rows, with the columns `names`: what learners tell of their learning. `names` is None for
    what is no training. `evaluations` holds the rows of evaluation.csv.
    """

    def __init__(self, rows: list[list[float]] | None = None) -> None:
        self.rows = rows or []
        self.names: tuple[str, ...] | None = None
        self.measured: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self.tables: dict[Path, Table] = {}

    def measure(self, names: Sequence[str]) -> None:
        """Make this the history of a training whose learner measures `names`; NaN where earlier episodes lack one."""
        before = {name: k for k, name in enumerate(self.names or ())}
        rows = self.measured or [[] for _ in self.rows]
        self.measured = [[row[before[name]] if name in before else np.nan for name in names] for row in rows]
        self.names = tuple(names)
        self.tables = {}

    def add(
        self,
        seeds: list[int],
        episode: int,
        stats: EpisodeStatistics,
        opt: np.ndarray,
        seconds: float,
        measured: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append an episode: statistics and Opt-TS's mean delay [S] in s, and the seconds that all seeds took.

        `measured` has a value [S] of each of `names`.
        """
        columns = (stats.mean, opt, stats.p50, stats.p95, stats.p99, stats.max)
        for row, seed in enumerate(seeds):
            values = [float(column[row]) for column in columns]
            self.rows.append([seed, episode, *values, seconds / len(seeds)])
            if self.names is not None:
                self.measured.append([float((measured or {})[name][row]) for name in self.names])

    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        measured = {"names": list(self.names or ()), "rows": self.measured}
        return {"history": self.rows, "metrics": measured, "evaluations": self.evaluations}

    @classmethod
    def of_checkpoint(cls, content: Mapping[str, Any], seeds: list[int]) -> "History":
        """The history of a checkpoint. Raises LookupError, TypeError or ValueError when it does not fit the seeds.

        Older versions have stored no metrics and no evaluations.
        """
        history = cls(content["history"])
        table = np.array(history.rows, dtype=float)
        if table.size and (table.ndim != 2 or table.shape[1] != len(HEADER) or len(table) % len(seeds)):
            raise ValueError(f"a history of shape {table.shape}")
        if table.size and not (table[:, 0].reshape(-1, len(seeds)) == seeds).all():
            raise ValueError("a history of other seeds")
        if "metrics" in content:
            history.names, history.measured = tuple(content["metrics"]["names"]), content["metrics"]["rows"]
            shape = (len(history.rows), len(history.names))
            if np.array(history.measured, dtype=float).reshape(len(history.measured), -1).shape != shape:
                raise ValueError(f"metrics of another shape than {shape}")
        history.evaluations = content.get("evaluations", [])
        if np.array(history.evaluations, dtype=float).shape[1:] not in ((), (len(EVALUATED),)):
            raise ValueError("evaluations of another shape")
        return history

    @property
    def episodes(self) -> int:
        """Episodes so far."""
        return int(self.rows[-1][1]) + 1 if self.rows else 0

    def column(self, name: str, seeds: int) -> np.ndarray:
        """A column as [episodes, seeds]."""
        return np.array([row[HEADER.index(name)] for row in self.rows]).reshape(-1, seeds)

    def columns(self, seeds: int) -> dict[str, np.ndarray]:
        """All columns of delay.csv, seconds.csv and metrics.csv as [episodes, seeds]."""
        found = {name: self.column(name, seeds) for name in HEADER[2:]}
        for k, name in enumerate(self.names or ()):
            found[name] = np.array([row[k] for row in self.measured]).reshape(-1, seeds)
        return found | {"above_opt_percent": 100 * (found["delay_s"] / found["opt_delay_s"] - 1)}

    def metrics(self, first: int = 0, end: int | None = None) -> tuple[tuple[str, ...], list[list[float]]]:
        """Header of metrics.csv, and its rows from number `first` on, to the one before `end`."""
        pairs = zip(self.rows[first:end], self.measured[first:end], strict=True)
        rows = [[*row[:2], *m, row[2], 100 * (row[2] / row[3] - 1)] for row, m in pairs]
        return ("seed", "episode", *(self.names or ()), *OUTCOME), rows

    def best(self) -> int | None:
        """How many episodes the agents had learned from that were best in evaluation; None without any.

        The best have the least delay, as a mean over seeds; of several, the first.
        """
        delays: dict[int, list[float]] = {}
        for row in self.evaluations:
            delays.setdefault(int(row[0]), []).append(row[2])
        means = {episode: float(np.mean(values)) for episode, values in delays.items()}
        known = {episode: mean for episode, mean in means.items() if not np.isnan(mean)}
        return min(known, key=lambda episode: known[episode]) if known else None

    def write(self, folder: Path) -> None:
        """delay.csv holds what the parameters determine; seconds.csv what the machine adds.

        metrics.csv is a training's, and evaluation.csv that of one with evaluations.
        """

        def write(name: str, header: Sequence[str], rows_from: Callable[[int], list[list[Any]]]) -> None:
            self.tables.setdefault(folder / name, Table(folder / name, header)).grow(rows_from)

        write("delay.csv", HEADER[:-1], lambda k: [[int(r[0]), int(r[1]), *r[2:-1]] for r in self.rows[k:]])
        seconds = ("seed", "episode", "seconds")
        write("seconds.csv", seconds, lambda k: [[int(r[0]), int(r[1]), round(r[-1], 4)] for r in self.rows[k:]])
        if self.names is not None:
            write("metrics.csv", self.metrics(end=0)[0], lambda k: list(map(whole_then_known, self.metrics(k)[1])))
        if self.evaluations:
            write("evaluation.csv", EVALUATED, lambda k: list(map(whole_then_known, self.evaluations[k:])))


def whole_then_known(row: list[float]) -> list[Any]:
    """Two whole numbers, then numbers that are left empty where they are NaN."""
    return [int(row[0]), int(row[1]), *("" if np.isnan(value) else value for value in row[2:])]

"""What the study of Cooperative LAD-TS has found: trials.csv, row by row, and tables of it."""

from pathlib import Path
from typing import Any

import numpy as np

from common.parameters import ParameterError
from common.run_folder import describe
from common.statistics_seeds import with_interval
from common.tables import read_csv, write_csv
from experiments.study_trials import Tried
from experiments.trials import STATISTICS, compare_in


class StudyResults:
    """Rows of trials.csv: experiment, setting, method, seed, and the ratios to Opt-TS."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []

    def run(self, tried: Tried) -> bool:
        """Try those methods that have no rows yet. Returns whether there were any."""
        there = {tuple(row[:3]) for row in self.rows}
        setting = tried.setting if isinstance(tried.setting, str) else float(tried.setting)
        missing = {n: make for n, make in tried.methods.items() if (tried.experiment, setting, n) not in there}
        if tried.same_as is not None:  # these have been tried
            before = [row for row in self.rows if row[0] == tried.same_as and row[2] in missing]
            self.rows += [[tried.experiment, setting, *row[2:]] for row in before]
            return bool(before)
        for name, ratio in compare_in(tried.trial, missing, tried.episodes).items() if missing else ():
            for k, seed in enumerate(tried.trial.seeds):
                self.rows.append([tried.experiment, setting, name, seed, *(float(ratio[s][k]) for s in STATISTICS)])
        return bool(missing)

    def load(self, path: Path) -> None:
        """Take back the rows of an interrupted study. Raises ParameterError when its table is another one."""
        try:
            for row in read_csv(path) if path.is_file() else ():
                try:
                    setting: float | str = float(row["setting"])
                except ValueError:
                    setting = row["setting"]
                ratios = (float(row[name]) for name in STATISTICS)
                self.rows.append([row["experiment"], setting, row["method"], int(row["seed"]), *ratios])
        except (OSError, ValueError, LookupError) as error:
            words = f"its {path.name} must be one of this script ({describe(error)})"
            raise ParameterError("out", path.parent, words) from None

    def save(self, path: Path, order: list[tuple[str, float | str, str]]) -> None:
        """Write trials.csv, first the rows of `order`."""
        place = {key: k for k, key in enumerate(order)}
        self.rows.sort(key=lambda row: (place.get(tuple(row[:3]), len(place)), row[3]))
        write_csv(path, ("experiment", "setting", "method", "seed", *STATISTICS), self.rows)

    def values(self, experiment: str, value: float | str, method: str, statistic: str) -> np.ndarray:
        """One statistic's ratios, one for each seed."""
        column = 4 + STATISTICS.index(statistic)
        return np.array([row[column] for row in self.rows if row[:3] == [experiment, value, method]])

    def methods(self, experiment: str) -> list[str]:
        """The methods of an experiment, in order."""
        return list(dict.fromkeys(row[2] for row in self.rows if row[0] == experiment))

    def settings(self, experiment: str) -> list[Any]:
        """The settings of an experiment, in order."""
        return list(dict.fromkeys(row[1] for row in self.rows if row[0] == experiment))

    def table(self, experiment: str) -> str:
        """All statistics of an experiment's methods, one row for each setting and method."""
        lines = ["| setting | method | " + " | ".join(STATISTICS) + " |", "|---" * (2 + len(STATISTICS)) + "|"]
        for value in self.settings(experiment):
            shown = value if isinstance(value, str) else f"{value:g}"
            for method in self.methods(experiment):
                cells = [self.values(experiment, value, method, statistic) for statistic in STATISTICS]
                if cells[0].size:
                    lines.append(f"| {shown} | {method} | " + " | ".join(with_interval(c, 3) for c in cells) + " |")
        return "\n".join(lines)

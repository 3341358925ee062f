"""Compare runs on the same arrivals: the learning-performance figure and a table, from the runs' CSV files.

Takes every run folder below --runs and writes comparison (delay) and gap (percent above Opt-TS)
as PNG and PDF, table.md and table.csv. Example:
python scripts/compare.py --runs results/comparison/runs --out results/comparison
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from baselines.rules import RULES
from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, claimed, describe, read_config, read_csv, write_csv, write_text
from common.statistics_seeds import episode_mean, final_span, with_interval
from lad_ts.environment_lad import EnvironmentParameters
from lad_ts.history import HEADER as DELAY_COLUMNS
from lad_ts.plots import Curve, overall, plot_delays, plot_gaps, smooth
from lad_ts.run_parameters import FixedParameters

# Steady delays in s that are read off the published figure (arXiv 2412.18212).
PUBLISHED = {
    "Opt-TS": 7.36,
    "LAD-TS (paper)": 7.71,
    "D2SAC-TS (paper)": 8.23,
    "SAC-TS (paper)": 8.49,
    "DQN-TS (paper)": 8.93,
}
# result sizes change the delay by about 1 ms: with tied_sizes a run still counts as the same environment
DEFAULTS = {field.name: field.default for field in dataclasses.fields(FixedParameters)}
ENVIRONMENT = {field.name for field in dataclasses.fields(EnvironmentParameters)} - {"tied_sizes"}
COLUMNS = tuple(name for name in DELAY_COLUMNS if name.endswith("_s"))
EVALUATION = ", evaluation"  # how the label of an evaluation ends
BUILT_IN = {name.replace("_", " ") for name in RULES} - {"lower bound"}
HEADER = (
    *("method", "delay s", "above Opt-TS %", "p50 s", "p95 s", "p99 s", "episodes to 5 % of Opt-TS"),
    *("episodes to 5 % of own final", "s per episode and seed", "published delay s"),
)


@dataclasses.dataclass(kw_only=True)
class CompareConfig(Parameters):
    """Every parameter of compare.py."""

    runs: str = parameter(str(RESULTS / "comparison" / "runs"), "folder below which the run folders lie")
    out: str = parameter(str(RESULTS / "comparison"), "folder of the figure and the table")
    draw: str = parameter(
        "capacity proportional,size interval", "built-in methods without learning to draw besides Opt-TS and the bound"
    )
    window: int = parameter(5, "episodes averaged in the curves and for reaching 5 %", unit="episodes", low=1)
    last: int = parameter(100, "final values are means over this many last episodes, at most the last half", low=1)


@dataclasses.dataclass
class Run:
    """A run as read from its folder; columns are [episodes, seeds]."""

    method: str
    parameters: dict[str, Any]
    columns: dict[str, np.ndarray]
    folder: Path

    @property
    def learns(self) -> bool:
        return "checkpoint_every" in self.parameters and not self.method.endswith(EVALUATION)

    def final(self, name: str, last: int) -> np.ndarray:
        """Mean of a column over the last episodes, for every seed."""
        return episode_mean(self.columns[name][-last:])


def read_run(folder: Path) -> Run:
    """A run from its folder. Raises ParameterError when its files are not whole."""
    method, parameters = read_config(folder, "runs")
    if method.endswith(EVALUATION):
        parameters["held_out"] = True  # which tells it from a training
    seeds = parameters["seeds"]
    try:
        rows, times = read_csv(folder / "delay.csv"), read_csv(folder / "seconds.csv")
        columns = {name: np.array([float(row[name]) for row in rows]).reshape(-1, seeds) for name in COLUMNS}
        columns["seconds"] = np.array([float(row["seconds"]) for row in times]).reshape(-1, seeds)
        if not len(rows):
            raise ValueError("no episode")
        if missing := ENVIRONMENT - {"tied_sizes"} - parameters.keys():
            raise LookupError(f"config.json lacks {', '.join(sorted(missing))}")
        return Run(method, parameters, columns, folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ParameterError("runs", None, f"{folder} must hold a whole run ({describe(error)})") from None


def read_runs(top: Path) -> list[Run]:
    """All runs below `top`, on one environment with the same seeds and episodes. Raises ParameterError otherwise."""
    folders = sorted(path.parent for path in top.rglob("delay.csv") if not path.parent.name.startswith("evaluation"))
    if not folders:
        raise ParameterError("runs", top, "must be a folder with runs below it; no delay.csv was found")
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        for name in sorted(ENVIRONMENT | {"seed", "seeds", "held_out"}):
            ours, theirs = (r.parameters.get(name, DEFAULTS.get(name)) for r in (run, first))
            if ours != theirs:
                raise ParameterError(
                    "runs", top, f"{run.folder.name} has {name}={ours}, {first.folder.name} {theirs}; must be the same"
                )
        if len(run.columns["delay_s"]) != len(first.columns["delay_s"]):
            raise ParameterError(
                "runs", top, f"{run.folder.name} and {first.folder.name} must have the same number of episodes"
            )
    doubled = {run.method for run in runs if sum(other.method == run.method for other in runs) > 1}
    if doubled:
        raise ParameterError("runs", top, f"must hold one run of each method; more than one of {', '.join(doubled)}")
    return runs


def first_within(ratio: np.ndarray, limit: np.ndarray) -> str:
    """The first episode, counted from 1, at which ratio [E, S] is at most limit [S]: mean and interval over seeds."""
    reached = ratio <= limit
    if not reached.any(0).all():
        return "never" if not reached.any() else f"{reached.any(0).sum()} of {ratio.shape[1]} seeds"
    return with_interval(reached.argmax(0) + 1.0, digits=0)


def table_row(run: Run, last: int, window: int) -> list[str]:
    """A run's cells under HEADER: means of the last episodes, and when the windowed mean came within 5 %."""
    ratio = run.columns["delay_s"] / run.columns["opt_delay_s"]
    final = episode_mean(ratio[-last:])
    reach_opt = reach_own = "-"
    if run.learns:
        smoothed = smooth(ratio, window)
        smoothed[: window - 1] = np.inf  # not yet a mean of `window` episodes
        reach_opt = first_within(smoothed, np.full(ratio.shape[1], 1.05))
        reach_own = first_within(smoothed, 1.05 * final)
    name = f"{run.method} (bound, not a scheduler)" if run.method == "lower bound" else run.method
    same = all(run.parameters[name] == DEFAULTS[name] for name in ENVIRONMENT - {"scenario_seed", "scenario_per_seed"})
    published = PUBLISHED.get(run.method) if same else None
    return [
        name,
        with_interval(run.final("delay_s", last)),
        with_interval(100 * (run.final("delay_s", last) / run.final("opt_delay_s", last) - 1)),
        *(with_interval(run.final(f"{p}_s", last)) for p in ("p50", "p95", "p99")),
        reach_opt,
        reach_own,
        f"{run.columns['seconds'].mean():.3f}",
        f"{published:.2f}" if published else "-",
    ]


def draw_order(run: Run) -> tuple[bool, bool, str]:
    """Methods that learn first, tuned before paper, then by name."""
    return not run.learns, "(paper)" in run.method, run.method


def main(config: CompareConfig, given: dict[str, Any]) -> None:
    drawn = [name.strip() for name in config.draw.split(",")]
    for name in drawn:
        if name and name not in BUILT_IN:
            raise ParameterError("draw", name, f"must be one of {', '.join(sorted(BUILT_IN))}")
    runs = sorted(read_runs(Path(config.runs)), key=draw_order)
    with claimed(Path(config.out)) as out:
        compare(config, runs, drawn, out)


def compare(config: CompareConfig, runs: list[Run], drawn: list[str], out: Path) -> None:
    """Draw the runs and write their table, into a folder of this process."""
    episodes = np.arange(1, len(runs[0].columns["delay_s"]) + 1)
    last = final_span(len(episodes), config.last)

    references = [Curve("Opt-TS (greedy)", episodes, runs[0].columns["opt_delay_s"], reference=True)]
    for run in runs:
        curve = Curve(run.method, episodes, run.columns["delay_s"], reference=True)
        if run.method == "lower bound":
            references.append(dataclasses.replace(curve, label="lower bound (pooled shortest remaining work)"))
        elif not run.learns and run.method != "Opt-TS" and (run.method in drawn or run.method not in BUILT_IN):
            references.append(curve)
    panels = {}
    for preset, words in (("paper", "the published semantics"), ("tuned", "what works better")):
        learning = [run for run in runs if run.learns and run.parameters.get("preset", "tuned") == preset]
        if learning:
            curves = [Curve(run.method, episodes, run.columns["delay_s"]) for run in learning]
            panels[f"Preset {preset}: {words}"] = curves + references
    plot_delays(out / "comparison", panels or {"no learning": references}, config.window, inset=True)

    gap = {run.method: 100 * (run.columns["delay_s"] / run.columns["opt_delay_s"] - 1) for run in runs}
    above = {method for method, values in gap.items() if overall(values) > 0}  # a logarithm needs what is positive
    gaps = {
        title: [dataclasses.replace(c, values=gap[c.label]) for c in curves if c.label in above]
        for title, curves in panels.items()
    }
    gaps = {title: curves for title, curves in gaps.items() if curves}
    if gaps:
        plot_gaps(out / "gap", gaps, config.window)

    first = runs[0].parameters
    runs.sort(key=lambda run: np.nan_to_num(run.final("delay_s", last).mean(), nan=np.inf))
    rows = [table_row(run, last, config.window) for run in runs]
    write_csv(out / "table.csv", HEADER, rows)
    lines = ["| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *rows)]
    note = (
        f"Means of the last {last} of {len(episodes)} episodes with 95 % intervals over {first['seeds']} seeds; "
        f"the last columns tell when the {config.window}-episode mean first got there. "
        + ("Every seed has a scenario of its own." if first["scenario_per_seed"] else "All seeds share one scenario.")
    )
    write_text(out / "table.md", "\n".join([*lines, "", note, ""]))
    print("\n".join([*lines, "", note]))
    print(f"figure and table in {out}")


if __name__ == "__main__":
    command_line(CompareConfig, main, __doc__)

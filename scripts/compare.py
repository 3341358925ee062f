"""Compare runs on the same arrivals: the learning-performance figure and a table, from the runs' CSV files.

Takes every run folder below --runs, and merges the seeds of several runs of a method. Writes comparison (delay) and
gap (percent above Opt-TS) as PNG and PDF, table.md, table.csv and improvement.csv. Examples:
python scripts/compare.py --runs results/comparison/runs --out results/comparison
python scripts/compare.py --runs results/array --out results/widths --label "wide_*=LAD-TS (hidden 64)"
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from baselines.rules import RULES
from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import RESULTS, claimed, write_text
from common.statistics_bootstrap import (
    improvement,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
)
from common.statistics_seeds import decimals, episode_mean, final_span, mean_interval, with_interval
from common.tables import write_csv
from experiments.compared_runs import ENVIRONMENT, Run, compared_runs
from lad_ts.plots import LEAST_GAP, Curve, overall, plot_delays, plot_gaps, smooth
from lad_ts.run_parameters import FixedParameters

# Steady delays in s that are read off the published figure (arXiv 2412.18212).
PUBLISHED = {
    "Opt-TS": 7.36,
    "LAD-TS (paper)": 7.71,
    "D2SAC-TS (paper)": 8.23,
    "SAC-TS (paper)": 8.49,
    "DQN-TS (paper)": 8.93,
}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(FixedParameters)}
BUILT_IN = {name.replace("_", " ") for name in RULES} - {"lower bound"}
HEADER = (
    *("method", "delay s", "interquartile mean s", "above Opt-TS %", "p50 s", "p95 s", "p99 s"),
    *("episodes to 5 % of Opt-TS", "episodes to 5 % of own final", "s per episode and seed", "published delay s"),
)
IMPROVEMENT = ("method", "other method", "probability of lower delay", "low", "high")


@dataclasses.dataclass(kw_only=True)
class CompareConfig(Parameters):
    """Every parameter of compare.py."""

    runs: str = parameter(str(RESULTS / "comparison" / "runs"), "folder below which the run folders lie", path=True)
    out: str = parameter(str(RESULTS / "comparison"), "folder of the figure and the table", path=True)
    label: tuple[str, ...] = parameter(
        (),
        "FOLDER=LABEL: runs in that folder below --runs are shown, and merged, as LABEL; * stands for any text; "
        "may be given more than once",
    )
    draw: str = parameter(
        "capacity proportional,size interval",
        "built-in methods without learning to draw besides Opt-TS, the bound and labelled ones",
    )
    window: int = parameter(5, "episodes averaged in the curves and for reaching 5 %", unit="episodes", low=1)
    last: int = parameter(100, "final values are means over this many last episodes, at most the last half", low=1)


def first_within(ratio: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The first episode [S], counted from 1, at which ratio [E, S] is at most limit [S]; NaN where there is none."""
    reached = ratio <= limit
    return np.where(reached.any(0), reached.argmax(0) + 1.0, np.nan)


def reach_words(episodes: np.ndarray) -> str:
    """Episodes at which seeds got somewhere, in words."""
    known = ~np.isnan(episodes)
    if known.all():
        return with_interval(episodes, digits=0)
    return f"{known.sum()} of {len(known)} seeds" if known.any() else "never"


@dataclasses.dataclass
class Finals:
    """What the table says of a run, for every seed: delays in s, percent above Opt-TS, episodes until it was near."""

    delays: dict[str, np.ndarray]
    gap: np.ndarray
    to_opt: np.ndarray | None
    to_own: np.ndarray | None
    pace: float
    published: float | None

    @classmethod
    def of(cls, run: Run, last: int, window: int) -> "Finals":
        """Means of the last episodes, and when the windowed mean came within 5 %, of methods that learn."""
        ratio = run.columns["delay_s"] / run.columns["opt_delay_s"]
        delays = {name: run.final(f"{name}_s", last) for name in ("delay", "p50", "p95", "p99")}
        to_opt = to_own = None
        if run.learns:
            smoothed = smooth(ratio, window)
            smoothed[: window - 1] = np.inf  # not yet a mean of `window` episodes
            to_opt = first_within(smoothed, np.full(ratio.shape[1], 1.05))
            to_own = first_within(smoothed, 1.05 * episode_mean(ratio[-last:]))
        own = ENVIRONMENT - {"scenario_seed", "scenario_per_seed"}
        same = run.label == run.method and all(run.parameters[name] == DEFAULTS[name] for name in own)
        gap = 100 * (delays["delay"] / run.final("opt_delay_s", last) - 1)
        pace = float(run.columns["seconds"].mean())
        return cls(delays, gap, to_opt, to_own, pace, PUBLISHED.get(run.method) if same else None)

    def words(self) -> list[str]:
        """The cells under HEADER that follow the method."""
        delay, *tails = (with_interval(values, None) for values in self.delays.values())
        return [
            delay,
            middle_words(self.delays["delay"]),
            with_interval(self.gap),
            *tails,
            *("-" if reach is None else reach_words(reach) for reach in (self.to_opt, self.to_own)),
            f"{self.pace:.3f}",
            f"{self.published:.2f}" if self.published else "-",
        ]

    def numbers(self) -> dict[str, float]:
        """The columns of table.csv that follow the method; NaN where there is no number."""
        found: dict[str, float] = {}
        for name, values in (("delay s", self.delays["delay"]), ("above Opt-TS %", self.gap)):
            low, high = interquartile_interval(values[:, None])
            found |= with_half(name, values)
            found |= {f"{name} IQM": interquartile_mean(values[:, None]), f"{name} IQM low": low}
            found |= {f"{name} IQM high": high}
        for name in ("p50", "p95", "p99"):
            found |= with_half(f"{name} s", self.delays[name])
        for name, reach in (("Opt-TS", self.to_opt), ("own final", self.to_own)):
            found |= with_half(f"episodes to 5 % of {name}", np.array([np.nan]) if reach is None else reach)
            found[f"seeds within 5 % of {name}"] = np.nan if reach is None else int((~np.isnan(reach)).sum())
        found["s per episode and seed"] = self.pace
        found["published delay s"] = self.published or np.nan
        return found | {"seeds": len(self.gap)}


def with_half(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean of seeds' values and half the width of its 95 % interval, as two columns."""
    mean, half = mean_interval(values)
    return {name: float(mean), f"{name} half width": float(half)}


def middle_words(values: np.ndarray) -> str:
    """Interquartile mean of seeds' delays in s and its bootstrap interval, in words; a dash where there is none."""
    if np.isnan(values).any():
        return "-"
    mean, ends = interquartile_mean(values[:, None]), interquartile_interval(values[:, None])
    shown = [f"{value:.{decimals(mean)}f}" for value in (mean, *ends)]
    return shown[0] if np.isnan(ends).any() else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def shown_name(run: Run) -> str:
    """The name of a run in the tables."""
    return f"{run.label} (bound, not a scheduler)" if run.method == "lower bound" else run.label


def cell(value: float) -> float | str:
    """A number of a CSV file; nothing where there is none."""
    return "" if np.isnan(value) else value


def markdown_table(rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown; the first row is its header."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def improvements(runs: list[Run], last: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Probability that one method has lower delay than another, and the ends of its interval, by both labels.

    NaN where a seed has no delay.
    """
    found = {}
    for k, one in enumerate(runs):
        for other in runs[k + 1 :]:
            ours, others = (run.final("delay_s", last)[:, None] for run in (one, other))
            if np.isnan(ours).any() or np.isnan(others).any():
                share = low = high = np.nan
            else:
                share, (low, high) = improvement(ours, others), improvement_interval(ours, others)
            found[one.label, other.label] = share, low, high
            found[other.label, one.label] = 1 - share, 1 - high, 1 - low
    return found


def draw_order(run: Run) -> tuple[bool, bool, str]:
    """Methods that learn first, tuned before paper, then by name."""
    return not run.learns, "(paper)" in run.method, run.label


def main(config: CompareConfig, given: dict[str, Any]) -> None:
    drawn = [name.strip() for name in config.draw.split(",")]
    for name in drawn:
        if name and name not in BUILT_IN:
            raise ParameterError("draw", name, f"must be one of {', '.join(sorted(BUILT_IN))}")
    runs = sorted(compared_runs(Path(config.runs), config.label), key=draw_order)
    with claimed(Path(config.out)) as out:
        draw(config, runs, drawn, out)
        write_tables(config, runs, out)


def draw(config: CompareConfig, runs: list[Run], drawn: list[str], out: Path) -> None:
    """The figures of delays and of gaps, into a folder of this process."""
    episodes = np.arange(1, runs[0].episodes + 1)
    shown = []
    for run in runs:
        labelled = run.label != run.method or run.method not in BUILT_IN or run.method in drawn
        if not run.learns and run.method != "Opt-TS" and labelled:
            shown.append(run)
    known = {"paper": "Preset paper: the published semantics", "tuned": "Preset tuned: what works better"}
    presets = [(str(run.parameters.get("preset") or "tuned"), run) for run in runs if run.learns]
    others = sorted({preset for preset, _ in presets} - known.keys())  # own learners have presets of their own
    panels = {}
    for preset in (*known, *others):
        learning = [run for of, run in presets if of == preset]
        if learning:
            panels[known.get(preset, f"Preset {preset}")] = learning + shown

    def curve(run: Run) -> Curve:
        bound = run.label == "lower bound"
        label = "lower bound (pooled shortest remaining work)" if bound else run.label
        return Curve(label, episodes, run.columns["delay_s"], reference=not run.learns)

    opt = Curve("Opt-TS (greedy)", episodes, runs[0].columns["opt_delay_s"], reference=True)
    delays = {}
    for title, chosen in (panels or {"no learning": shown}).items():
        learning, references = ([curve(run) for run in chosen if run.learns == learns] for learns in (True, False))
        delays[title] = [*learning, opt, *references]
    plot_delays(out / "comparison", delays, config.window, inset=True)

    gaps = {}
    for title, chosen in panels.items():  # a logarithm needs what is positive
        above = [run for run in chosen if overall(run.gap) >= LEAST_GAP]
        gaps[title] = [dataclasses.replace(curve(run), values=run.gap) for run in above]
    gaps = {title: curves for title, curves in gaps.items() if curves}
    if gaps:
        plot_gaps(out / "gap", gaps, config.window)


def write_tables(config: CompareConfig, runs: list[Run], out: Path) -> None:
    """table.md, which is printed, too, table.csv and improvement.csv, the least delay first."""
    first, last = runs[0], final_span(runs[0].episodes, config.last)
    runs = sorted(runs, key=lambda run: np.nan_to_num(run.final("delay_s", last).mean(), nan=np.inf))
    finals = [Finals.of(run, last, config.window) for run in runs]
    numbers = [values.numbers() for values in finals]
    rows = [[shown_name(run), *map(cell, row.values())] for run, row in zip(runs, numbers, strict=True)]
    write_csv(out / "table.csv", ["method", *numbers[0]], rows)

    better = improvements(runs, last)
    pairs = [[*names, *map(cell, values)] for names, values in better.items()]
    write_csv(out / "improvement.csv", IMPROVEMENT, pairs)

    words = [list(HEADER), *([shown_name(run), *values.words()] for run, values in zip(runs, finals, strict=True))]
    lines = markdown_table(words)
    note = (
        f"Means of the last {last} of {first.episodes} episodes with 95 % intervals over {len(first.seeds)} seeds, "
        "those of the interquartile mean by bootstrap; "
        f"the columns of episodes tell when the {config.window}-episode mean first got there. "
        + (
            "Every seed has a scenario of its own."
            if first.parameters["scenario_per_seed"]
            else "All seeds share one scenario."
        )
    )
    text = [*lines, "", note, ""]
    if len(runs) > 1 and len(first.seeds) > 1:
        square = [["lower delay than", *(str(k + 1) for k in range(len(runs)))]]
        for k, run in enumerate(runs):
            shares = (better.get((run.label, other.label), (np.nan,))[0] for other in runs)
            square.append([f"{k + 1} {run.label}", *("-" if np.isnan(share) else f"{share:.2f}" for share in shares)])
        told = "Probability that a seed of the row's method has a lower delay than one of the column's; "
        text += [*markdown_table(square), "", told + "improvement.csv has the intervals.", ""]
    write_text(out / "table.md", "\n".join(text))
    print("\n".join([*lines, "", note]))
    print(f"figures and tables in {out}")


if __name__ == "__main__":
    command_line(CompareConfig, main, __doc__)

"""The figures of the study of Cooperative LAD-TS, as PNG and PDF. Opt-TS's line is where a ratio is 1."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from common.figures import plt, save_figure
from common.statistics_seeds import mean_interval
from experiments.study_results import StudyResults
from experiments.study_trials import LOAD, PANELS


def draw(axes: plt.Axes, study: StudyResults, experiment: str, statistic: str = "mean") -> None:
    """Ratios against an experiment's settings, with 95 % bands over seeds, and the line of Opt-TS."""
    settings = study.settings(experiment)
    methods = study.methods(experiment)
    references = [method for method in methods if not method.startswith("Coop")]
    for k, method in enumerate(methods):
        values = np.stack([study.values(experiment, value, method, statistic) for value in settings])
        mean, half = mean_interval(values, axis=1)
        if method in references:
            colour = plt.get_cmap("tab20b").colors[2 * references.index(method) % 20]
            style = {"ls": "-.", "lw": 1, "marker": "^", "ms": 3}
        else:
            colour, style = plt.get_cmap("tab10").colors[k % 10], {"lw": 1.8, "marker": "o", "ms": 4}
        axes.plot(settings, mean, color=colour, label=method, **style)
        axes.fill_between(settings, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    axes.axhline(1, color="black", ls="--", lw=1, label="Opt-TS")
    axes.grid(alpha=0.3)


def draw_loads(path: Path, study: StudyResults, seeds: int) -> None:
    """Ratios against the offered load, one panel for each of three statistics."""
    figure, row = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    for axes, statistic in zip(row, ("mean", "p95", "slowdown"), strict=True):
        draw(axes, study, "load", statistic)
        axes.set(xlabel="Offered load", ylabel=f"{'mean delay' if statistic == 'mean' else statistic} / Opt-TS's")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    title = f"unseen scenarios; bands: 95 % intervals over {seeds} training seeds"
    row[1].set_title(title, fontsize=8)
    row[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    save_figure(figure, path)


def draw_shapes(path: Path, study: StudyResults, seeds: int) -> None:
    """Ratios against the number of servers, the spread of capacities and the horizon."""
    figure, row = plt.subplots(1, len(PANELS), figsize=(15, 4.5), sharey=True)
    for axes, (experiment, label) in zip(row, PANELS.items(), strict=True):
        draw(axes, study, experiment)
        axes.set(xlabel=f"{label} (load {LOAD:g})", xscale="log", ylim=(0, None))
        axes.set_xticks(study.settings(experiment), [f"{x:g}" for x in study.settings(experiment)])
        axes.minorticks_off()
    row[0].set_ylabel("Mean delay / Opt-TS's")
    row[0].legend(fontsize=7, title=f"unseen scenarios; band: 95 % interval, {seeds} training seeds", title_fontsize=6)
    save_figure(figure, path)


def draw_robustness(path: Path, study: StudyResults, seeds: int) -> None:
    """Ratios in every setting of experiment robustness, a dot with its 95 % interval for each method."""
    settings, methods = study.settings("robustness"), study.methods("robustness")
    figure, row = plt.subplots(1, 2, figsize=(13, 6.5), sharey=True)
    place = np.arange(len(settings))
    for axes, statistic in zip(row, ("mean", "p95"), strict=True):
        for k, method in enumerate(methods):
            values = np.stack([study.values("robustness", value, method, statistic) for value in settings])
            mean, half = mean_interval(values, axis=1)
            offset = 0.7 * ((k + 0.5) / len(methods) - 0.5)
            axes.errorbar(mean, place + offset, xerr=half, fmt="o", ms=4, lw=1, color=f"C{k}", label=method)
        axes.axvline(1, color="black", ls="--", lw=1, label="Opt-TS, which always knows")
        for between in place[1:] - 0.5:
            axes.axhline(between, color="0.85", lw=0.8)
        axes.set(xlabel=f"{'Mean delay' if statistic == 'mean' else statistic} / Opt-TS's", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3, axis="x", which="both")
    row[0].set_yticks(place, [textwrap.fill(str(value), 28) for value in settings])
    row[0].invert_yaxis()
    title = f"defaults but for what is named; 95 % intervals over {seeds} training seeds"
    row[1].legend(fontsize=7, title=title, title_fontsize=6)
    save_figure(figure, path)

"""The study's tables and figures. Start reading at `write_report`."""

from pathlib import Path
from typing import Any

import numpy as np

from common.figures import plt, save_figure
from common.run_folder import write_text
from common.statistics_seeds import mean_interval
from common.tables import write_csv
from trace_ts.study import ABLATED, BLOCKS, BY_GRADIENTS, CELLS, MAIN, OTHER, STALE, UNTRAINED, means

SHOWN = ("opt_ts", "opt_ts_loading", "jsq", "affinity", "priced_fitted", "score")
ALL = "score, one for all"
QUANTITIES = ("mean_s", "p50_s", "p95_s", "p99_s", "slowdown", "slo_2", "slo_5", "switches", "utilisation", "fairness")
Rows = list[dict[str, Any]]


def cell_words(rows: Rows, cell: str, policy: str, quantity: str = "mean_s") -> str:
    """Mean and interval over draws of the mean over seeds; then the spread of the seeds, where there are several."""
    values = means(rows, cell, policy, quantity)
    if not values.size:
        return "-"
    digits = 2 if values.mean() < 20 else 1
    mean, half = mean_interval(values.mean(0))
    words = f"{mean:.{digits}f} ± {half:.{digits}f}"
    seeds = values.mean(1)
    return words + (f" [{seeds.min():.{digits}f}, {seeds.max():.{digits}f}]" if len(seeds) > 1 else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def policies(rows: Rows, cell: str) -> list[str]:
    """The policies that were measured in a cell, in order."""
    return list(dict.fromkeys(row["policy"] for row in rows if row["cell"] == cell))


def write_report(out: Path, rows: Rows, blocks: Rows) -> None:
    """Tables: cells, main delays by cell; main, every quantity of the main cell; blocks, its parts; ablations."""
    shown = [*SHOWN, ALL]
    cells = [[cell, *(cell_words(rows, cell, name) for name in shown)] for cell in (*CELLS, *UNTRAINED, OTHER)]
    write_text(out / "cells.md", table(["cell", *shown], cells))
    main = [[name, *(cell_words(rows, MAIN, name, q) for q in QUANTITIES)] for name in policies(rows, MAIN)]
    write_text(out / "main.md", table(["policy", *QUANTITIES], main))
    both = ("priced_fitted", "score", *ABLATED, *BY_GRADIENTS)
    ablations = [
        [name, *(cell_words(rows, cell, name) for cell in (MAIN, STALE)), cell_words(rows, MAIN, name, "us_a_task")]
        for name in both
    ]
    names, parts = ("priced_fitted", "score"), []
    for number in range(BLOCKS):
        part = [row for row in blocks if row["block"] == number]
        rule, network = (means(part, MAIN, name, "mean_s") for name in names)
        if rule.size and network.size:
            ratio = network.mean() / rule.mean()
            parts.append([str(number + 1), *(cell_words(part, MAIN, name) for name in names), f"{ratio:.2f}"])
    write_text(out / "blocks.md", table(["part", *names, "ratio"], parts))
    write_text(out / "ablations.md", table(["policy", MAIN, STALE, "us a task"], ablations))


def write_delays(path: Path, rows: Rows) -> None:
    """What the figures show: a row for each cell, policy and training seed, with the interval over draws."""
    table = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        for policy in policies(rows, cell):
            for seed, values in enumerate(means(rows, cell, policy, "mean_s")):
                mean, half = mean_interval(values)
                table.append([cell, policy, seed, float(mean), float(half)])
    write_csv(path, ["cell", "policy", "seed", "mean_s", "half_width_s"], table)


def draw_cells(path: Path, rows: Rows) -> None:
    """Mean delays against load, loading time and age of news, with intervals over draws."""
    panels = (
        ("load (12 s to load)", [(0.6, "L 12, load 0.6"), (0.8, MAIN), (0.95, "L 12, load 0.95")]),
        ("time to load (s), load 0.8", [(0, "L 0, load 0.8"), (5, "L 5, load 0.8"), (12, MAIN)]),
        ("age of news (s), load 0.8", [(0, MAIN), (10, STALE), (60, "L 12, load 0.8, age 60")]),
    )
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    for axis, (words, places) in zip(axes, panels, strict=True):
        for number, name in enumerate([*SHOWN, ALL]):
            found = [(at, means(rows, cell, name, "mean_s")) for at, cell in places]
            found = [(at, values.mean(0)) for at, values in found if values.size]
            if not found:
                continue
            mean, half = zip(*(mean_interval(values) for _, values in found), strict=True)
            axis.errorbar([at for at, _ in found], mean, half, marker="o", capsize=3, color=f"C{number}", label=name)
        axis.set(xlabel=words, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean delay (s), 95 % over draws")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize="small", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)


def draw_ablations(path: Path, rows: Rows) -> None:
    """Mean delays of learned policies; each point is a training seed's mean over draws."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    names = ("priced_fitted", "score", *ABLATED, *BY_GRADIENTS)
    for axis, cell in zip(axes, (MAIN, STALE), strict=True):
        for place, name in enumerate(names):
            values = means(rows, cell, name, "mean_s")
            if values.size:
                axis.scatter(values.mean(1), np.full(len(values), place), color=f"C{place % 10}", alpha=0.7)
                mean, half = mean_interval(values.mean(0))
                axis.errorbar(mean, place, xerr=half, color=f"C{place % 10}", capsize=4, marker="|")
        axis.set(xlabel="mean delay (s), 95 % over draws", title=cell, yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def draw_training(path: Path, rows: Rows) -> None:
    """How the mean delay on the first half changes by training: the mean over seeds, and the range of the seeds."""
    names = ("score", "lad_ts", *BY_GRADIENTS)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, cell in zip(axes, (MAIN, STALE), strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if row["cell"] == cell and row["policy"] == name]
            generations = sorted({row["generation"] for row in own})
            values = [[row["mean_s"] for row in own if row["generation"] == at] for at in generations]
            if own:
                axis.plot(generations, [np.mean(of) for of in values], color=f"C{number}", label=name)
                low, high = ([end(of) for of in values] for end in (min, max))
                axis.fill_between(generations, low, high, color=f"C{number}", alpha=0.2)
        axis.set(xlabel="generation", title=cell, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean delay on the first half (s)")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        axes[1].legend(handles, labels, fontsize="small")
    save_figure(figure, path)

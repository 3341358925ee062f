"""The study's tables and figures. Start reading at `write_report`."""

from pathlib import Path
from typing import Any

import numpy as np

from common.figures import plt, save_figure
from common.run_folder import write_text
from common.statistics_seeds import mean_interval
from common.tables import write_csv
from trace_ts.study import ABLATED, BLOCKS, BOUND, BY_GRADIENTS, CELLS, MAIN, OTHER, STALE, UNTRAINED, means

SHOWN = ("opt_ts", "opt_ts_loading", "jsq", "affinity", "priced_fitted", "score")
ALL = "score, one for all"
LEARNING = ("score", "lad_ts", *BY_GRADIENTS)  # whose trainings are shown
WITHOUT_LOADING = ("random", "capacity_proportional", "round_robin", "two_choices", "jsq", "opt_ts")
WITHOUT_LOADING += ("sita_2_fitted", "sita_3_fitted", "pull", BOUND)
LOADS = (0.6, 0.8, 0.95, 1.1)  # that these are shown at
COMPARED = ("priced_fitted", "score", *ABLATED, *BY_GRADIENTS)
QUANTITIES = {  # of the main cell's table, which has the mean first, and how its head calls them
    "p50_s": "p50 s",
    "p95_s": "p95 s",
    "p99_s": "p99 s",
    "slowdown": "slowdown",
    "slo_2": "SLO-2",
    "slo_5": "SLO-5",
    "switches": "switches",
    "utilisation": "utilisation",
    "fairness": "fairness",
}
Rows = list[dict[str, Any]]


def value_words(values: np.ndarray, interval: bool = True) -> str:
    """The mean of values [seeds, draws], the interval over draws, and the least and greatest seed if there are several.

    Without `interval` the mean alone.
    """
    if not values.size:
        return "-"
    digits = 2 if values.mean() < 20 else 1
    mean, half = mean_interval(values.mean(0))
    if not interval:
        return f"{mean:.{digits}f}"
    words, seeds = f"{mean:.{digits}f} ± {half:.{digits}f}", values.mean(1)
    return words + (f" [{seeds.min():.{digits}f}, {seeds.max():.{digits}f}]" if len(seeds) > 1 else "")


def cell_words(rows: Rows, cell: str, policy: str, quantity: str = "mean_s", interval: bool = True) -> str:
    """`value_words` of a quantity of a policy in a cell."""
    return value_words(means(rows, cell, policy, quantity), interval)


def named(policy: str) -> str:
    """A policy's name, as code."""
    name, *more = policy.split(", ")
    if policy == BOUND:
        return policy
    return ", ".join([f"`{name}`", *more])


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def policies(rows: Rows, cell: str) -> list[str]:
    """The policies that were measured in a cell, in order."""
    return list(dict.fromkeys(row["policy"] for row in rows if row["cell"] == cell))


def write_report(out: Path, rows: Rows, blocks: Rows) -> None:
    """The page's tables: cells.md, untrained.md, rules.md, main.md, ablations.md, blocks.md.

    They show mean delays by cell, then where no specialists were trained; rules without loading; every quantity of the
    main cell; networks beside each other; the parts of the main cell.
    """
    shown = [*SHOWN, ALL]
    for name, cells in (("cells", tuple(CELLS)), ("untrained", (*UNTRAINED, OTHER))):
        delays = [[cell, *(cell_words(rows, cell, policy) for policy in shown)] for cell in cells]
        write_text(out / f"{name}.md", table(["cell", *map(named, shown)], delays))
    rules = [[named(one), *(cell_words(rows, f"L 0, load {load:g}", one) for load in LOADS)] for one in WITHOUT_LOADING]
    write_text(out / "rules.md", table(["policy", *(f"load {load:g}" for load in LOADS)], rules))
    main = [
        [named(one), cell_words(rows, MAIN, one), *(cell_words(rows, MAIN, one, q, False) for q in QUANTITIES)]
        for one in policies(rows, MAIN)
    ]
    write_text(out / "main.md", table(["policy", "mean s", *QUANTITIES.values()], main))
    ablations = [
        [named(one), *(cell_words(rows, cell, one) for cell in (MAIN, STALE)), time]
        for one in COMPARED
        for time in [cell_words(rows, MAIN, one, "us_a_task", False)]
    ]
    write_text(out / "ablations.md", table(["policy", MAIN, STALE, "us a task"], ablations))
    names, parts = ("priced_fitted", "score"), []
    for number in range(BLOCKS):
        part = [row for row in blocks if row["block"] == number]
        rule, network = (means(part, MAIN, name, "mean_s") for name in names)
        if rule.size and network.size:
            ratio = network.mean() / rule.mean()
            parts.append([str(number + 1), *(cell_words(part, MAIN, name) for name in names), f"{ratio:.2f}"])
    write_text(out / "blocks.md", table(["part", *map(named, names), "ratio"], parts))


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
    for axis, cell in zip(axes, (MAIN, STALE), strict=True):
        for place, name in enumerate(COMPARED):
            values = means(rows, cell, name, "mean_s")
            if values.size:
                axis.scatter(values.mean(1), np.full(len(values), place), color=f"C{place % 10}", alpha=0.7)
                mean, half = mean_interval(values.mean(0))
                axis.errorbar(mean, place, xerr=half, color=f"C{place % 10}", capsize=4, marker="|")
        axis.set(xlabel="mean delay (s), 95 % over draws", title=cell, yticks=range(len(COMPARED)))
        axis.set_yticklabels(COMPARED)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    save_figure(figure, path)


def write_training(path: Path, rows: Rows) -> None:
    """A table of delays on the first half: at the start, at the best generation and at the last, means over seeds."""
    table_rows = []
    for name in LEARNING:
        cells = []
        for cell in (MAIN, STALE):
            own = [row for row in rows if row["cell"] == cell and row["policy"] == name]
            seeds = [[row["mean_s"] for row in own if row["seed"] == seed] for seed in sorted({r["seed"] for r in own})]
            ends = [[values[0], min(values), values[-1]] for values in seeds if values]
            cells += [f"{value:.1f}" for value in np.mean(ends, 0)] if ends else ["-"] * 3
        table_rows.append([named(name), *cells])
    head = [f"{cell}: {when}" for cell in (MAIN, STALE) for when in ("start", "best", "end")]
    write_text(path, table(["policy", *head], table_rows))


def draw_training(path: Path, rows: Rows) -> None:
    """How the mean delay on the first half changes by training: the mean over seeds, and the range of the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, cell in zip(axes, (MAIN, STALE), strict=True):
        for number, name in enumerate(LEARNING):
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

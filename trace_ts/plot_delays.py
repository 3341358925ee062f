"""Tables and the figure of delays of several policies. Start reading at `plot_delays`."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from common.figures import plt, save_figure
from common.statistics_seeds import mean_interval
from common.tables import write_csv
from trace_ts.simulation import Outcome

Found = dict[str, list[dict[str, float]]]


def write_tables(folder: Path, found: Found) -> None:
    """draws.csv: every figure of every policy and draw; table.csv: their means and 95 % intervals over draws."""
    names = list(next(iter(found.values()))[0])
    rows = [(policy, draw, *row.values()) for policy, of in found.items() for draw, row in enumerate(of)]
    write_csv(folder / "draws.csv", ("policy", "draw", *names), rows)
    table = []
    for policy, of in found.items():
        for name in names:
            mean, half = mean_interval(np.array([row[name] for row in of]))
            table.append((policy, name, float(mean), float(half)))
    write_csv(folder / "table.csv", ("policy", "quantity", "mean", "half_width"), table)


def plot_delays(path: Path, outcomes: dict[str, list[Outcome]], found: Found) -> None:
    """Left the mean delay with its interval over draws, right the share of tasks that take longer than a delay."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.35 * len(found) + 3))
    for place, (name, rows) in enumerate(found.items()):
        mean, half = mean_interval(np.array([row["mean_s"] for row in rows]))
        left.errorbar(mean, place, xerr=None if np.isnan(half) else half, color=f"C{place % 10}", fmt="o", capsize=3)
        delay = np.sort(np.concatenate([one.delay for one in outcomes[name]]))
        shown = np.unique(np.linspace(0, delay.size - 1, 2000).astype(int))
        right.plot(delay[shown], 1 - shown / delay.size, color=f"C{place % 10}", label=name)
    left.set(xscale="log", xlabel="mean delay (s), 95 % interval over draws", yticks=range(len(found)))
    left.set_yticklabels(found)
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.invert_yaxis()
    right.set(xscale="log", yscale="log", xlabel="delay (s)", ylabel="share of the tasks that take longer")
    right.set_ylim(1e-4, 1)
    right.legend(fontsize="small")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)

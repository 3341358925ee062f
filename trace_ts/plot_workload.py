"""Workloads beside each other: a figure with a panel for every kind of measure, and a table of all measures.

Start reading at `plot_workload`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common.figures import Axes, Figure, colormaps, save_figure
from common.run_folder import made
from common.tables import write_csv
from trace_ts.describe import RANKS, WINDOWS, burst_lengths, by_user, describe, work_of_hours
from trace_ts.workload import Requests

Panel = Callable[[Axes, Mapping[str, Requests], Mapping[str, dict[str, float]]], None]
ACROSS = 4  # panels beside each other


def plot_workload(named: Mapping[str, Requests], folder: Path) -> dict[str, dict[str, float]]:
    """workload.png and .pdf, with a colour for each name, and workload.csv, with a row for each measure.

    Returns the measures by name. Raises ParameterError of --out for a folder that cannot be written, or OSError.
    """
    made(folder)
    measures = {name: describe(requests) for name, requests in named.items()}
    down = -(-len(PANELS) // ACROSS)
    figure = Figure(figsize=(5 * ACROSS, 3.9 * down))
    figure.subplots_adjust(hspace=0.35, wspace=0.25, top=0.92)
    for axes, (title, panel) in zip(figure.subplots(down, ACROSS).flat, PANELS.items(), strict=True):
        panel(axes, named, measures)
        axes.set_title(title)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.98), ncols=len(labels))
    save_figure(figure, folder / "workload")
    rows = [[key, *(of[key] for of in measures.values())] for key in next(iter(measures.values()))]
    write_csv(folder / "workload.csv", ["measure", *named], rows)
    return measures


def colour(number: int) -> tuple[float, ...]:
    """The colour of a workload."""
    return colormaps["tab10"](number % 10)


def line(axes: Axes, number: int, name: str, x: np.ndarray, y: np.ndarray, marker: str = "") -> None:
    """A line of a workload, those of later ones dashed, so that both are seen where they agree."""
    axes.plot(x, y, label=name, color=colour(number), ls="--" if number % 2 else "-", lw=1.5, marker=marker, ms=4)


def exceeding(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values in order, and the share of them that is larger or equal."""
    return np.sort(values), np.arange(values.size, 0, -1) / values.size


def bars(axes: Axes, measures: Mapping[str, dict[str, float]], keys: Mapping[str, str]) -> None:
    """The measures `keys` of each workload, under short names, with their values above."""
    width = 0.8 / len(measures)
    for number, (name, of) in enumerate(measures.items()):
        at = np.arange(len(keys)) + (number - (len(measures) - 1) / 2) * width
        drawn = axes.bar(at, [of[key] for key in keys], width, label=name, color=colour(number))
        axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    axes.set_xticks(np.arange(len(keys)), list(keys.values()))
    axes.margins(y=0.12)


# --- panels ---


def draw_interarrivals(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The share of gaps between requests that are longer than the abscissa."""
    for number, (name, requests) in enumerate(named.items()):
        line(axes, number, name, *exceeding(np.diff(requests.time)))
    axes.set(
        xscale="log", yscale="log", xlabel="time between requests in s", ylabel="share that is longer", xlim=(0.1, None)
    )


def draw_dispersion(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """Variance over mean of counts, by window."""
    for number, (name, of) in enumerate(measures.items()):
        values = np.array([of[f"dispersion_{window}_s"] for window in WINDOWS])
        line(axes, number, name, np.array(WINDOWS), values, "o")
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.annotate("Poisson", (WINDOWS[-1], 1.05), ha="right", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="window in s", ylabel="variance / mean of requests")


def draw_hours(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The work of every hour over time."""
    for number, (name, requests) in enumerate(named.items()):
        hours = work_of_hours(requests)
        axes.step(np.arange(hours.size) / 24, hours / 1000, label=name, color=colour(number), lw=0.8, alpha=0.8)
    axes.set(xlabel="time in days", ylabel="work of an hour in 1000 image-steps")


def draw_sorted_hours(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The share of hours that have more than a multiple of the mean work."""
    for number, (name, requests) in enumerate(named.items()):
        hours = work_of_hours(requests)
        line(axes, number, name, *exceeding(hours / hours.mean()))
    axes.set(xlabel="work of an hour / mean", ylabel="share of hours with more", yscale="log")


def draw_gaps(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The share of gaps between a user's requests that are longer."""
    for number, (name, requests) in enumerate(named.items()):
        time, _, later = by_user(requests)
        line(axes, number, name, *exceeding(np.diff(time, prepend=time[0])[later]))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="time between a user's requests in s",
        ylabel="share that is longer",
        xlim=(1, None),
    )


def draw_bursts(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The share of users' bursts that have at least so many requests."""
    for number, (name, requests) in enumerate(named.items()):
        line(axes, number, name, *exceeding(burst_lengths(requests)))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="requests of a user's burst (gaps up to 300 s)",
        ylabel="share with as many or more",
    )


def draw_users(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """Requests of users, those of many first."""
    for number, (name, requests) in enumerate(named.items()):
        of = np.sort(np.bincount(requests.user))[::-1]
        line(axes, number, name, np.arange(1, of.size + 1), of)
    axes.set(xscale="log", yscale="log", xlabel="user by rank", ylabel="requests")


def draw_work(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The share of requests of at most so much work."""
    for number, (name, requests) in enumerate(named.items()):
        line(axes, number, name, np.sort(requests.work), np.arange(1, len(requests) + 1) / len(requests))
    axes.set(xscale="log", xlabel="work in image-steps", ylabel="share with at most as much", xlim=(10, None))


def draw_models(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The models' shares by rank."""
    for number, (name, requests) in enumerate(named.items()):
        share = np.sort(np.bincount(requests.model))[::-1] / len(requests)
        line(axes, number, name, np.arange(1, share.size + 1), share, ".")
    axes.axvline(RANKS, color="black", lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="model by rank", ylabel="share of requests")


def draw_same(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """How often the model is the one before; known users of the second half, and how far models' shares move to it."""
    keys = {
        "same_as_users_last": "same as\nuser's last",
        "same_as_last": "same as\nlast of all",
        "known_users_share": "known\nusers",
        "model_shift_total_variation": "models'\nshift",
    }
    bars(axes, measures, keys)
    axes.set_ylabel("share")


def draw_entropy(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """The entropy of models, and that of models of a known user."""
    bars(axes, measures, {"model_entropy_bits": "H(model)", "model_entropy_given_user_bits": "H(model | user)"})
    axes.set_ylabel("bits")


def draw_switches(axes: Axes, named: Mapping[str, Requests], measures: Mapping[str, dict[str, float]]) -> None:
    """Switches, and how uneven base stations are."""
    keys = {
        "switches_1_resident": "switches,\n1 resident",
        "switches_3_resident": "switches,\n3 resident",
        "busiest_bs_over_mean": "busiest\nBS / mean",
        "busiest_bs_over_mean_most": "the same,\nat most",
    }
    bars(axes, measures, keys)
    axes.set_ylabel("share of requests; ratio")


PANELS: dict[str, Panel] = {
    "Interarrival times": draw_interarrivals,
    "Dispersion of counts": draw_dispersion,
    "Work of hours over time": draw_hours,
    "Work of hours": draw_sorted_hours,
    "Gaps of a user": draw_gaps,
    "Bursts": draw_bursts,
    "Requests of users": draw_users,
    "Work": draw_work,
    "Models": draw_models,
    "Entropy of models": draw_entropy,
    "Users and models": draw_same,
    "Switches and base stations": draw_switches,
}

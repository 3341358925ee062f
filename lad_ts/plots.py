"""Plots of delay against episodes, for one run or many. Everything drawn comes from the run folders' CSV files."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from common.figures import Axes, Figure, colormaps, save_figure
from common.statistics_seeds import mean_interval


@dataclasses.dataclass
class Curve:
    """A line of a figure: values [E, S] at episodes [E]. A reference is drawn in black, dashed, without its band."""

    label: str
    episodes: np.ndarray
    values: np.ndarray
    reference: bool = False


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` episodes (fewer at the start) of values [E, S].

    Episodes without a task (NaN) do not count; where there are no others, the mean is NaN.
    """
    counted = ~np.isnan(values)

    def summed(x: np.ndarray) -> np.ndarray:
        total = np.cumsum(np.concatenate([np.zeros_like(x[:1]), x]), 0)
        return total[end] - total[start]

    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    count = summed(counted.astype(float))
    return np.where(count > 0, summed(np.where(counted, values, 0.0)) / np.maximum(count, 1), np.nan)


def overall(values: np.ndarray) -> float:
    """The mean of all values that are no NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


REFERENCE_DASHES = ("--", ":", "-.", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))
DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)))
MARKERS = ("", "o", "s", "^", "D", "v")
MARKS = 12  # markers along a curve
LEAST_GAP = 0.001  # percent; less is drawn by no curve, and means as good as Opt-TS


def line_style(number: int, reference: bool = False) -> dict[str, Any]:
    """How the curve of a number is drawn: by colour, then dash, then marker, so that none of the first 30 are alike."""
    dashes = REFERENCE_DASHES if reference else DASHES
    colours = ["black"] if reference else [colormaps["tab10"](k) for k in range(10)]
    by_colour, colour = divmod(number, len(colours))
    by_dash, dash = divmod(by_colour, len(dashes))
    marker = MARKERS[by_dash % len(MARKERS)]
    return {"color": colours[colour], "ls": dashes[dash], "lw": 1.2 if reference else 1.5, "marker": marker, "ms": 4}


def legend_text(label: str) -> str:
    """A label as matplotlib shows it as it is, which reads dollars as formulas and hides what begins with _."""
    text = textwrap.fill(label, 50).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def draw_curves(axes: Axes, curves: list[Curve], window: int) -> None:
    """Mean over seeds with its 95 % band for every curve; references in black without band."""
    drawn = {True: 0, False: 0}
    for curve in curves:
        mean, half = mean_interval(smooth(curve.values, window), axis=1)
        style = line_style(drawn[curve.reference], curve.reference)
        drawn[curve.reference] += 1
        marks = max(1, len(curve.episodes) // MARKS)
        axes.plot(curve.episodes, mean, label=legend_text(curve.label), markevery=marks, **style)
        if not curve.reference and not np.isnan(half).any():
            axes.fill_between(curve.episodes, mean - half, mean + half, color=style["color"], alpha=0.2, lw=0)


def draw_inset(axes: Axes, curves: list[Curve], window: int) -> None:
    """The last fifth of the episodes again, larger and smoother, around the curves that end near the median."""
    window = max(window, len(curves[0].episodes) // 25)
    last = curves[0].episodes[-1]
    start = 0.8 * last
    finals = np.array([overall(curve.values[curve.episodes >= start]) for curve in curves])
    finals = finals[np.isfinite(finals)] if np.isfinite(finals).any() else np.ones(1)
    middle = np.sort(finals)[(len(finals) - 1) // 2]  # of two in the middle the lower, so that it is a curve's
    near = finals[np.abs(finals - middle) <= 0.25 * middle]
    margin = 0.15 * (near.max() - near.min()) + 0.025 * middle
    zoom = axes.inset_axes((0.4, 0.52, 0.57, 0.45))
    draw_curves(zoom, curves, window)
    zoom.set(xlim=(start, last), ylim=(near.min() - margin, near.max() + margin))
    zoom.tick_params(labelsize=7)
    zoom.set_title(f"mean of {window} episodes", fontsize=7, pad=2)
    zoom.grid(alpha=0.3)


def plot_delays(path: Path, panels: dict[str, list[Curve]], window: int = 5, inset: bool = False) -> None:
    """Delay in s against episodes, one panel for each title and its curves, as PNG and PDF.

    The y axis starts at 0 and leaves out what lies above four times the median curve's end.
    """
    every = [curve for curves in panels.values() for curve in curves]
    means = [smooth(curve.values.mean(1, keepdims=True), window) for curve in every]
    known = [mean[np.isfinite(mean)] for mean in means]  # an episode without any task has no delay
    known = [mean for mean in known if mean.size] or [np.ones(1)]
    middle = np.median([mean[-1] for mean in known])
    top = np.clip(1.05 * max(mean.max() for mean in known), 2.4 * middle if inset else 0, 4 * middle)
    figure, row = draw_panels(panels, "Mean service delay (s)", window)
    for axes, curves in zip(row, panels.values(), strict=True):
        axes.set_ylim(0, top)
        if inset and curves[0].episodes[-1] >= 10:
            draw_inset(axes, curves, window)
    save_figure(figure, path)


def plot_gaps(path: Path, panels: dict[str, list[Curve]], window: int = 5) -> None:
    """Percent above Opt-TS against episodes, on a logarithmic axis, one panel for each title and its curves.

    The axis has 0.3 to 300 %, and more where curves go further; it ends at LEAST_GAP.
    """
    every = [smooth(curve.values, window).mean(1) for curves in panels.values() for curve in curves]
    shown = np.concatenate([mean[mean >= LEAST_GAP] for mean in every])
    low, high = (shown.min(), shown.max()) if shown.size else (0.3, 300)
    figure, row = draw_panels(panels, "Mean delay above Opt-TS (%)", window)
    for axes in row:
        axes.set(yscale="log", ylim=(min(0.3, low / 1.2), max(300, high * 1.2)))
        axes.grid(alpha=0.15, which="minor")
        axes.yaxis.set_major_formatter("{x:g}")
    save_figure(figure, path)


def draw_panels(panels: dict[str, list[Curve]], ylabel: str, window: int) -> tuple[Figure, np.ndarray]:
    """A figure with one panel for each title and its curves, with labels and legends."""
    figure = Figure(figsize=(7.5 * len(panels), 5))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    every = [curve for curves in panels.values() for curve in curves]
    seeds, last = max(curve.values.shape[1] for curve in every), max(curve.episodes[-1] for curve in every)
    band = f"band: 95 % interval over {seeds} seeds" if seeds > 1 else "one seed"
    for axes, (title, curves) in zip(row[0], panels.items(), strict=True):
        draw_curves(axes, curves, window)
        axes.set(xlabel="Training episode", title=title, xlim=(min(1, last - 1), last))
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize=8,
            handlelength=2 if len(curves) <= 10 else 4,  # dashes are told apart by their length
            title=f"mean of {window} episodes; {band}",
            title_fontsize=7,
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
        )
    row[0][0].set_ylabel(ylabel)
    return figure, row[0]

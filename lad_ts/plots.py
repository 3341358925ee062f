"""Plots of delay against episodes, for one run or many. Everything drawn comes from the run folders' CSV files."""

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lad_ts.run_folder import replace_file
from lad_ts.statistics_seeds import mean_interval


@dataclasses.dataclass
class Curve:
    """A line of the figure: delay [E, S] in s at episodes [E]. A reference is drawn dashed, without its band."""

    label: str
    episodes: np.ndarray
    delay: np.ndarray
    reference: bool = False


def smooth(delay: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` episodes (fewer at the start) of delay [E, S]."""
    total = np.cumsum(np.concatenate([np.zeros_like(delay[:1]), delay]), 0)
    end = np.arange(1, len(delay) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)[:, None]


def save_figure(figure: plt.Figure, path: Path) -> None:
    """The figure as PNG and PDF beside each other; `path` is without suffix."""
    for suffix in (".png", ".pdf"):
        # Without dates and versions, the same numbers give the same file.
        metadata = {"Software": None} if suffix == ".png" else {"CreationDate": None}
        replace_file(
            path.with_name(path.name + suffix),
            lambda temporary, m=metadata: figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata=m),
        )
    plt.close(figure)


def draw_curves(axes: plt.Axes, curves: list[Curve], window: int) -> None:
    """Mean over seeds with its 95 % band for every curve."""
    palette = plt.get_cmap("tab10").colors
    learners = [curve for curve in curves if not curve.reference]
    for curve in curves:
        mean, half = mean_interval(smooth(curve.delay, window), axis=1)
        if curve.reference:
            grey = 0.55 * [c for c in curves if c.reference].index(curve) / max(1, len(curves) - len(learners))
            axes.plot(curve.episodes, mean, "--", lw=1.3, color=str(grey), label=curve.label)
            continue
        colour = palette[learners.index(curve) % len(palette)]
        axes.plot(curve.episodes, mean, lw=1.6, color=colour, label=curve.label)
        if not np.isnan(half).any():
            axes.fill_between(curve.episodes, mean - half, mean + half, color=colour, alpha=0.2, lw=0)


def plot_delays(path: Path, curves: list[Curve], title: str, window: int = 5, inset: bool = False) -> None:
    """Delay against episodes. With `inset`, the last fifth of the episodes is drawn again, larger."""
    figure, axes = plt.subplots(figsize=(8, 5))
    draw_curves(axes, curves, window)
    axes.set(xlabel="Training episode", ylabel="Mean service delay (s)", title=title)
    axes.grid(alpha=0.3)
    last = max(curve.episodes[-1] for curve in curves)
    axes.set_xlim(0, last)
    if inset and last >= 10:
        axes.set_ylim(bottom=0)
        zoom = axes.inset_axes([0.42, 0.5, 0.55, 0.45])
        draw_curves(zoom, curves, window)
        start = last * 0.8
        finals = np.array([c.delay[c.episodes >= start].mean() for c in curves if (c.episodes >= start).any()])
        near = finals[finals <= 1.5 * np.median(finals)]
        margin = 0.1 * (near.max() - near.min()) + 0.1
        zoom.set(xlim=(start, last), ylim=(near.min() - margin, near.max() + margin))
        zoom.tick_params(labelsize=7)
        zoom.grid(alpha=0.3)
    seeds = max(curve.delay.shape[1] for curve in curves)
    band = f"band: 95 % interval over {seeds} seeds" if seeds > 1 else "one seed"
    axes.legend(
        fontsize=8,
        title=f"mean of {window} episodes; {band}",
        title_fontsize=7,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
    )
    save_figure(figure, path)

"""What test_MEG.py writes: rows of quality.csv, the figure, and the report that says which scheme wins where.

Start reading at `report`.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.figures import plt, save_figure
from meg.channel import Link
from meg.metrics import HIGHER_IS_BETTER, Estimate
from meg.metrics import LABELS as MEASURES
from meg.schemes import Scheme

HEADER = (
    *("budget", "scheme", "snr_db", "symbol_snr_db", "symbols", "side_bits", "symbols_with_side", "images"),
    *("measure", "value", "low", "high"),
)
# FID read off the published figure, by SNR in dB; about 3 off either way.
PUBLISHED_DB = (-20, -15, -10, -5, 0, 5, 10, 15, 20)
PUBLISHED = {
    "cg": (294, 280, 259, 219, 155, 88, 41, 16, 5),
    "meg_dt": (198, 187, 41, 4, 6, 4, 3, 2, 2),
    "e2e_meg_dt": (177, 147, 6, 6, 7, 6, 5, 5, 5),
}
KNOWN = ("sender knows of the channel", "GFLOP of the device")
TOGETHER = 10  # schemes in one panel
WARNING = (
    "**This Fréchet distance favours images of the pocket decoder**: its features come from the same autoencoder. A "
    "coded image that is nearer to the clean one in PSNR can have the larger distance."
)
AXES = {
    "symbol": "SNR of every symbol (dB)",
    "energy": "energy of an image, as the SNR at which CG has it (dB)",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A scheme at a point: `snr_db` on the axis, `symbol_snr_db` of its symbols, and what arrived."""

    budget: str
    scheme: Scheme
    snr_db: float
    symbol_snr_db: float
    symbols_with_side: float
    images: int
    quality: dict[str, Estimate]

    def table(self) -> Iterator[list[Any]]:
        """Rows of quality.csv, one for each measure; one without, where nothing can be received."""
        s = self.scheme
        start = [self.budget, s.name, self.snr_db, self.symbol_snr_db, s.symbols, s.side_bits, self.symbols_with_side]
        start.append(self.images)
        for name, e in self.quality.items():
            yield [*start, name, e.value, e.low, e.high]
        if not self.quality:
            yield [*start, "", "", "", ""]


def titles_of(rows: Sequence[Row]) -> dict[str, str]:
    """The schemes' titles by their names, in the order of the rows."""
    return {row.scheme.name: row.scheme.title for row in rows}


def plot_quality(path: Path, rows: Sequence[Row], measures: Sequence[str]) -> None:
    """Each measure against the budget's axis, with 95 % bands: the published schemes solid, others dashed.

    More than `TOGETHER` schemes are drawn apart by their numbers of symbols.
    """
    parts = {"": list(rows)}
    if len(titles_of(rows)) > TOGETHER:
        counts = sorted({row.scheme.symbols for row in rows})
        parts = {f"{k} symbols: ": [row for row in rows if row.scheme.symbols == k] for k in counts}
    size = 5.2 * len(measures), 4.2 * len(parts)
    figure, panels = plt.subplots(len(parts), len(measures), figsize=size, squeeze=False)
    for line, (words, own) in zip(panels, parts.items(), strict=True):
        for axes, measure in zip(line, measures, strict=True):
            plot_measure(axes, own, measure)
            axes.set(xlabel=AXES[rows[0].budget], ylabel=words + MEASURES[measure])
        if words:
            line[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    if not parts.keys() - {""}:
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def plot_measure(axes: Any, rows: Sequence[Row], measure: str) -> None:
    """A measure of every scheme against the budget's axis."""
    titles = titles_of(rows)
    palette = plt.get_cmap("tab10" if len(titles) <= 10 else "tab20").colors
    for number, (name, title) in enumerate(titles.items()):
        color = palette[number % len(palette)]
        own = [row for row in rows if row.scheme.name == name and measure in row.quality]
        x, found = [row.snr_db for row in own], [row.quality[measure] for row in own]
        style = "-" if name in PUBLISHED else "--"
        axes.plot(x, [e.value for e in found], style, marker="o", ms=3, color=color, label=title)
        axes.fill_between(x, [e.low for e in found], [e.high for e in found], color=color, alpha=0.2, lw=0)
    axes.set(yscale="linear" if HIGHER_IS_BETTER.get(measure, False) else "log")
    axes.grid(alpha=0.3)


def best_at(rows: Sequence[Row], measure: str, snr_db: float) -> str:
    """The scheme with the best value at a point, and those whose intervals reach it."""
    here = [row for row in rows if row.snr_db == snr_db and measure in row.quality]
    if not here:
        return "-"
    sign = 1 if HIGHER_IS_BETTER[measure] else -1
    first = max(here, key=lambda row: sign * row.quality[measure].value)
    top = first.quality[measure]
    level = [
        row.scheme.title
        for row in here
        if row is not first and row.quality[measure].high >= top.low and row.quality[measure].low <= top.high
    ]
    words = f"{first.scheme.title} ({number(top.value)})"
    return words + (f"; within its interval: {', '.join(level)}" if level else "")


def number(value: float) -> str:
    """A number in three digits, a dash for none."""
    return "-" if math.isnan(value) else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def quality_table(rows: Sequence[Row], measure: str) -> list[str]:
    """A measure for each scheme and point; under it, for the Fréchet distance, the published FIDs."""
    points = list(dict.fromkeys(row.snr_db for row in rows))
    lines = []
    for name, title in titles_of(rows).items():
        own = {row.snr_db: row.quality.get(measure) for row in rows if row.scheme.name == name}
        lines.append([title, *(number(own[p].value) if own[p] else "-" for p in points)])
        if measure == "frechet_pocket" and name in PUBLISHED and rows[0].budget == "symbol":
            fids = dict(zip(PUBLISHED_DB, PUBLISHED[name], strict=True))
            lines.append([f"{title}, published FID", *(str(fids.get(p, "-")) for p in points)])
    return table([f"{MEASURES[measure]} at (dB)", *(f"{p:g}" for p in points)], lines)


def costs(rows: Sequence[Row], link: Link) -> list[str]:
    """What each scheme spends on an image at 0 dB."""
    lines = []
    for scheme in {row.scheme.name: row.scheme for row in rows}.values():
        total = scheme.total_symbols(link, 0.0)
        lines.append(
            [
                scheme.title,
                str(scheme.symbols),
                str(scheme.side_bits),
                f"{total:.0f}",
                f"{1e3 * link.seconds(total):.3g}",
                f"{1e6 * link.joules(total, 0.0):.3g}",
                scheme.sender_knows,
                number(scheme.device_flop / 1e9),
                number(1e3 * link.device_joules(scheme.device_flop)),
            ]
        )
    header = ["scheme", "symbols", "bits of side information", "symbols with it at 0 dB"]
    computing = f"mJ of the device at {link.gflop_per_joule:g} GFLOP/J"
    return table([*header, f"ms at {link.bandwidth_hz:g} Hz", "µJ of the channel at 0 dB", *KNOWN, computing], lines)


def report(rows: Sequence[Row], link: Link, channel: str, note: str) -> str:
    """report.md: costs, every measure beside the published one, and the winners per symbol and per joule."""
    images = rows[0].images
    lines = ["# Mobile edge generation", "", f"Channel {channel}, {images} images a point. {note}.", ""]
    if images < 200:
        lines += ["With so few images, distances between sets tell little.", ""]
    lines += [
        f"Energies are for a noise density of {link.noise_dbm_hz:g} dBm/Hz and a loss of {link.loss_db:g} dB. Side "
        "information is sent at the channel's capacity.",
        "",
        *costs(rows, link),
        "",
    ]
    titles = {"symbol": "Equal SNR per symbol", "energy": "Equal energy per image, side information counted"}
    for budget in dict.fromkeys(row.budget for row in rows):
        here = [row for row in rows if row.budget == budget]
        lines += [f"## {titles[budget]}", ""]
        for measure in dict.fromkeys(name for row in here for name in row.quality):
            lines += [*quality_table(here, measure), ""]
            if measure == "frechet_pocket":
                lines += [WARNING, ""]
        points = list(dict.fromkeys(row.snr_db for row in here))
        for measure in ("psnr_db", "frechet_pocket"):
            best = [[f"{p:g}", best_at(here, measure, p)] for p in points]
            lines += [*table(["dB", f"best {MEASURES[measure]}"], best), ""]
    return "\n".join(lines)

"""Figures as files: drawn without a screen, PNG and PDF beside each other, the same bytes for the same numbers."""

import functools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.run_folder import replace_file

__all__ = ["plt", "save_figure"]


def save_figure(figure: plt.Figure, path: Path) -> None:
    """The figure as PNG and PDF beside each other; `path` is without suffix."""
    for suffix in (".png", ".pdf"):
        # Without dates and versions, the same numbers give the same file.
        metadata = {"Software": None} if suffix == ".png" else {"CreationDate": None}
        write = functools.partial(figure.savefig, dpi=150, bbox_inches="tight", metadata=metadata)
        replace_file(path.with_name(path.name + suffix), write)
    plt.close(figure)

"""Figures as files: drawn without a screen, PNG and PDF beside each other, the same bytes for the same numbers.

`Figure` draws without touching what a notebook has set up. `plt`, for scripts, is pyplot drawing into files; it is
loaded by whoever imports it from here.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

from common.run_folder import replace_file

try:
    import matplotlib
except ValueError:  # MPLBACKEND names a backend that is not there, as a notebook's
    _backend = os.environ.pop("MPLBACKEND", "")
    for _name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[_name]  # half imported
    import matplotlib

    os.environ["MPLBACKEND"] = _backend
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["Axes", "Figure", "colormaps", "save_figure"]


def __getattr__(name: str) -> Any:
    if name != "plt":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as PNG and PDF beside each other; `path` is without suffix."""
    for suffix in (".png", ".pdf"):
        # Without dates and versions, the same numbers give the same file.
        metadata = {"Software": None} if suffix == ".png" else {"CreationDate": None}
        write = functools.partial(figure.savefig, dpi=150, bbox_inches="tight", metadata=metadata)
        replace_file(path.with_name(path.name + suffix), write)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)

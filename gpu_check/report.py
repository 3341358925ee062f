"""report.md of a check: the machine, how each part ended, what it measured, and the targets.

Start reading at `report`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gpu_check.parts import PARTS
from gpu_check.processes import Outcome
from gpu_check.results import NOT_MEASURED, OUTCOME

Row = Mapping[str, str]
DIFFUSERS_OFFLOAD = 4.27  # GiB, diffusers' peak with model offload, SD3 medium in float16 at 512 x 512


@dataclasses.dataclass(frozen=True)
class Target:
    """A quantity of a part's case, and the most that it may be; in units of the quantity of `over`, if there is one."""

    words: str
    part: str
    case: str
    quantity: str
    most: float
    over: str = ""


TARGETS = (
    Target("SD3 512 x 512, `model`, peak GiB", "levels", "model 512 float16", "peak", 4.6),
    Target("SD3 512 x 512, `block`, peak GiB", "levels", "block 512 float16", "peak", 1.2),
    Target("SD3 1024 x 1024, `model`, peak GiB", "levels", "model 1024 float16", "peak", 5.5),
    Target("SD3 1024 x 1024, `block`, peak GiB", "levels", "block 1024 float16", "peak", 2.5),
    Target("SD3 512 x 512, `model`, fp8, peak GiB", "levels", "model 512 fp8", "peak", 2.8),
    Target("a step over diffusers' at 512", "levels", "compare 512 float16", "step / diffusers", 1.0),
    Target("a step over diffusers' at 1024", "levels", "compare 1024 float16", "step / diffusers", 1.0),
    Target("a step of `block` over `none` at 512", "levels", "block 512 float16", "step", 1.3, "none 512 float16"),
    Target("a step of `block` over `none` at 1024", "levels", "block 1024 float16", "step", 1.3, "none 1024 float16"),
    Target("LAD-TS, 512 seeds, ms per episode and seed", "training", "cuda, 512 seeds", "episode and seed", 5.0),
)


def value_of(rows: Sequence[Row], part: str, case: str, quantity: str) -> float | None:
    """The last such number among the rows; None where there is none."""
    found = None
    for row in rows:
        if (row["part"], row["case"], row["quantity"]) == (part, case, quantity):
            try:
                found = float(row["value"])
            except ValueError:
                found = None
    return found


def verdict(target: Target, rows: Sequence[Row], dry: bool) -> tuple[str, str]:
    """What was measured of a target, and whether it is met."""
    value = None if dry else value_of(rows, target.part, target.case, target.quantity)
    if value is not None and target.over:
        base = value_of(rows, target.part, target.over, target.quantity)
        value = value / base if base else None
    if value is None:
        return NOT_MEASURED, "-"
    return f"{value:.3g}", "met" if value <= target.most else "missed"


def cell(text: str) -> str:
    """A text as a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ") or "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, with an empty line after it."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def report(
    machine: Mapping[str, str], names: Sequence[str], outcomes: Mapping[str, Outcome], rows: Sequence[Row], dry: bool
) -> str:
    """The page of a check whose parts `names` have come to `outcomes` so far, and have written `rows`."""
    lines = ["# Check of a GPU" + (", dry: tiny sizes, which measure nothing" if dry else ""), ""]
    lines += table(("machine", ""), list(machine.items()))
    lines += ["## Parts", ""]
    shown = []
    for name in names:
        outcome = outcomes.get(name, Outcome("not yet", 0.0))
        shown.append((name, PARTS[name].what, outcome.word, f"{outcome.seconds:.0f}", outcome.words))
    lines += table(("part", "what it shows", "outcome", "s", "last words"), shown)
    lines += ["## Targets", ""]
    found = [(t.words, f"{t.most:g}", *verdict(t, rows, dry)) for t in TARGETS]
    lines += table(("quantity", "at most", "measured", ""), found)
    lines += [f"For the peaks at 512 x 512: with its model offload, diffusers takes {DIFFUSERS_OFFLOAD} GiB.", ""]
    for name in names:
        mine = [row for row in rows if row["part"] == name and row["quantity"] != OUTCOME]
        if mine:
            lines += [f"## {name}: {PARTS[name].what}", ""]
            cells = [[row[c] for c in ("case", "quantity", "value", "unit", "note")] for row in mine]
            lines += table(("case", "quantity", "value", "unit", "note"), cells)
    return "\n".join(lines)

"""What a check of a GPU finds: the rows of results.csv, and what every part of the check is told.

Parts run in processes of their own and add their rows themselves, so that one that is ended leaves what it has
measured. Start reading at `Results`.
"""

import dataclasses
import json
import time
from pathlib import Path

from common.tables import Table

COLUMNS = ("part", "case", "quantity", "value", "unit", "note")
OUTCOME = "outcome"  # the quantity of a part's last row
NOT_MEASURED = "not measured"


class SkipError(Exception):
    """A part, or a case of it, cannot run here; its argument says why."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a part runs under.

    `device` is cuda, or cpu in a dry run, where sizes are tiny. `until` is the time, as of time.time(), at which the
    part is ended. `folder` has results.csv, `scratch` is for files that nobody keeps and that parts share.
    """

    device: str
    dry: bool
    until: float
    folder: str
    scratch: str

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.until - time.time()

    def to_json(self) -> str:
        """These conditions as text, for another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Conditions":
        """The conditions of such a text."""
        return cls(**json.loads(text))


class Results:
    """The rows of results.csv that one part adds, each as soon as it is known."""

    def __init__(self, folder: Path, part: str) -> None:
        self.part, self.table = part, Table(folder / "results.csv", COLUMNS)

    def add(self, case: str, quantity: str, value: float | str | int, unit: str = "", note: str = "") -> None:
        """Add a row. Raises OSError when it cannot be written."""
        shown = f"{value:.6g}" if isinstance(value, float) else value
        self.table.append([self.part, case, quantity, shown, unit, " ".join(note.split())])

    def missing(self, case: str, reason: str) -> None:
        """Add a row that says why a case was not measured."""
        self.add(case, "-", NOT_MEASURED, note=reason)

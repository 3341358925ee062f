"""What a check of a GPU finds: the rows of results.csv, and what every part of the check is told.

Parts run in processes of their own and add their rows themselves, so that one that is ended leaves what it has
measured. Start reading at `Results`.
"""

import dataclasses
import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.command_line import ROOT, out_of_memory
from common.run_folder import describe
from common.tables import Table

COLUMNS = ("part", "case", "quantity", "value", "unit", "note")
OUTCOME = "outcome"  # the quantity of a part's last row
NOT_MEASURED = "not measured"
FAILED = "failed"


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


def absent(error: Exception) -> str | None:
    """The package whose absence an error tells; None for other errors, and for modules of this project."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = (error.name or "").partition(".")[0]
    return None if (ROOT / package).is_dir() else package


class Results:
    """The rows of results.csv that one part adds, each as soon as it is known."""

    def __init__(self, folder: Path, part: str) -> None:
        self.part, self.table = part, Table(folder / "results.csv", COLUMNS)
        self.failed: list[str] = []

    def add(self, case: str, quantity: str, value: float | str | int, unit: str = "", note: str = "") -> None:
        """Add a row. Raises OSError when it cannot be written."""
        shown = f"{value:.6g}" if isinstance(value, float) else value
        self.table.append([self.part, case, quantity, shown, unit, " ".join(note.split())])

    def missing(self, case: str, reason: str) -> None:
        """Add a row that says why a case was not measured."""
        self.add(case, "-", NOT_MEASURED, note=reason)

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """What is done meanwhile belongs to a case: where it fails, a row says why, and the next case may follow."""
        try:
            yield
        except SkipError as reason:
            self.missing(name, str(reason))
        except Exception as error:
            if (package := absent(error)) is not None:
                self.missing(name, f"needs {package}, which is not installed")
                return
            if out_of_memory(error):
                self.missing(name, f"out of memory: {error}"[:200])
                return
            traceback.print_exc()
            self.failed.append(name)
            self.add(name, "-", FAILED, note=describe(error))

    def finish(self) -> None:
        """Raise RuntimeError when cases have failed."""
        if self.failed:
            raise RuntimeError(f"failed: {', '.join(self.failed)}")

"""CSV files that users bring: header, rows and cells, and what is wrong with them, by line and column.

`InputCsv` knows the parameter that names the file, so that every mistake is an error of it. Start reading there.
"""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from common.parameters import LARGEST, ParameterError
from common.tables import cells_of_any_length

NO_CSV = "must be a CSV file in UTF-8"


@dataclasses.dataclass(frozen=True)
class InputCsv:
    """A CSV file with a header in UTF-8, and the flag that gives its path."""

    path: str | Path
    flag: str

    def refusal(self, reason: str) -> ParameterError:
        """What is wrong with the file, as an error of its parameter."""
        return ParameterError(self.flag, self.path, reason)

    def first_line(self) -> list[str]:
        """The names in the first line, without spaces around them. Raises ParameterError or OSError."""
        if not Path(self.path).is_file() and Path(self.path).exists() and not Path(self.path).is_dir():
            raise self.refusal("must be a file, no pipe or device, since it is read more than once")
        try:
            with Path(self.path).open(encoding="utf-8-sig", newline="") as file:
                names = [name.strip() for name in next(csv.reader([file.readline(10_000)]), [])]
        except (UnicodeDecodeError, csv.Error):
            raise self.refusal(NO_CSV) from None
        if any(not name.isprintable() for name in names):
            raise self.refusal(NO_CSV)
        return names

    def header(self, needed: tuple[str, ...], optional: tuple[str, ...] | None = ()) -> list[str]:
        """The names of the columns; with `optional` None there may be any others. Raises ParameterError or OSError."""
        columns = f"the columns are {', '.join(needed)}"
        columns += f", and if need be {', '.join(optional)}" if optional else ""
        names = self.first_line()
        if not names:
            raise self.refusal(f"line 1: must name the columns; {columns}")
        if missing := [name for name in needed if name not in names]:
            raise self.refusal(f"line 1: lacks {', '.join(missing)}; {columns}")
        if optional is not None and (unknown := [name for name in names if name not in needed + optional]):
            raise self.refusal(f"line 1: knows no column {unknown[0][:50]!r}; {columns}")
        if doubled := [name for name in names if names.count(name) > 1 and (optional is not None or name in needed)]:
            raise self.refusal(f"line 1: names {doubled[0]} twice")
        return names

    def rows(self, names: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Line and cells of each row below the header, as many cells as names. Raises ParameterError or OSError."""
        try:
            with Path(self.path).open(encoding="utf-8", newline="") as file, cells_of_any_length():
                rows = csv.reader(file)
                next(rows)
                for row in rows:
                    if row and len(row) != len(names):
                        reason = f"has {len(row)} values; must have {len(names)}, as line 1"
                        raise self.refusal(f"line {rows.line_num}: {reason}")
                    if row:  # no blank line
                        yield rows.line_num, row
        except (UnicodeDecodeError, csv.Error):
            raise self.refusal(NO_CSV) from None

    def wrong(self, line: int, name: str, text: str, reason: str) -> ParameterError:
        """A cell that must be something else, as an error of the file's parameter."""
        return self.refusal(f"line {line}: {name}={text[:50]!r}: {reason}")

    def number(self, line: int, name: str, text: str, *, low: float | None = None, above: float = 0) -> float:
        """The number in a cell: from `low`, or if that is None above `above`, to LARGEST. Raises ParameterError."""
        if not is_number(text):
            raise self.wrong(line, name, text, "must be a number")
        value = float(text)
        good = value > above if low is None else value >= low
        if not (good and value <= LARGEST):  # NaN is neither
            least = f"above {above:g}, at most" if low is None else f"from {low:g} to"
            raise self.wrong(line, name, text, f"must be a number {least} {LARGEST}")
        return value


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python alone takes

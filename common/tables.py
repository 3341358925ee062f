"""Tables in CSV: written whole, or row by row, and read back whatever their cells hold.

Start reading at `write_csv`, and at `Table` for a table that grows.
"""

import csv
import errno
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.run_folder import replace_file

LONGEST = 2**31 - 1  # characters of a cell; the csv module reads 131072 of them unless told otherwise
READING = threading.Lock()  # that limit of the csv module is one for all threads


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file; floats are written so that reading gives the same number. Raises OSError, or ValueError as `lines`.

    A table that gets a row now and then is a `Table`: this writes all of it.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(lines(header, [header]))
            file.writelines(lines(header, rows))

    replace_file(path, write)


def lines(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The lines of rows, in UTF-8; half a surrogate pair, which UTF-8 lacks, as \\udc80.

    Raises ValueError for a row that has not a cell for each column.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # cells with either character of it get quotes
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, and the table {len(header)} columns")
        text.seek(0)
        text.truncate()
        writer.writerow(row)
        yield text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace") + b"\n"


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by column. Raises OSError or ValueError when it cannot be read whole."""
    rows, rest, torn = scan(path)
    if torn and (not rest or len(rest[0]) != len((rows or rest)[0])):
        raise ValueError("its last line is torn")
    return named([*rows, *rest])


def named(rows: list[list[str]]) -> list[dict[str, str]]:
    """Rows by column; the first is the header. Raises ValueError for columns of one name, and rows of other lengths."""
    header = rows[0] if rows else []
    if len(set(header)) < len(header):
        raise ValueError("it has two columns of one name")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"its row {number} has {len(row)} cells, and the header {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """The csv module's reader takes long cells meanwhile; other threads wait."""
    with READING:
        before = csv.field_size_limit(LONGEST)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def scan(path: Path) -> tuple[list[list[str]], list[list[str]], int]:
    """A CSV file's whole rows, with the header; the row of a last line without an end, if it can be read; its bytes.

    Raises OSError, or ValueError for what is no CSV file.
    """
    rows: list[list[str]] = []
    rest: list[list[str]] = []
    position, whole, ended = 0, 0, True

    def texts() -> Iterator[str]:
        nonlocal position, ended
        for line in file:
            first, ended = position == 0, line.endswith(b"\n")
            position += len(line)
            yield line.decode("utf-8-sig" if first else "utf-8", "strict" if ended else "replace")

    with path.open("rb") as file, cells_of_any_length():
        reader = csv.reader(texts(), strict=True)
        try:
            for row in reader:
                if row:  # no blank line
                    (rows if ended else rest).append(row)
                whole = position if ended else whole
        except UnicodeDecodeError:
            raise ValueError(f"its line {reader.line_num + 1} is no UTF-8 text") from None
        except csv.Error as error:
            if "unexpected end of data" not in str(error):
                raise ValueError(f"its line {reader.line_num} is none of a CSV file ({error})") from None
    return rows, rest, position - whole


def torn_line(path: Path, size: int) -> str:
    """A line for the user about the torn last line of a table, of `size` bytes."""
    return f"warning: {path}: its last line, of {size} bytes, is torn and does not count"


class Table:
    """A CSV file that rows are appended to: one costs the same whatever is there already.

    Its folder is this process's. A process that is killed leaves a torn last line at most; the next one tells it and
    cuts it off before it writes.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path, self.header = path, list(header)
        self.end = -1  # the file's length in bytes after the last row that was written here
        self.count = 0  # rows that `grow` has written
        self.told = False

    def rows(self) -> list[dict[str, str]]:
        """The whole rows, by column; none where there is no file. Changes nothing.

        Raises OSError or ValueError when it cannot be read, or has other columns.
        """
        return self.whole()[0]

    def append(self, *rows: Sequence[Any]) -> None:
        """Add rows, in one write. Raises OSError or ValueError, as `rows` and `lines` do."""
        content = b"".join(lines(self.header, rows))
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            if end != self.end:  # somebody else has written it
                end = self.whole()[1]
                file.truncate(end)
            if end == 0:
                content = b"".join(lines(self.header, [self.header])) + content
            if file.write(content) != len(content):
                file.truncate(end)
                raise OSError(errno.ENOSPC, "no space left on the device", str(self.path))
            self.end = end + len(content)

    def grow(self, rows_from: Callable[[int], Sequence[Sequence[Any]]]) -> None:
        """Make the table hold certain rows, `rows_from(k)` being those from number k on.

        Earlier calls' rows are not written again, unless somebody has changed the file. Raises OSError or ValueError.
        """
        if self.path.is_file() and self.path.stat().st_size == self.end:
            rows = rows_from(self.count)
            self.append(*rows)
            self.count += len(rows)
        else:
            rows = rows_from(0)
            write_csv(self.path, self.header, rows)
            self.end, self.count = self.path.stat().st_size, len(rows)

    def whole(self) -> tuple[list[dict[str, str]], int]:
        """The whole rows, and how many bytes they take with the header. Raises OSError or ValueError."""
        if not self.path.exists():
            return [], 0
        rows, _, torn = scan(self.path)
        begun = not rows and next(lines(self.header, [self.header])).startswith(self.path.read_bytes())
        if rows[:1] != [self.header] and not begun:
            raise ValueError("it has other columns")
        if torn and not self.told:
            self.told = True
            print(torn_line(self.path, torn), file=sys.stderr)
        return named(rows), self.path.stat().st_size - torn

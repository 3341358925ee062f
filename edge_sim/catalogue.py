"""The catalogue: the models that edge servers may hold, read from a JSON file, and which of them a server holds when.

Start reading at `read_catalogue`, and at `use`.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe, read_json

LOAD_RATE = 1000.0  # MB/s at which a model is taken to load while only its size is known
LARGEST = 1e9  # of sizes in MB and load times in s
FORM = 'must hold a list of models, as in [{"name": "pocket", "folder": "models/pocket"}]'


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model: folder and LoRA as --models and --lora take them, its size in MB, and its load time in s."""

    name: str
    folder: str | None = None  # None: that of --models
    lora: str | None = None
    size: float | None = None
    load_time: float | None = None

    @property
    def seconds(self) -> float:
        """Its load time as far as the catalogue tells: by its size, at `LOAD_RATE`, where it has none; else 0."""
        return (self.size or 0.0) / LOAD_RATE if self.load_time is None else self.load_time


FIELDS = [field.name for field in dataclasses.fields(Entry)]


def read_catalogue(path: str) -> tuple[Entry, ...]:
    """The models of a file; the first one is the default. Raises ParameterError of `catalogue`."""
    try:
        rows = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise ParameterError("catalogue", path, f"must be a JSON file ({describe(error)})") from None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise ParameterError("catalogue", path, FORM)
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows, 1):
        if words := mistake(row) or ("its name is that of another" if row["name"] in entries else ""):
            raise ParameterError("catalogue", path, f"model {number}: {words}")
        given = row | ({"folder": os.path.expanduser(row["folder"])} if row.get("folder") else {})  # noqa: PTH111
        entries[row["name"]] = Entry(**given)
    return tuple(entries.values())


def mistake(row: dict[str, Any]) -> str:
    """What is wrong with a model of the file, in words; empty if nothing."""
    if unknown := [name for name in row if name not in FIELDS]:
        return f"knows no {unknown[0][:50]!r}; it may have {', '.join(FIELDS)}"
    name = row.get("name")
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)):
        return "must have a name of at most 64 letters, digits, points, dashes and underscores, a letter or digit first"
    for field in ("folder", "lora"):
        value = row.get(field)
        if value is not None and not (isinstance(value, str) and value and "\0" not in value):
            return f"its {field} must be the text of a path"
    for field, unit in (("size", "MB"), ("load_time", "s")):
        value = row.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
        if value is not None and not number:
            return f"its {field} must be a number from 0 to {LARGEST:.0f}, in {unit}"
    return ""


def use(resident: list[Any], name: Any, most: int) -> bool:
    """Bring the models that are held, the last used one last, up to the use of one. Returns whether it must be loaded.

    Where it must, the least recently used ones go first, so that there are never more than `most`.
    """
    if loads := name not in resident:
        del resident[: max(0, len(resident) - most + 1)]
    else:
        resident.remove(name)
    resident.append(name)
    return loads

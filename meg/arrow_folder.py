"""Pictures and captions of a data set that Hugging Face's datasets saved on disk, in Arrow form (save_to_disk).

Only the package pyarrow is needed, which datasets brings. Nothing is unpickled and no code of the folder is run. Start
reading at `find_rows`.
"""

import functools
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.parameters import ParameterError
from common.run_folder import describe
from meg.picture import CAPTIONS, Picture, one_line, part_of

NAME = r"\w+(\.\w+)*"  # of a part of a data set


def find_rows(folder: Path, flag: str) -> list[Picture]:
    """The pictures of a data set, or of all parts of one, in the order of the rows.

    Raises ParameterError of the flag when pyarrow is not there, the folder is not whole, or it holds no pictures.
    """
    if find_spec("pyarrow") is None:
        words = "is a data set in Arrow form, which needs the package pyarrow (or datasets)"
        raise ParameterError(flag, folder, words)
    parts = [""]
    if (folder / "dataset_dict.json").is_file():
        parts = read(folder / "dataset_dict.json", flag).get("splits")
        if not isinstance(parts, list) or not all(isinstance(n, str) and re.fullmatch(NAME, n) for n in parts):
            raise ParameterError(flag, folder, "must be whole: dataset_dict.json must name the parts")
    found = [picture for name in parts for picture in rows_of(folder, name, flag)]
    if not found:
        raise ParameterError(flag, folder, "must hold pictures; it has no rows")
    return found


def read(path: Path, flag: str) -> dict[str, Any]:
    """The content of a JSON file. Raises ParameterError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ParameterError(flag, path.parent, f"must be whole: {path.name} ({describe(error)})") from None
    return content


def rows_of(folder: Path, part: str, flag: str) -> list[Picture]:
    """The pictures of one part, a folder in it; without a name they are the folder's own. Raises ParameterError."""
    import pyarrow

    place = folder / part
    state = read(place / "state.json", flag)
    files = state.get("_data_files")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ParameterError(flag, place, "must hold its rows themselves, without a file of indices (flatten_indices)")
    try:
        names = [Path(file["filename"]).name for file in files]
        tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(place / name))).read_all() for name in names]
        table = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError, LookupError, TypeError) as error:
        raise ParameterError(flag, place, f"must be whole ({describe(error)})") from None
    column = image_column(table.schema)
    if column is None:
        names = ", ".join(table.column_names)
        raise ParameterError(flag, place, f"must have a column of pictures; its columns are {names}")
    captions = next((name for name in CAPTIONS if name in table.column_names), None)
    pictures = []
    for row in range(table.num_rows):
        shown = f"{place}: row {row}"
        try:
            caption = one_line(table[captions][row].as_py()) if captions else ""
        except ValueError as error:
            raise ParameterError(flag, shown, str(error)) from None
        content = functools.partial(image_bytes, table[column], row)
        pictures.append(Picture(f"{part}/{row}" if part else str(row), caption, part_of(part), shown, content=content))
    return pictures


def image_column(schema: Any) -> str | None:
    """The first column of a pyarrow schema that holds images as datasets stores them: with bytes and path."""
    import pyarrow

    for field in schema:
        if pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}:
            return field.name
    return None


def image_bytes(column: Any, row: int) -> bytes:
    """The image file in a row of a column. Raises ValueError or OSError when there is none."""
    value = column[row].as_py() or {}
    if value.get("bytes") is None:
        raise ValueError("the data set holds no image here, only its path" if value.get("path") else "it has no image")
    return value["bytes"]

"""Dataset folders: image files with captions beside them, or in metadata.jsonl or metadata.csv.

The form of metadata files is that of Hugging Face's imagefolder: `file_name`, relative to the file, and the caption as
`text`, `caption` or `prompt`. Without an entry there, a picture's caption is the text file of the same name beside it.
Folders saved by Hugging Face's datasets are arrow_folder.py's. Start reading at `find_pictures`.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from common.input_csv import InputCsv
from common.parameters import ParameterError
from common.run_folder import describe
from meg.picture import CAPTIONS, Picture, one_line, part_of
from resd3_medium.tasks import decoded, file_content

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"),
)
ARROW = ("state.json", "dataset_info.json")  # beside the files of a data set in Arrow form
METADATA = ("metadata.jsonl", "metadata.csv")


def find_pictures(folder: Path, flag: str) -> list[Picture]:
    """All pictures of a folder and the folders in it, in the order of their names; hidden ones do not count.

    In the Arrow form of Hugging Face's datasets they are in the order of the rows. Raises ParameterError of the flag
    when there are none, or captions cannot be read.
    """
    if not folder.is_dir():
        raise ParameterError(flag, folder, "must be a folder of pictures and captions")
    if (folder / "dataset_dict.json").is_file() or all((folder / name).is_file() for name in ARROW):
        from meg.arrow_folder import find_rows  # of a package that need not be there

        return find_rows(folder, flag)
    names = sorted(files_of(folder, flag))
    listed = metadata_captions(folder, names, flag)
    images = [name for name in names if name in listed or PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not images:
        others = f"; it holds {len(names)} other files, such as {names[0]}" if names else "; it holds no files"
        raise ParameterError(flag, folder, f"must hold pictures ({', '.join(SUFFIXES)}){others}")
    texts, pictures = set(names), []
    for name in images:
        beside = str(PurePosixPath(name).with_suffix(".txt"))
        caption = listed.get(name, "")
        if not caption and beside in texts:
            caption = one_line(text_of(folder / beside, flag))
        part = part_of(PurePosixPath(name).parts[0]) if "/" in name else ""
        pictures.append(Picture(name, caption, part, str(folder / name), path=folder / name))
    return pictures


def files_of(folder: Path, flag: str) -> list[str]:
    """The names of all files below a folder, with /. Links to folders are not followed. Raises ParameterError."""

    def refuse(error: OSError) -> None:
        raise ParameterError(flag, error.filename, f"must be a folder that can be read ({error.strerror})")

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return found


def text_of(path: Path, flag: str) -> str:
    """The text of a file. Raises ParameterError when it is none."""
    try:
        return decoded(file_content(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError(flag, path, f"must be a text file ({reason})") from None


# --- metadata.jsonl and metadata.csv ---


def metadata_captions(folder: Path, names: list[str], flag: str) -> dict[str, str]:
    """The captions of metadata files, by the pictures' names. Raises ParameterError for what cannot be used."""
    files, found, seen = set(names), {}, set()
    for name in names:
        file = PurePosixPath(name)
        if file.name == "metadata.parquet":
            raise ParameterError(flag, folder / name, f"is not read; write {' or '.join(METADATA)} instead")
        if file.name not in METADATA:
            continue
        if file.parent in seen:
            raise ParameterError(flag, (folder / name).parent, f"must hold one of {' and '.join(METADATA)}, not both")
        seen.add(file.parent)
        for line, entry in entries(folder / name, flag):
            refusal = ParameterError(flag, folder / name, f"line {line}: ")
            picture = entry.get("file_name")
            if not isinstance(picture, str) or not picture:
                raise with_reason(refusal, "must have the picture's file_name")
            # Names that lead out of the folder are not among the files.
            inside = str(PurePosixPath(file.parent, picture))
            if inside not in files:
                raise with_reason(refusal, f"names {picture[:100]!r}, which is no file in this folder")
            if inside in found:
                raise with_reason(refusal, f"names {picture[:100]!r} a second time")
            try:
                found[inside] = one_line(next((entry[column] for column in CAPTIONS if column in entry), None))
            except ValueError as error:
                raise with_reason(refusal, str(error)) from None
    return found


def with_reason(refusal: ParameterError, reason: str) -> ParameterError:
    """An error whose reason goes on."""
    return ParameterError(refusal.flag, refusal.value, refusal.reason + reason)


def entries(path: Path, flag: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and content of each entry of a metadata file. Raises ParameterError."""
    if path.suffix == ".csv":
        table = InputCsv(path, flag)
        try:
            names = table.header(("file_name",), None)
            for line, row in table.rows(names):
                yield line, dict(zip(names, row, strict=True))
        except OSError as error:
            raise ParameterError(flag, path, f"must be a file that can be read ({describe(error)})") from None
        return
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text_of(path, flag)), 1):
        if line.strip():
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("it is no object")
            except (ValueError, RecursionError) as error:
                raise ParameterError(flag, path, f"line {number}: must be a JSON object ({describe(error)})") from None
            yield number, entry

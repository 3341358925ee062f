"""Run folders: where a run writes, so that nothing is left half written and no run overwrites another.

A run's folder holds config.json, its CSV files and plots, checkpoint.pt of methods that learn, and at last
summary.json, which says that the run is whole. Every file is written under a temporary name and then renamed. Start
reading at `new_folder`.
"""

import dataclasses
import errno
import io
import itertools
import json
import os
import platform
import re
import resource
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from common.locks import LOCK, BusyError, alive, lock
from common.parameters import ParameterError, Parameters, resolve

RESULTS = Path(__file__).resolve().parents[1] / "results"
PARTIAL = ".partial"  # in the names of files that are being written
WRITER = re.compile(rf"\.([0-9]+)-[0-9]+{re.escape(PARTIAL)}(\.[^.]*)?$")  # in such names: the process
PROGRESS = ".progress"  # how many episodes are done, in the folder of a run that is going on


@contextmanager
def new_folder(out: str | None, default: Path) -> Iterator[Path]:
    """A folder of its own for a run, kept for this process: `out`, or `default`, numbered when it is taken.

    Raises ParameterError when `out` holds files, is another process's, or cannot be written.
    """
    if out is not None:
        with locked(Path(out)) as folder:
            if not unused(folder):
                raise ParameterError("out", folder, "must be a new or empty folder, to overwrite nothing")
            sweep(folder)
            yield folder
        return
    for number in itertools.count(1):
        folder = default if number == 1 else default.with_name(f"{default.name}_{number}")
        if folder.exists() and not unused(folder):
            continue
        made(folder)
        try:
            release = lock(folder)
        except BusyError:  # of a run that has just begun
            continue
        try:
            if unused(folder):
                sweep(folder)
                yield folder
                return
        finally:
            release()


def run_place(resume: str | None, out: str | None, default: Path) -> AbstractContextManager[Path]:
    """The folder of a run that goes on in `resume`, or of a new one, kept for this process. Raises ParameterError."""
    return claimed(Path(resume), "resume") if resume else new_folder(out, default)


@contextmanager
def claimed(folder: Path, flag: str = "out") -> Iterator[Path]:
    """Keep a folder for this process, made if need be, and without half-written files that a killed run has left.

    Nothing in it is touched before it is this process's. Raises ParameterError of `flag` when another one works in it,
    or it cannot be made or written.
    """
    with locked(folder, flag):
        sweep(folder)
        yield folder


@contextmanager
def locked(folder: Path, flag: str = "out") -> Iterator[Path]:
    """Keep a folder for this process, made if need be, as it is. Raises ParameterError of `flag`, as `claimed` does."""
    made(folder, flag)
    try:
        release = lock(folder)
    except BusyError:
        raise ParameterError(flag, folder, "must be free, but another process is working in it") from None
    try:
        yield folder
    finally:
        release()


def sweep(folder: Path) -> None:
    """Remove what processes that are no more have left half written. For folders that are this process's.

    Folders in it count, too, as those of images; but those of other runs. Files that stand alone, as a page of results,
    are written without a lock, maybe at this moment.
    """
    parts = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    own = [path for path in parts if not ((path / "config.json").exists() or (path / LOCK).exists())]
    for leftover in itertools.chain.from_iterable(map(half_written, [folder, *own])):
        if not (process := WRITER.search(leftover.name)) or not alive(int(process[1])):
            leftover.unlink(missing_ok=True)


def half_written(folder: Path) -> list[Path]:
    """Files that `replace_file` was writing, by their names; see `half_name`."""
    return [
        path
        for path in folder.glob(f".*{PARTIAL}*")
        if path.with_suffix("").suffix == PARTIAL or path.suffix == PARTIAL
    ]


def unused(folder: Path) -> bool:
    """Whether no run has left anything in a folder."""
    return {path.name for path in folder.iterdir()} <= {LOCK, PROGRESS, *(path.name for path in half_written(folder))}


def made(folder: Path, flag: str = "out") -> Path:
    """The folder, made if need be. Raises ParameterError of `flag` when it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no write permission")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ParameterError(flag, folder, f"must be a folder that can be written ({reason})") from None
    return folder


def half_name(path: Path) -> Path:
    """What `path` is called while this thread writes it: .delay.PROCESS-THREAD.partial.csv for delay.csv.

    Nobody else uses the name, so that two who write one file each give it whole; the last one's stays.
    """
    writer = f".{os.getpid()}-{threading.get_native_id()}"
    stem = path.stem if len(path.stem) < 100 else path.stem[: -len(writer)]  # file systems have a longest name
    return path.with_name(f".{stem}{writer}{PARTIAL}{path.suffix}")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and rename the result to `path`, so that `path` is always whole.

    Several files that belong together, and files that a run goes on to change, need a folder that is `claimed`. An
    OSError names `path`, whether or not it names the temporary one.
    """
    temporary = half_name(path)
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_config(
    folder: Path, method: str, config: dict[str, Any], source: str = "", more: dict[str, Any] | None = None
) -> None:
    """config.json: the method, every resolved parameter, and the versions that computed the run.

    `source` is the SHA-256 of a user's own file that took part, `more` what else the run is gone on with by.
    """
    versions = {name: version_of(name) for name in ("torch", "numpy", "numba", "matplotlib", "fire")}
    content = {
        "method": method,
        "parameters": config,
        **({"source": source} if source else {}),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"processor": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
        **(more or {}),
    }
    write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")


def version_of(package: str) -> str:
    """The version of an installed package; empty where there is none, since not every run needs all of them."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError for what is none, or nested too deep to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def read_config(folder: Path, flag: str = "out") -> tuple[str, dict[str, Any]]:
    """Method and parameters of a run's config.json. Raises ParameterError when it is not whole."""
    try:
        content = read_json(folder / "config.json")
        method, parameters = content["method"], content["parameters"]
        if not (isinstance(method, str) and isinstance(parameters, dict) and isinstance(parameters["seeds"], int)):
            raise TypeError("values of the wrong type")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ParameterError(flag, folder, f"must hold a run, with a whole config.json ({describe(error)})") from None
    return method, parameters


def read_source(folder: Path) -> str:
    """The SHA-256 of a user's own file that took part in a run with a whole config.json; empty where none did."""
    return str(read_json(folder / "config.json").get("source", ""))


def with_defaults(cls: type[Parameters], stored: dict[str, Any], flag: str, place: Any) -> dict[str, Any]:
    """All parameters of `cls`: stored ones, and defaults of those that an older version did not have, which are told.

    Raises ParameterError for stored ones that this version does not have.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(stored.keys() - set(known)):
        raise ParameterError(flag, place, f"must hold parameters of this version, which lacks {', '.join(unknown[:3])}")
    missing = [name for name in known if name not in stored]
    if len(missing) > len(stored):
        raise ParameterError(flag, place, "must hold a whole run; it lacks most of the parameters")
    if not missing:
        return stored
    preset = {"preset": stored["preset"]} if "preset" in stored and "preset" in known else {}
    try:
        defaults = resolve(cls, preset)
    except ParameterError as error:
        raise ParameterError(flag, place, f"holds a parameter that is not allowed ({error})") from None
    added = {name: getattr(defaults, name) for name in missing}
    words = ", ".join(f"{name}={value}" for name, value in added.items())
    print(f"{place} is of an older version; parameters added since take their defaults: {words}")
    return stored | added


def resumed(config: Any, given: dict[str, Any], free: Sequence[str]) -> Any:
    """The parameters of the run in the folder `config.resume`, with those of the command line that are `free`.

    Raises ParameterError when the folder holds no run of such parameters, or others are `given`, or they contradict it.
    """
    folder = Path(config.resume)
    try:
        parameters = read_json(folder / "config.json")["parameters"]
        parameters = with_defaults(type(config), parameters, "resume", folder)
        before = resolve(type(config), parameters | {"resume": None})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ParameterError("resume", folder, f"must hold a run's config.json ({describe(error)})") from None
    for name in given:
        if name not in free:
            raise ParameterError(name, given[name], "must not be combined with --resume")
    after = dataclasses.replace(before, **{name: getattr(config, name) for name in given})
    after.check()  # what is given, which `resolve` has left to be checked with the stored parameters
    return after


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """A checkpoint that `load_checkpoint` reads. Raises OSError when it cannot be written."""
    buffer = io.BytesIO()  # torch tells a full disk as a RuntimeError, writing bytes as an OSError
    torch.save(content, buffer)
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """A checkpoint's content, read with weights_only. Raises ParameterError when it is none of ours, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            if damaged := archive.testzip():
                raise OSError(errno.EIO, f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise ParameterError(flag, path, f"must be a checkpoint written by this script ({describe(error)})") from None
    kinds = {"method": str, "config": dict, "learner": dict, "history": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise ParameterError(flag, path, "must be a checkpoint written by this script (other content)")
    return content


def peak_mebibytes() -> float:
    """The most memory in MiB that the process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_memory(device: torch.device | str = "cpu") -> str:
    """The most memory that the process has held, in words; on CUDA also the device's."""
    words = f"{peak_mebibytes():.0f} MiB"
    if torch.device(device).type == "cuda":
        words += f" + {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on the GPU"
    return words


@contextmanager
def progress_file(folder: Path) -> Iterator[Callable[[int], None]]:
    """Gives a function that tells others how far the run in a folder is; they ask by `progress`."""
    path = folder / PROGRESS
    try:
        yield lambda done: write_text(path, str(done))
    finally:
        path.unlink(missing_ok=True)


def progress(folder: Path) -> int:
    """What the run in a folder has told last, 0 when it has not."""
    try:
        return int((folder / PROGRESS).read_text())
    except (OSError, ValueError):
        return 0

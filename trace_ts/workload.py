"""Requests to an image service: read from the GenTD26 trace or from a plain CSV file, and written.

A request has a time, a user, its work in image-steps and the model that makes its images. Start reading at `Requests`,
and at `read_trace`.
"""

import dataclasses
import hashlib
from collections.abc import Hashable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from common import tables
from common.input_csv import InputCsv
from common.parameters import LARGEST, ParameterError
from common.random_streams import Stream, random_generator

COLUMNS = ("time_s", "user", "work", "model")
LEAST_WORK = 1e-6  # image-steps; delays over less would be no numbers any more
GENTD26 = (  # the columns of that trace that are read
    "gmt_create",
    "groupId",
    "num_images_per_prompt",
    "num_inference_steps",
    "checkpoint_model_version_id",
    "exec_time_seconds",
)
GENTD26_FILE = Path(__file__).resolve().parents[1] / "data" / "gentd26" / "lora_request_trace.csv"
CLOCK = "%Y-%m-%d %H:%M:%S"
BEGIN = datetime(2024, 11, 19)  # of GenTD26; before it there are but a few trial requests


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    """K requests by time: time [K] in s, user [K] and model [K] from 0, work [K] in image-steps.

    The numbers of users and models are those of the whole trace, also in a part of it. Requests are equal only to
    themselves, so that what is computed from them can be kept. What is fitted or trained looks at the first
    `num_training` of them, by default at half.
    """

    time: np.ndarray
    user: np.ndarray
    work: np.ndarray
    model: np.ndarray
    num_users: int
    num_models: int
    num_training: int | None = None

    def __len__(self) -> int:
        return len(self.time)

    def part(self, chosen: slice | np.ndarray) -> "Requests":
        """The requests of a slice, a mask [K] or indices in ascending order; users and models keep their numbers."""
        arrays = {name: getattr(self, name)[chosen] for name in ("time", "user", "work", "model")}
        return dataclasses.replace(self, **arrays, num_training=None)

    def halves(self) -> tuple["Requests", "Requests"]:
        """The first half of the requests, which trains, and the second, which tests."""
        middle = len(self) // 2
        first, second = self.part(slice(middle)), self.part(slice(middle, None))
        return dataclasses.replace(first, num_training=middle), second

    def by_popularity(self) -> np.ndarray:
        """The numbers [N] of the models by how often they are asked for, the most popular one first."""
        return np.argsort(-np.bincount(self.model, minlength=self.num_models), kind="stable")

    def training(self) -> "Requests":
        """What fitting and training may look at."""
        return self.part(slice(len(self) // 2 if self.num_training is None else self.num_training))

    def fingerprint(self) -> str:
        """A SHA-256 that no other requests have."""
        arrays = [getattr(self, name) for name in ("time", "user", "work", "model")]
        return hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in arrays)).hexdigest()


def requests_of(
    time: Sequence[float] | np.ndarray,
    user: Sequence[Hashable],
    work: Sequence[float] | np.ndarray,
    model: Sequence[Hashable],
) -> Requests:
    """Requests from K values of each kind in any order; those of one time stay in it.

    Users and models may be anything; they are numbered in the order in which they come first.
    """
    seconds = np.asarray(time, dtype=np.float64)
    order = np.argsort(seconds, kind="stable")
    users, models = ({value: None for value in (kind[k] for k in order)} for kind in (user, model))
    number_of_user = {value: number for number, value in enumerate(users)}
    number_of_model = {value: number for number, value in enumerate(models)}
    return Requests(
        time=seconds[order],
        user=np.array([number_of_user[user[k]] for k in order], dtype=np.int64),
        work=np.asarray(work, dtype=np.float64)[order],
        model=np.array([number_of_model[model[k]] for k in order], dtype=np.int64),
        num_users=len(users),
        num_models=len(models),
    )


def read_trace(path: str | Path, seed: int = 0, least: int = 1) -> Requests:
    """The requests of a file of either kind, told apart by its header; `seed` is that of `read_gentd26`.

    Raises ParameterError of --requests for a file that is of neither kind, or damaged, where it names line and column,
    or that has fewer requests than `least`.
    """
    requests = read_gentd26(path, seed) if is_gentd26(path) else read_csv(path)
    if len(requests) < least:
        words = f"must hold at least {'two' if least == 2 else least} requests"
        raise InputCsv(path, "requests").refusal(words)
    return requests


def is_gentd26(path: str | Path) -> bool:
    """Whether a file's header is that of GenTD26. Raises ParameterError of --requests for what cannot be read."""
    file = InputCsv(path, "requests")
    try:
        names = file.first_line()
    except OSError as error:
        raise unreadable(file, error) from None
    return GENTD26[0] in names and COLUMNS[0] not in names


def read_csv(path: str | Path) -> Requests:
    """The requests of a CSV file with columns time_s, user, work (image-steps) and model, in any order of rows.

    Users and models are any texts; other columns are ignored. Raises ParameterError of --requests.
    """
    file = InputCsv(path, "requests")
    time, user, work, model = [], [], [], []
    try:
        names = file.header(COLUMNS, None)
        at = [names.index(name) for name in COLUMNS]
        for line, row in file.rows(names):
            cells = [row[k].strip() for k in at]
            time.append(file.number(line, "time_s", cells[0], low=0))
            work.append(file.number(line, "work", cells[2], low=LEAST_WORK))
            for name, text in (("user", cells[1]), ("model", cells[3])):
                if not text:
                    raise file.wrong(line, name, text, "must not be empty")
            user.append(cells[1])
            model.append(cells[3])
    except OSError as error:
        raise unreadable(file, error) from None
    if not time:
        raise file.refusal("must hold requests, but has none")
    return requests_of(time, user, work, model)


def read_gentd26(path: str | Path, seed: int = 0) -> Requests:
    """The requests of Alibaba's trace GenTD26, file lora_request_trace.csv, from 2024-11-19 on, which is time 0.

    Rows that lack a time, user, model, images, steps or execution time are left out. Times are whole seconds in the
    file; a seeded part of a second is added to each. Raises ParameterError of --requests.
    """
    file = InputCsv(path, "requests")
    time, user, work, model = [], [], [], []
    try:
        names = file.header(GENTD26, None)
        at = [names.index(name) for name in GENTD26]
        for line, row in file.rows(names):
            cells = [row[k].strip() for k in at]
            if not all(cells):
                continue
            images, steps, _ = (file.number(line, GENTD26[k], cells[k], low=int(k < 5)) for k in (2, 3, 5))
            if images * steps > LARGEST:
                raise file.wrong(line, GENTD26[3], cells[3], f"must be at most {LARGEST}, times {GENTD26[2]}")
            try:
                seconds = (datetime.strptime(cells[0], CLOCK) - BEGIN).total_seconds()
            except ValueError:
                raise file.wrong(line, GENTD26[0], cells[0], "must be a time as in 2024-11-19 08:30:00") from None
            if seconds >= 0:
                time.append(seconds)
                user.append(cells[1])
                work.append(images * steps)
                model.append(cells[4])
    except OSError as error:
        raise unreadable(file, error) from None
    if not time:
        raise file.refusal(f"must hold whole requests from {BEGIN:%Y-%m-%d} on, but has none")
    parts = random_generator(Stream.TRACE_TIMES, seed).random(len(time))
    return requests_of(np.array(time) + parts, user, work, model)


def unreadable(file: InputCsv, error: OSError) -> ParameterError:
    """An error of the file system, as an error of the file's parameter."""
    return file.refusal(f"must be a file that can be read ({error.strerror or error})")


def write_csv(requests: Requests, path: Path) -> None:
    """A file that `read_csv` gives the same requests from, if they are numbered in the order of their coming.

    Raises OSError.
    """
    columns = [getattr(requests, name).tolist() for name in ("time", "user", "work", "model")]
    tables.write_csv(Path(path), COLUMNS, zip(*columns, strict=True))

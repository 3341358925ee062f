"""Tasks from a CSV file: read and checked at once, cut into slots, and summed up in task classes.

A row is a task. Its time tells its slot; the tasks of a slot and base station keep the file's order. The last part of
the file is held out. Start reading at `read_tasks`.
"""

import dataclasses
import functools
import hashlib
import itertools
import warnings
from pathlib import Path

import numpy as np

from common.input_csv import NO_CSV, InputCsv, is_number
from common.parameters import LARGEST, ParameterError

NEEDED, OPTIONAL = ("time_s", "base_station", "input_mbit", "steps"), ("density", "result_mbit")
WHOLE = ("base_station", "steps")
LEAST = {"steps": 1}  # 0 elsewhere
Table = dict[str, np.ndarray]  # columns [M], a number for each task


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How a file becomes tasks of slots: sizes of the environment, and what missing columns stand for."""

    num_bs: int
    num_tasks: int
    slot_length: float  # s
    density: float  # Gcycles/step
    result: float  # Mbit
    held_out: float  # share of the slots


@dataclasses.dataclass(frozen=True)
class FileTasks:
    """M tasks by slot, then base station, then as in the file.

    slot, station and number (among those of its slot and BS) [M] are integers; size and result [M] in Mbit, steps [M],
    workload [M] in Gcycles. Of all slots, the first `training` are for training and the others held out.
    """

    slot: np.ndarray
    station: np.ndarray
    number: np.ndarray
    size: np.ndarray
    steps: np.ndarray
    workload: np.ndarray
    result: np.ndarray
    num_bs: int
    slots: int
    training: int
    digest: str  # SHA-256 of the file

    def between(self, start: int, stop: int) -> slice:
        """The tasks of slots start .. stop - 1."""
        first, last = np.searchsorted(self.slot, (start, stop))
        return slice(int(first), int(last))

    def window(self, rng: np.random.Generator, length: int, held_out: bool) -> tuple[int, slice]:
        """The first slot of a random episode of `length` slots, and its tasks; a shorter part ends with empty slots."""
        first, end = (self.training, self.slots) if held_out else (0, self.training)
        start = first + int(rng.integers(0, max(end - first - length, 0), endpoint=True))
        return start, self.between(start, min(start + length, end))

    def counts(self, rng: np.random.Generator, length: int, num_bs: int) -> np.ndarray:
        """Tasks of each BS [length, num_bs] in a random window of the training.

        BSs of another number than the environment's have the tasks of random ones.
        """
        start, part = self.window(rng, length, held_out=False)
        cell = (self.slot[part] - start) * self.num_bs + self.station[part]
        drawn = np.bincount(cell, minlength=length * self.num_bs).reshape(length, self.num_bs)
        return drawn if num_bs == self.num_bs else drawn[:, rng.integers(0, self.num_bs, num_bs)]

    @functools.cached_property
    def learnt(self) -> dict[str, np.ndarray]:
        """The tasks of the training: size, steps, workload and result."""
        part = self.between(0, self.training)
        return {name: getattr(self, name)[part] for name in ("size", "steps", "workload", "result")}

    def mean(self, name: str) -> float:
        """The mean over the tasks of the training."""
        return float(self.learnt[name].mean())

    def classes(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Density, steps and result size [count] of equally likely classes by workload, small ones first.

        A class is the mean of its part of the training's tasks, so the mean of all classes is theirs.
        """
        order = np.argsort(self.learnt["workload"], kind="stable")
        edges = np.linspace(0, order.size, count + 1)

        def means(name: str) -> np.ndarray:
            total = np.concatenate([[0.0], self.learnt[name][order].cumsum()])
            return np.diff(np.interp(edges, np.arange(total.size), total)) / np.diff(edges)

        steps = means("steps")
        return means("workload") / steps, steps, np.maximum(means("result"), 0)


def read_tasks(path: str, cutting: Cutting) -> FileTasks:
    """The tasks of a CSV file, read once in a process unless it changes. Raises ParameterError of --arrivals."""
    try:
        state = Path(path).stat()
        return cut(path, (state.st_mtime_ns, state.st_size, state.st_ino), cutting)
    except OSError as error:
        raise refusal(path, f"must be a file that can be read ({error.strerror or error})") from None


def refusal(path: str, reason: str) -> ParameterError:
    """What is wrong with the file, as an error of its parameter."""
    return input_csv(path).refusal(reason)


def input_csv(path: str) -> InputCsv:
    """The file as its parameter's."""
    return InputCsv(path, "arrivals")


# --- reading ---


@functools.lru_cache(maxsize=2)
def read_table(path: str, stamp: tuple[int, ...]) -> tuple[Table, str]:
    """The columns of the file as finite numbers within their ranges, and the file's SHA-256."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    names = input_csv(path).header(NEEDED, OPTIONAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a file without rows
            values = np.loadtxt(
                path, delimiter=",", skiprows=1, comments=None, quotechar='"', encoding="utf-8", ndmin=2
            )
    except UnicodeDecodeError:
        raise refusal(path, NO_CSV) from None
    except ValueError:
        raise unreadable(path, names) from None
    if not values.size:
        raise refusal(path, "must hold tasks, but has none")
    if values.shape[1] != len(names):
        raise unreadable(path, names)
    table = dict(zip(names, np.ascontiguousarray(values.T), strict=True))
    for name, column in table.items():
        least = LEAST.get(name, 0)
        good = (column >= least) & (column <= LARGEST)  # False for NaN
        if name == "density":
            good &= column > 0
        if name in WHOLE:
            good &= column == np.floor(column)
        if not good.all():
            allowed = (
                f"{'an integer' if name in WHOLE else 'a number'} {'above' if name == 'density' else 'from'} {least}"
            )
            value = column[~good][0]
            reason = f"{name}={value:g}: must be {allowed}{', at most' if name == 'density' else ' to'} {LARGEST}"
            raise refusal(path, f"line {line_of(path, list(table), ~good)}: {reason}")
    return table, digest


def unreadable(path: str, names: list[str]) -> ParameterError:
    """The first line that is no row of numbers, and what is wrong with it."""
    file = input_csv(path)
    try:
        for line, row in file.rows(names):
            for name, text in zip(names, row, strict=True):
                if not is_number(text):
                    return file.wrong(line, name, text, "must be a number")
    except ParameterError as error:
        return error
    return file.refusal(NO_CSV)


def line_of(path: str, names: list[str], wrong: np.ndarray) -> int:
    """The line of the first task that is marked in wrong [M]."""
    return next(itertools.islice(input_csv(path).rows(names), int(wrong.argmax()), None))[0]


# --- cutting into slots ---


@functools.lru_cache(maxsize=4)
def cut(path: str, stamp: tuple[int, ...], cutting: Cutting) -> FileTasks:
    """The tasks of a file whose state is `stamp`, cut into slots."""
    table, digest = read_table(path, stamp)
    station = table["base_station"].astype(np.int64)
    if (outside := station >= cutting.num_bs).any():
        reason = (
            f"base_station={station[outside][0]}: must be at most {cutting.num_bs - 1}, since --num_bs={cutting.num_bs}"
        )
        raise refusal(path, f"line {line_of(path, list(table), outside)}: {reason}")
    slots = np.floor(table["time_s"] / cutting.slot_length)
    if (late := slots >= LARGEST).any():
        many = f"{LARGEST} slots of --slot_length={cutting.slot_length:g}"
        reason = f"time_s={table['time_s'][late][0]:g} has more than {many} before it"
        raise refusal(path, f"line {line_of(path, list(table), late)}: {reason}")
    slot = slots.astype(np.int64)
    cell = slot * cutting.num_bs + station
    order = np.argsort(cell, kind="stable")
    slot, station, cell = slot[order], station[order], cell[order]
    starts = np.flatnonzero(np.diff(cell, prepend=-1))  # where the tasks of a slot and BS begin
    number = np.arange(cell.size) - np.repeat(starts, np.diff(starts, append=cell.size))
    if (most := int(number.max()) + 1) > cutting.num_tasks:
        crowded = np.zeros(cell.size, dtype=bool)
        crowded[order[number >= cutting.num_tasks]] = True
        where = f"slot {int(slots[crowded][0])} brings base station {int(table['base_station'][crowded][0])} more than"
        reason = f"{where} --num_tasks={cutting.num_tasks} tasks; the file takes --num_tasks={most}"
        raise refusal(path, f"line {line_of(path, list(table), crowded)}: {reason}")
    total = int(slot[-1]) + 1
    held = max(1, round(cutting.held_out * total))
    training = total - held
    if slot[0] >= training:
        words = f"has {total} slots of --slot_length={cutting.slot_length:g} s, counted from time 0"
        raise refusal(path, f"{words}; the first {training}, which are not held out, must have tasks")
    columns = {name: column[order] for name, column in table.items()}
    density = columns.get("density", cutting.density)
    result = columns.get("result_mbit", np.full(cell.size, cutting.result))
    return FileTasks(
        slot=slot,
        station=station,
        number=number,
        size=columns["input_mbit"],
        steps=columns["steps"],
        workload=density * columns["steps"],
        result=result,
        num_bs=cutting.num_bs,
        slots=total,
        training=training,
        digest=digest,
    )


@functools.cache
def tell_short(path: str, training: int, held_out: int, episode: int) -> None:
    """Say once that a part of the file is shorter than an episode, all in slots."""
    words = f"episodes of {episode} slots are longer, and end with empty slots"
    if training < episode:
        print(f"{path} has {training} slots to train on: {words}")
    if held_out < episode:
        print(f"{path} has {held_out} held-out slots: {words}")

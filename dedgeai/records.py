"""What became of tasks: their records in memory, and what a run's journal says of them.

Start reading at `Record`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dedgeai.journal import read_journal
from dedgeai.tasks import Task

WAITING, SENT, DONE, FAILED = "waiting", "sent", "done", "failed"
# What the journal keeps of a finished task besides its number, and what its entries must have.
OUTCOME = ("round", "decided", "server", "attempts", "moves", "error", "image", "submitted", "sent", "finished")
FIELDS = {"submitted": {field.name for field in dataclasses.fields(Task)}}
FIELDS |= {DONE: {"number", *OUTCOME}, FAILED: {"number", *OUTCOME}, "total": {"tasks", "seconds"}}


@dataclasses.dataclass
class Record:
    """A task and what became of it. Times are in s since the system's start; None where it has not happened."""

    task: Task
    state: str = WAITING
    submitted: float = 0.0
    round: int | None = None  # number of the round in which it was decided first
    decided: int | None = None  # the scheduler's server
    sent: float | None = None  # when it was sent last, and where
    server: int | None = None
    finished: float | None = None
    attempts: int = 0  # starts of servers that died while working on it
    moves: int = 0  # times that an idle server took it over
    recalled: bool = False  # finished by an earlier process, whose clock its times are of
    error: str = ""
    image: str = ""

    @property
    def delay(self) -> float | None:
        """Seconds from its acceptance to its image or failure."""
        return None if self.finished is None else self.finished - self.submitted

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in (DONE, FAILED)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a run's journal says: accepted tasks and the entries of finished ones by number, and whole runs' seconds."""

    tasks: dict[int, Task]
    finished: dict[int, dict[str, Any]]
    totals: dict[int, float]


def read_stored(folder: Path, flag: str) -> Stored:
    """What a run's folder holds. An image that is not there has to be made again. Raises ParameterError."""
    path = folder / "journal.jsonl"
    entries = read_journal(path, flag, FIELDS) if path.exists() else []
    stored = Stored({}, {}, {})
    for entry in entries:
        event = entry["event"]
        if event == "submitted":
            stored.tasks[entry["number"]] = Task(**{name: entry[name] for name in FIELDS["submitted"]})
        elif event == "total":
            stored.totals[entry["tasks"]] = entry["seconds"]
        elif event == FAILED or (folder / "images" / str(entry["image"])).is_file():
            stored.finished[entry["number"]] = entry
    return stored

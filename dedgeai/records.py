"""What is known of a task: what it asks for, where it is, and when what happened to it.

Start reading at `Record`.
"""

import dataclasses

from dedgeai.tasks import Task

WAITING, QUEUED, RUNNING = "waiting", "queued", "running"  # at no server; in a server's queue; at work
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
LIVE, FINAL = (WAITING, QUEUED, RUNNING), (DONE, FAILED, CANCELLED)


@dataclasses.dataclass
class Record:
    """A task and what became of it; None where it has not happened.

    Times with `_at` are wall times in s since 1970, which clocks may set back; delays come from the others, which are
    in s of the clock of the driver that finished it.
    """

    task: Task
    accepted_at: float
    submitted: float = 0.0
    state: str = WAITING
    round: int | None = None  # number of the round in which it was decided first
    decided: int | None = None  # the scheduler's server
    server: int | None = None  # where it was sent last, and when
    sent: float | None = None
    started: float | None = None  # when that server was told to work on it
    finished: float | None = None
    finished_at: float | None = None
    attempts: int = 0  # starts of servers that died while working on it
    moves: int = 0  # times that an idle server took it over
    error: str = ""
    image: str = ""  # name of its file; empty also when that was removed
    # not stored
    step: int = 0  # denoising steps done
    cancelling: bool = False  # it ends at its next step, or once that can be stored
    recalled: bool = False  # finished by an earlier process

    @property
    def delay(self) -> float | None:
        """Seconds from its acceptance to its image or failure."""
        return None if self.finished is None else self.finished - self.submitted

    @property
    def queueing(self) -> float | None:
        """Seconds from its acceptance until a server began with it."""
        return None if self.started is None else self.started - self.submitted

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in FINAL

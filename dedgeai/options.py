"""What the cluster, the system, the service and the generator are told, as typed values.

No part reads the command line's texts again: run_options.py fills these in, once. Nothing here needs Ray or torch.
"""

import dataclasses
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """How edge servers are placed and watched."""

    servers: int
    address: str | None  # of a Ray cluster; None starts a local one
    gpus: float  # fraction of a GPU for each server
    batch_size: int
    job_timeout: float  # s without a result after which a busy server is taken for hung
    rebalance: bool


@dataclasses.dataclass(frozen=True)
class SystemOptions:
    """How the system treats tasks."""

    by_profile: bool  # show the scheduler the profile's backlogs instead of the reported ones
    attempts: int  # deaths of servers after which the task that they worked on counts as failed
    learn: bool  # let the scheduler go on learning from measured delays


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What makes the images of real edge servers."""

    pocket: bool  # the pocket model
    inference: dict[str, Any]  # parameters of refine_sd3_infer.py, unset ones None
    threads: int  # CPU threads of each server
    gpu: bool  # whether a GPU computes, as far as the driver can tell


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """Where the measured profile lies, and how it is measured."""

    path: Path | None  # None: below the project's results, by what is measured
    repeats: int  # images of the fewest and of the most steps from each server
    source: dict[str, Any]  # the parameters that it holds for


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """Where the service listens, and what a request may ask for. Images have one size, that of the run."""

    host: str
    port: int
    token: str | None
    prompt: int  # most characters
    steps: int  # most denoising steps
    queued: int  # most tasks that wait or run
    default_steps: int
    seed: int  # a task that names none gets this plus its number

    @property
    def hosts(self) -> list[str]:
        """The names under which it answers; else other sites' pages could ask a browser to ask it."""
        return ["127.0.0.1", "localhost", "[::1]"] if self.host in LOOPBACK else ["*"]

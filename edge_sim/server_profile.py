"""How fast each edge server is: measured once while all of them work, kept in a file, and what follows from it.

A task of z denoising steps takes seconds_base + z * seconds_per_step. The scheduler thinks in Gcycles, which nobody
counts here, so a step is set to `DENSITY` Gcycles; a server's capacity f is that over its seconds per step, and what a
task costs besides its steps counts as the steps that would take as long. Start reading at `Profile`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from common.parameters import ParameterError
from common.run_folder import describe, write_text

DENSITY = 0.2048  # Gcycles of a denoising step: the middle of the paper's range, since no server counts its cycles


@dataclasses.dataclass(frozen=True)
class Profile:
    """Speeds of B edge servers: arrays [B], in s; spread is the relative standard deviation of a task's seconds.

    `result_mbit` is the mean size of an image, `source` says what was measured. Raises ValueError for arrays that
    differ in length or hold anything but finite numbers above 0 (base and spread may be 0).
    """

    seconds_per_step: np.ndarray
    seconds_base: np.ndarray
    spread: np.ndarray
    result_mbit: float
    source: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("seconds_per_step", "seconds_base", "spread"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != np.shape(self.seconds_per_step) or values.ndim != 1 or values.size == 0:
                raise ValueError(f"{name}: must hold a number for each edge server")
            lowest = np.nextafter(0.0, 1.0) if name == "seconds_per_step" else 0.0
            if not (np.isfinite(values) & (values >= lowest)).all():
                raise ValueError(f"{name}: must be finite and not negative")
            object.__setattr__(self, name, values)
        if not (np.isfinite(self.result_mbit) and self.result_mbit >= 0):
            raise ValueError("result_mbit: must be finite and not negative")
        if not isinstance(self.source, dict):
            raise ValueError("source: must say what was measured")

    @property
    def servers(self) -> int:
        """Edge servers B."""
        return self.seconds_per_step.size

    @property
    def capacity(self) -> np.ndarray:
        """f [B] in Gcycles/s."""
        return DENSITY / self.seconds_per_step

    @property
    def overhead(self) -> float:
        """What a task costs besides its steps, in steps, on average over the servers."""
        return float((self.seconds_base / self.seconds_per_step).mean())

    def workload(self, steps: np.ndarray) -> np.ndarray:
        """w of tasks in Gcycles."""
        return DENSITY * (np.asarray(steps) + self.overhead)

    def seconds(self, server: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Seconds that tasks take on the given servers on average."""
        return self.seconds_base[server] + self.seconds_per_step[server] * steps

    def task_rate(self, steps: float) -> float:
        """Tasks of so many steps that all servers together finish in a second."""
        return float((1 / self.seconds(np.arange(self.servers), steps)).sum())

    def write(self, path: Path) -> None:
        """The profile as JSON, from which `read` takes it."""
        content = dataclasses.asdict(self)
        content |= {name: content[name].tolist() for name in ("seconds_per_step", "seconds_base", "spread")}
        write_text(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path, servers: int, source: dict[str, Any] | None = None) -> "Profile":
        """The profile of a file. Raises ParameterError unless it is whole, for so many servers, and of `source`."""
        try:
            profile = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ParameterError(
                "profile", path, f"must be a profile that a run has measured ({describe(error)})"
            ) from None
        if profile.servers != servers:
            raise ParameterError(
                "profile", path, f"must be of --num_servers={servers} servers, but is of {profile.servers}"
            )
        for name, value in (source or {}).items():
            if profile.source.get(name) != value:
                raise ParameterError(
                    "profile",
                    path,
                    f"was measured with {name}={profile.source.get(name)}, not {value}; remove it to measure anew",
                )
        return profile


def equal_servers(seconds_per_step: float, seconds_base: float, spread: float, speeds: np.ndarray) -> Profile:
    """The profile of servers that wait instead of computing; a server with speed 0.5 takes twice as long."""
    return Profile(
        seconds_per_step / speeds, seconds_base / speeds, np.full(speeds.shape, spread), 0.0, {"compute": "simulated"}
    )


def fitted(steps: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Seconds per step, base and relative spread of one server's measured tasks [K], by least squares.

    Weighted by 1 / seconds, because the scatter grows with the duration; base is at least 0.
    """
    columns = np.stack([steps, np.ones_like(steps, dtype=float)], 1) / seconds[:, None]
    slope, base = np.linalg.lstsq(columns, np.ones(len(steps)), rcond=None)[0]
    if base < 0 or slope <= 0 or np.ptp(steps) == 0:
        slope, base = float((seconds / steps).mean()), 0.0
    spread = float(np.std(seconds / (slope * steps + base))) if len(steps) > 2 else 0.0
    return float(slope), float(base), spread

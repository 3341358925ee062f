"""Requests of a file as the tasks of a run: when they come, what they ask for, and of which model.

Start reading at `read_replay`, and at `Replay.stream`.
"""

import dataclasses

import numpy as np

from common.parameters import ParameterError
from edge_sim.server_profile import Profile
from edge_sim.task_stream import TaskStream
from trace_ts.time_scale import base_stations, compress
from trace_ts.workload import Requests, read_trace


@dataclasses.dataclass(frozen=True)
class Replay:
    """The requests of a file, the most denoising steps of a task, and which model of the catalogue stands for each of
    the file's, model [N]."""

    requests: Requests
    most_steps: int
    model: np.ndarray

    def stream(self, count: int, servers: int, sizes: np.ndarray, load: float | None, profile: Profile) -> TaskStream:
        """The first `count` requests as tasks of the sizes [K] in Mbit.

        A request's work is the steps of one image. All times are scaled by one factor, so that servers of this profile
        have the load; without one they are the file's, from the first request on. A user's base station is a hash.
        """
        part = self.requests.part(slice(count))
        steps, time = self.steps(part.work), part.time - part.time[0]
        if load is not None and time[-1] > 0:
            time = compress(time, np.ones(count), load, profile.task_rate(steps.mean()))
        station = base_stations(part.user, servers, 0)
        return TaskStream(time, station, steps, sizes, self.model[part.model], part.user)

    @property
    def mean_steps(self) -> float:
        """Those of a mean task of the file's first half, which is what policies may be fitted to."""
        return float(self.steps(self.requests.part(slice(max(1, len(self.requests) // 2))).work).mean())

    def steps(self, work: np.ndarray) -> np.ndarray:
        """Denoising steps [K] of tasks with so much work [K] in image-steps."""
        return np.clip(np.rint(work), 1, self.most_steps).astype(np.int64)

    def told(self, names: list[str]) -> list[str]:
        """What becomes of the file's requests, in words; `names` are those of the catalogue's models."""
        requests = self.requests
        cut = 100 * (requests.work > self.most_steps).mean()
        lines = [f"arrivals: {len(requests)} requests; {cut:.3g} % are cut to --max_steps={self.most_steps} steps"]
        if names:
            asked, of_file = self.model[requests.model], np.bincount(self.model, minlength=len(names)).tolist()
            share = (100 * np.bincount(asked, minlength=len(names)) / len(requests)).tolist()
            parts = (f"{name} {n} ({s:.3g} %)" for name, n, s in zip(names, of_file, share, strict=True))
            lines.append(f"models that stand for those of the arrivals, and their requests: {', '.join(parts)}")
        return lines


def read_replay(path: str, most: int, most_steps: int, models: int) -> Replay:
    """The requests of a file that has at least `most`, and of so many models of a catalogue, which stand for those of
    the file by rank of popularity, in turn. Raises ParameterError of `arrivals` or `num_tasks`."""
    try:
        requests = read_trace(path)
    except ParameterError as error:
        raise error.renamed(requests="arrivals") from None
    if most > len(requests):
        raise ParameterError("num_tasks", most, f"must be at most {len(requests)}, the requests of --arrivals")
    model = np.empty(requests.num_models, dtype=np.int64)
    model[requests.by_popularity()] = np.arange(requests.num_models) % models
    return Replay(requests, most_steps, model)

"""The parameters of the edge system as a user gives them; run_options.py makes typed values of them.

The texts that hold several numbers are read here, once each. Start reading at `DedgeParameters`.
"""

import dataclasses
import functools
import re
from typing import ClassVar

import numpy as np

from common.device import DEVICE_CHOICES
from common.parameters import ParameterError, Parameters, numbers, parameter
from common.run_folder import RESULTS
from edge_sim.catalogue import Entry, read_catalogue
from edge_sim.parameters import SchedulerParameters
from edge_sim.schedulers import method_of, scheduler_names
from resd3_medium.dtypes import DTYPES
from resd3_medium.tasks import parse_steps

FOLDER = RESULTS / "dedgeai"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(kw_only=True)
class ModeParameters(Parameters):
    """What kind of run it is, and where it writes."""

    GROUP: ClassVar[str] = "run"

    simulate: bool = parameter(False, "run on simulated servers and a virtual clock instead")
    serve: bool = parameter(False, "answer HTTP requests until Ctrl-C instead")
    seed: int = parameter(0, "seed of tasks, images and scheduler", low=0)
    out: str | None = parameter(None, "folder of the run; default results/dedgeai/<mode and scheduler>", path=True)
    resume: str | None = parameter(None, "go on with the tasks of the run or service in this folder", path=True)


@dataclasses.dataclass(kw_only=True)
class TaskParameters(Parameters):
    """What tasks ask for, and how many arrive when."""

    GROUP: ClassVar[str] = "tasks"

    num_tasks: str = parameter("100", "tasks of a run, or of several runs one after another, as in 1,100,500,1000")
    steps: str = parameter("10-19", "denoising steps, or a range that each task draws its number from", unit="steps")
    load: float | None = parameter(
        None, "offered load of Poisson arrivals; default: all tasks arrive at once", above=0, high=100
    )
    arrivals: str | None = parameter(
        None,
        "CSV file of requests to replay: time_s, user, work in image-steps, model; default: tasks are drawn",
        more="The first --num_tasks of them; their times are scaled to --load, and else as they are.",
        path=True,
    )
    prompts: str | None = parameter(None, "file with a prompt on each line; default captions of the dataset", path=True)

    @functools.cached_property
    def counts(self) -> list[int]:
        """The numbers of tasks of all runs. Raises ParameterError."""
        parts = [part.strip() for part in self.num_tasks.split(",")]
        good = all(
            part.isascii() and part.isdigit() and len(part) < 9 and 1 <= int(part) <= 10_000_000 for part in parts
        )
        if not good or len({int(part) for part in parts}) < len(parts):
            allowed = "must be an integer from 1 to 10000000, or several different ones as in 1,100"
            raise ParameterError("num_tasks", self.num_tasks, allowed)
        return [int(part) for part in parts]

    @functools.cached_property
    def step_range(self) -> tuple[int, int]:
        """The fewest and the most denoising steps of a task. Raises ParameterError."""
        return parse_steps(self.steps)


@dataclasses.dataclass(kw_only=True)
class ServerParameters(Parameters):
    """The edge servers: how many, how fast, where they are placed, and what is done when one fails."""

    GROUP: ClassVar[str] = "servers"

    num_servers: int = parameter(5, "base stations, each with an edge server", low=1, high=10_000)
    rebalance: bool = parameter(True, "let a server without work take over half of the longest queue")
    batch_size: int = parameter(1, "tasks of equal steps and size that a server may denoise together", low=1, high=64)
    compute: str = parameter(
        "real", "real: servers make images; simulated: they wait as long instead", choices=("real", "simulated")
    )
    step_seconds: float = parameter(0.01, "simulated: time of a denoising step", unit="s", above=0, high=1e6)
    base_seconds: float = parameter(0.02, "simulated: time of a task besides its steps", unit="s", low=0, high=1e6)
    spread: float = parameter(0.0, "simulated: relative standard deviation of a task's time", low=0, high=2)
    speeds: str | None = parameter(None, "simulated: speed of each server, as in 1,1,0.5; default all 1")
    profile: str | None = parameter(
        None,
        "file of the servers' speeds; made when absent",
        more="Default: results/dedgeai/profile_<what is measured>.json.",
        path=True,
    )
    profile_repeats: int = parameter(3, "images of the fewest and of the most steps that a profile takes", low=1)
    threads: int = parameter(1, "CPU threads of every edge server", low=1, high=1024)
    gpus_per_server: float = parameter(0.0, "fraction of a GPU that an edge server takes up", low=0, high=64)
    address: str | None = parameter(None, "Ray cluster to join, as in auto or 10.0.0.1:6379; default: a local one")
    catalogue: str | None = parameter(
        None,
        "JSON file of the models that servers may hold; default: one model, that of --models",
        more="A list of models, each with a name, and if need be folder, lora, size in MB and load_time in s.",
        path=True,
    )
    resident_models: int = parameter(1, "models of the catalogue that a server holds at a time", low=1, high=1000)
    job_timeout: float = parameter(
        600.0, "time without a result after which a busy server is started again", unit="s", above=0
    )
    attempts: int = parameter(3, "deaths of servers after which the task that they worked on has failed", low=1)

    @functools.cached_property
    def relative_speeds(self) -> np.ndarray:
        """Speeds [B] of simulated servers. Raises ParameterError."""
        if self.speeds is None:
            return np.ones(self.num_servers)
        return np.array(numbers("speeds", self.speeds, "num_servers", self.num_servers))

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The models of the catalogue, the default one first; none without a catalogue. Raises ParameterError."""
        return () if self.catalogue is None else read_catalogue(self.catalogue)


@dataclasses.dataclass(kw_only=True)
class EdgeImageParameters(Parameters):
    """The model that makes the images, and their size; see refine_sd3_infer.py."""

    GROUP: ClassVar[str] = "images"

    models: str | None = parameter(
        None,
        "folder of the model files; default models",
        more="While no model file lies in models, the default is models/pocket.",
        path=True,
    )
    width: int | None = parameter(
        None, "width of the images, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16, high=4096
    )
    height: int | None = parameter(
        None, "height of the images, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16, high=4096
    )
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)
    dtype: str = parameter("auto", "dtype of the weights; auto: float16, on the CPU float32", choices=("auto", *DTYPES))
    offload: str = parameter(
        "none", "memory level of every server, see refine_sd3_infer.py", choices=("none", "model", "block")
    )
    t5: str = parameter("auto", "use the T5 encoder; auto: if its file is there", choices=("auto", "on", "off"))


@dataclasses.dataclass(kw_only=True)
class ServiceParameters(Parameters):
    """The HTTP service of --serve: where it listens, and what a request may ask for."""

    GROUP: ClassVar[str] = "service"

    host: str = parameter("127.0.0.1", "address to listen on; another than the loopback needs a token")
    port: int = parameter(8000, "port to listen on; 0: any free one", low=0, high=65_535)
    token: str | None = parameter(None, "secret that every request must bring; kept as a hash")
    token_file: str | None = parameter(None, "file that holds the token, instead", path=True)
    change_token: bool = parameter(False, "take another token than this service had, or none from now on")
    root_path: str = parameter("", "path below which a proxy shows the service, as in /images", empty=True)
    allowed_hosts: str | None = parameter(
        None, "names under which it answers, as in a.org,*.b.org; default: any, on the loopback its names"
    )
    cors: str | None = parameter(None, "origins whose pages may use it, as in https://a.org, or *; default none")
    model_name: str | None = parameter(None, "name of the model in the API; default that of what is loaded")
    max_prompt: int = parameter(1000, "longest prompt", unit="characters", low=1, high=100_000)
    max_steps: int = parameter(50, "most denoising steps", unit="steps", low=1, high=1000)
    max_side: int | None = parameter(
        None, "longest side of an image; default 1024, pocket model 64", unit="pixels", low=16, high=4096
    )
    max_images: int = parameter(4, "most images of a request", low=1, high=100)
    max_queued: int = parameter(1000, "most tasks that wait or run", low=1, high=1_000_000)
    max_connections: int = parameter(4000, "most connections at a time", low=10, high=100_000)
    request_seconds: float = parameter(20.0, "longest time that a request may take to arrive", unit="s", above=0)
    keep_images: str | None = parameter(
        None, "images to keep: a number, or an age in days as in 30d; default all", more="Older files are deleted."
    )
    access_log: bool = parameter(True, "write a line for each request into access.log")

    @functools.cached_property
    def kept(self) -> tuple[int | None, float | None]:
        """How many images are kept, and for how many s. Raises ParameterError."""
        if self.keep_images is None:
            return None, None
        number, days = self.keep_images.removesuffix("d"), self.keep_images.endswith("d")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise ParameterError("keep_images", self.keep_images, "must be a number of images, or of days as in 30d")
        return (None, 86_400.0 * int(number)) if days else (int(number), None)


@dataclasses.dataclass(kw_only=True)
class DedgeParameters(
    ServiceParameters, EdgeImageParameters, ServerParameters, SchedulerParameters, TaskParameters, ModeParameters
):
    """Every parameter of main_dedgeai.py. --help shows the groups from the last base to the first."""

    def check(self) -> None:
        """Raises ParameterError for texts that hold no numbers, and for parameters that contradict each other."""
        super().check()
        steps, _, _, _, entries = self.step_range, self.counts, self.relative_speeds, self.kept, self.entries
        if self.learn and not method_of(self.scheduler).learns:
            learning = ", ".join(scheduler_names(learning=True))
            raise ParameterError("learn", True, f"must come with a scheduler that learns, one of {learning}")
        if self.simulate and self.serve:
            raise ParameterError("serve", True, "must not be combined with --simulate")
        if self.serve and self.arrivals is not None:
            raise ParameterError("arrivals", self.arrivals, "must not be combined with --serve")
        if self.simulate and (self.learn or self.resume):
            name = "learn" if self.learn else "resume"
            raise ParameterError(name, getattr(self, name), "must not be combined with --simulate")
        if self.speeds is not None and self.compute == "real" and not self.simulate:
            raise ParameterError("speeds", self.speeds, "must come with --compute simulated")
        if entries and self.model_name:
            raise ParameterError("catalogue", self.catalogue, "must not be combined with --model_name")
        if self.resident_models > 1 and not entries:
            raise ParameterError("resident_models", self.resident_models, "must come with a --catalogue")
        if self.base_seconds > 1e6 * self.step_seconds:
            raise ParameterError(
                "base_seconds", self.base_seconds, "must be at most the time of a million steps of --step_seconds"
            )
        if self.gpus_per_server > 1 and self.gpus_per_server % 1:
            raise ParameterError("gpus_per_server", self.gpus_per_server, "must be at most 1, or a whole number")
        if self.serve and sum(steps) // 2 > self.max_steps:
            raise ParameterError("max_steps", self.max_steps, f"must be at least the middle of --steps={self.steps}")
        if self.token is not None and self.token_file is not None:
            raise ParameterError("token_file", self.token_file, "must not be combined with --token")
        if self.serve and self.host not in LOOPBACK and not (self.token or self.token_file):
            raise ParameterError("host", self.host, f"must be {LOOPBACK[0]}, or come with a --token")
        own = r"(?!/(api|v1|docs|static|openapi\.json|healthz|readyz|metrics)(/|$))"
        if self.root_path and not re.fullmatch(own + r"(/[\w.~-]+)+", self.root_path):
            words = "must be as /images or /ai/images, and begin with none of the service's own paths"
            raise ParameterError("root_path", self.root_path, words)
        for name in ("width", "height"):
            if (getattr(self, name) or 0) % 16:
                raise ParameterError(name, getattr(self, name), "must be a multiple of 16")

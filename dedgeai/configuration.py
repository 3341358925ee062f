"""The parameters of the edge system, and what follows from them alone: prompts, arrivals, profile, policy options.

Live and simulated runs take these from here, so that the same parameters mean the same tasks for the same servers.
"""

import dataclasses
from pathlib import Path

import numpy as np

from common.parameters import ParameterError, Parameters, numbers, parameter
from common.run_folder import RESULTS
from dedgeai.arrivals import Arrivals, draw_arrivals
from dedgeai.policies import LEARNERS, NAMES, PolicyOptions
from dedgeai.server_profile import Profile, equal_servers
from resd3_medium.dtypes import DTYPES
from resd3_medium.folders import MODELS, POCKET
from resd3_medium.tasks import DATASET, choose_prompts, parse_steps
from resd3_medium.weights import PARTS

FOLDER = RESULTS / "dedgeai"
POLICIES = FOLDER / "policies"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(kw_only=True)
class DedgeParameters(Parameters):
    """Every parameter of main_dedgeai.py."""

    num_tasks: str = parameter("100", "tasks of a run, or of several runs one after another, as in 1,100,500,1000")
    num_servers: int = parameter(5, "base stations, each with an edge server", low=1, high=10_000)
    scheduler: str = parameter("lad_ts", f"one of {NAMES}; or FILE.py:ClassName for your own")
    checkpoint: str | None = parameter(
        None, "checkpoint of a learner's own script; default: it is trained on the profile's servers, once"
    )
    policies: str = parameter(str(POLICIES), "folder of the policies that are trained here")
    policy_episodes: int = parameter(60, "episodes of that training", low=1)
    round_tasks: int = parameter(
        10, "most tasks of a base station that are scheduled together; a checkpoint brings its own", low=1, high=1000
    )
    learn: bool = parameter(False, "let the agents go on learning from measured delays")
    steps: str = parameter("10-19", "denoising steps, or a range that each task draws its number from", unit="steps")
    load: float | None = parameter(
        None, "offered load of Poisson arrivals; default: all tasks arrive at once", above=0, high=100
    )
    backlog: str = parameter(
        "reported",
        "backlogs that the policy sees. reported: by the speeds that servers report; profile: by the profile alone, "
        "which makes the decisions those of --simulate with the same",
        choices=("reported", "profile"),
    )
    rebalance: bool = parameter(True, "let a server without work take over half of the longest queue")
    batch_size: int = parameter(1, "tasks of equal steps and size that a server may denoise together", low=1, high=64)
    link_rate: float = parameter(
        450.0, "link rate v between base stations in policies and simulations", unit="Mbit/s", above=0, high=1e9
    )
    compute: str = parameter(
        "real", "real: servers make images; simulated: they wait as long instead", choices=("real", "simulated")
    )
    step_seconds: float = parameter(0.01, "simulated: time of a denoising step", unit="s", above=0, high=1e6)
    base_seconds: float = parameter(0.02, "simulated: time of a task besides its steps", unit="s", low=0, high=1e6)
    spread: float = parameter(0.0, "simulated: relative standard deviation of a task's time", low=0, high=2)
    speeds: str | None = parameter(None, "simulated: speed of each server, as in 1,1,0.5; default all 1")
    profile: str | None = parameter(
        None, "file of the servers' speeds; default results/dedgeai/profile_<what is measured>.json, made when absent"
    )
    profile_repeats: int = parameter(3, "images of the fewest and of the most steps that a profile takes", low=1)
    models: str | None = parameter(
        None, "folder of the model files; default models, or models/pocket while no model file lies in models"
    )
    prompts: str | None = parameter(None, "file with a prompt on each line; default captions of the dataset")
    width: int | None = parameter(
        None, "width of the images, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16, high=4096
    )
    height: int | None = parameter(
        None, "height of the images, a multiple of 16; default 512, pocket model 64", unit="pixels", low=16, high=4096
    )
    device: str = parameter("auto", "where the models run", choices=("auto", "cuda", "mps", "cpu"))
    dtype: str = parameter("auto", "dtype of the weights; auto: float16, on the CPU float32", choices=("auto", *DTYPES))
    offload: str = parameter(
        "none", "memory level of every server, see refine_sd3_infer.py", choices=("none", "model", "block")
    )
    t5: str = parameter("auto", "use the T5 encoder; auto: if its file is there", choices=("auto", "on", "off"))
    threads: int = parameter(1, "CPU threads of every edge server", low=1, high=1024)
    gpus_per_server: float = parameter(0.0, "fraction of a GPU that an edge server takes up", low=0, high=64)
    address: str | None = parameter(None, "Ray cluster to join, as in auto or 10.0.0.1:6379; default: a local one")
    job_timeout: float = parameter(
        600.0, "time without a result after which a busy server is started again", unit="s", above=0
    )
    attempts: int = parameter(3, "deaths of servers after which the task that they worked on has failed", low=1)
    seed: int = parameter(0, "seed of tasks, images and policy", low=0)
    simulate: bool = parameter(False, "run on simulated servers and a virtual clock instead")
    serve: bool = parameter(False, "answer HTTP requests until Ctrl-C instead")
    host: str = parameter("127.0.0.1", "serve: address to listen on; another than the loopback needs --token")
    port: int = parameter(8000, "serve: port to listen on; 0: any free one", low=0, high=65_535)
    token: str | None = parameter(None, "serve: secret that every request must bring")
    max_prompt: int = parameter(1000, "serve: longest prompt", unit="characters", low=1, high=100_000)
    max_steps: int = parameter(50, "serve: most denoising steps", unit="steps", low=1, high=1000)
    max_queued: int = parameter(1000, "serve: most tasks that wait or run", low=1, high=1_000_000)
    out: str | None = parameter(None, "folder of the run; default results/dedgeai/<mode and scheduler>")
    resume: str | None = parameter(None, "go on with the tasks that are left of the run in this folder")

    def check(self) -> None:
        super().check()
        parse_counts(self.num_tasks)
        parse_steps(self.steps)
        parse_speeds(self)
        if self.learn and self.scheduler not in LEARNERS:
            raise ParameterError("learn", True, f"must come with a scheduler that learns, one of {', '.join(LEARNERS)}")
        if self.simulate and self.serve:
            raise ParameterError("serve", True, "must not be combined with --simulate")
        if self.simulate and (self.learn or self.resume):
            name = "learn" if self.learn else "resume"
            raise ParameterError(name, getattr(self, name), "must not be combined with --simulate")
        if self.speeds is not None and self.compute == "real" and not self.simulate:
            raise ParameterError("speeds", self.speeds, "must come with --compute simulated")
        if self.base_seconds > 1e6 * self.step_seconds:
            raise ParameterError(
                "base_seconds", self.base_seconds, "must be at most the time of a million steps of --step_seconds"
            )
        if self.gpus_per_server > 1 and self.gpus_per_server % 1:
            raise ParameterError("gpus_per_server", self.gpus_per_server, "must be at most 1, or a whole number")
        if self.serve and sum(parse_steps(self.steps)) // 2 > self.max_steps:
            raise ParameterError("max_steps", self.max_steps, f"must be at least the middle of --steps={self.steps}")
        if self.serve and self.host not in LOOPBACK and not self.token:
            raise ParameterError("host", self.host, f"must be {LOOPBACK[0]}, or come with a --token")
        for name in ("width", "height"):
            if (getattr(self, name) or 0) % 16:
                raise ParameterError(name, getattr(self, name), "must be a multiple of 16")


def parse_counts(text: str) -> list[int]:
    """The numbers of tasks of all runs. Raises ParameterError."""
    parts = [part.strip() for part in text.split(",")]
    good = all(part.isascii() and part.isdigit() and len(part) < 9 and 1 <= int(part) <= 10_000_000 for part in parts)
    if not good or len({int(part) for part in parts}) < len(parts):
        raise ParameterError(
            "num_tasks", text, "must be an integer from 1 to 10000000, or several different ones as in 1,100"
        )
    return [int(part) for part in parts]


def parse_speeds(config: DedgeParameters) -> np.ndarray:
    """Relative speeds [B] of simulated servers. Raises ParameterError."""
    if config.speeds is None:
        return np.ones(config.num_servers)
    return np.array(numbers("speeds", config.speeds, "num_servers", config.num_servers))


def simulated_profile(config: DedgeParameters) -> Profile:
    """The profile of servers that wait: of a file, or what the parameters say."""
    if config.profile is not None:
        return Profile.read(Path(config.profile), config.num_servers)
    return equal_servers(config.step_seconds, config.base_seconds, config.spread, parse_speeds(config))


def uses_pocket(config: DedgeParameters) -> bool:
    """Whether images come from the pocket model, as they do while no other lies in models."""
    models = Path(config.models or MODELS)
    there = any((models / part.file).is_file() for part in PARTS.values())
    return models.resolve() == POCKET or (config.models is None and not there)


def read_prompts(config: DedgeParameters, count: int) -> list[str]:
    """A caption for each task of all runs: of --prompts in turn, or drawn from those that the model knows."""
    path = config.prompts or (str(DATASET / "pocket_captions.txt") if uses_pocket(config) else None)
    if path is None:
        return choose_prompts((), None, count, config.seed)
    found = choose_prompts((), path, None, config.seed)
    if config.prompts is None:
        found = [found[i] for i in np.random.default_rng(config.seed).permutation(len(found))]
    return [found[i % len(found)] for i in range(count)]


def arrivals_of(config: DedgeParameters, count: int, prompts: list[str], profile: Profile) -> Arrivals:
    """The tasks of one run; a live and a simulated run with the same parameters have the same."""
    steps = parse_steps(config.steps)
    rate = None if config.load is None else config.load * profile.task_rate(sum(steps) / 2)
    sizes = np.array([8e-6 * len(prompt.encode()) for prompt in prompts])
    return draw_arrivals(count, config.num_servers, steps, sizes, rate, config.seed)


def policy_options(config: DedgeParameters, prompts: list[str]) -> PolicyOptions:
    largest = config.max_prompt * 8e-6 if config.serve else max(8e-6 * len(prompt.encode()) for prompt in prompts)
    steps = parse_steps(config.steps)
    return PolicyOptions(
        config.scheduler,
        config.checkpoint,
        config.policy_episodes,
        config.round_tasks,
        steps,
        largest,
        config.link_rate,
        config.seed,
    )

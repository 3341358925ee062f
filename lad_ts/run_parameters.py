"""The parameters of a run that are not the environment's or the method's: how long, how many seeds, where to."""

import dataclasses
import importlib.util
from typing import ClassVar

from common.device import choose_device
from common.parameters import ParameterError, Parameters, parameter
from lad_ts.environment_lad import EnvironmentParameters

DEVICES = ("cuda", "cpu")  # the environment computes in float64, which MPS lacks


@dataclasses.dataclass(kw_only=True)
class RunParameters(Parameters):
    """What every scheduling script takes."""

    GROUP: ClassVar[str] = "run"

    episodes: int = parameter(500, "episodes to run", low=1)
    seeds: int = parameter(1, "seeds that run together", low=1, high=1000)
    seed: int = parameter(0, "first seed; the others follow it", low=0)
    device: str = parameter("auto", "where agents live: auto, cpu, cuda or cuda:N; the rest runs on the CPU")
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the run; default results/<method>/<run>", path=True)

    def check(self) -> None:
        super().check()
        choose_device(self.device, DEVICES)


@dataclasses.dataclass(kw_only=True)
class FixedParameters(RunParameters, EnvironmentParameters):
    """What the scripts of methods without learning take."""

    PRESETS: ClassVar = {"paper": {"tied_sizes": True}, "tuned": {}}
    GROUP: ClassVar[str] = "run"

    preset: str = parameter(
        "tuned", "paper: the published environment, with rho and r tied; tuned: without", choices=("tuned", "paper")
    )
    held_out: bool = parameter(False, "use the held-out arrivals of --evaluate instead of those of training")


@dataclasses.dataclass(kw_only=True)
class TrainingParameters(RunParameters):
    """What the scripts of methods that learn take besides."""

    checkpoint_every: int = parameter(25, "episodes between checkpoints", unit="episodes", low=1)
    resume: str | None = parameter(None, "go on with the run in this folder; --episodes may be raised", path=True)
    evaluate: str | None = parameter(
        None, "evaluate this checkpoint on held-out arrivals instead of training", path=True
    )
    evaluation_episodes: int = parameter(10, "episodes of an evaluation", low=1)
    evaluate_every: int = parameter(
        0,
        "episodes between evaluations during training, on arrivals of their own; 0: none",
        unit="episodes",
        low=0,
        more="They fill evaluation.csv, and the best agents are kept in best.pt.",
    )
    log: str = parameter(
        "none",
        "tensorboard: write metrics.csv's columns as TensorBoard's event files, too",
        choices=("none", "tensorboard"),
    )
    export: str | None = parameter(
        None,
        "write the policy into this ONNX file when the run is at its end",
        more="FILE.onnx, of the first seed. With --resume or --evaluate, the policy of what is there.",
        path=True,
    )

    def check(self) -> None:
        super().check()
        if self.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            words = "needs the package tensorboard: pip install -r requirements-rl.txt"
            raise ParameterError("log", self.log, words)

    @property
    def variant(self) -> str:
        """The run's kind in a word, for labels and the folder's name."""
        return str(getattr(self, "preset", ""))


def training_seeds(config: RunParameters) -> list[int]:
    """The seeds of a run."""
    return list(range(config.seed, config.seed + config.seeds))

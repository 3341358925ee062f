"""The parameters of Cooperative LAD-TS."""

import dataclasses
from typing import ClassVar

from common.parameters import ParameterError, parameter
from coop_lad_ts.routing_table import TableParameters
from lad_ts.engines import engine_parameter
from lad_ts.run_parameters import TrainingParameters


@dataclasses.dataclass(kw_only=True)
class CoopParameters(TableParameters):
    """Parameters of Cooperative LAD-TS."""

    GROUP: ClassVar[str] = "method"

    actor: str = parameter(
        "shared",
        "shared: one network for all BSs; per_bs: a network at each BS, as in LAD-TS",
        choices=("shared", "per_bs"),
        more="The shared network takes any number of servers.",
    )
    teacher: str = parameter(
        "model",
        "model: the queue model's table, then its gradient; prices: measured prices, no model",
        choices=("model", "prices"),
    )
    takeover: float = parameter(
        1.05, "offered load below which every BS replays the greedy rule (virtual Opt); 0: never", low=0
    )
    hidden: int = parameter(32, "width of the two hidden layers", low=1)
    denoising_steps: int = parameter(5, "denoising steps I of the policy", unit="steps", low=1, high=1000)
    beta_schedule: str = parameter("vp", "noise schedule of the policy", choices=("vp", "cosine", "linear"))
    distil_episodes: int = parameter(20, "first episodes, which distil the table", unit="episodes", low=0)
    distil_updates: int = parameter(240, "distillation steps after each episode", low=0)
    distil_rate: float = parameter(0.01, "learning rate of distillation, falling to 0", above=0)
    batch_states: int = parameter(16, "states, with queues of their own, in a distillation step", low=1)
    batch_tasks: int = parameter(8, "tasks of each of these states", low=1)
    tune_updates: int = parameter(6, "steps along the queue model's gradient after each later episode", low=0)
    tune_rate: float = parameter(0.001, "learning rate of these steps in the first such episode", above=0)
    tune_halving: float = parameter(
        10.0, "tune_rate is divided by 1 + e / this, e episodes later", unit="episodes", above=0
    )
    practice: int = parameter(
        0,
        "further drawn scenarios that the shared network also learns from, for use on any",
        low=0,
        high=10_000,
        more="Best without tuning, so with as many distil_episodes as episodes.",
    )
    price_rate: float = parameter(0.01, "step of the table against measured prices, falling with time", above=0)
    price_memory: float = parameter(0.5, "share of the newest episode in the mean of measured prices", above=0, high=1)
    engine: str = engine_parameter()
    evaluation_action: str = parameter(
        "sample", "action in evaluation: drawn from the policy or its best", choices=("sample", "argmax")
    )

    def check(self) -> None:
        super().check()
        if self.practice and (self.actor != "shared" or self.teacher != "model"):
            raise ParameterError("practice", self.practice, "must be 0 without --actor shared and --teacher model")


@dataclasses.dataclass(kw_only=True)
class CoopConfig(CoopParameters, TrainingParameters):
    """Every parameter of main_coop.py."""

    episodes: int = parameter(35, "episodes to run: distil_episodes of distillation, then tuning", low=1)

    @property
    def variant(self) -> str:
        words = [
            self.objective,
            self.actor if self.actor != "shared" else "",
            "prices" if self.teacher == "prices" else "",
        ]
        return "_".join(filter(None, words)) + ("_practised" if self.practice else "")

"""What a method is: a named way of scheduling, with its parameters, its script, and how its scheduler is built.

A method stands beside its scheduler (model_lad.py and its like); baselines/methods.py lists them all.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from lad_ts.environment_lad import Arrivals, CollaborativeMEC
from lad_ts.episodes import EpisodeStatistics
from lad_ts.run_parameters import RunParameters, TrainingParameters


class Runnable(Protocol):
    """What a method builds: a scheduler, or a bound on what schedulers can reach."""

    learns: bool
    needs: str

    def run(self, env: CollaborativeMEC, arrivals: Arrivals, rows: Sequence[tuple[int, int]]) -> EpisodeStatistics: ...


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way of running a method: the flags that it stands for, and the episodes that it is trained for."""

    flags: Mapping[str, Any]
    episodes: int


PRESETS = {name: Variant({"preset": name}, 500) for name in ("tuned", "paper")}


@dataclasses.dataclass(frozen=True)
class Method:
    """A named way of scheduling.

    `key` is what a user picks it by, and its folder below results/; `name` is what figures and tables show. `flags` are
    those of the script's parameters that the key stands for. `variants` may stand behind the key, as in lad_ts:paper;
    the first is the default. `compared` says whether reproduce.py takes it by default.
    """

    key: str
    name: str
    parameters: type[RunParameters]
    build: Callable[[Any, Sequence[int], torch.device], Runnable]
    script: str
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    compared: bool = True
    source: str = ""  # SHA-256 of the file of a user's own class
    note: Callable[[Any], str] = lambda config: ""  # what the user of a training should know in advance

    @property
    def learns(self) -> bool:
        """Whether it is trained, and so has checkpoints."""
        return issubclass(self.parameters, TrainingParameters)

    def label(self, config: Any) -> str:
        """The name, with the variant of methods that learn, as figures and tables show it."""
        return f"{self.name} ({config.variant})" if self.learns and config.variant else self.name

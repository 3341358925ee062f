"""What a scheduler is: the interface between the environment and everything that decides, learning or not.

To add a method, subclass `Scheduler` and write `act`. One that learns subclasses `LearningScheduler` and also writes
`learn` and its state; the training loop in training.py does the rest. Start reading at `Scheduler`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from common.parameters import ParameterError
from common.random_streams import Stream, random_generator
from lad_ts.environment_lad import Arrivals, CollaborativeMEC, EnvironmentParameters, Scenario, Slot
from lad_ts.episodes import EpisodeStatistics, run_episode
from lad_ts.metrics import Metrics
from lad_ts.policy_export import ExportedPolicy


class Scheduler:
    """Chooses the edge server of every task of a slot, for R independent rows of (seed, episode)."""

    learns = False
    training = False  # whether it learns from the episodes that it is run on
    leaves_slots = False  # whether `act` never writes into the slot that it is shown, which then need not be a copy
    needs = "what the rule must know, in words"

    def __init__(self, params: Any = None, seeds: Sequence[int] = (), device: Any = "cpu") -> None:
        """`params` are the script's parameters; those that learn also need the seeds and the device."""
        self.params = params

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        """Start an episode in every row. `self.random` then holds a generator for each row."""
        self.scenario = scenario
        self.num_bs = scenario.capacity.shape[1]
        self.random = [random_generator(Stream.ACTIONS, seed, episode) for seed, episode in rows]

    def act(self, slot: Slot) -> np.ndarray | torch.Tensor:
        """The chosen ES [R, B, N] (integer) of every task; cells where slot.mask is False may hold any ES."""
        raise NotImplementedError(f"{type(self).__name__} must define act(slot)")

    def learn(self, slot: Slot, action: torch.Tensor, delay: torch.Tensor, following: Slot) -> None:
        """Take in a scheduled slot: action and delay [R, B, N], and the slot that follows. Called while training."""
        raise NotImplementedError(f"{type(self).__name__} must define learn(...)")

    def lose(self, down: np.ndarray, scenario: Scenario) -> None:
        """Hear in mid-episode which ESs [R, B] have failed; the scenario has next to no capacity there."""
        self.scenario = scenario

    def run(self, env: CollaborativeMEC, arrivals: Arrivals, rows: Sequence[tuple[int, int]]) -> EpisodeStatistics:
        """The delays of an episode in every row of (seed, episode). What a bound has in common with a scheduler.

        Calls `begin`, then for every slot `act` and, while training, `learn`. Subclasses leave it as it is.
        """
        return run_episode(env, self, arrivals, rows)

    def uniform(self, *shape: int) -> np.ndarray:
        """Uniform numbers [R, *shape] in [0, 1), row by row from the rows' own generators."""
        return np.stack([generator.random(shape) for generator in self.random])


class LearningScheduler(Scheduler):
    """A scheduler that learns from the delays it causes. Rows are training seeds.

    `Parameters` is the class of what it takes besides the parameters of every run; a subclass may declare its own.
    """

    learns = True
    training = True
    metrics: Metrics | None = None  # what it measures of its learning, for metrics.csv
    Parameters: ClassVar[type[EnvironmentParameters]] = EnvironmentParameters

    def finite(self) -> bool:
        """Whether all networks are free of NaN and infinity; checked after every episode."""
        return True

    def moved(self, params: Any) -> "LearningScheduler":
        """The same agents in another environment, that of `params`, where they do not learn.

        Raises ParameterError of what they were not made for.
        """
        raise ParameterError(None, None, f"{type(self).__name__} has no moved(params), to be evaluated elsewhere")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that must be kept at the end of an episode so that training goes on to the same numbers.

        A checkpoint holds tensors, and plain numbers and texts; numpy's arrays and objects are refused.
        """
        raise NotImplementedError(f"{type(self).__name__} must define state_dict()")

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave. Raises KeyError or ValueError when it does not fit."""
        raise NotImplementedError(f"{type(self).__name__} must define load_state_dict(state)")

    def policy(self, scenario: Scenario) -> ExportedPolicy:
        """What --export writes, of the first seed and row. Raises ValueError where there is nothing to write."""
        raise NotImplementedError(f"{type(self).__name__} does not define policy(scenario), which would be exported")

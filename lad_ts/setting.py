"""What a run's parameters come to, worked out once: seeds, scenario, device."""

import dataclasses
from typing import Any

import torch

from common.device import choose_device
from lad_ts.environment_lad import CollaborativeMEC, Scenario, draw_scenario
from lad_ts.run_parameters import DEVICES, training_seeds


@dataclasses.dataclass(frozen=True)
class Setting:
    """The training seeds, the scenario with a row for each, and the device on which agents live."""

    seeds: list[int]
    scenario: Scenario
    device: torch.device
    slot_length: float

    @classmethod
    def of(cls, config: Any) -> "Setting":
        """The setting of a script's parameters. Raises ParameterError when the machine lacks the device."""
        seeds = training_seeds(config)
        return cls(seeds, draw_scenario(config, seeds), choose_device(config.device, DEVICES), config.slot_length)

    def environment(self) -> CollaborativeMEC:
        """The environment in which agents train and are evaluated."""
        return CollaborativeMEC(self.scenario, self.device, self.slot_length)

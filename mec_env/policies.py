"""Policies that other libraries have trained, as schedulers of this project. Start reading at `SB3Scheduler`.

A file of your own names the policy, and stands wherever methods are listed as FILE.py:ClassName.
"""

import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from common.parameters import ParameterError
from lad_ts.environment_lad import Scenario, Slot
from lad_ts.observation import KINDS, Scales, observe, width
from lad_ts.scheduler import Scheduler


class SB3Scheduler(Scheduler):
    """One Stable-Baselines3 actor-critic policy (PPO, A2C) with multilayer perceptrons, for all tasks of all BSs.

    A subclass names the file that `model.save` wrote, relative to its own file. Only the weights in it are read, and
    nothing is unpickled. Actions are drawn from the policy's probabilities by the rows' own generators.
    """

    needs = "q at the slot's start, f, the BS's own tasks; what its training knew"
    path: ClassVar[str] = "policy.zip"
    kind: ClassVar[str] = "relative"  # observations that it was trained with
    scales: ClassVar[Scales | None] = None  # what d and w were divided by; None: as in the environment at hand
    activation: ClassVar[Any] = torch.tanh

    def __init__(self, params: Any = None, seeds: Sequence[int] = (), device: Any = "cpu") -> None:
        super().__init__(params, seeds, device)
        place = Path(self.path)
        if not place.is_absolute():
            place = Path(sys.modules[type(self).__module__].__file__ or ".").resolve().parent / place
        if self.kind not in KINDS:
            words = f"{type(self).__name__}.kind is {self.kind}; must be one of {', '.join(KINDS)}"
            raise ParameterError("method", None, words)
        self.layers = actor_layers(place)
        self.used = self.scales or (Scales() if params is None else Scales.of(params))
        if params is not None:
            self.check_sizes(params.num_bs)

    def check_sizes(self, num_bs: int) -> None:
        """Raise ParameterError unless the policy fits the observations of so many servers."""
        inputs, servers, needed = self.layers[0][0].shape[1], self.layers[-1][0].shape[0], width(self.kind, num_bs)
        if (inputs, servers) != (needed, num_bs):
            words = f"{type(self).__name__} takes {inputs} numbers and knows {servers} servers"
            kind = f"{self.kind} observations of --num_bs={num_bs} have {needed}"
            raise ParameterError("method", None, f"{words}; {kind}")

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        self.check_sizes(self.num_bs)

    def probabilities(self, observation: torch.Tensor) -> torch.Tensor:
        """The policy's probabilities [.., B] for observations [.., F]."""
        x = observation
        for weight, bias in self.layers[:-1]:
            x = type(self).activation(torch.nn.functional.linear(x, weight, bias))
        return torch.nn.functional.linear(x, *self.layers[-1]).softmax(-1)

    def act(self, slot: Slot) -> np.ndarray:
        with torch.no_grad():
            level = self.probabilities(observe(slot, self.scenario, self.kind, self.used)).cumsum(-1).numpy()
        uniform = self.uniform(*slot.mask.shape[1:])[..., None] * level[..., -1:]
        return np.minimum((level <= uniform).sum(-1), self.num_bs - 1)


def actor_layers(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights [out, in] and biases [out] of the actor in a file of Stable-Baselines3, from input to output.

    Raises ParameterError when the file cannot be read, or holds no multilayer perceptron of an actor-critic.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            state = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
        hidden = sorted({int(name.split(".")[2]) for name in state if name.startswith("mlp_extractor.policy_net.")})
        names = [*(f"mlp_extractor.policy_net.{number}" for number in hidden), "action_net"]
        return [(state[f"{name}.weight"].float(), state[f"{name}.bias"].float()) for name in names]
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        kind = type(error).__name__
        reason = f"{path} must be an actor-critic policy saved by Stable-Baselines3 ({kind}: {error})"
        raise ParameterError("method", None, reason) from None

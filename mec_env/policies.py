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
from lad_ts.observation import Scales, observe, width
from lad_ts.scheduler import Scheduler


class SB3Scheduler(Scheduler):
    """One Stable-Baselines3 actor-critic policy (PPO, A2C) with multilayer perceptrons, for all tasks of all BSs.

    A subclass names the file that `model.save` wrote, relative to its own file. Only the weights in it are read, and
    nothing is unpickled. Actions are drawn from the policy's probabilities by the rows' own generators.
    """

    needs = "q at the slot's start, f, the BS's own tasks; what its training knew"
    path: ClassVar[str] = "policy.zip"
    kind: ClassVar[str] = "relative"  # observations that it was trained with
    scales: ClassVar[Scales] = Scales()
    activation: ClassVar[Any] = torch.tanh

    def __init__(self, params: Any = None, seeds: Sequence[int] = (), device: Any = "cpu") -> None:
        super().__init__(params, seeds, device)
        place = Path(self.path)
        if not place.is_absolute():
            place = Path(sys.modules[type(self).__module__].__file__ or ".").resolve().parent / place
        self.layers = actor_layers(place)

    def begin(self, scenario: Scenario, rows: Sequence[tuple[int, int]]) -> None:
        super().begin(scenario, rows)
        found, needed = self.layers[0][0].shape[1], width(self.kind, self.num_bs)
        if found != needed or self.layers[-1][0].shape[0] != self.num_bs:
            words = f"the policy takes {found} numbers and knows {self.layers[-1][0].shape[0]} servers"
            raise ParameterError("num_bs", self.num_bs, f"{words}; {self.kind} observations here have {needed}")

    def probabilities(self, observation: torch.Tensor) -> torch.Tensor:
        """The policy's probabilities [.., B] for observations [.., F]."""
        x = observation
        for weight, bias in self.layers[:-1]:
            x = type(self).activation(torch.nn.functional.linear(x, weight, bias))
        return torch.nn.functional.linear(x, *self.layers[-1]).softmax(-1)

    def act(self, slot: Slot) -> np.ndarray:
        with torch.no_grad():
            level = self.probabilities(observe(slot, self.scenario, self.kind, self.scales)).cumsum(-1).numpy()
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

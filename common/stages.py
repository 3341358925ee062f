"""The loop of a training stage: steps, progress bar, CSV, sheets, and checkpoints to go on from after a SIGKILL.

Start reading at `run_stage`.
"""

import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from common.parameters import ParameterError
from common.pictures import save_sheet
from common.progress import Progress
from common.run_folder import load_checkpoint, save_checkpoint
from common.tables import write_csv


class Stage(Protocol):
    """What is trained step by step. A step must depend on its number and the state only, so that a run can go on."""

    name: str  # of its files, too
    measure: str  # what `evaluate` returns, with its unit
    rate_flag: str  # the parameter that is the learning rate
    steps: int

    def step(self, number: int) -> float:
        """Train once; returns the loss."""

    def batch_words(self, number: int) -> str:
        """What that step trains on, in words."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""

    def evaluate(self) -> tuple[float, torch.Tensor]:
        """The measure, and pictures [B, 3, H, W] for a sheet."""


def run_stage(stage: Stage, config: dict[str, Any], folder: Path, every: int) -> float:
    """Train until the stage's last step, writing <name>.csv, <name>.png and <name>.pt every so many steps.

    Goes on from <name>.pt when it is there. Returns the seconds that all steps took. Raises ParameterError when the
    loss is no longer finite, or the checkpoint is of other parameters.
    """
    path, start, rows, seconds = folder / f"{stage.name}.pt", 0, [], 0.0
    if path.exists():
        content = load_checkpoint(path, "resume")
        if content["method"] != stage.name or content["config"] != config:
            raise ParameterError("resume", folder, f"{path.name} must come from a run with the same parameters")
        stage.load(content["learner"])
        rows, seconds = content["history"], content["seconds"]
        start = rows[-1][0] if rows else 0
    since, losses = time.perf_counter(), []
    with Progress(total=stage.steps, initial=start, unit="step", desc=stage.name, mininterval=1) as bar:
        for number in range(start, stage.steps):
            losses.append(stage.step(number))
            if not math.isfinite(losses[-1]):
                raise ParameterError(
                    stage.rate_flag,
                    config[stage.rate_flag],
                    f"the loss of {stage.name} is {losses[-1]} at step {number} ({stage.batch_words(number)}"
                    "); must be low enough for a finite one",
                )
            bar.update()
            if (number + 1) % every == 0 or number + 1 == stage.steps:
                measure, pictures = stage.evaluate()
                mean = sum(losses) / len(losses)
                bar.set_postfix_str(f"loss {mean:.4f}, {stage.measure} {measure:.2f}")
                rows.append([number + 1, mean, measure])
                losses = []
                write_csv(folder / f"{stage.name}.csv", ("step", "loss", stage.measure), rows)
                save_sheet(folder / f"{stage.name}.png", pictures)
                so_far = seconds + time.perf_counter() - since
                content = {"method": stage.name, "config": config, "history": rows, "seconds": so_far}
                save_checkpoint(path, content | {"learner": stage.state()})
    return seconds + time.perf_counter() - since


class AveragedStage:
    """A model, the moving average of its weights, and the optimiser: what a stage's checkpoint holds."""

    name: str
    seed: int
    model: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer

    @property
    def rate_flag(self) -> str:
        """The parameter that is the learning rate."""
        return f"{self.name}_rate"

    def batch_words(self, number: int) -> str:
        """What that step trains on, in words."""
        return f"the batch drawn from seed {self.seed}"

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss, with a norm of at most 1."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def update(self, loss: torch.Tensor, decay: float) -> float:
        """One step of the optimiser, and of the average towards the weights. Returns the loss."""
        self.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.item()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {name: getattr(self, name).state_dict() for name in ("model", "average", "optimiser")}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        for name in ("model", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])

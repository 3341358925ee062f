"""The loop of a training stage: steps, progress bar, CSV, sheets, and checkpoints to go on from after a SIGKILL.

Start reading at `run_stage`.
"""

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from tqdm import tqdm

from common.parameters import ParameterError
from common.run_folder import load_checkpoint, replace_file, save_checkpoint, write_csv
from resd3_medium.pipeline import to_image


class StageLearner(Protocol):
    """What is trained step by step. A step must depend on its number and the state only, so that a run can go on."""

    name: str  # of the stage and its files
    measure: str  # what `evaluate` returns, with its unit
    steps: int

    def step(self, number: int) -> float:
        """Train once; returns the loss."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...

    def evaluate(self) -> tuple[float, torch.Tensor]:
        """The measure, and pictures [B, 3, H, W] for a sheet."""


def run_stage(learner: StageLearner, config: dict[str, Any], folder: Path, every: int) -> float:
    """Train until the learner's last step, writing <name>.csv, <name>.png and <name>.pt every so many steps.

    Goes on from <name>.pt when it is there. Returns the seconds that all steps took. Raises ParameterError when the
    loss is no longer finite, or the checkpoint is of other parameters.
    """
    path, start, rows, seconds = folder / f"{learner.name}.pt", 0, [], 0.0
    if path.exists():
        content = load_checkpoint(path, "resume")
        if content["method"] != learner.name or content["config"] != config:
            raise ParameterError(f"--resume={folder}: {path.name} must come from a run with the same parameters")
        learner.load(content["learner"])
        rows, seconds = content["history"], content["seconds"]
        start = rows[-1][0] if rows else 0
    since, losses = time.perf_counter(), []
    with tqdm(total=learner.steps, initial=start, unit="step", desc=learner.name, mininterval=1) as bar:
        for number in range(start, learner.steps):
            losses.append(learner.step(number))
            if losses[-1] != losses[-1]:
                raise ParameterError(f"--rate: the loss of {learner.name} is no number at step {number}; lower it")
            bar.update()
            if (number + 1) % every == 0 or number + 1 == learner.steps:
                measure, pictures = learner.evaluate()
                mean = sum(losses) / len(losses)
                bar.set_postfix_str(f"loss {mean:.4f}, {learner.measure} {measure:.2f}")
                rows.append([number + 1, mean, measure])
                losses = []
                write_csv(folder / f"{learner.name}.csv", ("step", "loss", learner.measure), rows)
                save_sheet(folder / f"{learner.name}.png", pictures)
                so_far = seconds + time.perf_counter() - since
                content = {"method": learner.name, "config": config, "history": rows, "seconds": so_far}
                save_checkpoint(path, content | {"learner": learner.state()})
    return seconds + time.perf_counter() - since


def save_sheet(path: Path, pictures: torch.Tensor, columns: int = 16) -> None:
    """Pictures [B, 3, H, W] in -1..1 as one PNG, row by row."""
    missing = -len(pictures) % columns
    filled = torch.cat([pictures.cpu(), torch.ones(missing, *pictures.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in filled.split(columns)]
    image: Image.Image = to_image(torch.cat(rows, dim=1))
    replace_file(path, lambda temporary: image.save(temporary))

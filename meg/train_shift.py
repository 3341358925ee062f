"""Train the decoder of MEG with shift maps: MEG-DT told the SNR, made used to estimates of components.

Needs data made by make_dataset.py, and the transform that fit_statistics.py fitted. Writes checkpoints, CSV, sample
sheets and meg_shift.safetensors into the run's folder. Example:
python meg/train_shift.py --precision bf16 --steps 4000 --batch 8
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.run_folder import resumed
from meg.decoders import TRAINED, load_model
from meg.meg_shift import ShiftModel
from meg.shift_schemes import misfit
from meg.training import Phase, data_for, train
from meg.training_parameters import FREE, TrainingConfig, filled
from meg.transform import TRANSFORM, load_transform


@dataclasses.dataclass(kw_only=True)
class ShiftConfig(TrainingConfig):
    """Every parameter of train_shift.py."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    GROUP: ClassVar[str] = "model"

    start: str = parameter(
        str(TRAINED / "meg_dt_snr.safetensors"), "file of a MEG-DT model told the SNR to start from", path=True
    )
    transform: str = parameter(str(TRAINED / TRANSFORM), "file of the transform by fit_statistics.py", path=True)


def main(config: ShiftConfig, given: dict[str, Any]) -> None:
    """The decoder to start from, the transform, and the training. Raises ParameterError."""
    config = resumed(config, given, FREE) if config.resume else config
    config = filled(dataclasses.replace(config, told_snr=True))
    if config.schedule != "short":
        raise ParameterError("schedule", config.schedule, "must be short: nothing is published of this scheme")
    if given.get("told_snr") is False:
        raise ParameterError("told_snr", False, "must be True: this decoder is always told the SNR")
    torch.set_num_threads(config.threads)
    split, description = load_model(Path(config.start), "start")
    if description.share is not None or not description.estimate:
        raise ParameterError("start", config.start, "must be a MEG-DT model that is told the SNR")
    transform, pairs = load_transform(Path(config.transform), "transform"), data_for(config, description)
    if reason := misfit(transform, pairs.latents.shape[1:]):
        raise ParameterError("transform", config.transform, reason)
    model = ShiftModel(transform, split)
    train(config, model, dataclasses.replace(description, components=True), pairs, (Phase(config.steps, config.rate),))


if __name__ == "__main__":
    command_line(ShiftConfig, main, __doc__)

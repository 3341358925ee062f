"""Train MEG-DT: a generator's decoder that is used to latents with channel noise.

Starts from the generator's own decoder, unless --start names a model, and needs data made by make_dataset.py. Writes
checkpoints, CSV, sample sheets and meg_dt.safetensors into the run's folder. Examples:
python meg/train_split.py
python meg/train_split.py --told_snr --steps 12000
python meg/train_split.py --schedule published --generator sdxl --data results/meg/data_sdxl
"""

import common.quiet_start  # noqa: F401

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.run_folder import resumed
from meg.decoders import load_model, model_of
from meg.generators import open_generator
from meg.image_generator import GENERATORS, ImageOptions
from meg.training import PUBLISHED_SPLIT, Phase, data_for, train
from meg.training_parameters import FREE, TrainingConfig, filled

ESTIMATE = 96  # width of the network that is told the SNR


@dataclasses.dataclass(kw_only=True)
class SplitConfig(TrainingConfig):
    """Every parameter of train_split.py."""

    GROUP: ClassVar[str] = "model"

    generator: str = parameter("pocket", "whose decoder it starts from", choices=GENERATORS)
    models: str | None = parameter(None, "folder of the generator's files; default that of the generator", path=True)
    start: str | None = parameter(None, "file of a MEG-DT model to start from instead", path=True)


def main(config: SplitConfig, given: dict[str, Any]) -> None:
    """The decoder to start from, its data, and the training. Raises ParameterError."""
    config = filled(resumed(config, given, FREE) if config.resume else config)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # for new weights, which torch draws from its global generator
    if config.start:
        model, description = load_model(Path(config.start), "start")
        if description.share is not None or bool(description.estimate) != config.told_snr:
            raise ParameterError("start", config.start, "must be a MEG-DT model with the same --told_snr")
    else:
        base = open_generator(ImageOptions(config.generator, config.models, device="cpu", dtype="float32")).base()
        description = dataclasses.replace(base.description, estimate=ESTIMATE if config.told_snr else 0)
        model = model_of(description, base.decoder, base.post)
    short = (Phase(config.steps, config.rate),)
    phases = PUBLISHED_SPLIT if config.schedule == "published" else short
    train(config, model, description, data_for(config, description), phases)


if __name__ == "__main__":
    command_line(SplitConfig, main, __doc__)

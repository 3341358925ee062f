"""Train E2E-MEG-DT: encoder, feature merging and decoder together, from end to end.

Starts from a MEG-DT model and needs data made by make_dataset.py. Writes checkpoints, CSV, sample sheets and
e2e_meg_dt.safetensors into the run's folder. Examples:
python meg/train_JSCC_merging.py
python meg/train_JSCC_merging.py --told_snr --ratio 0.5
python meg/train_JSCC_merging.py --schedule published --start results/meg/meg_dt/meg_dt.safetensors \
--data results/meg/data_sdxl --token_columns 4 --as_square
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
from meg.merging import LARGEST, Tokens
from meg.models import MergingModel
from meg.training import PUBLISHED_MERGING, Phase, data_for, train
from meg.training_parameters import FREE, TrainingConfig, filled


@dataclasses.dataclass(kw_only=True)
class MergingConfig(TrainingConfig):
    """Every parameter of train_JSCC_merging.py."""

    GROUP: ClassVar[str] = "model"

    start: str | None = parameter(
        None,
        "file of a MEG-DT model to start from; default that of models/meg",
        more="It is meg_dt.safetensors, with --told_snr meg_dt_snr.safetensors.",
        path=True,
    )
    ratio: float = parameter(0.5, "share of the tokens that are merged into others", low=0, high=LARGEST)
    token_rows: int = parameter(1, "latent cells of a token, downwards", low=1, high=16)
    token_columns: int = parameter(1, "latent cells of a token, across; published 4", low=1, high=16)
    as_square: bool = parameter(False, "match the tokens as if their grid were square, as published")


def main(config: MergingConfig, given: dict[str, Any]) -> None:
    """The MEG-DT model to start from, the encoder and merging around it, and the training. Raises ParameterError."""
    config = filled(resumed(config, given, FREE) if config.resume else config)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # for new weights, which torch draws from its global generator
    path = Path(config.start or TRAINED / f"meg_dt{'_snr' if config.told_snr else ''}.safetensors")
    split, description = load_model(path, "start")
    if description.share is not None or bool(description.estimate) != config.told_snr:
        raise ParameterError("start", path, "must be a MEG-DT model with the same --told_snr")
    pairs = data_for(config, description)
    tokens = Tokens(config.token_rows, config.token_columns, config.as_square)
    if not tokens.fits(*pairs.latents.shape[2:]):
        raise ParameterError(
            "token_columns",
            config.token_columns,
            f"must be such that tokens of {config.token_rows} x {config.token_columns} cells fill latents "
            f"of {' x '.join(map(str, pairs.latents.shape[2:]))} in even rows",
        )
    model = MergingModel(split, description.channels, tokens, config.ratio)
    if config.told_snr:
        model.fit(pairs.latents[: max(1, len(pairs) - config.validation)])  # `train` refuses to keep all back
    description = dataclasses.replace(description, share=config.ratio, tokens=dataclasses.astuple(tokens))
    short = (Phase(config.steps, config.rate),)
    phases = PUBLISHED_MERGING if config.schedule == "published" else short
    train(config, model, description, pairs, phases)


if __name__ == "__main__":
    command_line(MergingConfig, main, __doc__)

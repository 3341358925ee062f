"""The parameters that MEG's trainings have. Start reading at `TrainingConfig`, then `filled`."""

import dataclasses
from typing import ClassVar, TypeVar

from common.device import DEVICE_CHOICES
from common.parameters import Parameters, parameter
from common.run_folder import RESULTS
from meg.channel import CHANNELS
from meg.models import RANGE_DB


@dataclasses.dataclass(kw_only=True)
class DataParameters(Parameters):
    """The data, and what of them nothing is trained on or fitted to."""

    GROUP: ClassVar[str] = "data"

    data: str = parameter(
        str(RESULTS / "meg" / "data_pocket"), "folder of latents and images by make_dataset.py", path=True
    )
    validation: int = parameter(64, "last images of the data that nothing is trained on or fitted to", low=1)


@dataclasses.dataclass(kw_only=True)
class ScheduleParameters(Parameters):
    """For how long is trained, and how fast."""

    GROUP: ClassVar[str] = "training"

    schedule: str = parameter(
        "short",
        "short: --steps at --rate; published: six phases of one image a step",
        choices=("short", "published"),
    )
    steps: int = parameter(6000, "training steps of the short schedule", unit="steps", low=1)
    batch: int = parameter(16, "images of a step of the short schedule", low=1, high=4096)
    rate: float = parameter(1e-3, "highest learning rate of the short schedule", above=0)
    loss: str | None = parameter(
        None,
        "mse: mean square error, as published; log_mse: of its logarithm; default mse, with --told_snr log_mse",
        choices=("mse", "log_mse"),
        more="The mean over images of the logarithm is that of the PSNR.",
    )


@dataclasses.dataclass(kw_only=True)
class ChannelParameters(Parameters):
    """What the latents are sent over, and what the decoder is told of it."""

    GROUP: ClassVar[str] = "channel"

    channel: str = parameter("awgn", "channel of the training", choices=CHANNELS)
    snr_db: float = parameter(0.0, "SNR of the training; its middle, with a spread", unit="dB", low=-60, high=60)
    spread_db: float | None = parameter(
        None, "SNRs are drawn evenly so far from the middle; default 0, with --told_snr 20", unit="dB", low=0, high=60
    )
    told_snr: bool = parameter(False, "tell the decoder the SNR, through a network that estimates the clean latent")
    jitter: bool | None = parameter(
        None, "multiply the noise's power by a number from 0.5 to 2.5; default True, with --told_snr False"
    )


@dataclasses.dataclass(kw_only=True)
class MachineParameters(Parameters):
    """How and where a training runs."""

    GROUP: ClassVar[str] = "run"

    seed: int = parameter(0, "seed of batches, noise and new weights", low=0)
    every: int = parameter(500, "steps between checkpoints, with CSV and sample sheet", unit="steps", low=1)
    device: str = parameter("auto", "where the model is trained", choices=DEVICE_CHOICES)
    precision: str = parameter("no", "mixed precision, by accelerate", choices=("no", "bf16", "fp16"))
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the run; default results/meg/<scheme>", path=True)
    resume: str | None = parameter(None, "go on with the run in this folder", path=True)


FREE = ("device", "threads", "every", "resume", "out")  # what --resume may change


@dataclasses.dataclass(kw_only=True)
class TrainingConfig(MachineParameters, ChannelParameters, ScheduleParameters, DataParameters):
    """The parameters that all trainings have; the last base's come first."""


Config = TypeVar("Config", bound=TrainingConfig)


def filled(config: Config) -> Config:
    """The parameters with the defaults that depend on others."""
    told = config.told_snr
    own = {"spread_db": float(RANGE_DB) if told else 0.0, "jitter": not told, "loss": "log_mse" if told else "mse"}
    return dataclasses.replace(config, **{n: v for n, v in own.items() if getattr(config, n) is None})

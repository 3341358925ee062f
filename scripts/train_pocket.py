"""Train the pocket model: a small text-to-image model of Stable Diffusion 3's architecture, on Fluent emoji.

Two stages: the autoencoder, then text encoders and transformer together. Needs the archive of scripts/prepare_emoji.py.
Writes checkpoints, CSVs and sample sheets into the run's folder, and at last the model files into its `models`. After
an interruption, --resume goes on. Example:
python scripts/train_pocket.py --threads 2
"""

import common.quiet_start  # noqa: F401

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.device import choose_device
from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import (
    RESULTS,
    peak_memory,
    resumed,
    run_place,
    write_config,
    write_text,
)
from common.stages import run_stage
from common.threads import cores
from pocket.captions import Captions
from pocket.compositions import Renderer, held_out
from pocket.emoji import ARCHIVE, EmojiSet, load_emoji
from pocket.export import write_models
from pocket.flow_training import FlowStage, make_latents
from pocket.vae_training import SIZES, VAEStage
from resd3_medium.building import build
from resd3_medium.finding import find_part
from resd3_medium.folders import TOKENIZERS
from resd3_medium.vae import VAE

DEVICES = ("cuda", "cpu")  # that the training is for


@dataclasses.dataclass(kw_only=True)
class AutoencoderParameters(Parameters):
    """The first stage."""

    GROUP: ClassVar[str] = "autoencoder"

    vae: str | None = parameter(
        None, "folder of a pocket model whose autoencoder is taken instead of training one", path=True
    )
    vae_steps: int = parameter(20_000, "training steps of the autoencoder", unit="steps", low=1)
    vae_batch: int = parameter(8, "pictures of a step of the autoencoder", low=1)
    vae_rate: float = parameter(2e-3, "learning rate of the autoencoder", above=0)


@dataclasses.dataclass(kw_only=True)
class FlowParameters(Parameters):
    """The second stage."""

    GROUP: ClassVar[str] = "text encoders and transformer"

    latents: int = parameter(120_000, "compositions whose latents are computed beforehand", low=1)
    flow_steps: int = parameter(34_000, "training steps of text encoders and transformer", unit="steps", low=1)
    flow_batch: int = parameter(64, "captioned latents of such a step", low=1)
    flow_rate: float = parameter(1.5e-3, "learning rate of text encoders and transformer", above=0)


@dataclasses.dataclass(kw_only=True)
class TrainConfig(FlowParameters, AutoencoderParameters):
    """Every parameter of train_pocket.py."""

    GROUP: ClassVar[str] = "run"

    emoji: str = parameter(str(ARCHIVE), "archive made by prepare_emoji.py", path=True)
    seed: int = parameter(0, "seed of weights, pictures and captions, and of the pairs that are held out", low=0)
    every: int = parameter(1000, "steps between checkpoints, with CSV and sample sheet", unit="steps", low=1)
    device: str = parameter("auto", "where the models are trained", choices=("auto", "cuda", "cuda:N", "cpu"))
    threads: int = parameter(cores(), "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the run; default results/pocket/run", path=True)
    resume: str | None = parameter(None, "go on with the run in this folder", path=True)


FREE = ("device", "threads", "every", "resume", "out")  # what --resume may change, without another result


def main(config: TrainConfig, given: dict[str, Any]) -> None:
    """The emoji, the run's folder, and the training in it. Raises ParameterError."""
    if config.resume:
        config = resumed(config, given, FREE)
    emoji = load_emoji(Path(config.emoji))
    with run_place(config.resume, config.out, RESULTS / "pocket" / "run") as folder:
        if not config.resume:
            write_config(folder, "pocket", dataclasses.asdict(config))
        train(config, folder, emoji)


def given_vae(models: Path, device: torch.device) -> VAE:
    """The autoencoder of a pocket model's folder. Raises ParameterError when it is none of the same sizes."""
    try:
        vae = build(find_part(models, "VAE"), device, torch.float32)
    except ParameterError as error:
        raise error.renamed(models="vae") from None
    if vae.config != SIZES:
        raise ParameterError("vae", models, f"must hold an autoencoder of widths {SIZES.widths}")
    return vae


def train(config: TrainConfig, folder: Path, emoji: EmojiSet) -> None:
    """Both stages, and the model files. Raises ParameterError when a loss is no longer finite."""
    torch.set_num_threads(config.threads)
    device = choose_device(config.device, DEVICES)
    renderer = Renderer(emoji, device)
    out = held_out(renderer, config.seed)
    fixed = {name: value for name, value in dataclasses.asdict(config).items() if name not in (*FREE, "emoji")}
    fixed["digest"] = emoji.digest()
    if config.vae:
        vae, seconds = given_vae(Path(config.vae), device), [0.0]
        weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in vae.state_dict().values())
        fixed["vae"] = hashlib.sha256(weights).hexdigest()
    else:
        shared = {name: value for name, value in fixed.items() if name.startswith(("vae_", "seed", "digest"))}
        stage = VAEStage(renderer, out, config.seed, config.vae_steps, config.vae_batch, config.vae_rate)
        seconds, vae = [run_stage(stage, shared, folder, config.every)], stage.average
    start = time.perf_counter()
    latents = make_latents(vae, renderer, out, config.latents, config.seed)
    captions = Captions(emoji, TOKENIZERS)
    flow = FlowStage(
        latents, captions, vae, device, config.seed, config.flow_steps, config.flow_batch, config.flow_rate
    )
    seconds.append(time.perf_counter() - start)
    seconds.append(run_stage(flow, fixed, folder, config.every))
    size = write_models(folder / "models", flow.average, vae, latents.format)
    minutes = " + ".join(f"{part / 60:.1f}" for part in seconds)
    write_text(folder / "summary.json", json.dumps({"minutes": [round(part / 60, 2) for part in seconds]}) + "\n")
    print(f"autoencoder, latents, text and transformer: {minutes} min; peak memory {peak_memory(device)}")
    print(f"{size / 1e6:.1f} MB of model files in {folder / 'models'}")


if __name__ == "__main__":
    command_line(TrainConfig, main, __doc__)

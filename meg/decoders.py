"""Decoders of generators, and files of the models that are built on them.

A model's file is safetensors with everything that shapes do not tell as JSON in its metadata, so that it loads without
the generator. Start reading at `load_model`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from common.parameters import ParameterError
from common.run_folder import RESULTS, describe, replace_file
from meg.merging import LARGEST, Tokens
from meg.models import MergingModel, SplitModel
from resd3_medium.folders import MODELS
from resd3_medium.vae import Decoder, LatentFormat, VAEConfig

KEY = "dedgeai_meg"  # in the metadata of a file
TRAINED = MODELS / "meg"  # trained models that come with the project


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model is: its decoder's family and sizes, the latent format, and how it was trained.

    `family` is sd3 (resd3_medium's decoder) or sdxl (diffusers'), `decoder` the sizes that build it. `share` is the
    ratio of feature merging, None for the split model; `estimate` the width of the network that is told the SNR, 0
    without. `components`: it decodes estimates of a latent's components (meg_shift.py). `training` is for the record.
    """

    family: str
    decoder: dict[str, Any]
    channels: int
    scale: float
    shift: float
    estimate: int = 0
    share: float | None = None
    tokens: tuple[int, int, bool] = (1, 1, False)
    components: bool = False
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scheme: `meg_dt` or `e2e_meg_dt`, with `_snr` when it is told the SNR, or `meg_shift`."""
        if self.components:
            return "meg_shift"
        return ("meg_dt" if self.share is None else "e2e_meg_dt") + ("_snr" if self.estimate else "")

    @property
    def latents(self) -> LatentFormat:
        """Where the scaled latents lie."""
        return LatentFormat(self.scale, self.shift)


@dataclasses.dataclass(frozen=True)
class Base:
    """A generator's own decoder, to start from, and what follows it: see Description."""

    decoder: nn.Module
    post: nn.Conv2d | None
    description: Description


def empty_decoder(family: str, sizes: dict[str, Any]) -> nn.Module:
    """A decoder of those sizes without its weights. Raises TypeError or ValueError for sizes that are none."""
    if family == "sd3":
        return Decoder(VAEConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()}))
    if family == "sdxl":
        from diffusers import AutoencoderKL  # takes seconds to import, and only this family needs it

        return AutoencoderKL.from_config(sizes).decoder
    raise ValueError(f"unknown family {family!r}")


def model_of(description: Description, decoder: nn.Module, post: nn.Conv2d | None = None) -> SplitModel | MergingModel:
    """The described model around a decoder."""
    d = description
    split = SplitModel(decoder, d.channels, d.latents, post, d.estimate)
    return split if d.share is None else MergingModel(split, d.channels, Tokens(*d.tokens), d.share)


def save_model(path: Path, model: nn.Module, description: Description) -> None:
    """Write the model in float16, with its description. Raises OSError when the file cannot be written."""
    tensors = {n: t.detach().cpu().half().contiguous() for n, t in model.state_dict().items()}
    content = json.dumps(dataclasses.asdict(description))
    metadata = {KEY: content.replace(f"{RESULTS.parent}/", "")}  # a file tells nothing of the machine that wrote it
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_model(path: Path, flag: str = "decoders") -> tuple[SplitModel | MergingModel, Description]:
    """A model in float32 on the host, and its description. Raises ParameterError when the file holds none, or parts."""
    if not path.is_file():
        raise ParameterError(
            flag, path, "missing; train it with train_split.py, train_JSCC_merging.py or train_shift.py in meg/"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            content = json.loads((file.metadata() or {})[KEY])
            description = Description(**content | {"tokens": tuple(content["tokens"])})
            if description.share is not None and not 0 <= description.share <= LARGEST:
                raise ValueError(f"ratio {description.share}")
            with torch.device("meta"):
                decoder = empty_decoder(description.family, description.decoder)
            model = model_of(description, decoder)
            wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if wanted != found:
                odd = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
                raise ValueError(f"{len(odd)} tensors are missing or of another shape, such as {odd[0]}")
            weights = {name: file.get_tensor(name).float() for name in found}
            if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
                raise ValueError("weights that are not finite")
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ParameterError(flag, path, f"must be a model written by meg's training ({describe(error)})") from None
    model.load_state_dict(weights, assign=True)
    return model, description

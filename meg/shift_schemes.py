"""MEG with shift maps as schemes, for any number of symbols. Start reading at `shift_schemes`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.parameters import ParameterError
from meg.channel import Channel
from meg.meg_shift import ShiftLink, decoded
from meg.models import SplitModel
from meg.schemes import Scheme
from meg.transform import TRANSFORM, Transform, load_transform

SHIFTED = {
    "meg_shift": "MEG with shift maps",
    "meg_shift_blind": "MEG with shift maps, SNR unknown to the sender",
}
TRAINED_NAME = "meg_shift"  # the decoder's


def shift_scheme(name: str, link: ShiftLink, split: SplitModel, own: SplitModel) -> Scheme:
    """A scheme that sends latents by a link, and decodes the estimates."""

    def send(
        latents: torch.Tensor, images: torch.Tensor, channel: Channel, snr_db: float, generator: torch.Generator
    ) -> torch.Tensor:
        return decoded(split, own, *link(latents, channel, snr_db, generator))

    knows = "mean" if link.design_db is None else "nothing"
    title = f"{SHIFTED[name]}, {link.symbols} symbols"
    return Scheme(f"{name}_{link.symbols}", link.symbols, 0, send, title, knows)


def misfit(transform: Transform, latent: torch.Size) -> str:
    """What is wrong with a transform for latents of that shape; nothing where it is for such."""
    if transform.mean.shape == latent:
        return ""
    found, wanted = (" x ".join(map(str, shape)) for shape in (transform.mean.shape, latent))
    return f"{TRANSFORM} must be for latents of {wanted}; it is for {found}"


def transform_for(folder: Path, latent: torch.Size) -> Transform:
    """The transform in a folder of trained models. Raises ParameterError when it is damaged, or for other latents."""
    transform = load_transform(folder / TRANSFORM)
    if reason := misfit(transform, latent):
        raise ParameterError("decoders", folder, reason)
    return transform


def shift_schemes(
    names: Sequence[str],
    counts: Sequence[int],
    design_db: float,
    transform: Transform,
    split: SplitModel,
    own: SplitModel,
) -> list[Scheme]:
    """Those of `SHIFTED` that are named, for every number of symbols; blind senders plan for `design_db`."""
    return [
        shift_scheme(name, ShiftLink(transform, count, None if name == "meg_shift" else design_db), split, own)
        for name in SHIFTED
        if name in names
        for count in counts
    ]

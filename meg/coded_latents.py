"""Digital MEG: a latent as coded components in a block of bits, decoded to an image by the device.

The device knows from the block how large the latent's error is to be expected, and takes the decoder for it. Start
reading at `CodedLatents`; component_coder.py makes the bits.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.parameters import ParameterError
from meg.codecs import psnr_db
from meg.competitors import operations
from meg.component_coder import Coder, Quantised
from meg.decoders import Base, model_of
from meg.digital import pixels
from meg.meg_shift import decoded
from meg.models import SplitModel
from meg.shift_schemes import misfit
from meg.transform import TRANSFORM, Transform, scales

TOLD = ("meg_shift", "meg_dt_snr")  # decoders that are told the SNR, the better one first
PROBED, NEAR = 8, 64  # rungs between those whose images are decoded to know their PSNRs, twice as many from NEAR on
UNSURE_DB = 3.0  # PSNRs that are so little above the mean image's are measured


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What an image takes and gives on every rung: bits without those for the rung, and PSNRs in dB."""

    bits: np.ndarray
    psnr_db: np.ndarray


class CodedLatents:
    """Latents in bits as a `Source`: an image is coded by the finest step that fits.

    The sender knows the receiver's decoders, and so the PSNRs; the mean image is sent where it is better.
    """

    name, label = "meg_digital", "digital MEG, coded latent"

    def __init__(
        self,
        transform: Transform,
        split: SplitModel,
        own: SplitModel,
        mean_image: torch.Tensor,
        device_flop: float = math.nan,
        batch: int = 50,
    ) -> None:
        """`split` is a decoder that is told the SNR, `own` the generator's, see `meg_shift.decoded`."""
        self.transform, self.split, self.own = transform.to(torch.device("cpu")), split, own
        self.mean, self.device_flop, self.batch = pixels(mean_image[None])[0], device_flop, batch
        self.coder = Coder(transform.variances.double().sqrt().cpu().numpy(), transform.log_scale)
        self.ladders: dict[bytes, Ladder] = {}

    def components(self, latents: torch.Tensor) -> list[tuple[np.ndarray, int]]:
        """Components [D] of latents and the numbers of their scales."""
        found = self.transform.components(latents.float().cpu())
        own = scales(found, self.transform.variances).tolist()
        return [(y.double().numpy(), self.coder.scale_of(s)) for y, s in zip(found, own, strict=True)]

    def images(self, quantised: Sequence[Quantised]) -> torch.Tensor:
        """What the device shows [N, 3, H, W] in 0..1 of quantised components."""
        found = [self.coder.values(q) for q in quantised]
        latents = self.transform.latents(torch.from_numpy(np.stack([means for means, _ in found])).float())
        snrs_db = self.transform.snr_db(torch.from_numpy(np.stack([errors for _, errors in found]))).float()
        device = next(self.own.parameters()).device
        parts = zip(latents.split(self.batch), snrs_db.split(self.batch), strict=True)
        shown = [decoded(self.split, self.own, z.to(device), s.to(device)).cpu() for z, s in parts]
        return torch.cat(shown).clamp(0, 1)

    def ladder(self, latent: torch.Tensor, image: torch.Tensor) -> Ladder:
        """That of a latent [C, h, w] and its image [3, H, W], measured once; PSNRs are interpolated."""
        key = latent.cpu().numpy().tobytes() + pixels(image[None]).tobytes()
        if key not in self.ladders:
            coder, (components, scale) = self.coder, self.components(latent[None])[0]
            all_of = [coder.quantise(components, scale, int(rung)) for rung in coder.rungs]
            probed = [*range(0, NEAR, PROBED), *range(NEAR, len(coder.rungs), 2 * PROBED)]
            shown = pixels(self.images([all_of[i] for i in probed]))
            quality = [psnr_db(one, pixels(image[None])[0]) for one in shown]
            bits = np.array([coder.length(q) for q in all_of])
            self.ladders[key] = Ladder(bits, np.interp(np.arange(len(all_of)), probed, quality))
        return self.ladders[key]

    def finest(self, ladder: Ladder, bits: int) -> int | None:
        """The place of the finest rung that fits into so many bits, by the model."""
        fitting = np.flatnonzero(ladder.bits + self.coder.rung_length(bits) <= bits)
        return int(fitting[-1]) if len(fitting) else None

    def psnr_db(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> np.ndarray:
        """PSNRs [N, len(bits)] in dB of latents in so many bits, at least those of the mean image."""
        rows = []
        for latent, image in zip(latents, images, strict=True):
            ladder, least = self.ladder(latent, image), psnr_db(self.mean, pixels(image[None])[0])
            best = [self.finest(ladder, b) for b in bits]
            rows.append([least if i is None else max(least, ladder.psnr_db[i]) for i in best])
        return np.array(rows)

    def encode(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> list[np.ndarray | None]:
        """Each latent by the finest step that fits into so many bits, or none where the mean image is better."""
        blocks = []
        for latent, image, (components, scale), b in zip(latents, images, self.components(latents), bits, strict=True):
            ladder, least = self.ladder(latent, image), psnr_db(self.mean, pixels(image[None])[0])
            place, block = self.finest(ladder, b), None
            while place is not None and place >= 0 and block is None:
                quantised = self.coder.quantise(components, scale, int(self.coder.rungs[place]))
                block, place = self.coder.block(quantised, b), place - 1
            if block is not None and ladder.psnr_db[place + 1] < least + UNSURE_DB:
                shown = pixels(self.images([quantised]))[0]
                block = block if psnr_db(shown, pixels(image[None])[0]) > least else None
            blocks.append(self.coder.block(None, b) if block is None and b else block)
        return blocks

    def decode(self, blocks: Sequence[np.ndarray]) -> list[torch.Tensor | None]:
        """The images of blocks. Raises ValueError for bits that no sender makes."""
        found = [self.coder.read(block) for block in blocks]
        shown = iter(self.images([q for q in found if q])) if any(found) else iter(())
        return [next(shown) if q else None for q in found]


def check_coded(folder: Path, transform: Transform | None, trained: Mapping[str, Any]) -> None:
    """Raises ParameterError where a folder of trained models has no transform, or no decoder that is told the SNR."""
    lacking = [] if transform else [TRANSFORM]
    if not set(TOLD) & set(trained):
        lacking.append(f"a model for {' or '.join(TOLD)}")
    if lacking:
        raise ParameterError("decoders", folder, f"must hold {' and '.join(lacking)} for {CodedLatents.name}")


def open_coded(
    folder: Path,
    transform: Transform | None,
    trained: Mapping[str, tuple[SplitModel, Any]],
    base: Base,
    latent: torch.Size,
    mean_image: torch.Tensor,
    device: torch.device,
) -> CodedLatents:
    """The source for latents of a shape, with a folder's transform and models by name, and the generator's decoder.

    Raises ParameterError when they are missing, or the transform is for other latents.
    """
    check_coded(folder, transform, trained)
    if reason := misfit(transform, latent):
        raise ParameterError("decoders", folder, reason)
    models = (
        trained[next(name for name in TOLD if name in trained)][0],
        model_of(base.description, base.decoder, base.post),
    )
    split, own = (model.to(device).eval().requires_grad_(False) for model in models)
    flop = operations(lambda: split.images(torch.zeros(1, *latent, device=device), torch.zeros(1, device=device)))
    back = 2 * len(transform.variances) ** 2  # from components to the latent
    return CodedLatents(transform, split, own, mean_image, flop + back)

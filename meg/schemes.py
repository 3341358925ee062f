"""The compared schemes: what each sends for an image, and what the user equipment makes of what it receives.

cg sends the image itself; meg_dt and e2e_meg_dt send latents; names with _mmse scale what is received by the linear
estimate first, names with _snr have a decoder that is told the SNR. Start reading at `all_schemes`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from meg.channel import Channel, Link, Received, ratio
from meg.decoders import Base, Description, load_model, model_of
from meg.models import MergingModel, SplitModel, image_estimate
from meg.transform import TRANSFORM

Send = Callable[[torch.Tensor, torch.Tensor, Channel, float, torch.Generator], torch.Tensor]
LABELS = {
    "cg": "CG",
    "cg_mmse": "CG, linear estimate",
    "own_mmse": "generator's own decoder, linear estimate",
    "meg_dt": "MEG-DT",
    "meg_dt_mmse": "MEG-DT, linear estimate",
    "meg_dt_snr": "MEG-DT, told the SNR",
    "e2e_meg_dt": "E2E-MEG-DT",
    "e2e_meg_dt_snr": "E2E-MEG-DT, told the SNR",
}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """`send` takes latents and clean images of a batch, channel, SNR in dB and generator, and returns images."""

    name: str
    symbols: int  # real numbers on the channel for an image
    side_bits: int  # that the receiver needs besides, without error
    send: Send
    label: str = ""  # in reports; empty: that of LABELS
    sender_knows: str = "nothing"  # of the channel: nothing, mean (its mean SNR) or gain (every image's own SNR)
    device_flop: float = math.nan  # floating-point operations of an image on the device; nan: not counted
    source: str = ""  # what a digital scheme has its bits of; those of one source must not send at the same time

    @property
    def title(self) -> str:
        """The scheme's name in reports."""
        return self.label or LABELS[self.name]

    def total_symbols(self, link: Link, snr_db: float) -> float:
        """Symbols with those that carry the side information at the channel's capacity."""
        return self.symbols + (link.symbols_for(self.side_bits, snr_db) if self.side_bits else 0.0)

    def snr_for_energy(self, energy: float) -> float:
        """The SNR in dB at which symbols and side information take that energy, in units of a symbol's noise.

        nan where the energy does not carry the side information, which costs at least 2 ln 2 a bit.
        """
        if energy <= 2 * math.log(2) * self.side_bits:
            return math.nan

        def spent(snr_db: float) -> float:
            snr = ratio(snr_db)
            return snr * (self.symbols + (self.side_bits / (0.5 * math.log2(1 + snr)) if self.side_bits else 0.0))

        low, high = -120.0, 10 * math.log10(energy / self.symbols) + 1e-9
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) < energy else (low, middle)
        return high


def of_latents(model: SplitModel | MergingModel, size: torch.Size, name: str, linear: bool = False) -> Scheme:
    """A scheme that sends latents [C, H, W] to a model; `linear` scales what it receives by the linear estimate."""

    def send(
        latents: torch.Tensor, images: torch.Tensor, channel: Channel, snr_db: float, generator: torch.Generator
    ) -> torch.Tensor:
        if linear:
            received = channel(latents, snr_db, generator)
            return model(Received(received.mmse(), received.snr_db))
        return model.through(latents, channel, snr_db, generator)

    knows = "mean" if isinstance(model, MergingModel) and model.precoder is not None else "nothing"
    return Scheme(name, model.symbols(size), model.side_bits(size), send, sender_knows=knows)


def centralised(size: torch.Size, mean: float, variance: float, linear: bool) -> Scheme:
    """CG: pixels in 0..1 as they are; `linear` applies the linear estimate for pixels of that mean and variance."""

    def send(
        latents: torch.Tensor, images: torch.Tensor, channel: Channel, snr_db: float, generator: torch.Generator
    ) -> torch.Tensor:
        received = channel(images, snr_db, generator)
        return image_estimate(received, mean, variance) if linear else received.symbols

    return Scheme("cg_mmse" if linear else "cg", math.prod(size), 0, send)


def trained_models(folder: Path) -> dict[str, tuple[torch.nn.Module, Description]]:
    """The models of a folder by their scheme's names. Raises ParameterError for files that are none."""
    models = [load_model(path) for path in sorted(folder.glob("*.safetensors")) if path.name != TRANSFORM]
    return {description.name: (model, description) for model, description in models}


def available(trained: Collection[str]) -> list[str]:
    """The names that `all_schemes` gives with models for those schemes."""
    always = {"cg", "cg_mmse", "own_mmse"} | ({"meg_dt_mmse"} if "meg_dt" in trained else set())
    return [name for name in LABELS if name in always or name in trained]


def all_schemes(
    base: Base,
    trained: dict[str, tuple[torch.nn.Module, Description]],
    latent: torch.Size,
    image: torch.Size,
    pixels: tuple[float, float],
    device: torch.device,
) -> list[Scheme]:
    """Every scheme for latents and images of those sizes; `pixels` are mean and variance of clean images."""
    own = model_of(base.description, base.decoder, base.post).to(device).eval().requires_grad_(False)
    found = [centralised(image, *pixels, linear=False), centralised(image, *pixels, linear=True)]
    found.append(of_latents(own, latent, "own_mmse", linear=True))
    for name in LABELS:
        if name in trained:
            model = trained[name][0].to(device).eval().requires_grad_(False)
            found.append(of_latents(model, latent, name))
            if name == "meg_dt":
                found.append(of_latents(model, latent, "meg_dt_mmse", linear=True))
    return found

"""How far MEG with shift maps is from what any code could reach, on validation images.

A code at the channel's capacity leaves at least the square error of reverse water-filling, were components normal and
independent given their image's scale. Beside that bound stand linear sending and shift maps by their own expected
errors, the bits of 5G LDPC, and all of these as images. Writes bound.csv and bound.md into the run's folder. Example:
python meg/bound_shift.py --data results/meg/data_pocket
"""

import common.quiet_start  # noqa: F401

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, write_config, write_text
from common.tables import write_csv
from meg.ablate_shift import Parts, ShiftParameters, measured_on, psnr_db
from meg.allocation import reverse_water_filling
from meg.channel import Channel, ratio
from meg.coded_latents import open_coded
from meg.competitors import MEAN_IMAGE, mean_image
from meg.digital import Sending, digital_scheme
from meg.meg_shift import of_maps
from meg.rates import capacity, open_rate
from meg.report import table
from meg.schemes import Scheme, trained_models
from meg.transform import scales

HEADER = ("measure", "what", "snr_db", "decibels")
MEASURED = ("square error of components (dB)", "PSNR (dB)")
LOST = 0.01  # block error of the real code
SNRS_DB = tuple(float(snr_db) for snr_db in range(-20, 21, 5))
RAMP_DB = (8.5, 20.0)  # SNRs of a latent between which two decoders are mixed: from the trained one to the other
ERRORS = ("bound at capacity", "shift maps", "linear", "bound at 5G LDPC's bits")
IMAGES = ("bound at capacity", "shift maps", "shift maps, decoders mixed", "bound at 5G LDPC's bits", "coded, 5G LDPC")


@dataclasses.dataclass(kw_only=True)
class BoundConfig(ShiftParameters):
    """Every parameter of bound_shift.py."""

    GROUP: ClassVar[str] = "bound"

    out: str | None = parameter(None, "folder of the results; default results/meg/bound", path=True)


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers with that seed."""
    return torch.Generator().manual_seed(seed)


def coded_ideally(parts: Parts, latents: torch.Tensor, errors: np.ndarray, seed: int) -> torch.Tensor:
    """Estimates' images [N, 3, H, W] of latents [N, C, h, w] behind the test channel of such errors [D].

    A component of variance v and error e becomes (1 - e / v) y and a normal number of variance e (1 - e / v).
    """
    t = parts.link.transform
    components = t.components(latents)
    scale = scales(components, t.variances)[:, None]
    errors = torch.from_numpy(errors).float()
    kept = 1 - errors / t.variances
    noise = torch.randn(components.shape, generator=seeded(seed))
    sent = kept * components + scale * (errors * kept).clamp(min=0).sqrt() * noise
    return parts.show(t.latents(sent), t.snr_db(scale.square() * errors))


def mixed(parts: Parts, latent: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
    """Images of estimates of latents at SNRs [B] in dB as means of both decoders, which takes twice the operations."""
    low, high = RAMP_DB
    weight = ((high - snr_db) / (high - low)).clamp(0, 1)[:, None, None, None]
    return weight * parts.split.images(latent, snr_db) + (1 - weight) * parts.own.images(latent, snr_db)


@torch.inference_mode()
def measure(
    parts: Parts, coded: Scheme, latents: torch.Tensor, images: torch.Tensor, snr_db: float, seed: int
) -> tuple[list[float], list[float]]:
    """Relative square errors of components in dB, in the order of ERRORS, and mean PSNRs in dB, in that of IMAGES."""
    t, k, snr = parts.link.transform, parts.link.symbols, float(ratio(snr_db))
    variances = t.variances.double().numpy()
    bits = capacity(k, snr), open_rate("ldpc").bits(k, snr, LOST)
    least = [reverse_water_filling(variances, number) for number in bits]
    errors = least[0].sum(), of_maps(t, k, snr_db, None), of_maps(t, k, snr_db, 1), least[1].sum()
    estimates = parts.link(latents, Channel(), snr_db, seeded(seed))
    shown = [
        coded_ideally(parts, latents, least[0], seed),
        parts.show(*estimates),
        mixed(parts, *estimates),
        coded_ideally(parts, latents, least[1], seed),
        coded.send(latents, images, Channel(), snr_db, seeded(seed)),
    ]
    decibels = [10 * math.log10(error / variances.sum()) for error in errors]
    return decibels, [float(psnr_db(own, images).mean()) for own in shown]


def main(config: BoundConfig, given: dict[str, Any]) -> None:
    """Measure at every SNR, and write the tables. Raises ParameterError."""
    torch.set_num_threads(config.threads)
    pairs, latents, images = measured_on(config)
    folder = Path(config.decoders)
    parts = Parts(config, pairs.latents.shape[1:])
    mean = mean_image(folder)
    if mean is None or mean.shape != images.shape[1:]:
        raise ParameterError("decoders", config.decoders, f"must hold {MEAN_IMAGE} of the size of the images")
    known = trained_models(folder), parts.base, latents.shape[1:], mean, torch.device("cpu")
    source = open_coded(folder, parts.link.transform, *known)
    coded = digital_scheme(source, Sending(config.symbols, open_rate("ldpc"), LOST), mean, Channel())
    with new_folder(config.out, RESULTS / "meg" / "bound") as out:
        write_config(out, "meg bound", dataclasses.asdict(config))
        bar = Progress(SNRS_DB, unit="SNR", desc="bound")
        found = [measure(parts, coded, latents, images, snr_db, config.seed) for snr_db in bar]
        rows, words = [], []
        for what, names, values in zip(MEASURED, (ERRORS, IMAGES), zip(*found, strict=True), strict=True):
            columns = [[name, *own] for name, own in zip(names, zip(*values, strict=True), strict=True)]
            rows += [[what, name, s, v] for name, *own in columns for s, v in zip(SNRS_DB, own, strict=True)]
            lines = [[name, *(f"{v:.1f}" for v in own)] for name, *own in columns]
            words += [*table([f"{what} at (dB)", *(f"{s:g}" for s in SNRS_DB)], lines), ""]
        write_csv(out / "bound.csv", HEADER, rows)
        write_text(out / "bound.md", "\n".join(words))
    print("\n".join(words))


if __name__ == "__main__":
    command_line(BoundConfig, main, __doc__)

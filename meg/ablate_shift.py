"""What each part of MEG with shift maps gives: the scheme without one part after the other, on validation images.

Needs data made by make_dataset.py; its last images are measured on, and the others fit the transform without pixel
weights. Writes ablation.csv and ablation.md into the run's folder. Example:
python meg/ablate_shift.py --data results/meg/data_pocket
"""

import common.quiet_start  # noqa: F401

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.parameters import ParameterError, parameter
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, write_config, write_text
from common.tables import write_csv
from meg.channel import CHANNELS, Channel
from meg.competitors import MOST_SHIFTED
from meg.dataset import Pairs, fitted_to, load_dataset
from meg.decoders import TRAINED, load_model, model_of
from meg.generators import open_generator
from meg.image_generator import ImageOptions
from meg.meg_shift import ShiftLink, decoded
from meg.metrics import of_images
from meg.report import table
from meg.shift_schemes import transform_for
from meg.training_parameters import DataParameters
from meg.transform import Transform, transform_of

Show = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
HEADER = ("variant", "snr_db", "psnr_db", "against_whole_db", "half_interval_db")
SNRS_DB = (-20.0, -10.0, 0.0, 5.0, 10.0, 20.0)


@dataclasses.dataclass(kw_only=True)
class ShiftParameters(DataParameters):
    """What is measured on validation images."""

    GROUP: ClassVar[str] = "scheme"

    decoders: str = parameter(str(TRAINED), "folder of trained models", path=True)
    symbols: int = parameter(1024, "real symbols of an image, an even number", low=2, high=MOST_SHIFTED)
    seed: int = parameter(1, "seed of the noise", low=0)
    threads: int = parameter(1, "CPU threads", low=1, high=1024)

    def check(self) -> None:
        """Raises ParameterError for an odd number of symbols, and for one image alone, which has no interval."""
        super().check()
        if self.symbols % 2:
            raise ParameterError("symbols", self.symbols, "must be even")
        if self.validation < 2:
            raise ParameterError("validation", self.validation, "must be at least 2, to measure on")


@dataclasses.dataclass(kw_only=True)
class AblationConfig(ShiftParameters):
    """Every parameter of ablate_shift.py."""

    GROUP: ClassVar[str] = "ablation"

    channel: str = parameter("awgn", "the channel", choices=CHANNELS)
    wrong_db: float = parameter(3.0, "by how much both ends are told a wrong SNR", unit="dB", low=0, high=60)
    out: str | None = parameter(None, "folder of the results; default results/meg/ablation", path=True)


class Parts:
    """The scheme's transform and the decoders that are compared."""

    def __init__(self, config: ShiftParameters, latent: torch.Size) -> None:
        """Raises ParameterError for files that are missing, or for other latents [C, h, w]."""
        folder = Path(config.decoders)
        self.base = open_generator(ImageOptions("pocket", None, device="cpu", dtype="float32")).base()
        split, told = (load_model(folder / f"{name}.safetensors")[0] for name in ("meg_shift", "meg_dt_snr"))
        own = model_of(self.base.description, self.base.decoder, self.base.post)
        self.split, self.told, self.own = (m.eval().requires_grad_(False) for m in (split, told, own))
        self.link = ShiftLink(transform_for(folder, latent), config.symbols)
        self.show: Show = functools.partial(decoded, self.split, self.own)

    def variants(self, unweighted: Transform, wrong_db: float) -> dict[str, tuple[ShiftLink, Show]]:
        """What is compared, the whole scheme first: how latents are sent, and how estimates are decoded."""
        link, other = self.link, dataclasses.replace
        flat = other(link, transform=unweighted)
        show = self.show
        return {
            "the whole scheme": (link, show),
            "at most two symbols a component": (other(link, most=2), show),
            "one symbol a component, so linear": (other(link, most=1), show),
            "the likeliest numbers, not the posterior means": (other(link, likeliest=True), show),
            "a transform without pixel weights": (flat, show),
            "the generator's own decoder alone": (link, self.own.images),
            "the decoder of MEG-DT told the SNR alone": (link, self.told.images),
            "linear, without pixel weights, the generator's own decoder": (other(flat, most=1), self.own.images),
            "the sender plans for 0 dB": (other(link, design_db=0.0), show),
            f"both ends told {wrong_db:g} dB too much": (other(link, wrong_db=wrong_db), show),
            f"both ends told {wrong_db:g} dB too little": (other(link, wrong_db=-wrong_db), show),
        }


def psnr_db(shown: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The PSNR [N] in dB, at most 60, of shown images [N, 3, H, W] against images in 0..1."""
    error = ((shown.clamp(0, 1) * 255).round() / 255 - images).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-6))


@torch.inference_mode()
def psnrs(
    config: AblationConfig, link: ShiftLink, show: Show, snr_db: float, latents: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """The PSNR [N] in dB of each image [N, 3, H, W] in 0..1."""
    found = link(latents, Channel(config.channel), snr_db, torch.Generator().manual_seed(config.seed))
    return psnr_db(show(*found), images)


def measured_on(config: ShiftParameters) -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    """All of the data, and the latents and images in 0..1 to measure on. Raises ParameterError where there are none."""
    pairs = load_dataset(Path(config.data))
    count = fitted_to(pairs, config.validation)
    return pairs, *pairs.batch(torch.arange(count, len(pairs)), torch.device("cpu"))


def main(config: AblationConfig, given: dict[str, Any]) -> None:
    """Measure every variant at every SNR, and write the table. Raises ParameterError."""
    torch.set_num_threads(config.threads)
    pairs, latents, images = measured_on(config)
    count = len(pairs) - config.validation
    parts = Parts(config, pairs.latents.shape[1:])
    rows, lines, whole = [], [], []
    with new_folder(config.out, RESULTS / "meg" / "ablation") as folder:
        alike = torch.eye(pairs.latents[0].numel(), dtype=torch.float64)
        unweighted = transform_of(pairs.latents[:count].float(), alike, config.data)
        write_config(folder, "meg ablation", dataclasses.asdict(config))
        chosen = parts.variants(unweighted, config.wrong_db)
        for name, (link, show) in Progress(chosen.items(), unit="variant", desc="ablation"):
            found = [psnrs(config, link, show, snr_db, latents, images) for snr_db in SNRS_DB]
            whole = whole or found
            cells = []
            for snr_db, own, best in zip(SNRS_DB, found, whole, strict=True):
                against = of_images(own - best)
                half = against.high - against.value
                rows.append([name, snr_db, float(own.mean()), against.value, half])
                cells.append(f"{own.mean():.2f}" if found is whole else f"{against.value:+.2f} ± {half:.2f}")
            lines.append([name, *cells])
        write_csv(folder / "ablation.csv", HEADER, rows)
        words = "\n".join(table(["PSNR (dB), or how it differs, at (dB)", *(f"{s:g}" for s in SNRS_DB)], lines)) + "\n"
        write_text(folder / "ablation.md", words)
    print(words)


if __name__ == "__main__":
    command_line(AblationConfig, main, __doc__)

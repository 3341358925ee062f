"""The published figure: quality of received images against SNR for CG, MEG-DT and E2E-MEG-DT.

Makes latents and clean images with the generator, sends them by every scheme over the channel at every SNR, and
measures what arrives: at equal SNR per symbol, as published, and at equal energy per image. Writes quality.csv, plots,
sample images and report.md into the run's folder. Examples:
python meg/test_MEG.py
python meg/test_MEG.py --channel rayleigh
python meg/test_MEG.py --schemes cg,meg_dt_snr,cg_digital,prompt --symbols 1024 --rates capacity,ldpc
python meg/test_MEG.py --preset published --generator sdxl --decoders results/meg/sdxl
"""

import common.quiet_start  # noqa: F401

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from common.command_line import command_line
from common.parameters import LARGEST, ParameterError, Parameters, parameter
from common.pictures import save_sheet
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, peak_memory, write_config, write_text
from common.tables import write_csv
from meg.channel import CHANNELS, Channel, Link, equal_energy_snr_db, ratio
from meg.coded_latents import CodedLatents, check_coded, open_coded
from meg.competitors import COMPETITORS, CompetitorParameters, competitors, counted, mean_image
from meg.decoders import TRAINED, model_of
from meg.generators import open_generator
from meg.merging import Tokens
from meg.metrics import Judge, PocketFeatures
from meg.pictures import Pictures, captions_of
from meg.report import HEADER, Row, plot_quality, report
from meg.schemes import Scheme, all_schemes, available, trained_models
from meg.shift_schemes import SHIFTED, misfit, shift_schemes
from meg.sources import SourceParameters, check_one_source, picture_note, pictures_of, source_of
from meg.st_lpips import open_st_lpips
from meg.training import FACTOR
from meg.transform import TRANSFORM, load_transform
from resd3_medium.folders import POCKET
from resd3_medium.tasks import DATASET

PROMPTS = DATASET / "pocket_test_captions.txt"
BUDGETS = {"symbol": ("symbol",), "energy": ("energy",), "both": ("symbol", "energy")}
SAMPLES = 8  # images of a sheet


@dataclasses.dataclass(kw_only=True)
class LinkParameters(Parameters):
    """The channel, its SNRs, and what times and energies are for."""

    GROUP: ClassVar[str] = "channel"

    channel: str = parameter("awgn", "the channel", choices=CHANNELS)
    snr_db: str = parameter("-20,-15,-10,-5,0,5,10,15,20", "SNRs of the points, separated by commas", unit="dB")
    bandwidth_hz: float = parameter(1e6, "bandwidth that transmission times are for", unit="Hz", above=0)
    noise_dbm_hz: float = parameter(-174.0, "noise density that energies are for", unit="dBm/Hz", low=-300, high=100)
    loss_db: float = parameter(120.0, "loss between the antennas that energies are for", unit="dB", low=0, high=300)
    gflop_per_joule: float = parameter(
        100.0, "what the device computes for its energy, of matrix products and convolutions", unit="GFLOP/J", low=1e-6
    )

    def check(self) -> None:
        """Raises ParameterError for SNRs that are none."""
        super().check()
        self.snrs()

    def snrs(self) -> list[float]:
        """The points in dB. Raises ParameterError unless they are numbers in range."""
        refusal = ParameterError("snr_db", self.snr_db, "must be numbers from -60 to 60, separated by commas")
        try:
            values = [float(text) for text in self.snr_db.strip("()[] ").split(",")]
        except ValueError:
            raise refusal from None
        if not values or not all(-60 <= value <= 60 for value in values):
            raise refusal
        return values


@dataclasses.dataclass(kw_only=True)
class TestConfig(CompetitorParameters, LinkParameters, SourceParameters):
    """Every parameter of test_MEG.py."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {"images": 200}, "published": {"images": 6}}
    GROUP: ClassVar[str] = "figure"

    preset: str = parameter(
        "default",
        "default: an image for each of 200 prompts; published: 2 images for each of 3 prompts",
        choices=("default", "published"),
        more="Six images are too few for any distance between sets.",
    )
    decoders: str = parameter(str(TRAINED), "folder of trained models; what is not there is left out", path=True)
    prompts: str = parameter(
        str(PROMPTS), "file with a prompt on each line, or folder of pictures with captions", path=True
    )
    images: int | None = parameter(None, "images for each point; default by preset", low=2)
    budget: str = parameter(
        "both",
        "what schemes have in common: SNR of a symbol, energy of an image, or first one, then the other",
        choices=tuple(BUDGETS),
    )
    inception: str = parameter(
        "auto",
        "auto: also FID, KID and LPIPS where their packages are",
        choices=("auto", "off"),
        more="The packages may fetch weights.",
    )
    st_lpips: str = parameter(
        "auto",
        "auto: also ST-LPIPS where the package stlpips-pytorch is; off; or its wheel, or its weights",
        path=True,
        more="Only the weights are read, no code of the package, which need not be installed if its wheel is named.",
    )
    resamples: int = parameter(50, "draws behind the intervals of the Fréchet distance", low=0)
    batch_size: int = parameter(50, "images that are made, sent and decoded together", low=1, high=1024)
    seed: int = parameter(0, "seed of the first image, and of fading and noise", low=0)
    threads: int = parameter(2, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the results; default results/meg/test", path=True)

    def check(self) -> None:
        """Raises ParameterError where the prompts are to be sent of images that were not made of any."""
        super().check()
        if self.pictures and "prompt" in self.chosen():
            raise ParameterError("schemes", self.schemes, "must not hold prompt with --pictures, made of no prompts")


def found_by(config: TestConfig) -> Pictures | list[str]:
    """The pictures, or a prompt for each image: as many as there are, or with preset published each of three twice."""
    split = config.split or "test"
    if config.pictures:
        found = pictures_of(config, split, config.images, fewer="images" not in config.explicit())
        if len(found) < 2:
            raise ParameterError("pictures", config.pictures, "must hold at least 2 pictures to test on, not 1")
        return found
    prompts = captions_of(Path(config.prompts), "prompts", split, config.test_share)
    if config.preset == "published":
        prompts = prompts[:3]
    return [prompts[i % len(prompts)] for i in range(config.images)]


class Experiment:
    """Clean latents and images, and the rows of quality.csv as they are measured."""

    def __init__(self, config: TestConfig) -> None:
        """Open all files. Raises ParameterError when one is missing, damaged, or for other latents."""
        self.config = config
        self.rows: list[Row] = []
        self.left_out = ""
        found = found_by(config)
        self.trained, self.mean = trained_models(Path(config.decoders)), mean_image(Path(config.decoders))
        path = Path(config.decoders) / TRANSFORM
        self.transform = load_transform(path) if path.is_file() else None
        self.shifted = SHIFTED if self.transform and "meg_shift" in self.trained else ()
        missing = set(config.chosen()) - {*available(self.trained), *COMPETITORS, *self.shifted}
        if config.schemes and missing:
            raise ParameterError("decoders", config.decoders, f"must hold models for {', '.join(sorted(missing))}")
        if CodedLatents.name in config.chosen():
            check_coded(Path(config.decoders), self.transform, self.trained)
        self.network, self.without = open_st_lpips(config.st_lpips)
        self.generator = open_generator(config.image_options())
        self.source = source_of(found, self.generator, config.seed, config.clean)
        self.prompts = self.source.captions
        self.base = self.generator.base()
        for name, (_, d) in self.trained.items():
            if (d.family, d.channels) != (self.base.description.family, self.base.description.channels):
                raise ParameterError("decoders", config.decoders, f"{name} must be for the generator's latents")
            if d.share is not None and not Tokens(*d.tokens).fits(*[self.generator.side // FACTOR] * 2):
                reason = f"must be such that the tokens of {name} in --decoders fill its latents in even rows"
                raise ParameterError("side", self.generator.side, reason)
        self.device = self.generator.device
        self.link = Link(config.bandwidth_hz, config.noise_dbm_hz, config.loss_db, config.gflop_per_joule)

    def prepare(self) -> None:
        """Make the clean images, and the schemes that send them."""
        config, parts = self.config, []
        for start in Progress(range(0, len(self.prompts), config.batch_size), unit="batch", desc="clean images"):
            numbers = range(start, min(start + config.batch_size, len(self.prompts)))
            latents = self.source.latents(numbers)
            parts.append((latents, self.source.images(latents, numbers)))
        self.latents, self.images = (torch.cat(values) for values in zip(*parts, strict=True))
        pixels = float(self.images.mean()), float(self.images.var())
        sizes = self.latents.shape[1:], self.images.shape[1:]
        self.schemes = self.chosen_schemes(all_schemes(self.base, self.trained, *sizes, pixels, self.device), pixels[0])
        self.judge = Judge(self.images, PocketFeatures(POCKET), config.resamples, config.seed)
        self.note = self.judge.add_inception() if config.inception == "auto" else "FID, KID and LPIPS are off"
        self.note += picture_note(self.source) + self.left_out
        self.note += f"; {self.judge.add_st_lpips(self.network) if self.network else self.without}"

    def chosen_schemes(self, uncoded: list[Scheme], level: float) -> list[Scheme]:
        """Those of the schemes that are wanted, and the digital ones, which show grey of a level without a mean image.

        Raises ParameterError when Pillow lacks a codec.
        """
        config, size = self.config, self.images.shape[1:]
        first = self.latents[:1].to(self.device), self.images[:1].to(self.device)
        requests = [(prompt, config.seed + i) for i, prompt in enumerate(self.prompts)]
        mean = torch.full(size, level) if self.mean is None or self.mean.shape != size else self.mean
        with torch.inference_mode():
            uncoded = [scheme for scheme in uncoded if scheme.name in config.chosen()] + self.shift_schemes()
            found = [counted(scheme, *first) for scheme in uncoded]
            coded = None
            if CodedLatents.name in config.chosen():
                folder, latent = Path(config.decoders), self.latents.shape[1:]
                coded = open_coded(folder, self.transform, self.trained, self.base, latent, mean, self.device)
            rest = self.images, requests, mean, config.batch_size, coded
            return found + competitors(config, Channel(config.channel), self.generator, *rest)

    def shift_schemes(self) -> list[Scheme]:
        """Those with shift maps, where their files are there.

        Raises ParameterError for files of other latents, where they are named; else they are left out.
        """
        config, latent = self.config, self.latents.shape[1:]
        if not self.transform or not set(config.chosen()) & set(self.shifted):
            return []
        if reason := misfit(self.transform, latent):
            if config.schemes:
                raise ParameterError("decoders", config.decoders, reason)
            self.left_out = f"; {SHIFTED['meg_shift']} is left out: {reason}"
            return []
        counts = config.symbol_counts() if config.schemes else [latent.numel()]
        own = model_of(self.base.description, self.base.decoder, self.base.post)
        both = [model.to(self.device).eval().requires_grad_(False) for model in (self.trained["meg_shift"][0], own)]
        return shift_schemes(config.chosen(), counts, config.design_db, self.transform.to(self.device), *both)

    def points(self) -> Iterator[tuple[str, Scheme, float, float]]:
        """Budget, scheme, SNR on the axis and SNR of the scheme's symbols, nan where nothing can be received."""
        reference = math.prod(self.images.shape[1:])  # the symbols of CG
        for budget in BUDGETS[self.config.budget]:
            for scheme in self.schemes:
                for snr_db in self.config.snrs():
                    if budget == "symbol":
                        yield budget, scheme, snr_db, snr_db
                    elif scheme.side_bits:
                        yield budget, scheme, snr_db, scheme.snr_for_energy(reference * ratio(snr_db))
                    else:
                        yield budget, scheme, snr_db, equal_energy_snr_db(snr_db, scheme.symbols, reference)

    @torch.inference_mode()
    def received(self, scheme: Scheme, snr_db: float) -> torch.Tensor:
        """All images [N, 3, H, W] in 0..1 as they arrive; every point and scheme has the same seed."""
        generator = torch.Generator().manual_seed(self.config.seed)
        channel, made = Channel(self.config.channel), []
        for latents, images in zip(
            self.latents.split(self.config.batch_size), self.images.split(self.config.batch_size), strict=True
        ):
            made.append(scheme.send(latents.to(self.device), images.to(self.device), channel, snr_db, generator).cpu())
        images = torch.cat(made)
        if not bool(torch.isfinite(images).all()):
            words = f"must make finite images of --decoders={self.config.decoders}; {scheme.name} does not"
            raise ParameterError("schemes", self.config.schemes, words)
        return images.clamp(0, 1)

    def run(self, folder: Path) -> None:
        """Measure every point; a sheet for each budget and scheme, whose first row is clean."""
        points, sheets = list(self.points()), {}
        for budget, scheme, snr_db, symbol_snr_db in Progress(points, unit="point", desc="points"):
            sheet = sheets.setdefault((budget, scheme.name), [self.images[:SAMPLES]])
            if math.isnan(symbol_snr_db):
                quality, side = {}, math.nan
                sheet.append(torch.ones_like(self.images[:SAMPLES]))
            else:
                images = self.received(scheme, symbol_snr_db)
                quality, side = self.judge(images), scheme.total_symbols(self.link, symbol_snr_db)
                sheet.append(images[:SAMPLES])
            self.rows.append(Row(budget, scheme, snr_db, symbol_snr_db, side, len(self.images), quality))
        for (budget, name), rows in sheets.items():
            few = min(SAMPLES, len(self.images))
            save_sheet(folder / f"samples_{budget}_{name}.png", torch.cat(rows) * 2 - 1, few)


def main(config: TestConfig, given: dict[str, Any]) -> None:
    """Images, every point, and what is written of them. Raises ParameterError."""
    torch.set_num_threads(config.threads)
    check_one_source(config, given)
    if config.seed + config.images - 1 > LARGEST:
        raise ParameterError("seed", config.seed, f"must be at most {LARGEST} for the last of {config.images} images")
    if not Path(config.decoders).is_dir():
        raise ParameterError("decoders", config.decoders, "must be a folder of models by meg's training")
    experiment = Experiment(config)
    with new_folder(config.out, RESULTS / "meg" / "test") as folder:
        write_config(folder, "meg test", dataclasses.asdict(config))
        experiment.prepare()
        experiment.run(folder)
        measures = sorted({name for row in experiment.rows for name in row.quality})
        write_csv(folder / "quality.csv", HEADER, [values for row in experiment.rows for values in row.table()])
        for budget in BUDGETS[config.budget] if measures else ():
            plot_quality(folder / f"quality_{budget}", [r for r in experiment.rows if r.budget == budget], measures)
        words = report(experiment.rows, experiment.link, config.channel, experiment.note)
        write_text(folder / "report.md", words)
    print(words)
    print(f"quality.csv, plots, samples and report.md in {folder}; peak memory {peak_memory(experiment.device)}")


if __name__ == "__main__":
    command_line(TestConfig, main, __doc__)

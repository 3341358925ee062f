"""What test_MEG.py measures: clean images, the schemes that send them, and every point of the figure.

Start reading at `Experiment.run`.
"""

import dataclasses
import math
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from common.parameters import ParameterError
from common.pictures import save_sheet
from common.progress import Progress
from meg.channel import Channel, Link, equal_energy_snr_db, ratio
from meg.coded_latents import CodedLatents, check_coded, open_coded
from meg.competitors import COMPETITORS, HYBRID, competitors, counted, mean_image
from meg.decoders import model_of
from meg.figure_parameters import BUDGETS, TestConfig
from meg.generators import open_generator
from meg.hybrid import hybrid_scheme
from meg.merging import Tokens
from meg.metrics import Estimate, Judge, PocketFeatures
from meg.pictures import Pictures, captions_of
from meg.report import Row
from meg.schemes import Scheme, all_schemes, available, trained_models
from meg.shift_schemes import SHIFTED, misfit, shift_schemes
from meg.sources import picture_note, pictures_of, source_of
from meg.st_lpips import open_st_lpips
from meg.training import FACTOR
from meg.transform import TRANSFORM, load_transform
from resd3_medium.folders import POCKET

CODED = (CodedLatents.name, HYBRID)  # what needs coded_latents.py
SAMPLES = 8  # images of a sheet
SMALL = 256  # pixels along a side up to which points are measured beside each other


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


@dataclasses.dataclass(frozen=True)
class Point:
    """A scheme at an SNR on the axis, and the SNR of its symbols, both in dB; nan where nothing can be received."""

    budget: str
    scheme: Scheme
    snr_db: float
    symbol_snr_db: float

    @property
    def key(self) -> tuple[str, str]:
        """The same for points at which the same images are received."""
        return self.scheme.name, repr(self.symbol_snr_db)


class Experiment:
    """Clean latents and images, and the rows of quality.csv as they are measured."""

    def __init__(self, config: TestConfig) -> None:
        """Open all files. Raises ParameterError when one is missing, damaged, or for other latents."""
        self.config = config
        self.rows: list[Row] = []
        self.left_out, self.names = "", config.chosen()
        found = found_by(config)
        self.trained, self.mean = trained_models(Path(config.decoders)), mean_image(Path(config.decoders))
        path = Path(config.decoders) / TRANSFORM
        self.transform = load_transform(path) if path.is_file() else None
        shifted = SHIFTED if self.transform and "meg_shift" in self.trained else ()
        missing = set(self.names) - {*available(self.trained), *COMPETITORS, *shifted}
        if config.named() and missing:
            raise ParameterError("decoders", config.decoders, f"must hold models for {', '.join(sorted(missing))}")
        if config.schemes:
            self.leave_out(missing, "there are no models for them")
            self.leave_out(["prompt"] if config.pictures else [], "pictures are made of no prompts")
        self.names = [name for name in self.names if name not in missing]
        if set(CODED) & set(self.names):
            self.check_coded()
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
        self.small = self.device.type == "cpu" and self.generator.side <= SMALL
        for module in [self.base.decoder, *(model for model, _ in self.trained.values())] if self.small else []:
            module.to(memory_format=torch.channels_last)  # faster for small features
        self.link = Link(config.bandwidth_hz, config.noise_dbm_hz, config.loss_db, config.gflop_per_joule)

    def prepare(self) -> None:
        """Make the clean images, and the schemes that send them."""
        config, parts = self.config, []
        for start in Progress(range(0, len(self.prompts), config.batch_size), unit="batch", desc="clean images"):
            numbers = range(start, min(start + config.batch_size, len(self.prompts)))
            latents = self.source.latents(numbers)
            parts.append((latents, self.source.images(latents, numbers)))
        self.latents, self.images = (torch.cat(values) for values in zip(*parts, strict=True))
        pixels = float(self.images.double().mean()), float(self.images.double().var())
        sizes = self.latents.shape[1:], self.images.shape[1:]
        self.schemes = self.chosen_schemes(all_schemes(self.base, self.trained, *sizes, pixels, self.device), pixels[0])
        self.judge = Judge(self.images, PocketFeatures(POCKET), config.resamples, config.seed)
        self.note = self.judge.add_inception() if config.inception == "auto" else "FID, KID and LPIPS are off"
        self.note += picture_note(self.source) + self.left_out
        self.note += f"; {self.judge.add_st_lpips(self.network) if self.network else self.without}"

    def check_coded(self) -> None:
        """Leave the coded latent out where its files are missing; raises ParameterError where it is named."""
        try:
            check_coded(Path(self.config.decoders), self.transform, self.trained)
        except ParameterError as error:
            if self.config.named():
                raise
            self.leave_out(CODED, error.reason)

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Go on without the schemes of those names, and say so in the report."""
        if gone := [name for name in self.names if name in names]:
            self.names = [name for name in self.names if name not in gone]
            titles = ", ".join(SHIFTED.get(name, name) for name in gone)
            self.left_out += f"; {titles} {'is' if len(gone) == 1 else 'are'} left out: {reason}"

    def chosen_schemes(self, uncoded: list[Scheme], level: float) -> list[Scheme]:
        """Those of the schemes that are wanted, and the digital ones, which show grey of a level without a mean image.

        Raises ParameterError when Pillow lacks a codec, and for a transform of other latents where schemes are named
        that need it; else these are left out.
        """
        config, size, latent = self.config, self.images.shape[1:], self.latents.shape[1:]
        if reason := misfit(self.transform, latent) if self.transform else "":
            needing = {*SHIFTED, *CODED}
            if config.named() and needing & set(self.names):
                raise ParameterError("decoders", config.decoders, reason)
            self.leave_out(needing, reason)
        first = self.latents[:1].to(self.device), self.images[:1].to(self.device)
        requests = [(prompt, config.seed + i) for i, prompt in enumerate(self.prompts)]
        mean = torch.full(size, level) if self.mean is None or self.mean.shape != size else self.mean
        with torch.inference_mode():
            uncoded = [scheme for scheme in uncoded if scheme.name in self.names] + self.shift_schemes()
            found = [counted(scheme, *first) for scheme in uncoded]
            coded, hybrid = None, []
            if set(CODED) & set(self.names):
                folder = Path(config.decoders)
                coded = open_coded(folder, self.transform, self.trained, self.base, latent, mean, self.device)
                if HYBRID in self.names:
                    sendings = config.sendings(Channel(config.channel))
                    hybrid = [hybrid_scheme(coded, s, mean) for s in sendings if s.sender_knows == "mean"]
                    self.leave_out([] if hybrid else [HYBRID], "its sender knows no gain")
            rest = self.images, requests, mean, config.batch_size, coded
            return found + competitors(config, self.names, Channel(config.channel), self.generator, *rest) + hybrid

    def shift_schemes(self) -> list[Scheme]:
        """Those with shift maps among the names."""
        config = self.config
        if not self.transform or not set(self.names) & set(SHIFTED):
            return []
        counts = config.symbol_counts() if config.schemes else [self.latents[0].numel()]
        own = model_of(self.base.description, self.base.decoder, self.base.post)
        both = [model.to(self.device).eval().requires_grad_(False) for model in (self.trained["meg_shift"][0], own)]
        return shift_schemes(self.names, counts, config.design_db, self.transform.to(self.device), *both)

    def points(self) -> list[Point]:
        """Every point of the figure, in the order of quality.csv."""
        reference = math.prod(self.images.shape[1:])  # the symbols of CG
        found = []
        for budget in BUDGETS[self.config.budget]:
            for scheme in self.schemes:
                for snr_db in self.config.snrs():
                    if budget == "symbol":
                        own = snr_db
                    elif scheme.side_bits:
                        own = scheme.snr_for_energy(reference * ratio(snr_db))
                    else:
                        own = equal_energy_snr_db(snr_db, scheme.symbols, reference)
                    found.append(Point(budget, scheme, snr_db, own))
        return found

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

    def measured(self, scheme: Scheme, snr_db: float) -> tuple[dict[str, Estimate], torch.Tensor]:
        """A scheme's quality at an SNR of its symbols, and the first images; nothing and white where the SNR is nan."""
        if math.isnan(snr_db):
            return {}, torch.ones_like(self.images[:SAMPLES])
        images = self.received(scheme, snr_db)
        return self.judge(images), images[:SAMPLES].clone()

    def run(self, folder: Path) -> None:
        """Measure every point; a sheet for each budget and scheme, whose first row is clean.

        Small images are measured at as many points beside each other as there are threads, but those of digital
        schemes of one source one after the other. A scheme's images are the same at equal SNR of its symbols.
        """
        points, known, stop = self.points(), {}, threading.Event()
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(point.scheme.source or point.scheme.name, []).append(point)
        bar, one_at_a_time = Progress(total=len(points), unit="point", desc="points"), threading.Lock()

        def measure(group: list[Point]) -> None:
            for point in group:
                if stop.is_set():
                    return
                if point.key not in known:
                    known[point.key] = self.measured(point.scheme, point.symbol_snr_db)
                with one_at_a_time:
                    bar.update()

        beside, before = self.config.threads if self.small else 1, torch.get_num_threads()
        torch.set_num_threads(max(1, before // beside))
        try:
            with bar, ThreadPoolExecutor(beside) as pool:
                try:
                    list(pool.map(measure, sorted(groups.values(), key=len, reverse=True)))
                finally:
                    stop.set()
        finally:
            torch.set_num_threads(before)
        sheets: dict[tuple[str, str], list[torch.Tensor]] = {}
        for point in points:
            quality, few = known[point.key]
            side = point.scheme.total_symbols(self.link, point.symbol_snr_db) if quality else math.nan
            at = point.budget, point.scheme, point.snr_db, point.symbol_snr_db
            self.rows.append(Row(*at, side, len(self.images), quality))
            sheets.setdefault((point.budget, point.scheme.name), [self.images[:SAMPLES]]).append(few)
        for (budget, name), rows in sheets.items():
            save_sheet(folder / f"samples_{budget}_{name}.png", torch.cat(rows) * 2 - 1, len(rows[0]))

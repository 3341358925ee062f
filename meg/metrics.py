"""How good received images are: against the clean ones one by one, and as a set.

PSNR and SSIM compare images with images, with normal 95 % intervals over them. The Fréchet distance compares sets in a
feature space that comes with the project, the pocket autoencoder's; it is not FID, which needs Inception's weights, and
neither can be compared across numbers of images. ST-LPIPS (st_lpips.py), and torchmetrics' FID, KID and LPIPS are added
where their weights are. Start reading at `Judge.__call__`.
"""

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from common.run_folder import describe
from meg.codecs import PEAK_DB
from meg.image_measures import Frechet, Similarity
from meg.st_lpips import SMALLEST, STLPIPS, Against
from resd3_medium.building import build
from resd3_medium.finding import find_part
from resd3_medium.vae import VAE

HIGHER_IS_BETTER = {"psnr_db": True, "ssim": True, "st_lpips": False, "frechet_pocket": False}
LABELS = {
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "st_lpips": "ST-LPIPS",
    "frechet_pocket": "Fréchet distance, pocket features",
    "fid_64": "FID, 64 features",
    "fid_2048": "FID",
    "kid": "KID",
    "lpips": "LPIPS",
}
TOGETHER = 16  # images that are measured at once


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval, which is that of the images drawn."""

    value: float
    low: float
    high: float


def of_images(values: torch.Tensor) -> Estimate:
    """The mean of values [N] with a normal interval."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)


class PocketFeatures(nn.Module):
    """Images [B, 3, H, W] in 0..1 as the means over places of the pocket autoencoder's deepest features [B, 128]."""

    def __init__(self, models: Path) -> None:
        super().__init__()
        vae: VAE = build(find_part(models, "VAE"), torch.device("cpu"), torch.float32)
        self.encoder = vae.encoder.to(memory_format=torch.channels_last)  # faster for small features

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 128] of images [B, 3, H, W] in 0..1."""
        x = self.encoder.conv_in(images * 2 - 1)
        for level in self.encoder.down:
            x = level(x)
        return self.encoder.mid(x).mean((2, 3))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is measured of one received image."""

    psnr_db: torch.Tensor
    ssim: torch.Tensor
    features: torch.Tensor  # [D]


class Judge:
    """Compares received images with the clean ones [N, 3, H, W] in 0..1, both clipped and rounded to bytes.

    An image that arrives again, by whatever scheme and at whatever point, is measured once. Threads may share a judge.
    """

    def __init__(
        self, clean: torch.Tensor, features: Callable[[torch.Tensor], torch.Tensor], resamples: int, seed: int
    ) -> None:
        self.clean, self.features = as_shown(clean), features
        self.similarity = Similarity(self.clean)
        parts = [self.clean[numbers] for numbers in even_parts(range(len(clean)))]
        self.frechet = Frechet(torch.cat([features(part) for part in parts])[: len(clean)], resamples, seed)
        self.seen: dict[tuple[int, bytes], Measured] = {}
        self.inception: dict[str, Callable[[torch.Tensor], float]] = {}
        self.perceptual: Against | None = None
        self.alone = threading.Lock()  # for measures that keep a state

    def measured(self, received: torch.Tensor) -> list[Measured]:
        """What is measured of each of the images [N, 3, H, W], as they are shown."""
        keys = [(i, blake2b(image.numpy().tobytes()).digest()) for i, image in enumerate(received)]
        new = [i for i, key in enumerate(keys) if key not in self.seen]
        for numbers in even_parts(new):
            part, clean = received[numbers], self.clean[numbers]
            error = (part - clean).square().flatten(1).mean(1)
            psnr_db = (-10 * torch.log10(error)).clamp(max=PEAK_DB)
            found = zip(psnr_db, self.similarity(part, numbers), self.features(part), strict=True)
            self.seen |= {keys[i]: Measured(*values) for i, values in zip(numbers.tolist(), found, strict=True)}
        return [self.seen[key] for key in keys]

    def __call__(self, received: torch.Tensor) -> dict[str, Estimate]:
        """All measures of received images [N, 3, H, W], which are in the order of the clean ones."""
        received = as_shown(received)
        each = self.measured(received)
        found = {name: of_images(torch.stack([getattr(m, name) for m in each])) for name in ("psnr_db", "ssim")}
        if self.perceptual:
            found["st_lpips"] = of_images(self.perceptual(received))
        found["frechet_pocket"] = self.distance(torch.stack([m.features for m in each]))
        with self.alone:
            for name, measure in self.inception.items():
                found[name] = Estimate(measure(received), math.nan, math.nan)
        return found

    def distance(self, features: torch.Tensor) -> Estimate:
        """The Fréchet distance of features [N, D], with an interval from draws of images with replacement.

        Resampling raises the distance itself, so only the spread of the draws is used.
        """
        value, *draws = self.frechet.distances(features).tolist()
        half = 1.96 * float(torch.tensor(draws).std()) if len(draws) > 1 else 0.0
        return Estimate(value, max(0.0, value - half), value + half)

    def add_st_lpips(self, network: STLPIPS) -> str:
        """Add ST-LPIPS. Returns a line that says that it is there, or why not."""
        if min(self.clean.shape[2:]) < SMALLEST:
            return f"ST-LPIPS is left out: it needs images of at least {SMALLEST} pixels along a side"
        self.perceptual = Against(network, self.clean)
        return "with ST-LPIPS, which is not LPIPS"

    def add_inception(self) -> str:
        """Add FID, KID and LPIPS where their weights can be had. Returns a line that says which are there, or why not.

        torchmetrics takes them from the package torch-fidelity and from torchvision, which fetch them at first use.
        """
        if find_spec("torch_fidelity") is None:
            return "FID, KID and LPIPS are left out: they need the packages torch-fidelity and torchvision"
        many = min(50, len(self.clean) // 2)
        makers = {
            "fid_64": lambda: FrechetInceptionDistance(feature=64, normalize=True).set_dtype(torch.float64),
            "fid_2048": lambda: FrechetInceptionDistance(feature=2048, normalize=True).set_dtype(torch.float64),
            "kid": lambda: KernelInceptionDistance(subset_size=many, normalize=True),
            "lpips": lambda: LearnedPerceptualImagePatchSimilarity("alex", normalize=True),
        }
        left_out = []
        for name, make in makers.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.inception[name] = against(self.clean, make(), pairs=name == "lpips")
            except Exception as error:  # the packages raise many kinds when their weights cannot be fetched
                left_out.append(f"{name} ({describe(error)})")
        here = ", ".join(self.inception) or "none"
        return f"with Inception's or AlexNet's weights: {here}" + (
            f"; left out: {', '.join(left_out)}" if left_out else ""
        )


def even_parts(numbers: Sequence[int]) -> list[torch.Tensor]:
    """Numbers in parts of TOGETHER, the last one filled up by its own last number.

    The last digits of what a network gives depend on how many images go through it, and so do not change.
    """
    padded = [*numbers, *[numbers[-1]] * (-len(numbers) % TOGETHER)] if numbers else []
    return list(torch.tensor(padded, dtype=torch.long).split(TOGETHER)) if padded else []


def against(clean: torch.Tensor, metric: nn.Module, pairs: bool) -> Callable[[torch.Tensor], float]:
    """A function from received images to the metric's value against the clean ones."""

    def value(received: torch.Tensor) -> float:
        metric.reset()
        for a, b in zip(received.split(32), clean.split(32), strict=True):
            if pairs:
                metric.update(a, b)
            else:
                metric.update(b, real=True)
                metric.update(a, real=False)
        result = metric.compute()
        return float(result[0] if isinstance(result, tuple) else result)

    return value


def as_shown(images: torch.Tensor) -> torch.Tensor:
    """Images on the host, clipped to 0..1 and rounded to bytes."""
    return (images.clamp(0, 1) * 255).round().cpu().float() / 255

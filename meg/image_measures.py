"""SSIM and the Fréchet distance against images that stay the same: what these alone need is computed once.

A figure compares many received sets with one clean set. Both give what torchmetrics gives. Start reading at
`Similarity`, then `Frechet`.
"""

import torch
from torch.nn.functional import pad

SIGMA, REACH = 1.5, 5  # of SSIM's window in pixels: its deviation, and half its width
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for values in 0..1


def window(size: int) -> torch.Tensor:
    """The matrix [size, size] of the means under SSIM's window along a side, which is mirrored at its ends."""
    weights = torch.exp(-(torch.arange(-REACH, REACH + 1).double() / SIGMA).square() / 2)
    spread = torch.eye(size, dtype=torch.float64)[None]
    mirrored = pad(spread, (REACH, REACH), mode="reflect")[0]  # every unit vector, as the window sees it
    return (mirrored.unfold(1, 2 * REACH + 1, 1) @ (weights / weights.sum())).T.float()


class Similarity:
    """SSIM (Wang, Bovik, Sheikh and Simoncelli 2004) against clean images [N, C, H, W] in 0..1; sides above REACH."""

    def __init__(self, clean: torch.Tensor) -> None:
        self.clean = clean
        self.rows, self.columns = (window(size) for size in clean.shape[2:])
        self.mean = self.under_window(clean)
        self.variance = (self.under_window(clean * clean) - self.mean.square()).clamp(min=0)

    def under_window(self, images: torch.Tensor) -> torch.Tensor:
        """The means [N, C, H, W] of images under the window around each pixel."""
        return self.rows @ images @ self.columns.T

    def __call__(self, received: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """SSIM [B] of received images [B, C, H, W], each against the clean one of its number [B]."""
        clean, mean, variance = self.clean[numbers], self.mean[numbers], self.variance[numbers]
        own = self.under_window(received)
        spread = (self.under_window(received * received) - own.square()).clamp(min=0)
        together = self.under_window(received * clean) - own * mean
        upper = (2 * own * mean + C1) * (2 * together + C2)
        lower = (own.square() + mean.square() + C1) * (spread + variance + C2)
        return (upper / lower).flatten(1).mean(1)


class Frechet:
    """The Fréchet distance to features [N, D], and to draws of them with replacement.

    It is |m - m'|^2 + tr(S + S' - 2 (S S')^1/2) for means m and covariances S. With S = R'R the last trace is that of
    the root of R S' R', which is symmetric.
    """

    def __init__(self, features: torch.Tensor, draws: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = len(features)
        drawn = [torch.randint(count, (count,), generator=generator) for _ in range(draws)]
        self.chosen = [torch.arange(count), *drawn]
        known = [centred(features.double()[own]) for own in self.chosen]
        self.means = [mean for mean, _ in known]
        self.roots = [torch.linalg.qr(values, mode="r").R for _, values in known]

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Distances [1 + draws] of features [N, D] that belong to the known ones: of all, then drawn as these."""
        features, found = features.double(), []
        for own, known, root in zip(self.chosen, self.means, self.roots, strict=True):
            mean, values = centred(features[own])
            product = values @ root.T
            common = torch.linalg.eigvalsh(product.T @ product).clamp(min=0).sqrt().sum()
            traces = root.square().sum() + values.square().sum()
            found.append((mean - known).square().sum() + traces - 2 * common)
        return torch.stack(found)


def centred(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean [D] of features [N, D], and a matrix whose square is their covariance."""
    mean = features.mean(0)
    return mean, (features - mean) / max(len(features) - 1, 1) ** 0.5

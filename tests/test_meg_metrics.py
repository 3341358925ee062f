"""FID, KID and LPIPS with stand-ins for the weights that they need, against their definitions."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from meg import metrics
from meg.metrics import Judge


class StandIn(nn.Module):
    """Three features of images [N, 3, H, W], in the place of Inception's."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean((2, 3)) * torch.tensor([1.0, 2.0, -1.0])


class Mean(nn.Module):
    """The mean absolute difference of all pairs, in the place of LPIPS."""

    def reset(self) -> None:
        self.found: list[torch.Tensor] = []

    def update(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.found.append((a - b).abs().mean((1, 2, 3)))

    def compute(self) -> torch.Tensor:
        return torch.cat(self.found).mean()


def unbiased_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The squared maximum mean discrepancy under (x y / 3 + 1)^3 without the pairs of an image with itself."""
    a, b, c = ((p @ q.T / 3 + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    n = len(x)
    return (a.sum() - np.trace(a) + b.sum() - np.trace(b)) / (n * (n - 1)) - 2 * c.mean()


def test_optional_measures_are_what_their_definitions_say(monkeypatch):
    def fid(feature: int | nn.Module, normalize: bool = False) -> FrechetInceptionDistance:
        if feature == 2048:
            raise OSError("no network")
        return FrechetInceptionDistance(StandIn() if feature == 64 else feature)

    def kid(subset_size: int, normalize: bool) -> KernelInceptionDistance:
        return KernelInceptionDistance(StandIn(), subset_size=subset_size)

    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    draw = torch.Generator().manual_seed(0)
    clean, received = torch.rand(2, 70, 3, 16, 16, generator=draw)
    received = received * 0.5
    judge = Judge(clean, StandIn(), 0, 0)
    assert "need the packages torch-fidelity" in judge.add_inception() and not judge.inception
    monkeypatch.setattr(metrics, "find_spec", lambda name: True)
    monkeypatch.setattr(metrics, "FrechetInceptionDistance", fid)
    monkeypatch.setattr(metrics, "KernelInceptionDistance", kid)
    monkeypatch.setattr(metrics, "LearnedPerceptualImagePatchSimilarity", lambda name, normalize: Mean())
    line = judge.add_inception()
    assert line.endswith("weights: fid_64, kid, lpips; left out: fid_2048 (OSError: no network)")
    torch.manual_seed(0)  # of KID's draws of subsets
    found = judge(received)
    shown = metrics.as_shown(received)
    x, y = (StandIn()(images).numpy() for images in (judge.clean, shown))
    p, q = np.cov(x.T), np.cov(y.T)
    frechet = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(p + q - 2 * sqrtm(p @ q).real)
    assert found["fid_64"].value == pytest.approx(frechet, rel=1e-4)
    assert found["kid"].value == pytest.approx(unbiased_kid(x, y), rel=0.05)
    assert found["lpips"].value == pytest.approx(float((shown - judge.clean).abs().mean()), rel=1e-5)
    assert all(np.isnan(found[name].low) for name in ("fid_64", "kid", "lpips"))

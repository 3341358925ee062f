"""What tells whether an emoji was drawn as asked: nearest pictures, hues, backgrounds and counts.

No network judges here: pictures are compared by their pixels and by hand-made features, colours by their hue, and
counts by the parts that stand apart on the ground. Pictures are [B, 3, SIDE, SIDE] in -1..1. Start reading at `ranks`.
"""

import math

import numpy as np
import torch
from scipy.ndimage import label
from skimage.feature import hog
from torch.nn.functional import avg_pool2d

from pocket.compositions import BACKGROUNDS, COLOURS, main_hue


def pixels(pictures: torch.Tensor) -> torch.Tensor:
    """The pixels themselves, [B, 3 SIDE SIDE]."""
    return pictures.flatten(1)


def features(pictures: torch.Tensor) -> torch.Tensor:
    """Histograms of oriented gradients (Dalal and Triggs 2005) beside mean colours of 4 x 4 squares, [B, 1812].

    Both parts are scaled to count alike for a typical emoji.
    """
    gradients = [
        hog(p, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), channel_axis=0)
        for p in pictures.cpu().numpy()
    ]
    colours = avg_pool2d(pictures, pictures.shape[2] // 4).flatten(1).cpu()
    return torch.cat([torch.from_numpy(np.stack(gradients)).float() / 5, colours / 3], 1)


def ranks(made: torch.Tensor, truth: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Rank [B], from 1, of each answer among all of `truth` [N, D] by distance to `made` [B, D]."""
    distances = torch.cdist(made.cpu(), truth.cpu())
    own = distances.gather(1, answers[:, None])
    return 1 + (distances < own).sum(1)


def colour_of(pictures: torch.Tensor) -> torch.Tensor:
    """Numbers [B] of the colour words whose hue is nearest to the pictures' main hue. Pictures are on white."""
    rgb = (pictures.clamp(-1, 1) + 1) / 2
    hue, _ = main_hue(rgb, torch.ones_like(rgb[:, 0]))
    away = (hue[:, None] - torch.tensor(list(COLOURS.values())) + 180) % 360 - 180
    return away.abs().argmin(1)


def background_of(pictures: torch.Tensor) -> torch.Tensor:
    """Numbers [B] of the backgrounds whose colour is nearest to the median of the pictures' corners, 4 x 4 each."""
    corners = torch.cat(
        [
            pictures[:, :, rows, columns]
            for rows in (slice(4), slice(-4, None))
            for columns in (slice(4), slice(-4, None))
        ],
        3,
    )
    median = (corners.flatten(2).median(2).values + 1) / 2
    return torch.cdist(median, torch.tensor(list(BACKGROUNDS.values())) / 255).argmin(1)


def count_of(pictures: torch.Tensor, smallest: int = 12) -> torch.Tensor:
    """How many parts [B] of at least so many pixels stand apart on a white ground."""
    inked = (pictures < 0.7).any(1).cpu().numpy()
    counts = []
    for mask in inked:
        parts, _ = label(mask, structure=np.ones((3, 3)))
        counts.append(int((np.bincount(parts.ravel())[1:] >= smallest).sum()))
    return torch.tensor(counts)


def with_limits(right: torch.Tensor) -> tuple[float, float, float, int]:
    """The share that is right, Wilson's 95 % interval for it, and how many there are."""
    n, z = len(right), 1.96
    share = float(right.float().mean())
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, centre - half, centre + half, n

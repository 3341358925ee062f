"""Shift maps: a normal number on several symbols of a noisy channel, without bits, and its estimate from these.

The first symbol carries the number z itself. Each further one carries where z lies inside a period, which is short, so
that noise shifts the estimate by a small part of that period only; the symbols before tell which period it is. On one
symbol this is linear sending. Shift maps spread a number over more symbols far better than repeating it does, until
noise confuses periods (Shannon 1949; Chung 2000). Start reading at `ShiftMaps.send`, then `ShiftMaps.estimate`.
"""

import csv
import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch

TABLE = Path(__file__).parent / "shift_maps.csv"  # by fit_shift_maps.py
WIDTH, POINTS = 5.0, 257  # of the grid on which the posterior mean is taken: half its width in deviations, and points


def place_in_period(numbers: torch.Tensor) -> torch.Tensor:
    """A sawtooth of period 1 through 0, from -sqrt 3 to sqrt 3: a mean square of 1 where numbers spread evenly."""
    return 2 * 3**0.5 * (numbers - torch.round(numbers))


@dataclasses.dataclass(frozen=True)
class ShiftMaps:
    """The maps of M components onto n symbols each."""

    amplitudes: torch.Tensor  # [M, n]
    periods: torch.Tensor  # [M, n - 1]

    def means(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        """What the symbols would be without noise: n tensors [B, M, ...] for numbers [B, M, ...]."""
        shape = (1, -1) + (1,) * (numbers.ndim - 2)
        own = [a.view(shape) for a in self.amplitudes.unbind(1)]
        first, *others = own
        periods = [d.view(shape) for d in self.periods.unbind(1)]
        return [first * numbers] + [a * place_in_period(numbers / d) for a, d in zip(others, periods, strict=True)]

    def send(self, numbers: torch.Tensor) -> torch.Tensor:
        """Symbols [B, M, n] of numbers [B, M]."""
        return torch.stack(self.means(numbers), 2)

    def estimate(
        self, received: torch.Tensor, noise: torch.Tensor, likeliest: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior means and variances [B, M] of standard normal numbers behind symbols [B, M, n], noise power [B].

        Given the first symbol a number is normal, which is exact. The others weigh the points of a grid around it.
        `likeliest` takes the grid's likeliest point in the place of the mean.
        """
        first, noise = self.amplitudes[:, 0], noise[:, None]
        known = first.square() / noise
        deviation = (1 + known).rsqrt()
        linear = received[:, :, 0] * first / noise * deviation.square()
        if received.shape[2] == 1:
            return linear, deviation.square()
        u = torch.linspace(-WIDTH, WIDTH, POINTS, device=received.device, dtype=received.dtype)
        numbers = linear[:, :, None] + deviation[:, :, None] * u
        misfit = sum((received[:, :, j, None] - mean).square() for j, mean in enumerate(self.means(numbers)) if j > 0)
        weights = (-0.5 * (u.square() + misfit / noise[:, :, None])).softmax(2)
        mean = (weights * numbers).sum(2)
        if likeliest:
            mean = numbers.gather(2, weights.argmax(2, keepdim=True))[:, :, 0]
        return mean, (weights * (numbers - mean[:, :, None]).square()).sum(2)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best map of a standard normal number onto n symbols of given power together, in units of the noise."""

    mse: float
    shares: tuple[float, ...]  # of the power, n numbers
    periods: tuple[float, ...]  # n - 1


@dataclasses.dataclass(frozen=True)
class Designs:
    """The best maps for a channel at powers on a grid in dB, by the number of symbols from 1 on."""

    power_db: np.ndarray  # [P], evenly spaced
    by_symbols: tuple[tuple[Best, ...], ...]

    @functools.cached_property
    def mse(self) -> np.ndarray:
        """Mean square errors [n, P]."""
        return np.array([[best.mse for best in row] for row in self.by_symbols])

    def maps(self, symbols: int, power: np.ndarray) -> ShiftMaps:
        """The maps of components with powers [M], each the grid's nearest design at its own power."""
        step = self.power_db[1] - self.power_db[0]
        place = np.rint((10 * np.log10(np.maximum(power, 1e-12)) - self.power_db[0]) / step)
        chosen = [self.by_symbols[symbols - 1][int(p)] for p in place.clip(0, len(self.power_db) - 1)]
        shares = torch.tensor([best.shares for best in chosen], dtype=torch.float64)
        periods = torch.tensor([best.periods for best in chosen], dtype=torch.float64).reshape(len(chosen), -1)
        amplitudes = (shares * torch.as_tensor(power)[:, None]).sqrt()
        return ShiftMaps(amplitudes.float(), periods.float())


@functools.cache
def open_designs(channel: str) -> Designs:
    """The designs of the table for a channel of CHANNELS."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(line for line in file if not line.startswith("#"))]
    rows = [row for row in rows if row["channel"] == channel]
    most = max(int(row["symbols"]) for row in rows)
    power_db = np.unique([float(row["power_db"]) for row in rows])

    def best(row: dict[str, str]) -> Best:
        shares = tuple(float(row[f"share_{j}"]) for j in range(int(row["symbols"])))
        periods = tuple(float(row[f"period_{j}"]) for j in range(1, int(row["symbols"])))
        return Best(float(row["mse"]), shares, periods)

    return Designs(power_db, tuple(tuple(best(r) for r in rows if int(r["symbols"]) == n) for n in range(1, most + 1)))

"""How an image's symbols and power are shared out among components: reverse water-filling over shift maps.

Each component of variance v gets 0, 1 or more symbols and a power, so that the sum of v times its map's mean square
error is least for the symbols and the power that there are. At given prices of power and of symbols every component
chooses for itself; the prices follow from what there is (Lagrange). Start reading at `allocate`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from meg.shift_maps import Designs

STEPS = 40  # bisections for each price
FINE = 8  # powers between those of the table


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Symbols [M], powers [M] in units of the noise and mean square errors [M] in units of the variance."""

    symbols: np.ndarray
    power: np.ndarray
    mse: np.ndarray


class Choices:
    """What a component of variance 1 does at a ratio of prices: the best power for every number of symbols."""

    def __init__(self, designs: Designs, most: int | None = None) -> None:
        """`most`: symbols of a component; None: as many as there are designs for."""
        rows = designs.mse[:most]
        self.power_db = np.arange(designs.power_db[0], designs.power_db[-1], 1 / FINE)
        fine = np.array([np.interp(self.power_db, designs.power_db, np.log(row)) for row in rows])
        power, mse = 10 ** (self.power_db / 10), np.exp(fine)
        self.log_ratio = np.linspace(-40.0, 8.0, 961)
        best = (mse[:, None, :] + np.exp(self.log_ratio)[None, :, None] * power).argmin(2)  # [n, ratios]
        self.power = power[best]
        self.mse = np.take_along_axis(mse, best, 1)

    def at(self, variances: np.ndarray, price_of_power: float, price_of_symbols: float) -> Allocation:
        """The choice of components with variances [M]."""
        ratio = np.log(price_of_power / variances)
        place = np.interp(ratio, self.log_ratio, np.arange(len(self.log_ratio)))
        low = place.astype(int).clip(0, len(self.log_ratio) - 2)
        part = place - low
        between = [(1 - part) * np.log(t[:, low]) + part * np.log(t[:, low + 1]) for t in (self.power, self.mse)]
        power, mse = (
            np.concatenate([np.full((1, len(ratio)), fill), np.exp(t)])
            for t, fill in zip(between, (0.0, 1.0), strict=True)
        )
        count = np.arange(len(power))[:, None]
        chosen = (variances * mse + price_of_power * power + price_of_symbols * count).argmin(0)
        own = np.arange(len(ratio))
        return Allocation(chosen, power[chosen, own], mse[chosen, own])


def least_price(asks_too_much: Callable[[float], bool], most: float) -> float:
    """The least price up to `most` at which not too much is asked for."""
    low, high = 1e-16 * most, most
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if asks_too_much(middle) else (low, middle)
    return high


def allocate(choices: Choices, variances: np.ndarray, symbols: int, power: float) -> Allocation:
    """The allocation of at most so many symbols, and of that power in units of the noise."""
    most = variances.max()

    def with_power(price_of_symbols: float) -> Allocation:
        price = least_price(lambda p: choices.at(variances, p, price_of_symbols).power.sum() > power, most)
        return choices.at(variances, price, price_of_symbols)

    found = with_power(0.0)
    if found.symbols.sum() > symbols:
        found = with_power(least_price(lambda p: with_power(p).symbols.sum() > symbols, 10 * most))
    total = found.power.sum()
    return found if not total else dataclasses.replace(found, power=found.power * (power / total))


def reverse_water_filling(variances: np.ndarray, bits: float) -> np.ndarray:
    """The least square errors [M] of independent normal numbers with variances [M] in so many bits together.

    Each is the variance or the level, whichever is less (Shannon 1959; Cover and Thomas, Theorem 10.3.3).
    """
    order = np.sort(variances)[::-1]
    count = np.arange(1, len(order) + 1)
    levels = np.exp((np.cumsum(np.log(order)) - 2 * math.log(2) * bits) / count)  # if that many take part
    return np.minimum(variances, levels[max(np.flatnonzero(order >= levels), default=0)])

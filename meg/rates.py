"""How many bits the channel's symbols carry: capacity, finite block length, and a real code by its tabulated gap.

A symbol is one real number under Gaussian noise, as in channel.py. Every rule answers two questions: how many bits
`symbols` carry at an SNR with a block error of at most so much, and with which block error they carry given bits.
Start reading at `Rate`, then `open_rate`.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from common.tables import read_csv

RATES = ("capacity", "normal", "ldpc")
LABELS = {"capacity": "capacity", "normal": "finite block length", "ldpc": "5G LDPC"}
GAPS = Path(__file__).with_name("ldpc_5g.csv")


class Rate(Protocol):
    """What a channel code achieves. SNRs are power ratios, not decibels."""

    @property
    def name(self) -> str:
        """That of RATES."""

    def bits(self, symbols: int, snr: float, error: float) -> int:
        """The most bits in a block of real symbols at an SNR with that block error, 0 where none are possible."""

    def error(self, bits: int, symbols: int, snr: np.ndarray | float) -> np.ndarray:
        """The block errors of that many bits in so many real symbols at the SNRs, in their shape."""


def capacity(symbols: int, snr: np.ndarray | float) -> np.ndarray | float:
    """Bits that so many real symbols carry at an SNR (Shannon 1948): k / 2 log2(1 + SNR)."""
    return symbols / 2 * np.log1p(snr) / math.log(2)


def dispersion(snr: np.ndarray | float) -> np.ndarray | float:
    """The real Gaussian channel's dispersion V in bits^2 a symbol (Polyanskiy, Poor and Verdú 2010, Theorem 54)."""
    return snr * (snr + 2) / (2 * np.square(snr + 1)) / math.log(2) ** 2


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Shannon's capacity: no error up to it, and nothing but errors above. No code of finite length reaches it."""

    name: str = "capacity"

    def bits(self, symbols: int, snr: float, error: float) -> int:
        """The capacity in whole bits, at any block error."""
        return math.floor(capacity(symbols, snr))

    def error(self, bits: int, symbols: int, snr: np.ndarray | float) -> np.ndarray:
        """0 up to the capacity, 1 above."""
        return np.where(bits > capacity(symbols, np.asarray(snr, float)), 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Normal:
    """The best codes of finite length by the normal approximation (Polyanskiy, Poor and Verdú 2010, Theorem 54).

    bits = C - sqrt(k V) Qinv(error) + log2(k) / 2, here never above the capacity C, and 0 where only the last term
    would be left, since the approximation says nothing there. `gap_db` is the SNR in dB that a code needs more.
    """

    name: str = "normal"
    gap_db: float = 0.0

    def bits(self, symbols: int, snr: float, error: float) -> int:
        """The approximation in whole bits, at least 0."""
        snr = snr / 10 ** (self.gap_db / 10)
        most = capacity(symbols, snr)
        first = most + math.sqrt(symbols * dispersion(snr)) * ndtri(error)
        return math.floor(min(first + math.log2(symbols) / 2, most)) if first > 0 else 0

    def error(self, bits: int, symbols: int, snr: np.ndarray | float) -> np.ndarray:
        """The approximation solved for the block error; 1 above the capacity."""
        snr = np.asarray(snr, float) / 10 ** (self.gap_db / 10)
        most = capacity(symbols, snr)
        spare = most + math.log2(symbols) / 2 - bits
        deviation = np.sqrt(symbols * dispersion(snr))
        found = ndtr(-spare / np.maximum(deviation, 1e-300))
        return np.where(bits > most, 1.0, found)


@dataclasses.dataclass(frozen=True, eq=False)
class Modulation:
    """A real code with one modulation: its measured gaps to `Normal`.

    For each number of symbols, ascending, arrays of bits a symbol, ascending, and gaps in dB.
    """

    lengths: tuple[int, ...]
    curves: tuple[tuple[np.ndarray, np.ndarray], ...]

    def most(self, symbols: int) -> int:
        """The most bits in so many symbols: those of the highest code rate that was measured."""
        return math.floor(max(bits[-1] for bits, _ in self.curves) * symbols)

    def normal(self, bits: int, symbols: int) -> Normal:
        """The approximation by that many bits' gap in dB.

        Between measured bits a symbol it is linear, and between lengths in their logarithm; beyond, it is the last one.
        """
        gaps = [np.interp(bits / symbols, *curve) for curve in self.curves]
        return Normal(gap_db=float(np.interp(math.log(symbols), np.log(self.lengths), gaps)))


@dataclasses.dataclass(frozen=True)
class Tabulated:
    """A real code by its gaps: of its modulations and code rates always the best."""

    name: str
    modulations: tuple[Modulation, ...]

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - there is one table
    def bits(self, symbols: int, snr: float, error: float) -> int:
        """The most bits that any of the modulations carries, by bisection."""
        best = 0
        for one in self.modulations:
            high = one.most(symbols) + 1
            while high - best > 1:
                middle = (best + high) // 2
                fits = middle <= one.normal(middle, symbols).bits(symbols, snr, error)
                best, high = (middle, high) if fits else (best, middle)
        return best

    def error(self, bits: int, symbols: int, snr: np.ndarray | float) -> np.ndarray:
        """The least block error of the modulations that hold so many bits; 1 where none does."""
        able = [m.normal(bits, symbols).error(bits, symbols, snr) for m in self.modulations if bits <= m.most(symbols)]
        return np.minimum.reduce([np.ones_like(np.asarray(snr, float)), *able])


def tabulated(name: str, path: Path) -> Tabulated:
    """The code of that name by a table of measure_ldpc.py. Raises OSError or ValueError when it cannot be read."""
    rows = read_csv(path)
    found = []
    for modulation in dict.fromkeys(row["modulation"] for row in rows):
        own = [row for row in rows if row["modulation"] == modulation]
        lengths = sorted({int(row["symbols"]) for row in own})
        points = [
            sorted((float(r["bits_a_symbol"]), float(r["gap_db"])) for r in own if int(r["symbols"]) == k)
            for k in lengths
        ]
        found.append(Modulation(tuple(lengths), tuple(tuple(np.array(part).T) for part in points)))
    return Tabulated(name, tuple(found))


@functools.cache
def open_rate(name: str) -> Rate:
    """The rate of that name in RATES."""
    if name == "capacity":
        return Capacity()
    if name == "normal":
        return Normal()
    return tabulated(name, GAPS)

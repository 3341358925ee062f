"""How much more power a 5G LDPC code needs than the best codes of its length: the table that --rates ldpc reads.

Sends random blocks by Sionna's code over Gaussian noise, for QPSK, 16-QAM and 64-QAM and every code rate, and finds the
SNR at which one block in a hundred is lost. Needs Sionna, which nothing else here does:
pip install -r requirements-ldpc.txt
Writes ldpc_5g.csv into the run's folder, row by row: a run that is stopped leaves those that it has. Example:
python meg/measure_ldpc.py
"""

import common.quiet_start  # noqa: F401

import dataclasses
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtr, ndtri

from common.command_line import command_line
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import RESULTS, new_folder, write_config
from common.tables import write_csv
from meg.rates import Normal

HEADER = ("modulation", "symbols", "bits_a_symbol", "gap_db", "half_width_db")
MODULATIONS = {"QPSK": 2, "16-QAM": 4, "64-QAM": 6}  # bits of two real symbols
CODE_RATES = {
    "QPSK": (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92),
    "16-QAM": (0.35, 0.5, 0.65, 0.8, 0.92),
    "64-QAM": (0.5, 0.65, 0.8, 0.92),
}
LEAST_BITS, MOST_BITS, MOST_BITS_LOW, LOW_RATE = 12, 8448, 3840, 0.25  # of a code block: TS 38.212, 5.2.2
LOWEST_RATE = 1 / 5  # below, coded bits are sent again
LOST = 0.01
USUAL = 1024  # symbols
STEP_DB, MOST_DB = 0.4, 12.0
STEEPEST = 4.0  # log of what the quantile falls by in a dB
TOGETHER = 200_000  # real symbols that are decoded at once

Lost = Callable[[float, int], int]  # of so many blocks, how many are lost at a gap in dB
Trial = tuple[float, int, int]  # gap in dB, lost blocks, blocks


@dataclasses.dataclass(kw_only=True)
class LDPCParameters(Parameters):
    """What is measured."""

    GROUP: ClassVar[str] = "measurement"

    symbols: str = parameter(
        "512,1024,12288",
        "real symbols of blocks, even numbers from 64 to 1000000, separated by commas",
        more="Code rates at which a block has fewer than 12 bits are left out.",
    )
    blocks: int = parameter(
        1000,
        "blocks at the SNR that is found; a fifth of them at each on the way",
        low=50,
        more="Of more than 1,024 symbols fewer, by the square root of the length: they tell the SNR more exactly.",
    )
    seed: int = parameter(0, "seed of bits and noise", low=0)
    threads: int = parameter(1, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the results; default results/meg/ldpc", path=True)

    def check(self) -> None:
        """Raises ParameterError for symbols that are no even numbers."""
        super().check()
        self.symbol_counts()

    def symbol_counts(self) -> list[int]:
        """The numbers of symbols. Raises ParameterError for odd or impossible ones."""
        words = [word.strip() for word in self.symbols.split(",")]
        if not all(word.isdecimal() and 64 <= int(word) <= 10**6 and int(word) % 2 == 0 for word in words):
            allowed = "must be even numbers from 64 to 1000000, separated by commas"
            raise ParameterError("symbols", self.symbols, allowed)
        return [*dict.fromkeys(map(int, words))]


class Code:
    """5G LDPC code blocks of `bits` information bits in all, on `symbols` real symbols of a modulation.

    Long blocks are cut into code blocks of equal length, all of which must arrive; below the code's lowest rate its
    bits are sent again, in turn, as its rate matching does (TS 38.212, 5.4.2).
    """

    def __init__(self, modulation: str, symbols: int, bits: int) -> None:
        from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder  # takes seconds to load, and few have it
        from sionna.phy.mapping import Demapper, Mapper

        m = MODULATIONS[modulation]
        most = MOST_BITS_LOW if 2 * bits <= LOW_RATE * m * symbols else MOST_BITS
        self.parts = math.ceil(bits / most)
        self.bits, sent = math.ceil(bits / self.parts), m * (symbols // 2 // self.parts)
        self.coded = min(sent, math.floor(self.bits / LOWEST_RATE) // m * m)
        self.place = torch.arange(sent) % self.coded  # the coded bit that each sent one is
        self.encoder = LDPC5GEncoder(self.bits, self.coded, num_bits_per_symbol=m)
        self.decoder = LDPC5GDecoder(self.encoder)
        self.mapper, self.demapper = Mapper("qam", m), Demapper("app", "qam", m)

    def lost(self, snr_db: float, blocks: int, generator: torch.Generator) -> int:
        """How many of so many blocks do not arrive at an SNR, which is that of every real symbol."""
        noise, lost, left = 10 ** (-snr_db / 10), 0, blocks
        while left:
            count = min(left, max(1, TOGETHER // len(self.place)))
            bits = torch.randint(2, (count * self.parts, self.bits), generator=generator).float()
            points = self.mapper(self.encoder(bits)[:, self.place])
            real, imaginary = torch.randn(2, *points.shape, generator=generator) * math.sqrt(noise / 2)
            heard = self.demapper(points + torch.complex(real, imaginary), torch.tensor(noise))
            together = torch.zeros(len(bits), self.coded).index_add(1, self.place, heard)
            wrong = (self.decoder(together) != bits).any(1).view(count, self.parts).any(1)
            lost, left = lost + int(wrong.sum()), left - count
        return lost


def normal_snr_db(bits: int, symbols: int) -> float:
    """The SNR in dB at which the normal approximation loses that many bits as often as `LOST`, by bisection."""
    low, high = -60.0, 60.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        lost = float(Normal().error(bits, symbols, 10 ** (middle / 10)))
        low, high = (middle, high) if lost > LOST else (low, middle)
    return high


def crossing(trials: list[Trial]) -> tuple[float, float]:
    """The gap in dB at which `LOST` of the blocks are lost, and the half width of its 95 % interval.

    By probit regression: the normal quantile of the lost share falls linearly with the gap. Its greatest likelihood is
    searched for; the interval is that of the Fisher information, by the delta method.
    """
    gap, lost, blocks = np.array(trials, dtype=float).T

    def unlikely(x: np.ndarray) -> float:
        z = x[0] - np.exp(min(x[1], STEEPEST)) * gap
        return -float((lost * log_ndtr(z) + (blocks - lost) * log_ndtr(-z)).sum())

    start, slope = minimize(unlikely, (2.0, 1.0), method="Nelder-Mead", options={"xatol": 1e-8, "maxiter": 5000}).x
    slope = float(np.exp(min(slope, STEEPEST)))
    z = start - slope * gap
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    weight = blocks * density**2 / np.maximum(ndtr(z) * ndtr(-z), 1e-300)
    rows = np.stack([np.ones_like(gap), -gap])
    found = (start - ndtri(LOST)) / slope
    direction = np.array([1.0, -found]) / slope
    variance = direction @ np.linalg.pinv((rows * weight) @ rows.T) @ direction
    return float(found), 1.96 * math.sqrt(variance)


def measure_gap(lost: Lost, blocks: int) -> tuple[float, float]:
    """The gap in dB at which one block in a hundred is lost, and the half width of its 95 % interval.

    Looks for a gap at which half of the blocks are lost and one at which hardly any are, in steps, then between them,
    and sends `blocks` blocks where the crossing is expected.
    """
    trials: list[Trial] = []

    def share(gap: float, count: int) -> float:
        trials.append((gap, lost(gap, count), count))
        return trials[-1][1] / count

    few, low, high = max(10, blocks // 5), 0.0, 0.0
    while share(low, few) < 0.5 and low > -MOST_DB:
        low -= STEP_DB
    while share(high := high + STEP_DB, few) > 2 * LOST and high < MOST_DB:
        pass
    low = max(gap for gap, count, of in trials if 2 * count >= of or gap == low)
    for _ in range(2):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle, few) > 2 * LOST else (low, middle)
    for _ in range(2):
        share(crossing(trials)[0], blocks // 2)
    return crossing(trials)


def main(config: LDPCParameters, given: dict[str, Any]) -> None:
    """Measure every modulation, code rate and length, and write the table. Raises ParameterError without Sionna."""
    torch.set_num_threads(config.threads)
    counts, rows = config.symbol_counts(), []
    cells = [(s, name, r) for s in counts for name, rates in CODE_RATES.items() for r in rates]
    with new_folder(config.out, RESULTS / "meg" / "ldpc") as folder:
        if find_spec("sionna") is None:
            raise ParameterError(None, None, "needs Sionna: pip install -r requirements-ldpc.txt")
        write_config(folder, "meg ldpc", dataclasses.asdict(config))
        for symbols, name, code_rate in Progress(cells, unit="code", desc="5G LDPC"):
            bits = round(code_rate * MODULATIONS[name] / 2 * symbols)
            if bits < LEAST_BITS:
                continue
            code, base = Code(name, symbols, bits), normal_snr_db(bits, symbols)
            generator = torch.Generator().manual_seed(config.seed)
            blocks = round(config.blocks * min(1.0, USUAL / symbols) ** 0.5)
            gap, half = measure_gap(lambda g, n: code.lost(base + g, n, generator), blocks)  # noqa: B023
            rows.append([name, symbols, round(bits / symbols, 4), round(gap, 3), round(half, 3)])
            write_csv(folder / "ldpc_5g.csv", HEADER, rows)
    print(f"ldpc_5g.csv in {folder}; as meg/ldpc_5g.csv it is what --rates ldpc reads")


if __name__ == "__main__":
    command_line(LDPCParameters, main, __doc__)

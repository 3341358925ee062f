"""Components of latents as bits: a quantiser with a dead zone, and a range coder.

Components are those of `Transform`, whose errors count alike, so one step serves all. A block says the image's scale,
the step, and every quantised component by a static model: divided by its deviation and the scale, each has the same
density. Deviations, scales and steps are rounded to parts of an octave, so their ratios are whole numbers, and
probabilities to whole parts of 2^22: sender and receiver compute the same. The coder's interval is told by its
shortest binary number; zeros fill the block, and no mark is needed, for the receiver knows how many components come.
Start reading at `Coder`, then `quantiser`.
"""

import bisect
import dataclasses
import functools
import math

import constriction
import numpy as np
from scipy.special import erf

OCTAVE = 16  # units of deviations, scales and steps in a factor of 2
SCALES, APART = 11, 6  # scales that can be told, and units between them
COARSEST, FINEST = -112, 128  # units of rungs, the ratio of scale to step; the pocket model's reach 60 dB
WIDTH = 3.0  # units by which rungs spread around the one that a block's bits suit
LOWEST, HIGHEST = -160, 320  # units of ratios of deviation to step that there are quantisers for
# The density of components as a mixture of normal ones, weights and deviations: the likeliest for 64 latents of the
# pocket model that the transform was not fitted to, and two in a hundred wider ones.
WEIGHTS, DEVIATIONS = np.array([0.41, 0.57, 0.02]), np.array([0.72, 1.14, 2.5])
PRICE = 0.12  # of a bit in squared steps; at high rates 2 ln 2 / 12, the slope of the uniform quantiser's error
ROUNDS = 12  # of the quantiser's design
EXACT = 16  # magnitudes below are symbols of their own; above, there are 8 symbols an octave, and uniform rests
OCTAVES = 18
SYMBOLS = EXACT + 8 * OCTAVES
LARGEST = (EXACT << OCTAVES) - 1  # magnitude of a quantised component
TOTAL = 2**22  # whole probabilities add up to it
EMPTY = 1 / 64  # probability of a block without an image

Categorical, Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform


def whole(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities [M] as whole numbers of at least 1 that add up to TOTAL."""
    found = 1 + np.floor(probabilities / probabilities.sum() * (TOTAL - len(probabilities))).astype(np.int64)
    found[found.argmax()] += TOTAL - found.sum()
    return found


def categorical(numbers: np.ndarray) -> Categorical:
    """The range coder's model of whole probabilities."""
    return Categorical(numbers / TOTAL, perfect=False)


def symbols_of(magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols of magnitudes, each symbol's least magnitude, and the logarithms to base 2 of how many it has."""
    octave = np.frexp(np.maximum(magnitudes, EXACT).astype(np.float64))[1] - 5
    shift = np.where(magnitudes < EXACT, 0, octave + 1)
    high = magnitudes >> shift
    return np.where(magnitudes < EXACT, magnitudes, EXACT + 8 * octave + high - 8), high << shift, shift


def least_of(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least magnitudes of symbols, and the logarithms to base 2 of how many each has."""
    beyond = np.maximum(symbols - EXACT, 0)
    shift = np.where(symbols < EXACT, 0, beyond // 8 + 1)
    return np.where(symbols < EXACT, symbols, (8 + beyond % 8) << shift), shift


@dataclasses.dataclass(frozen=True, eq=False)
class Quantiser:
    """Quantisers for components of R ratios of deviation to step; magnitudes and errors are in steps.

    Magnitudes from EXACT on are their own values, with the error of an even density.
    """

    thresholds: np.ndarray  # [R, EXACT + 1], from which on magnitudes are at least so many
    numbers: np.ndarray  # [R, SYMBOLS], whole probabilities of symbols
    values: np.ndarray  # [R, EXACT + 1], mean magnitudes
    errors: np.ndarray  # [R, EXACT + 1], their variances

    @functools.cached_property
    def bits(self) -> np.ndarray:
        """Bits [R, SYMBOLS] of symbols with sign and rest."""
        extra = least_of(np.arange(SYMBOLS))[1] + (np.arange(SYMBOLS) > 0)
        return math.log2(TOTAL) - np.log2(self.numbers) + extra

    @functools.cache  # noqa: B019
    def model(self, row: int) -> Categorical:
        """The range coder's model of symbols of a ratio."""
        return categorical(self.numbers[row])


@functools.cache
def quantiser() -> Quantiser:
    """The quantisers of ratios 2^(LOWEST / OCTAVE) .. 2^(HIGHEST / OCTAVE), a unit apart.

    Thresholds and values take turns in being the best for a bit's PRICE (entropy-constrained quantisation; Chou,
    Lookabaugh and Gray 1989).
    """
    spread = 2.0 ** (np.arange(LOWEST, HIGHEST + 1) / OCTAVE)[:, None, None] * DEVIATIONS  # [R, 1, K]
    least, shift = least_of(np.arange(SYMBOLS))
    edges = np.append(least - 0.5, LARGEST + 0.5)
    edges[0] = 0
    edges, few = np.tile(edges, (len(spread), 1)), slice(0, EXACT + 1)
    plain = np.arange(EXACT + 1)
    for _ in range(ROUNDS):
        at = edges[:, :, None] / spread
        below, normal = erf(at / math.sqrt(2)), np.exp(-np.square(at) / 2) * math.sqrt(2 / math.pi)
        mass = np.diff(below, axis=1) @ WEIGHTS  # [R, SYMBOLS]
        first = -(np.diff(normal, axis=1) * spread) @ WEIGHTS
        second = (np.diff(below - at * normal, axis=1) * np.square(spread)) @ WEIGHTS
        known = (mass[:, few] > 1e-9) & (plain < EXACT)
        share = np.where(known, mass[:, few], 1.0)
        values = np.where(known, first[:, few] / share, plain)
        values = np.clip(values, plain - 0.5, plain + 0.5)
        bits = -np.log2(np.maximum(mass / mass.sum(1, keepdims=True), 1 / TOTAL)) + shift + (np.arange(SYMBOLS) > 0)
        values[:, 0] = 0
        gap = np.diff(values, axis=1)
        found = (values[:, 1:] + values[:, :-1]) / 2 + PRICE / 2 * np.diff(bits[:, few], axis=1) / gap
        edges[:, 1 : EXACT + 1] = np.clip(found, plain[1:] - 0.5, plain[1:] + 0.5)
    errors = np.where(known, np.maximum(second[:, few] / share - values**2, 0), 1 / 12)
    errors[:, 0] = np.where(known[:, 0], second[:, 0] / share[:, 0], 1 / 12)
    return Quantiser(edges[:, few], np.stack([whole(row) for row in mass]), values, errors)


def shortest(encoder: constriction.stream.queue.RangeEncoder) -> np.ndarray:
    """The fewest bits, with zeros behind them, that lie in a range coder's interval."""
    words = encoder.get_compressed()
    position, (lower, width) = encoder.pos()
    size = 32 * max(len(words), position + 2)
    sealed = int.from_bytes(words.astype(">u4").tobytes()) << (size - 32 * len(words))
    shift = size - 32 * position - 64  # of the coder's state, which has 64 bits
    lower = sealed - (((sealed >> shift) - lower) % 2**64 << shift)
    width <<= shift

    def number(count: int) -> int:
        """The least number of so many bits at the interval's start or above."""
        return -(-lower >> size - count)

    count = bisect.bisect_left(range(size), True, key=lambda c: number(c) << size - c < lower + width)
    packed = np.frombuffer(number(count).to_bytes(-(-count // 8)), np.uint8)
    return np.unpackbits(packed)[-count % 8 :]


@dataclasses.dataclass(frozen=True)
class Quantised:
    """What a block says of an image: the number of its scale, its rung, and whole components [D]."""

    scale: int
    rung: int
    components: np.ndarray


class Coder:
    """Quantised components as bits and back.

    The step is 2^((scale - rung) / OCTAVE) with the scale in units. A block's bits say which rungs are likely.
    """

    def __init__(self, deviations: np.ndarray, log_scale: tuple[float, float]) -> None:
        """Deviations [D] of components, and mean and deviation of the scale's natural logarithm."""
        self.units = np.round(OCTAVE * np.log2(deviations)).astype(np.int64)
        units = OCTAVE / math.log(2)
        places = APART * (np.arange(SCALES) - SCALES // 2)
        self.scales = places + round(units * log_scale[0])
        spread = math.hypot(units * log_scale[1], APART / 2)
        self.scale_numbers = whole(np.exp(-np.square(places / spread) / 2))
        self.rungs = np.arange(COARSEST, FINEST + 1)
        q = quantiser()
        entropy = (q.numbers / TOTAL * q.bits).sum(1)
        self.expected = np.array([entropy[self.rows(rung)].sum() for rung in self.rungs])
        start = np.array([round(EMPTY * TOTAL), TOTAL - round(EMPTY * TOTAL)])
        self.start = categorical(start)

    def rows(self, rung: int) -> np.ndarray:
        """The rows [D] of the quantiser for components of a rung."""
        return np.clip(self.units + rung, LOWEST, HIGHEST) - LOWEST

    @functools.cache  # noqa: B019
    def rung_numbers(self, bits: int) -> np.ndarray:
        """Whole probabilities of rungs in blocks of so many bits."""
        likely = np.searchsorted(self.expected, bits - 10)
        return whole(np.exp(-np.abs(np.arange(len(self.rungs)) - likely) / WIDTH))

    def step(self, scale: int, rung: int) -> float:
        """The quantiser's step."""
        return 2.0 ** ((self.scales[scale] - rung) / OCTAVE)

    def scale_of(self, scale: float) -> int:
        """The number of the nearest scale."""
        return int(np.abs(self.scales - OCTAVE * math.log2(max(scale, 1e-30))).argmin())

    def quantise(self, components: np.ndarray, scale: int, rung: int) -> Quantised:
        """Components [D] in whole steps."""
        sizes = np.abs(components) / self.step(scale, rung)
        found = np.minimum(np.floor(sizes + 0.5), LARGEST).astype(np.int64)
        near = np.minimum(found, EXACT)
        less = (found > 0) & (found <= EXACT) & (sizes < quantiser().thresholds[self.rows(rung), near])
        return Quantised(scale, rung, np.where(components < 0, -(found - less), found - less))

    def values(self, quantised: Quantised) -> tuple[np.ndarray, np.ndarray]:
        """The expected components [D] and their mean square errors [D]."""
        size, rows = np.abs(quantised.components), self.rows(quantised.rung)
        few, step = np.minimum(size, EXACT), self.step(quantised.scale, quantised.rung)
        means = np.where(size < EXACT, quantiser().values[rows, few], size) * np.sign(quantised.components)
        return means * step, quantiser().errors[rows, few] * step**2

    def length(self, quantised: Quantised) -> float:
        """Bits by the model, without those for the rung."""
        symbols = symbols_of(np.abs(quantised.components))[0]
        content = quantiser().bits[self.rows(quantised.rung), symbols].sum()
        return content - math.log2(self.scale_numbers[quantised.scale] / TOTAL) - math.log2(1 - EMPTY)

    def rung_length(self, bits: int) -> np.ndarray:
        """The bits of every rung in blocks of so many bits."""
        return math.log2(TOTAL) - np.log2(self.rung_numbers(bits))

    @functools.cache  # noqa: B019
    def runs(self, rung: int) -> list[tuple[int, np.ndarray]]:
        """Rows of the quantiser, each with the components that it is for."""
        rows = self.rows(rung)
        return [(row, np.flatnonzero(rows == row)) for row in sorted(set(rows.tolist()))]

    def block(self, quantised: Quantised | None, bits: int) -> np.ndarray | None:
        """A block of so many bits, of components or of no image; None where they do not fit."""
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(int(quantised is not None), self.start)
        if quantised is not None:
            encoder.encode(quantised.scale, categorical(self.scale_numbers))
            encoder.encode(quantised.rung - COARSEST, categorical(self.rung_numbers(bits)))
            size = np.abs(quantised.components)
            symbols, least, shift = symbols_of(size)
            for row, own in self.runs(quantised.rung):
                encoder.encode(symbols[own].astype(np.int32), quantiser().model(row))
            encoder.encode((quantised.components[size > 0] < 0).astype(np.int32), Uniform(2))
            for many in sorted(set(shift[shift > 0].tolist())):
                own = shift == many
                encoder.encode((size - least)[own].astype(np.int32), Uniform(1 << many))
        told = shortest(encoder)
        return np.pad(told, (0, bits - len(told))) if len(told) <= bits else None

    def read(self, block: np.ndarray) -> Quantised | None:
        """What a block holds; None for no image. Raises ValueError for bits that no sender makes."""
        padded = np.pad(block, (0, -len(block) % 32))
        decoder = constriction.stream.queue.RangeDecoder(np.packbits(padded).view(">u4").astype(np.uint32))
        try:
            if not decoder.decode(self.start):
                return None
            scale = int(decoder.decode(categorical(self.scale_numbers)))
            rung = int(decoder.decode(categorical(self.rung_numbers(len(block))))) + COARSEST
            symbols = np.zeros(len(self.units), np.int64)
            for row, own in self.runs(rung):
                symbols[own] = decoder.decode(quantiser().model(row), len(own))
            size, shift = least_of(symbols)
            signs = np.ones(len(size), np.int64)
            signs[symbols > 0] -= 2 * decoder.decode(Uniform(2), int((symbols > 0).sum()))
            for many in sorted(set(shift[shift > 0].tolist())):
                own = shift == many
                size[own] += decoder.decode(Uniform(1 << many), int(own.sum()))
        except AssertionError as error:
            raise ValueError(f"no block of coded components ({error})") from None
        return Quantised(scale, rung, signs * size)

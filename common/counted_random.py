"""Random numbers that are told by where they stand: a counter is scrambled, so no draw depends on another.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") makes four words of 32 bits from a
key and a counter of four: the place among a draw's numbers, the station, the number of the draw, and zero. Whoever
draws, in whatever order and on however many threads, gets the same numbers to the last bit, since every rounding is
that of one addition, multiplication, division or root. Start reading at `draw`.
"""

import math
from collections.abc import Sequence

import numpy as np

WIDTH = 64  # numbers of a row come in blocks of so many: 16 counters, and of these the first words, the second, ..
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
BLOCKS_TOGETHER = 512  # as many as the cache holds
UNIT = 2.0**-24  # floats in [0, 1) have 24 bits

# Of sin(pi/2 f) / f and cos(pi/2 f) in powers of f^2, for |f| <= 1/2, and of atanh(t) / t in powers of t^2.
SINE = [(-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(5)]
COSINE = [(-1) ** k * (math.pi / 2) ** (2 * k) / math.factorial(2 * k) for k in range(6)]
ARTANH = [1 / (2 * k + 1) for k in range(5)]


def key_of(stream: int, *numbers: int) -> tuple[int, int]:
    """The key, two words, of a stream (see `Stream`) and what tells its draws apart, such as a seed and an episode."""
    first, second = np.random.SeedSequence([int(stream), *numbers]).generate_state(2, np.uint32)
    return int(first), int(second)


def draw(kind: str, key: tuple[int, int], call: int, shape: Sequence[int]) -> np.ndarray:
    """Numbers [shape] in float32: `uniform` in [0, 1), or `normal`, standard normal.

    `call` is the number of the draw with this key. The first dimension, where there are two or more, is of stations:
    a station's numbers depend neither on how many there are, nor on the others'. Rows are of the last dimension.
    """
    stations, rows, blocks = laid_out(shape)
    out = np.empty((stations, rows * blocks, 4, 16), np.float32)
    together = max(1, BLOCKS_TOGETHER // max(rows * blocks, 1))
    for first in range(0, stations, together):
        part = out[first : first + together]
        bits = words(key, call, range(first, first + len(part)), rows * blocks)
        part[...] = (bits >> np.uint32(8)).astype(np.float32) * np.float32(UNIT) if kind == "uniform" else normal(bits)
    return out.reshape(stations, rows, blocks * WIDTH)[:, :, : shape[-1]].reshape(shape)


def laid_out(shape: Sequence[int]) -> tuple[int, int, int]:
    """How many stations a draw has, rows of each, and blocks of a row."""
    return shape[0] if len(shape) > 1 else 1, math.prod(shape[1:-1]), -(-shape[-1] // WIDTH)


def words(key: tuple[int, int], call: int, stations: range, blocks: int) -> np.ndarray:
    """The words uint32 [stations, blocks, 4, 16] of some stations."""
    counter = np.zeros((4, len(stations), blocks, 16), np.uint64)
    counter[0] = np.arange(blocks * 16, dtype=np.uint64).reshape(blocks, 16)
    counter[1] = np.array(stations, np.uint64)[:, None, None]
    counter[2] = call
    return philox(counter, key).transpose(1, 2, 0, 3).astype(np.uint32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four words [4, ..] from counters [4, ..], both uint64 that hold 32 bits."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a, b, c, d = counter
    for turn in range(ROUNDS):
        k0, k1 = (np.uint64((word + turn * step) & 0xFFFFFFFF) for word, step in zip(key, KEY_STEPS, strict=True))
        p0, p1 = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, c = (p1 >> half) ^ (b ^ k0), (p0 >> half) ^ (d ^ k1)
        b, d = p1 & low, p0 & low
    return np.stack([a, b, c, d])


def normal(bits: np.ndarray) -> np.ndarray:
    """Standard normal numbers from words [.., 4, 16], of the same shape.

    The first and second word make two of them, and so do the others (Box and Muller 1958).
    """
    radius_bits, angle_bits = bits[..., 0::2, :], bits[..., 1::2, :]
    radius = np.sqrt(np.float32(-2) * logarithm(((radius_bits >> np.uint32(8)) + np.uint32(1)).astype(np.float32)))
    turns = (angle_bits >> np.uint32(8)).astype(np.float32) * np.float32(4 * UNIT)  # quarters of a turn
    quarter = np.rint(turns)
    f, q = turns - quarter, quarter.astype(np.uint32)
    sine, cosine = f * polynomial(f * f, SINE), polynomial(f * f, COSINE)
    swapped = (q & np.uint32(1)) == 1
    cosine, sine = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    numbers = np.empty(bits.shape, np.float32)
    numbers[..., 0::2, :] = radius * signed(cosine, q + np.uint32(1))
    numbers[..., 1::2, :] = radius * signed(sine, q)
    return numbers


def signed(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """x, or -x where q has the bit of 2."""
    return (x.view(np.uint32) ^ ((q & np.uint32(2)) << np.uint32(30))).view(np.float32)


def logarithm(x: np.ndarray) -> np.ndarray:
    """log(x / 2^24) for float32 x from 1 to 2^24: 2 artanh((m - 1) / (m + 1)) of the mantissa m in [0.71, 1.42)."""
    bits = x.view(np.uint32) - np.uint32(0x3F3504F3)  # of the root of 1/2
    exponent = (bits.view(np.int32) >> np.int32(23)) - np.int32(24)
    m = ((bits & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)).view(np.float32)
    t = (m - np.float32(1)) / (m + np.float32(1))
    series = np.float32(2) * t * polynomial(t * t, ARTANH)
    return exponent.astype(np.float32) * np.float32(math.log(2)) + series


def polynomial(x: np.ndarray, coefficients: Sequence[float]) -> np.ndarray:
    """c0 + c1 x + c2 x^2 + .., from the highest power down."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + np.float32(coefficient)
    return value

"""The numbers of common/counted_random.py, to the last bit, made sixteen counters at a time.

Start reading at `normal_block`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import float32, uint32

from common.counted_random import ARTANH, COSINE, KEY_STEPS, MULTIPLIERS, ROUNDS, SINE, UNIT, WIDTH, laid_out
from fused.vectors import (
    as_float,
    as_int,
    compiled,
    counting16,
    nearest,
    shifted,
    sqrt,
    store,
    to_float,
    to_int,
    whole16,
    wide_product,
)

M0, M1 = MULTIPLIERS
STEP0, STEP1 = KEY_STEPS
S0, S1, S2, S3, S4 = map(float32, SINE)
C0, C1, C2, C3, C4, C5 = map(float32, COSINE)
A0, A1, A2, A3, A4 = map(float32, ARTANH)
ONE, TWO, LN2, UNIT32, QUARTERS = map(float32, (1, 2, math.log(2), UNIT, 4 * UNIT))


@compiled(forceinline=True)
def words(key0, key1, station, call, block):
    """The four words of the 16 counters of a block."""
    a, b, c, d = counting16() + uint32(block * 16), whole16(uint32(station)), whole16(uint32(call)), whole16(uint32(0))
    k0, k1 = uint32(key0), uint32(key1)
    for _ in range(ROUNDS):
        high0, low0 = wide_product(a, uint32(M0))
        high1, low1 = wide_product(c, uint32(M1))
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = uint32(k0 + uint32(STEP0)), uint32(k1 + uint32(STEP1))
    return a, b, c, d


@compiled(forceinline=True)
def logarithm(x, bits_off):
    """log(x / 2^bits_off) for x of at least 0.71."""
    bits = as_int(x) - uint32(0x3F3504F3)  # of the root of 1/2
    exponent = to_float(shifted(bits, 23)) - float32(bits_off)
    m = as_float((bits & uint32(0x007FFFFF)) + uint32(0x3F3504F3))
    t = (m - ONE) / (m + ONE)
    x = t * t
    series = (((A4 * x + A3) * x + A2) * x + A1) * x + A0
    return exponent * LN2 + TWO * t * series


@compiled(forceinline=True)
def pair(radius_bits, angle_bits):
    """Two vectors of standard normal numbers from two of words."""
    radius = sqrt(float32(-2) * logarithm(to_float(shifted(radius_bits, 8) + uint32(1)), 24))
    turns = to_float(shifted(angle_bits, 8)) * QUARTERS
    quarter = nearest(turns)
    f, q = turns - quarter, to_int(quarter)
    x = f * f
    sine = f * ((((S4 * x + S3) * x + S2) * x + S1) * x + S0)
    cosine = ((((C5 * x + C4) * x + C3) * x + C2) * x + C1) * x + C0
    swapped = (as_int(sine) ^ as_int(cosine)) & (whole16(uint32(0)) - (q & uint32(1)))
    cosine_bits, sine_bits = as_int(cosine) ^ swapped, as_int(sine) ^ swapped
    first = as_float(cosine_bits ^ shifted((q + uint32(1)) & uint32(2), -30))
    return radius * first, radius * as_float(sine_bits ^ shifted(q & uint32(2), -30))


@compiled(forceinline=True)
def normal_block(key0, key1, station, call, block, out, at):
    """out[at : at + 64] = the standard normal numbers of a block."""
    a, b, c, d = words(key0, key1, station, call, block)
    x, y = pair(a, b)
    store(out, at, x)
    store(out, at + 16, y)
    x, y = pair(c, d)
    store(out, at + 32, x)
    store(out, at + 48, y)


@compiled(forceinline=True)
def uniform_block(key0, key1, station, call, block, out, at):
    """out[at : at + 64] = the uniform numbers of a block."""
    a, b, c, d = words(key0, key1, station, call, block)
    store(out, at, to_float(shifted(a, 8)) * UNIT32)
    store(out, at + 16, to_float(shifted(b, 8)) * UNIT32)
    store(out, at + 32, to_float(shifted(c, 8)) * UNIT32)
    store(out, at + 48, to_float(shifted(d, 8)) * UNIT32)


@compiled()
def fill(normal, key0, key1, call, stations, blocks, out):
    """Blocks of 64 numbers out [stations, blocks * 64], flat."""
    for station in range(stations):
        for block in range(blocks):
            at = (station * blocks + block) * 64
            if normal:
                normal_block(key0, key1, station, call, block, out, at)
            else:
                uniform_block(key0, key1, station, call, block, out, at)


def drawn(kind: str, key: tuple[int, int], call: int, shape: Sequence[int]) -> np.ndarray:
    """What counted_random's `draw` gives."""
    stations, rows, blocks = laid_out(shape)
    out = np.empty((stations, rows, blocks * WIDTH), np.float32)
    fill(kind == "normal", *key, call, stations, rows * blocks, out.reshape(-1))
    return out[:, :, : shape[-1]].reshape(shape)

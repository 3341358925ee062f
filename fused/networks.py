"""Networks of one agent on 64 samples at a time, forwards and backwards.

Everything lies in panels, rows of 64 floats, one for each sample: `work` holds them, and an offset tells where. The
parameters are those of a row of theta, as `Layout` in lad_ts/stacked.py lays them out. Gradients are added to what is
there. Sizes are known at run time only. Start reading at `product`.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import float32

from fused.across import total, totals
from fused.random_lanes import logarithm
from fused.vectors import (
    as_float,
    compiled,
    fma,
    full16,
    full64,
    larger,
    load4,
    load16,
    load64,
    nearest,
    select,
    shifted,
    store,
    to_int,
)

WIDTH = 64
ZERO, ONE, TWO = map(float32, (0, 1, 2))
LOG2E, LN2_HIGH = float32(1 / math.log(2)), float32(0.693359375)
LN2_LOW = float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6, E7 = (float32(1 / math.factorial(k)) for k in range(2, 8))
SMALL, LOG_BITS = float32(1e-8), 27
NONE, PLAIN, RECTIFIED = -1, -1, -2


class Matrix(NamedTuple):
    """Weights W: W[r, c] is numbers[at + r * row_step + c * column_step]."""

    numbers: np.ndarray
    at: int
    row_step: int
    column_step: int
    rows: int
    columns: int


class Start(NamedTuple):
    """What a product is added to: panels, numbers[at + r] in row r, both of them, or NONE."""

    panels: int
    numbers: np.ndarray
    at: int


@compiled(forceinline=True)
def exponential(x):
    """exp(x), lane by lane, of numbers up to 88; of those below -87, that of -87."""
    x = larger(x, full64(float32(-87)))
    n = nearest(x * LOG2E)
    r = fma(-LN2_LOW, n, fma(-LN2_HIGH, n, x))
    series = fma(full64(E7), r, full64(E6))
    series = fma(fma(fma(fma(series, r, full64(E5)), r, full64(E4)), r, full64(E3)), r, full64(E2))
    return fma(series * r, r, r + ONE) * as_float(shifted(to_int(n + float32(127)), -23))


@compiled(forceinline=True)
def log_probability(p):
    """log(p + 1e-8), lane by lane."""
    return logarithm((p + SMALL) * float32(2**LOG_BITS), LOG_BITS)


@compiled(forceinline=True)
def begun(start, work, r):
    """Row r of what a product is added to."""
    value = full64(start.numbers[start.at + r] if start.at >= 0 else ZERO)
    return load64(work, start.panels + r * WIDTH) + value if start.panels >= 0 else value


@compiled(forceinline=True)
def ended(value, ending, work, r):
    """Row r of a product as `product` ends it."""
    if ending == RECTIFIED:
        return larger(value, full64(ZERO))
    return select(load64(work, ending + r * WIDTH), value, full64(ZERO)) if ending >= 0 else value


@compiled()
def product(matrix, work, x0, start, y0, ending):
    """y = start + W x for the panels x [columns] and y [rows] of work.

    It may be RECTIFIED; or, if the ending is the place of panels, set to zero where these are not above zero.
    """
    w, columns, r = matrix, matrix.columns, 0
    while r + 4 <= w.rows:
        a, b = begun(start, work, r), begun(start, work, r + 1)
        c, d = begun(start, work, r + 2), begun(start, work, r + 3)
        at = w.at + r * w.row_step
        for k in range(columns):
            x = load64(work, x0 + k * WIDTH)
            a = fma(w.numbers[at], x, a)
            b = fma(w.numbers[at + w.row_step], x, b)
            c = fma(w.numbers[at + 2 * w.row_step], x, c)
            d = fma(w.numbers[at + 3 * w.row_step], x, d)
            at += w.column_step
        y = y0 + r * WIDTH
        store(work, y, ended(a, ending, work, r))
        store(work, y + WIDTH, ended(b, ending, work, r + 1))
        store(work, y + 2 * WIDTH, ended(c, ending, work, r + 2))
        store(work, y + 3 * WIDTH, ended(d, ending, work, r + 3))
        r += 4
    while r < w.rows:
        a, at = begun(start, work, r), w.at + r * w.row_step
        for k in range(columns):
            a = fma(w.numbers[at + k * w.column_step], load64(work, x0 + k * WIDTH), a)
        store(work, y0 + r * WIDTH, ended(a, ending, work, r))
        r += 1


@compiled()
def outer(work, d0, rows, x0, columns, count, d_step, x_step, g0, g_step, tile):
    """work[g0 + r * g_step + c] += the sum over samples of d[r] x[c], and over `count` sets of panels.

    A set lies d_step and x_step after the former. At `tile` is room for 16 numbers.
    """
    for r in range(0, rows, 4):
        r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
        for c in range(0, columns, 4):
            c1, c2, c3 = min(c + 1, columns - 1), min(c + 2, columns - 1), min(c + 3, columns - 1)
            t0 = full16(ZERO)
            t1 = t2 = t3 = t4 = t5 = t6 = t7 = t8 = t9 = t10 = t11 = t12 = t13 = t14 = t15 = t0
            for n in range(count):
                for lane in range(0, WIDTH, 16):
                    d, x = d0 + n * d_step + lane, x0 + n * x_step + lane
                    u0, u1 = load16(work, d + r * WIDTH), load16(work, d + r1 * WIDTH)
                    u2, u3 = load16(work, d + r2 * WIDTH), load16(work, d + r3 * WIDTH)
                    v = load16(work, x + c * WIDTH)
                    t0, t4, t8, t12 = fma(u0, v, t0), fma(u1, v, t4), fma(u2, v, t8), fma(u3, v, t12)
                    v = load16(work, x + c1 * WIDTH)
                    t1, t5, t9, t13 = fma(u0, v, t1), fma(u1, v, t5), fma(u2, v, t9), fma(u3, v, t13)
                    v = load16(work, x + c2 * WIDTH)
                    t2, t6, t10, t14 = fma(u0, v, t2), fma(u1, v, t6), fma(u2, v, t10), fma(u3, v, t14)
                    v = load16(work, x + c3 * WIDTH)
                    t3, t7, t11, t15 = fma(u0, v, t3), fma(u1, v, t7), fma(u2, v, t11), fma(u3, v, t15)
            store(work, tile, totals((t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15)))
            for i in range(min(4, rows - r)):
                g, found = g0 + (r + i) * g_step + c, tile + 4 * i
                if c + 4 <= columns:
                    store(work, g, load4(work, g) + load4(work, found))
                else:
                    for j in range(columns - c):
                        work[g + j] += work[found + j]


@compiled()
def sums(work, d0, rows, count, d_step, g0):
    """work[g0 + r] += the sum over samples of d[r], and over `count` sets of panels."""
    for r in range(rows):
        value = load64(work, d0 + r * WIDTH)
        for n in range(1, count):
            value = value + load64(work, d0 + n * d_step + r * WIDTH)
        work[g0 + r] += total(value)


@compiled()
def exponentials(work, x0, y0, rows):
    """y = exp(x - max x) over rows; returns one over their sum, by which softmax multiplies."""
    most = load64(work, x0)
    for r in range(1, rows):
        most = larger(most, load64(work, x0 + r * WIDTH))
    whole = full64(ZERO)
    for r in range(rows):
        value = exponential(load64(work, x0 + r * WIDTH) - most)
        whole = whole + value
        store(work, y0 + r * WIDTH, value)
    return ONE / whole


@compiled()
def softmax(work, x0, y0, rows):
    """y = softmax(x) over rows."""
    share = exponentials(work, x0, y0, rows)
    for r in range(y0, y0 + rows * WIDTH, WIDTH):
        store(work, r, load64(work, r) * share)


@compiled()
def mlp_forward(theta, at, sizes, work, x0, h0, y0):
    """y [actions] of x [state], by two hidden layers of rectified units, which stay at h [2 * hidden]."""
    inputs, hidden, outputs = sizes.state, sizes.hidden, sizes.actions
    second, third, h1 = at + hidden * (inputs + 1), at + hidden * (inputs + hidden + 2), h0 + hidden * WIDTH
    bias = Start(NONE, theta, second - hidden)
    product(Matrix(theta, at, inputs, 1, hidden, inputs), work, x0, bias, h0, RECTIFIED)
    bias = Start(NONE, theta, third - hidden)
    product(Matrix(theta, second, hidden, 1, hidden, hidden), work, h0, bias, h1, RECTIFIED)
    bias = Start(NONE, theta, third + outputs * hidden)
    product(Matrix(theta, third, hidden, 1, outputs, hidden), work, h1, bias, y0, PLAIN)


@compiled()
def mlp_backward(theta, at, sizes, work, x0, h0, d0, e0, g0, tile):
    """work[g0:] += the gradient [P] from that to the outputs, d [actions]; e [2 * hidden] is room."""
    inputs, hidden, outputs = sizes.state, sizes.hidden, sizes.actions
    second, third, h1 = hidden * (inputs + 1), hidden * (inputs + hidden + 2), h0 + hidden * WIDTH
    e1, nothing = e0 + hidden * WIDTH, Start(NONE, theta, NONE)
    outer(work, d0, outputs, h1, hidden, 1, 0, 0, g0 + third, hidden, tile)
    sums(work, d0, outputs, 1, 0, g0 + third + outputs * hidden)
    product(Matrix(theta, at + third, 1, hidden, hidden, outputs), work, d0, nothing, e1, h1)
    outer(work, e1, hidden, h0, hidden, 1, 0, 0, g0 + second, hidden, tile)
    sums(work, e1, hidden, 1, 0, g0 + third - hidden)
    product(Matrix(theta, at + second, 1, hidden, hidden, hidden), work, e1, nothing, e0, h0)
    outer(work, e0, hidden, x0, inputs, 1, 0, 0, g0, inputs, tile)
    sums(work, e0, hidden, 1, 0, g0 + second - hidden)


@compiled()
def clear(work, x0, rows):
    """x = 0."""
    for r in range(x0, x0 + rows * WIDTH, WIDTH):
        store(work, r, full64(ZERO))

"""The denoising chain of one agent on 64 samples, forwards and backwards: lad_ts/diffusion_lad.py in panels.

Start reading at `chain_forward`.
"""

from typing import NamedTuple

import numpy as np
from numba import float32

from fused.across import total
from fused.networks import (
    NONE,
    ONE,
    PLAIN,
    RECTIFIED,
    TWO,
    WIDTH,
    ZERO,
    Matrix,
    Start,
    clear,
    exponential,
    exponentials,
    outer,
    product,
    sums,
)
from fused.vectors import compiled, fma, full64, larger, load16, load64, select, smaller, store

EMBEDDING = 16  # numbers that tell a step
LINEAR, SOFTMAX, TANH = 0, 1, 2  # what ends the network, by predictor


class Chain(NamedTuple):
    """Sizes of a chain, what its network is made of, and where its panels lie.

    x, z, d3 are [steps, actions] panels, h1, h2, slope1, slope2, d1, d2 [steps, hidden], from_state and whole [hidden];
    from_step is [steps, hidden] numbers.
    """

    actions: int
    state: int
    hidden: int
    steps: int
    predictor: int
    mish: bool
    clip: bool
    from_state: int
    from_step: int
    whole: int
    x: int
    z: int
    h1: int
    h2: int
    slope1: int
    slope2: int
    d1: int
    d2: int
    d3: int


class Coefficients(NamedTuple):
    """A chain's schedule, float32 [steps] each, and the embedding of its steps, [steps, 16], flat."""

    from_latent: np.ndarray
    from_noise: np.ndarray
    mean_hat: np.ndarray
    mean_latent: np.ndarray
    spread: np.ndarray
    embedding: np.ndarray


@compiled()
def chain_forward(theta, at, chain, coefficients, work, latent, state, noise, y0, kept):
    """y = x_0 [actions] of the state and the latent action x_I; what `chain_backward` needs stays, if kept.

    `noise` are the z of steps 2 .. I, [steps - 1, actions]; -1: none is added.
    """
    c, s = chain, coefficients
    inputs, second = c.actions + EMBEDDING + c.state, at + c.hidden * (c.actions + EMBEDDING + c.state + 1)
    third = second + c.hidden * (c.hidden + 1)
    ending, start = PLAIN if c.mish else RECTIFIED, Start(NONE, theta, second - c.hidden)
    of_state = Matrix(theta, at + c.actions + EMBEDDING, inputs, 1, c.hidden, c.state)
    product(of_state, work, state, start, c.from_state, PLAIN)
    for i in range(c.steps):
        for h in range(c.hidden):
            value = load16(theta, at + h * inputs + c.actions) * load16(s.embedding, i * EMBEDDING)
            work[c.from_step + i * c.hidden + h] = total(value)
    x = latent
    for i in range(c.steps - 1, -1, -1):
        turn = i if kept else 0
        now, z = c.x + turn * c.actions * WIDTH, c.z + turn * c.actions * WIDTH
        h1, h2 = c.h1 + turn * c.hidden * WIDTH, c.h2 + turn * c.hidden * WIDTH
        start = Start(c.from_state, work, c.from_step + i * c.hidden)
        product(Matrix(theta, at, inputs, 1, c.hidden, c.actions), work, x, start, h1, ending)
        if c.mish:
            mish(work, h1, c.slope1 + turn * c.hidden * WIDTH, c.hidden)
        start = Start(NONE, theta, third - c.hidden)
        product(Matrix(theta, second, c.hidden, 1, c.hidden, c.hidden), work, h1, start, h2, ending)
        if c.mish:
            mish(work, h2, c.slope2 + turn * c.hidden * WIDTH, c.hidden)
        start = Start(NONE, theta, third + c.actions * c.hidden)
        product(Matrix(theta, third, c.hidden, 1, c.actions, c.hidden), work, h2, start, z, PLAIN)
        share = full64(ONE)
        if c.predictor == SOFTMAX:
            share = exponentials(work, z, z, c.actions)
        elif c.predictor == TANH:
            tanh(work, z, c.actions)
        following = y0 if i == 0 else c.x + (i - 1 if kept else 0) * c.actions * WIDTH
        for a in range(0, c.actions * WIDTH, WIDTH):
            before, predicted = load64(work, x + a), load64(work, z + a) * share
            if kept:
                store(work, z + a, predicted)
                if x == latent:
                    store(work, now + a, before)
            guess = before * s.from_latent[i] - predicted * s.from_noise[i]
            if c.clip:
                guess = smaller(larger(guess, full64(-ONE)), full64(ONE))
            after = guess * s.mean_hat[i] + before * s.mean_latent[i]
            if i > 0 and noise >= 0:
                after = fma(s.spread[i], load64(work, noise + (i - 1) * c.actions * WIDTH + a), after)
            store(work, following + a, after)
        x = following


@compiled()
def chain_backward(theta, at, chain, coefficients, work, state, g0, p0, tile):
    """work[p0:] += the gradient [P] of theta from that to x_0, g [actions], which is lost."""
    c, s = chain, coefficients
    inputs, second = c.actions + EMBEDDING + c.state, c.hidden * (c.actions + EMBEDDING + c.state + 1)
    third = second + c.hidden * (c.hidden + 1)
    wide, high, nothing = c.actions * WIDTH, c.hidden * WIDTH, Start(NONE, theta, NONE)
    clear(work, c.whole, c.hidden)
    for i in range(c.steps):
        d1, d2, d3 = c.d1 + i * high, c.d2 + i * high, c.d3 + i * wide
        predicted_gradient(chain, s, work, i, g0, d3)
        matrix, ending = Matrix(theta, at + third, 1, c.hidden, c.hidden, c.actions), c.h2 + i * high
        product(matrix, work, d3, nothing, d2, PLAIN if c.mish else ending)
        if c.mish:
            scale(work, d2, c.slope2 + i * high, c.hidden)
        matrix, ending = Matrix(theta, at + second, 1, c.hidden, c.hidden, c.hidden), c.h1 + i * high
        product(matrix, work, d2, nothing, d1, PLAIN if c.mish else ending)
        if c.mish:
            scale(work, d1, c.slope1 + i * high, c.hidden)
        if i + 1 < c.steps:
            product(Matrix(theta, at, 1, inputs, c.actions, c.hidden), work, d1, Start(g0, theta, NONE), g0, PLAIN)
        for h in range(c.hidden):
            value = load64(work, d1 + h * WIDTH)
            store(work, c.whole + h * WIDTH, load64(work, c.whole + h * WIDTH) + value)
            share = total(value)
            work[p0 + second - c.hidden + h] += share
            place = p0 + h * inputs + c.actions
            store(work, place, fma(share, load16(s.embedding, i * EMBEDDING), load16(work, place)))
    outer(work, c.d1, c.hidden, c.x, c.actions, c.steps, high, wide, p0, inputs, tile)
    outer(work, c.whole, c.hidden, state, c.state, 1, 0, 0, p0 + c.actions + EMBEDDING, inputs, tile)
    outer(work, c.d2, c.hidden, c.h1, c.hidden, c.steps, high, high, p0 + second, c.hidden, tile)
    sums(work, c.d2, c.hidden, c.steps, high, p0 + third - c.hidden)
    outer(work, c.d3, c.actions, c.h2, c.hidden, c.steps, wide, high, p0 + third, c.hidden, tile)
    sums(work, c.d3, c.actions, c.steps, wide, p0 + third + c.actions * c.hidden)


@compiled()
def predicted_gradient(chain, coefficients, work, i, g0, d3):
    """d3, the gradient to what the network's last layer gives in step i, from g, that to x_{i-1}.

    g becomes what of the gradient to x_i does not go through the network.
    """
    c, s = chain, coefficients
    dot = full64(ZERO)
    for a in range(0, c.actions * WIDTH, WIDTH):
        g, z = load64(work, g0 + a), load64(work, c.z + i * c.actions * WIDTH + a)
        hat = g * s.mean_hat[i]
        if c.clip:
            guess = load64(work, c.x + i * c.actions * WIDTH + a) * s.from_latent[i] - z * s.from_noise[i]
            hat = select(larger(guess, full64(ZERO) - guess) - full64(ONE), full64(ZERO), hat)
        store(work, g0 + a, fma(s.from_latent[i], hat, g * s.mean_latent[i]))
        d = full64(ZERO) - hat * s.from_noise[i]
        if c.predictor == TANH:
            d = d * (full64(ONE) - z * z)
        dot = fma(z, d, dot)
        store(work, d3 + a, d)
    if c.predictor == SOFTMAX:
        for a in range(0, c.actions * WIDTH, WIDTH):
            z = load64(work, c.z + i * c.actions * WIDTH + a)
            store(work, d3 + a, z * (load64(work, d3 + a) - dot))


@compiled()
def mish(work, x0, slope, rows):
    """x = x tanh(log(1 + e^x)) (Misra 2019), and its slope."""
    for r in range(0, rows * WIDTH, WIDTH):
        x = load64(work, x0 + r)
        e = exponential(smaller(x, full64(float32(20))))
        n = e * (e + TWO)
        bent = n / (n + TWO)
        store(work, slope + r, fma(x * (full64(ONE) - bent * bent), e / (e + ONE), bent))
        store(work, x0 + r, x * bent)


@compiled()
def tanh(work, x0, rows):
    """x = tanh(x)."""
    for r in range(0, rows * WIDTH, WIDTH):
        twice = smaller(load64(work, x0 + r) * TWO, full64(float32(88)))
        store(work, x0 + r, full64(ONE) - TWO / (exponential(twice) + ONE))


@compiled()
def scale(work, d0, slope, rows):
    """d = d slope."""
    for r in range(0, rows * WIDTH, WIDTH):
        store(work, d0 + r, load64(work, d0 + r) * load64(work, slope + r))

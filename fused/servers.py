"""The network of Cooperative LAD-TS that all servers share, forwards and backwards: ServerActor.x0 in panels.

A lane is a task, and servers are taken one by one; each has a chain of its own that sees the others through `pooled`.
What the steps hold is computed anew on the way back, which takes less time than fetching it. Blocks of 64 tasks are
independent, so threads may call these functions side by side. Start reading at `forward`.
"""

from typing import NamedTuple

import numpy as np

from fused.across import total
from fused.chains import EMBEDDING
from fused.networks import NONE, PLAIN, RECTIFIED, WIDTH, ZERO, Matrix, Start, clear, outer, product, sums
from fused.vectors import compiled, fma, full64, larger, load64, select, store, taken


class Shape(NamedTuple):
    """Sizes of a batch of tasks, so many in each state, and of the network."""

    lanes: int
    tasks: int  # of a state, one after another
    servers: int
    server_width: int
    task_width: int
    hidden: int
    steps: int


class Rooms(NamedTuple):
    """Where panels lie in a thread's memory, after their rows."""

    server: int  # [servers, server_width]
    task: int  # [task_width]
    share: int  # [servers]
    first: int  # [servers, hidden], and its gradient
    d_first: int
    part: int  # [hidden] each
    pooled: int
    second: int
    d_second: int
    x: int  # [steps + 1]
    h1: int  # [steps, hidden] each
    h2: int
    d1: int
    d2: int
    z: int  # [steps]
    step: int  # [steps, hidden] numbers of each step, and their gradient
    turned: int
    tile: int
    end: int


class Inputs(NamedTuple):
    """What the network sees, flat: theta [P], servers [M, B, F], tasks [L, F], share [M, B], float32.

    `now` and `before` [steps] are the weights of the network's output and of x in a step, embedding [steps, 16].
    """

    theta: np.ndarray
    servers: np.ndarray
    tasks: np.ndarray
    share: np.ndarray
    now: np.ndarray
    before: np.ndarray
    embedding: np.ndarray


@compiled()
def begin(shape, rooms, inputs, work, block):
    """The block's features, its first layer before the steps, what it pools, and the second layer's share of that."""
    s, r, h = shape, rooms, shape.hidden
    task = s.server_width * h
    step = task + s.task_width * h
    own = step + (EMBEDDING + 2) * h  # after step come latent and bias
    mean, bias = own + h * h, own + 2 * h * h
    for m in range(WIDTH):
        lane = min(block * WIDTH + m, s.lanes - 1)
        state = lane // s.tasks
        for f in range(s.task_width):
            work[r.task + f * WIDTH + m] = inputs.tasks[lane * s.task_width + f]
        for b in range(s.servers):
            work[r.share + b * WIDTH + m] = inputs.share[state * s.servers + b]
            at = (state * s.servers + b) * s.server_width
            for f in range(s.server_width):
                work[r.server + (b * s.server_width + f) * WIDTH + m] = inputs.servers[at + f]
    for i in range(s.steps):
        for k in range(h):
            value = inputs.theta[step + (EMBEDDING + 1) * h + k]
            for e in range(EMBEDDING):
                value += inputs.theta[step + e * h + k] * inputs.embedding[i * EMBEDDING + e]
            work[r.step + i * h + k] = value
    theta, nothing = inputs.theta, Start(NONE, inputs.theta, NONE)
    product(Matrix(theta, task, 1, h, h, s.task_width), work, r.task, nothing, r.part, PLAIN)
    clear(work, r.pooled, h)
    for b in range(s.servers):
        first, share = r.first + b * h * WIDTH, load64(work, r.share + b * WIDTH)
        server, start = r.server + b * s.server_width * WIDTH, Start(r.part, theta, NONE)
        product(Matrix(theta, 0, 1, h, h, s.server_width), work, server, start, first, PLAIN)
        for k in range(0, h * WIDTH, WIDTH):
            value = larger(load64(work, first + k), full64(ZERO))
            store(work, r.pooled + k, fma(share, value, load64(work, r.pooled + k)))
    product(Matrix(theta, mean, 1, h, h, h), work, r.pooled, Start(NONE, theta, bias), r.second, PLAIN)


@compiled()
def chain(shape, rooms, inputs, work, b):
    """The steps of server b: h1, h2 and x of each, x_0 last, at x + steps."""
    s, r, h = shape, rooms, shape.hidden
    latent = (s.server_width + s.task_width + EMBEDDING) * h
    own = latent + 2 * h
    out = own + 2 * h * h + h
    store(work, r.x, full64(ZERO))
    for turn in range(s.steps):
        i = s.steps - 1 - turn
        h1, h2 = r.h1 + turn * h * WIDTH, r.h2 + turn * h * WIDTH
        x = load64(work, r.x + turn * WIDTH)
        for k in range(h):
            value = load64(work, r.first + (b * h + k) * WIDTH) + work[r.step + i * h + k]
            value = fma(inputs.theta[latent + k], x, value)
            store(work, h1 + k * WIDTH, larger(value, full64(ZERO)))
        start = Start(r.second, inputs.theta, NONE)
        product(Matrix(inputs.theta, own, 1, h, h, h), work, h1, start, h2, RECTIFIED)
        made = full64(ZERO)
        for k in range(h):
            made = fma(inputs.theta[out + k], load64(work, h2 + k * WIDTH), made)
        store(work, r.x + (turn + 1) * WIDTH, fma(inputs.now[i], made, x * inputs.before[i]))


@compiled()
def forward(turn, room, shape, rooms, inputs, x0):
    """x_0 [L, B], flat."""
    s, work = shape, room.work
    while True:
        block = taken(turn)
        if block * WIDTH >= s.lanes:
            return
        begin(s, rooms, inputs, work, block)
        for b in range(s.servers):
            chain(s, rooms, inputs, work, b)
            for m in range(min(WIDTH, s.lanes - block * WIDTH)):
                x0[(block * WIDTH + m) * s.servers + b] = work[rooms.x + s.steps * WIDTH + m]


@compiled()
def backward(turn, room, shape, rooms, inputs, g, gradient):
    """gradient [blocks, P] of theta, one row for each block of tasks, from that to x_0, g [L, B]."""
    s, r, h, work = shape, rooms, shape.hidden, room.work
    wide, size, nothing = h * WIDTH, len(inputs.theta), Start(NONE, inputs.theta, NONE)
    task = s.server_width * h
    step = task + s.task_width * h
    latent = step + EMBEDDING * h
    own = latent + 2 * h
    mean, bias, out = own + h * h, own + 2 * h * h, own + 2 * h * h + h
    found = r.end - size  # the block's gradient
    while True:
        block = taken(turn)
        if block * WIDTH >= s.lanes:
            return
        begin(s, r, inputs, work, block)
        work[found : found + size] = ZERO
        work[r.turned : r.turned + s.steps * h] = ZERO
        clear(work, r.d_second, h)
        clear(work, r.d_first, s.servers * h)
        count = min(WIDTH, s.lanes - block * WIDTH)
        for b in range(s.servers):
            chain(s, r, inputs, work, b)
            store(work, r.z, full64(ZERO))
            for m in range(count):
                work[r.z + m] = g[(block * WIDTH + m) * s.servers + b]
            whole = load64(work, r.z)
            d_first = r.d_first + b * wide
            for turn_back in range(s.steps):
                now = s.steps - 1 - turn_back
                i, h1, h2, d1, d2 = (
                    turn_back,
                    r.h1 + now * wide,
                    r.h2 + now * wide,
                    r.d1 + now * wide,
                    r.d2 + now * wide,
                )
                made = whole * inputs.now[i]
                for k in range(0, wide, WIDTH):
                    value = load64(work, h2 + k)
                    work[found + out + k // WIDTH] += total(value * made)
                    value = select(value, made * inputs.theta[out + k // WIDTH], full64(ZERO))
                    store(work, d2 + k, value)
                    store(work, r.d_second + k, load64(work, r.d_second + k) + value)
                product(Matrix(inputs.theta, own, h, 1, h, h), work, d2, nothing, d1, h1)
                x, before = load64(work, r.x + now * WIDTH), whole * inputs.before[i]
                for k in range(h):
                    value = load64(work, d1 + k * WIDTH)
                    store(work, d_first + k * WIDTH, load64(work, d_first + k * WIDTH) + value)
                    before = fma(inputs.theta[latent + k], value, before)
                    work[found + latent + k] += total(value * x)
                    work[r.turned + i * h + k] += total(value)
                whole = before
            outer(work, r.h1, h, r.d2, h, s.steps, wide, wide, found + own, h, r.tile)
        for i in range(s.steps):
            for e in range(EMBEDDING):
                for k in range(h):
                    part = inputs.embedding[i * EMBEDDING + e] * work[r.turned + i * h + k]
                    work[found + step + e * h + k] += part
            for k in range(h):
                work[found + latent + h + k] += work[r.turned + i * h + k]
        outer(work, r.pooled, h, r.d_second, h, 1, 0, 0, found + mean, h, r.tile)
        sums(work, r.d_second, h, 1, 0, found + bias)
        # From here on, `second` holds the gradient to what is pooled.
        product(Matrix(inputs.theta, mean, h, 1, h, h), work, r.d_second, nothing, r.second, PLAIN)
        clear(work, r.part, h)
        for b in range(s.servers):
            share = load64(work, r.share + b * WIDTH)
            for k in range(0, wide, WIDTH):
                first, d_first = load64(work, r.first + b * wide + k), load64(work, r.d_first + b * wide + k)
                value = d_first + select(first, share * load64(work, r.second + k), full64(ZERO))
                store(work, r.d_first + b * wide + k, value)
                store(work, r.part + k, load64(work, r.part + k) + value)
        panels = s.server_width * WIDTH
        outer(work, r.server, s.server_width, r.d_first, h, s.servers, panels, wide, found, h, r.tile)
        outer(work, r.task, s.task_width, r.part, h, 1, 0, 0, found + task, h, r.tile)
        for k in range(size):
            gradient[block * size + k] = work[found + k]

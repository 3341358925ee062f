"""A slot of one agent: what it sees, what it decides, and what it keeps of it in its replay.

As in learning.py, threads may call these functions side by side. Start reading at `decide`.
"""

from typing import NamedTuple

import numpy as np
from numba import float32

from fused.across import copied
from fused.agents import FROM_LATENT, actor, draw_noise
from fused.networks import ONE, WIDTH, ZERO, softmax
from fused.random_lanes import uniform_block
from fused.vectors import compiled, fma, full64, larger, load64, select, smaller, sqrt, store, taken

PROBABILITIES, STANDARDISED, AS_IT_IS = 0, 1, 2  # what a memory holds of x_0
LARGEST_LATENT = 1e6  # beyond which x_0 is not remembered


class Seen(NamedTuple):
    """What agents see of a slot, as arrays of one dimension.

    mask [G * N], size [G * N] in Mbit, workload in Gcycles with `step` numbers from a station to the next, both float64
    and divided by the scales, queue [S * (F - 2)] float32.
    """

    mask: np.ndarray
    size: np.ndarray
    workload: np.ndarray
    step: int
    queue: np.ndarray
    size_scale: float
    workload_scale: float


@compiled(forceinline=True)
def task_numbers(sizes, seen, g, n):
    """Input size and workload of task n of agent g, as agents see them."""
    seed, station, tasks = g // sizes.stations, g % sizes.stations, sizes.tasks
    per_seed = seen.step * sizes.stations if seen.step else tasks
    workload = seen.workload[seed * per_seed + station * seen.step + n]
    return float32(seen.size[g * tasks + n] / seen.size_scale), float32(workload / seen.workload_scale)


@compiled()
def choice(work, p0, rows, threshold0, y0):
    """y = the number of actions whose probabilities, added up in order, stay within threshold * their sum."""
    whole = full64(ZERO)
    for a in range(0, rows * WIDTH, WIDTH):
        whole = whole + load64(work, p0 + a)
    whole = whole * load64(work, threshold0)
    level, count = full64(ZERO), full64(ZERO)
    for a in range(0, rows * WIDTH, WIDTH):
        level = level + load64(work, p0 + a)
        count = count + select(level - whole, full64(ZERO), full64(ONE))
    store(work, y0, smaller(count, full64(float32(rows - 1))))


@compiled()
def likeliest(work, p0, rows, y0):
    """y = the first of the actions with the largest p."""
    most, best = load64(work, p0), full64(ZERO)
    for a in range(1, rows):
        p = load64(work, p0 + a * WIDTH)
        best = select(p - most, full64(float32(a)), best)
        most = larger(p, most)
    store(work, y0, best)


@compiled()
def remembered(sizes, places, work, kind):
    """Panels with what the memory holds after a decision: of the probabilities p, or made of x_0 at q."""
    s, x0 = sizes, places.q
    if kind == PROBABILITIES:
        return places.p
    if kind == STANDARDISED:
        mean, square = full64(ZERO), full64(ZERO)
        for a in range(0, s.actions * WIDTH, WIDTH):
            mean = mean + load64(work, x0 + a)
        mean = mean / float32(s.actions)
        for a in range(0, s.actions * WIDTH, WIDTH):
            square = fma(load64(work, x0 + a) - mean, load64(work, x0 + a) - mean, square)
        spread = sqrt(square / float32(s.actions)) + float32(1e-6)
        for a in range(0, s.actions * WIDTH, WIDTH):
            store(work, x0 + a, (load64(work, x0 + a) - mean) / spread)
        return x0
    most = full64(float32(LARGEST_LATENT))
    for a in range(0, s.actions * WIDTH, WIDTH):
        store(work, x0 + a, smaller(larger(load64(work, x0 + a), full64(ZERO) - most), most))
    return x0


@compiled()
def decide(turn, room, sizes, chain, coefficients, places, draw, seen, theta, best, epsilon, kind, memory, action):
    """The action [G, N] of every task of a slot, as `choose` of the agents; memory [G, actions, N] is that of the slot.

    Others than greedy agents draw from their policy, and have a negative epsilon. `best` ones take the best action.
    """
    s, p, work = sizes, places, room.work
    blocks, columns = (s.tasks + WIDTH - 1) // WIDTH, s.state - 2
    while True:
        g = taken(turn)
        if g >= s.agents:
            return
        seed, station = g // s.stations, g % s.stations
        key0, key1, call = draw.keys[seed, 0], draw.keys[seed, 1], draw.calls[seed] + (s.noise > 0)
        for f in range(columns):
            store(work, p.state + (f + 2) * WIDTH, full64(seen.queue[seed * columns + f]))
        for block in range(blocks):
            first, count = block * WIDTH, min(WIDTH, s.tasks - block * WIDTH)
            for m in range(count):
                work[p.state + m], work[p.state + WIDTH + m] = task_numbers(s, seen, g, first + m)
            cells = g * s.actions * s.tasks + first
            if s.actor == FROM_LATENT:
                for a in range(s.actions):
                    copied(memory, cells + a * s.tasks, count, work, p.latent + a * WIDTH)
            draw_noise(s, work, p, draw, g, 0, block, blocks)
            actor(theta, g, s, chain, coefficients, work, p, p.state, p.latent, p.q, False)
            if epsilon >= 0:
                likeliest(work, p.q, s.actions, p.chosen)
            else:
                softmax(work, p.q, p.p, s.actions)
                uniform_block(key0, key1, station, call, block, work, p.uniform)
                if best:
                    likeliest(work, p.p, s.actions, p.chosen)
                else:
                    choice(work, p.p, s.actions, p.uniform, p.chosen)
            task = g * s.tasks + first
            if s.actor == FROM_LATENT:
                x, present = remembered(s, p, work, kind), 0
                while present < count and seen.mask[task + present]:
                    present += 1
                for a in range(s.actions):
                    copied(work, x + a * WIDTH, present, memory, cells + a * s.tasks)
            for m in range(count):
                action[task + m] = int(work[p.chosen + m])
            if epsilon >= 0 and not best:
                uniform_block(key0, key1, station, call, block, work, p.uniform)
                uniform_block(key0, key1, station, call, blocks + block, work, p.reward)
                for m in range(count):
                    if work[p.uniform + m] < float32(epsilon):
                        action[task + m] = int(work[p.reward + m] * float32(s.actions))


@compiled()
def keep(turn, room, sizes, seen, following, action, delay, latent, after_latent, cell, rows, written):
    """Append the transitions of a slot to every agent's replay, as StackedAgents.learn.

    action and delay are [G, N]; latent [G, actions, N] what the decisions started from, and after_latent the memory
    of the following slot, or none where replayed latents are the numbers of cells, the first of which is `cell`.
    """
    s, columns = sizes, sizes.state - 2
    width = 2 * s.state + 2 + 2 * s.latent
    while True:
        g = taken(turn)
        if g >= s.agents:
            return
        seed, count = g // s.stations, 0
        while count < s.tasks and seen.mask[g * s.tasks + count]:
            count += 1
        for n in range(count):
            row = (g * s.capacity + (written[g] + n) % s.capacity) * width
            last = n + 1 == count
            rows[row], rows[row + 1] = task_numbers(s, seen, g, n)
            if last:
                rows[row + s.state], rows[row + s.state + 1] = task_numbers(s, following, g, 0)
            else:
                rows[row + s.state], rows[row + s.state + 1] = task_numbers(s, seen, g, n + 1)
            copied(seen.queue, seed * columns, columns, rows, row + 2)
            copied(following.queue if last else seen.queue, seed * columns, columns, rows, row + s.state + 2)
            place = row + 2 * s.state
            rows[place], rows[place + 1] = action[g * s.tasks + n], -float32(delay[g * s.tasks + n])
            if s.cells:
                rows[place + 2] = cell + n
                rows[place + 3] = cell + s.tasks if last else cell + n + 1
            for a in range(0 if s.cells else s.latent):
                at = (g * s.actions + a) * s.tasks
                rows[place + 2 + a] = latent[at + n]
                rows[place + 2 + s.latent + a] = after_latent[at] if last else latent[at + n + 1]
        written[g] += count

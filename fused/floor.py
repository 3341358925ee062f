"""The products and random numbers alone of a slot's decisions and updates: what they cost if all else were free.

They are those of slots.py and learning.py, with the weights of every agent, on panels that nothing else fills. Replay,
activations, losses and the optimiser are left out. Start reading at `floor`.
"""

import time
from typing import Any

import numpy as np

from fused.agents import MLP, Draw, draw_noise
from fused.chains import EMBEDDING
from fused.networks import NONE, PLAIN, WIDTH, Matrix, Start, outer, product
from fused.random_lanes import uniform_block
from fused.threads import Crew
from fused.vectors import compiled, taken


@compiled()
def network(theta, at, latent, count, sizes, work, places, backwards):
    """The products of a network that is applied `count` times to a latent action, if it has any, and to one state.

    Those of its output, or those of its gradient.
    """
    s, p, wide, high = sizes, places, sizes.actions * WIDTH, sizes.hidden * WIDTH
    inputs = s.state + (latent + EMBEDDING if latent else 0)
    of_state, second = at + inputs - s.state, at + s.hidden * (inputs + 1)
    third = second + s.hidden * (s.hidden + 1)
    h1, h2, d1, d2 = p.end, p.end + count * high, p.end + 2 * count * high, p.end + 3 * count * high
    x = p.end + 4 * count * high
    z, d3, nothing = x + count * wide, x + 2 * count * wide, Start(NONE, theta, NONE)
    if not backwards:
        product(Matrix(theta, of_state, inputs, 1, s.hidden, s.state), work, p.state, nothing, h1, PLAIN)
    for i in range(count):
        a, b, c, d = h1 + i * high, h2 + i * high, d1 + i * high, d2 + i * high
        if not backwards:
            if latent:
                product(Matrix(theta, at, inputs, 1, s.hidden, latent), work, x + i * wide, nothing, a, PLAIN)
            product(Matrix(theta, second, s.hidden, 1, s.hidden, s.hidden), work, a, nothing, b, PLAIN)
            product(Matrix(theta, third, s.hidden, 1, s.actions, s.hidden), work, b, nothing, z + i * wide, PLAIN)
        else:
            product(Matrix(theta, third, 1, s.hidden, s.hidden, s.actions), work, d3 + i * wide, nothing, d, PLAIN)
            product(Matrix(theta, second, 1, s.hidden, s.hidden, s.hidden), work, d, nothing, c, PLAIN)
            if latent and i + 1 < count:
                product(Matrix(theta, at, 1, inputs, latent, s.hidden), work, c, nothing, z + i * wide, PLAIN)
    if backwards:
        if latent:
            outer(work, d1, s.hidden, x, latent, count, high, wide, p.gradient, inputs, p.tile)
        outer(work, d1, s.hidden, p.state, s.state, 1, 0, 0, p.gradient + of_state - at, inputs, p.tile)
        outer(work, d2, s.hidden, h1, s.hidden, count, high, high, p.gradient + second - at, s.hidden, p.tile)
        outer(work, d3, s.actions, h2, s.hidden, count, wide, high, p.gradient + third - at, s.hidden, p.tile)


@compiled()
def drawn(sizes, work, places, draw, g, block, blocks, uniforms):
    """The random numbers of 64 decisions or samples: the policy's noise, and sets of uniform ones."""
    seed, station = g // sizes.stations, g % sizes.stations
    draw_noise(sizes, work, places, draw, g, uniforms, block, blocks)
    for k in range(uniforms):
        key0, key1, call = draw.keys[seed, 0], draw.keys[seed, 1], draw.calls[seed] + k
        uniform_block(key0, key1, station, call, block, work, places.uniform)


@compiled()
def floor(turn, room, sizes, count, places, draw, theta, critics, uniforms):
    """A slot of every agent: its decisions, which take so many sets of uniform numbers, and one update.

    theta is that of policies, with `count` denoising steps, and `critics` that of their critics; agents without a
    policy, which learn the values of actions, have no critics.
    """
    s, p, work, latent = sizes, places, room.work, sizes.actions if sizes.actor != MLP else 0
    size, critic = len(theta) // s.agents, len(critics) // (2 * s.agents)
    blocks, samples = (s.tasks + WIDTH - 1) // WIDTH, (s.samples + WIDTH - 1) // WIDTH
    while True:
        g = taken(turn)
        if g >= s.agents:
            return
        for block in range(blocks):
            drawn(s, work, p, draw, g, block, blocks, uniforms)
            network(theta, g * size, latent, count, s, work, p, False)
        for block in range(samples):
            drawn(s, work, p, draw, g, block, samples, 1)
            for turns in range(3):  # the target, then the policy or its like, and its gradient
                network(theta, g * size, latent, count, s, work, p, turns == 2)
            if critic == 0:
                continue
            for row in (g, s.agents + g):
                for turns in range(4):  # the target, the value, the value that the policy is judged by; the gradient
                    network(critics, row * critic, 0, 1, s, work, p, turns == 3)
            if samples > 1:  # the policy's turn takes all samples once more
                drawn(s, work, p, draw, g, block, samples, 1)


class Floor:
    """The floor of agents that the fused engine computes, on as many threads."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.crew = engine, Crew(engine.crew.threads)

    def seconds(self, slots: int) -> float:
        """Seconds that so many slots of decisions and updates take at least."""
        e, s, draws = self.engine, self.engine.sizes, self.engine.agents.draws
        values, count = e.kind == "q", max(e.chain.steps, 1)
        first, _ = e.nets
        theta, critics = (first.theta, np.zeros(0, np.float32)) if values else (first[0].theta, first[1].theta)
        size = e.places.end + count * WIDTH * (4 * s.hidden + 3 * s.actions)
        for room in self.crew.rooms:
            room.work[:] = 0.01  # what is added up stays small
        given = s, count, e.places, Draw(draws.keys, draws.calls), theta, critics, 2 if values else 1
        began = time.perf_counter()
        for _ in range(slots):
            self.crew.run(floor, s.agents, size, *given)
        return time.perf_counter() - began

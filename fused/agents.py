"""What the compiled functions know of agents: sizes, places in a thread's memory, and the agents' arrays.

Agents are rows g = seed * stations + station of the arrays. Start reading at `Sizes`.
"""

from typing import NamedTuple

import numpy as np

from fused.chains import chain_forward
from fused.networks import WIDTH, mlp_forward
from fused.random_lanes import normal_block
from fused.vectors import compiled

MLP, FROM_LATENT, FROM_NOISE = 0, 1, 2  # kinds of actors


class Sizes(NamedTuple):
    """How many agents there are, and what they see and learn from."""

    agents: int
    stations: int
    tasks: int
    state: int
    actions: int
    hidden: int
    samples: int
    capacity: int  # of the replay
    latent: int  # columns of a replayed latent
    cells: bool  # whether that is the number of a cell of the memory
    actor: int
    noise: int  # sets of noise that a chain takes, of a row for each action


class Places(NamedTuple):
    """Where a thread keeps what: panels [state], [actions] or [1], as networks.py has them, and numbers."""

    state: int  # what a row of the replay holds, in its order
    after: int  # the next state
    action: int
    reward: int
    latent: int
    after_latent: int
    noise: int
    share: int  # of a sample in the mean
    chosen: int
    entropy: int
    p: int
    q: int
    other: int
    h: int
    e: int
    d: int
    gradient: int
    tile: int
    uniform: int
    end: int


class Draw(NamedTuple):
    """Keys [S, 2] and the number of the next draw [S] of each seed."""

    keys: np.ndarray
    calls: np.ndarray


class Learnt(NamedTuple):
    """Parameters of networks, a row for each, and their optimiser's moments and counts, all flat."""

    theta: np.ndarray
    first: np.ndarray
    second: np.ndarray
    steps: np.ndarray


@compiled()
def actor(theta, g, sizes, chain, coefficients, work, places, state, latent, y0, kept):
    """x_0 [actions] of the policy of agent g, at y."""
    s, p, at = sizes, places, g * (len(theta) // sizes.agents)
    if s.actor == MLP:
        mlp_forward(theta, at, s, work, state, p.h, y0)
    elif s.actor == FROM_LATENT:
        noise = p.noise if s.noise > 0 else -1
        chain_forward(theta, at, chain, coefficients, work, latent, state, noise, y0, kept)
    else:
        start = p.noise + (s.noise - 1) * s.actions * WIDTH
        chain_forward(theta, at, chain, coefficients, work, start, state, p.noise, y0, kept)


@compiled()
def draw_noise(sizes, work, places, draw, g, later, block, blocks):
    """The noise of a block of samples, where the actor takes any; `later` counts draws from the next one on."""
    seed, station = g // sizes.stations, g % sizes.stations
    key0, key1, call = draw.keys[seed, 0], draw.keys[seed, 1], draw.calls[seed] + later
    for row in range(sizes.noise * sizes.actions):
        normal_block(key0, key1, station, call, row * blocks + block, work, places.noise + row * WIDTH)

"""What one agent does at once: decide about a slot's tasks, and learn from a minibatch, on arrays of all agents.

Agents are rows g = seed * stations + station of the arrays, and share nothing but the arrival of the next free row in
`turn`, so threads may call these functions side by side. Start reading at `learn_actor_critic`.
"""

import math
from typing import NamedTuple

from numba import float32

from fused.chains import chain_backward, chain_forward
from fused.networks import ONE, TWO, WIDTH, ZERO, clear, log_probability, mlp_backward, mlp_forward, softmax
from fused.random_lanes import normal_block, uniform_block
from fused.vectors import (
    compiled,
    fma,
    full16,
    full64,
    larger,
    load16,
    load64,
    select,
    smaller,
    sqrt,
    store,
    taken,
    total,
)

MLP, FROM_LATENT, FROM_NOISE = 0, 1, 2  # kinds of actors
PROBABILITIES, STANDARDISED, AS_IT_IS = 0, 1, 2  # what a memory holds of x_0
LARGEST_LATENT = 1e6  # beyond which x_0 is not remembered
SMALL = float32(1e-8)


class Sizes(NamedTuple):
    """Of agents: how many, what they see and learn from, and what their actors are."""

    agents: int
    stations: int
    tasks: int
    state: int
    actions: int
    hidden: int
    samples: int
    capacity: int
    latent: int  # columns of a replayed latent: the actions, 1 for a cell's number, 0 for none
    actor: int
    noise: int  # rows of noise that a chain takes


class Places(NamedTuple):
    """Where panels lie in `work`; networks.py tells what they are."""

    state: int
    after: int
    latent: int
    after_latent: int
    noise: int
    action: int
    reward: int
    share: int
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


class Rates(NamedTuple):
    """Learning rates and other numbers of an update, float64."""

    actor: float
    critic: float
    temperature: float
    gamma: float
    target: float
    entropy: float


@compiled()
def actor(theta, at, sizes, chain, coefficients, work, places, state, latent, y0, kept):
    """x_0 [actions] of an agent's policy, at y."""
    s, p = sizes, places
    if s.actor == MLP:
        mlp_forward(theta, at, s.state, s.hidden, s.actions, work, state, p.h, y0)
    elif s.actor == FROM_LATENT:
        noise = p.noise if s.noise > 0 else -1
        chain_forward(theta, at, chain, coefficients, work, latent, state, noise, y0, kept)
    else:
        start = p.noise + (s.noise - 1) * s.actions * WIDTH
        chain_forward(theta, at, chain, coefficients, work, start, state, p.noise, y0, kept)


@compiled()
def draw_noise(sizes, work, places, key0, key1, station, call, block, blocks):
    """The noise of a block of samples, where the actor takes any."""
    for row in range(sizes.noise * sizes.actions):
        normal_block(key0, key1, station, call, row * blocks + block, work, places.noise + row * WIDTH)


@compiled()
def take(sizes, rows, written, memory, g, key0, key1, call, block, work, index, places):
    """A block of the minibatch of agent g, drawn from its replay, as panels; `share` is 1 / M, or 0 beyond M."""
    s, p = sizes, places
    width, held = 2 * s.state + 2 + 2 * s.latent, min(written[g], s.capacity)
    uniform_block(key0, key1, g % s.stations, call, block, work, p.uniform)
    for m in range(WIDTH):
        index[m] = (g * s.capacity + min(int(work[p.uniform + m] * float32(held)), held - 1)) * width
        work[p.share + m] = ONE / float32(s.samples) if block * WIDTH + m < s.samples else ZERO
    gather(rows, index, 0, s.state, work, p.state)
    gather(rows, index, s.state, s.state, work, p.after)
    gather(rows, index, 2 * s.state, 1, work, p.action)
    gather(rows, index, 2 * s.state + 1, 1, work, p.reward)
    latent = 2 * s.state + 2
    if s.latent == 1:
        for m in range(WIDTH):
            for half in range(2):
                t, n = divmod(int(rows[index[m] + latent + half]), s.tasks)
                cell = ((t * s.agents + g) * s.actions) * s.tasks + n
                to = p.latent if half == 0 else p.after_latent
                for a in range(s.actions):
                    work[to + a * WIDTH + m] = memory[cell + a * s.tasks]
    elif s.latent:
        gather(rows, index, latent, s.latent, work, p.latent)
        gather(rows, index, latent + s.latent, s.latent, work, p.after_latent)


@compiled()
def gather(rows, index, first, columns, work, to):
    """Panels of so many columns of the rows that start at index [64]."""
    for column in range(columns):
        for m in range(WIDTH):
            work[to + column * WIDTH + m] = rows[index[m] + first + column]


@compiled()
def policy_value(work, p0, q0, rows, entropy0, alpha):
    """The value of the policy p under q and its entropy, sum_a p q + alpha * entropy; the entropy is kept."""
    value, entropy = full64(ZERO), full64(ZERO)
    for a in range(0, rows * WIDTH, WIDTH):
        p = load64(work, p0 + a)
        value = fma(p, load64(work, q0 + a), value)
        entropy = entropy - p * log_probability(p)
    store(work, entropy0, entropy)
    return fma(alpha, entropy, value)


@compiled()
def least(work, q0, other, rows):
    """q = min(q, other)."""
    for a in range(0, rows * WIDTH, WIDTH):
        store(work, q0 + a, smaller(load64(work, q0 + a), load64(work, other + a)))


@compiled()
def adam(theta, first, second, count, row, at, size, gradient, g0, lr):
    """A step of Adam, as StackedAdam._advance; returns the norm of the gradient."""
    count[row] += 1.0
    root = math.sqrt(1.0 - 0.999 ** count[row])
    rate, epsilon = float32(lr * root / (1.0 - 0.9 ** count[row])), float32(1e-8 * root)
    whole, slow, slower = full16(ZERO), float32(1 - 0.9), float32(1 - 0.999)
    for k in range(0, size - 15, 16):
        g, m, v = load16(gradient, g0 + k), load16(first, at + k), load16(second, at + k)
        m = fma(slow, g - m, m)
        v = fma(slower, g * g, v * float32(0.999))
        store(first, at + k, m)
        store(second, at + k, v)
        store(theta, at + k, load16(theta, at + k) - m / (sqrt(v) + epsilon) * rate)
        whole = fma(g, g, whole)
    square = total(whole)
    for k in range(size - size % 16, size):
        g, m, v = gradient[g0 + k], first[at + k], second[at + k]
        m += slow * (g - m)
        v = v * float32(0.999) + slower * (g * g)
        first[at + k], second[at + k] = m, v
        theta[at + k] -= m / (math.sqrt(v) + epsilon) * rate
        square += g * g
    return math.sqrt(square)


@compiled()
def critic_errors(sizes, work, places, q0, target0):
    """d, the gradient of the mean square of q(action) - target; returns the errors' mean square and q's mean."""
    s, p = sizes, places
    clear(work, p.d, s.actions)
    loss, mean = ZERO, ZERO
    for m in range(WIDTH):
        place = int(work[p.action + m]) * WIDTH + m
        error, share = work[q0 + place] - work[target0 + m], work[p.share + m]
        work[p.d + place] = TWO * error * share
        loss += error * error * share
        mean += work[q0 + place] * share
    return loss, mean


@compiled()
def policy_gradient(work, p0, q0, rows, share0, alpha, d0):
    """d, the gradient to x_0 of the mean of -(alpha * entropy + sum_a p q), p = softmax(x_0)."""
    dot, small = full64(ZERO), full64(SMALL)
    share = load64(work, share0)
    for a in range(0, rows * WIDTH, WIDTH):
        p = load64(work, p0 + a)
        d = share * ((log_probability(p) + p / (p + small)) * alpha - load64(work, q0 + a))
        dot = fma(p, d, dot)
        store(work, d0 + a, d)
    for a in range(0, rows * WIDTH, WIDTH):
        store(work, d0 + a, load64(work, p0 + a) * (load64(work, d0 + a) - dot))


@compiled()
def blend(target, online, at, size, weight):
    """target += weight * (online - target)."""
    for k in range(at, at + size):
        target[k] += weight * (online[k] - target[k])


@compiled()
def learn_actor_critic(
    turn, room, sizes, chain, coefficients, places, rates, keys, calls, learning, replay, memory, nets, adams, measured
):
    """One update of every agent of `learning`, as SoftActorCritic.update; `measured` [G, 7] is what it measures.

    nets are theta of actor, its target, critics, their targets, and log temperature; adams the first and second
    moments and counts of actor, critics and temperature. Calls of draws are `calls` and the next of a seed.
    """
    s, p = sizes, places
    (work, index), (rows, written) = room, replay
    theta, theta_target, critic, critic_target, log_temperature = nets
    (actor_first, actor_second, actor_count), (critic_first, critic_second, critic_count), cooling = adams
    actor_size, critic_size = len(theta) // s.agents, len(critic) // (2 * s.agents)
    blocks = (s.samples + WIDTH - 1) // WIDTH
    while True:
        position = taken(turn)
        if position >= len(learning):
            return
        g = learning[position]
        seed, station = g // s.stations, g % s.stations
        key0, key1, call = keys[seed, 0], keys[seed, 1], calls[seed]
        alpha = math.exp(log_temperature[g])
        first, second = g * critic_size, (s.agents + g) * critic_size
        work[p.gradient : p.gradient + 2 * critic_size] = ZERO
        loss, mean = ZERO, ZERO
        for block in range(blocks):
            take(s, rows, written, memory, g, key0, key1, call, block, work, index, p)
            draw_noise(s, work, p, key0, key1, station, call + 1, block, blocks)
            actor(theta_target, g * actor_size, s, chain, coefficients, work, p, p.after, p.after_latent, p.p, False)
            softmax(work, p.p, p.p, s.actions)
            mlp_forward(critic_target, first, s.state, s.hidden, s.actions, work, p.after, p.h, p.q)
            mlp_forward(critic_target, second, s.state, s.hidden, s.actions, work, p.after, p.h, p.other)
            least(work, p.q, p.other, s.actions)
            value = policy_value(work, p.p, p.q, s.actions, p.entropy, alpha)
            store(work, p.chosen, fma(float32(rates.gamma), value, load64(work, p.reward)))
            for twin in range(2):
                at, to = (first, p.gradient) if twin == 0 else (second, p.gradient + critic_size)
                mlp_forward(critic, at, s.state, s.hidden, s.actions, work, p.state, p.h, p.q)
                part_loss, part_mean = critic_errors(s, work, p, p.q, p.chosen)
                mlp_backward(critic, at, s.state, s.hidden, s.actions, work, p.state, p.h, p.d, p.e, to, p.tile)
                loss += part_loss / TWO
                mean += part_mean / TWO
        norm = adam(
            critic, critic_first, critic_second, critic_count, g, first, critic_size, work, p.gradient, rates.critic
        )
        norm += adam(
            critic,
            critic_first,
            critic_second,
            critic_count,
            s.agents + g,
            second,
            critic_size,
            work,
            p.gradient + critic_size,
            rates.critic,
        )
        measured[g, 0], measured[g, 4], measured[g, 5] = loss, mean, norm / TWO

        work[p.gradient : p.gradient + actor_size] = ZERO
        loss, entropy = ZERO, ZERO
        for block in range(blocks):
            if blocks > 1:
                take(s, rows, written, memory, g, key0, key1, call, block, work, index, p)
                draw_noise(s, work, p, key0, key1, station, call + 1, block, blocks)
            mlp_forward(critic, first, s.state, s.hidden, s.actions, work, p.state, p.h, p.q)
            mlp_forward(critic, second, s.state, s.hidden, s.actions, work, p.state, p.h, p.other)
            least(work, p.q, p.other, s.actions)
            actor(theta, g * actor_size, s, chain, coefficients, work, p, p.state, p.latent, p.p, True)
            softmax(work, p.p, p.p, s.actions)
            value = policy_value(work, p.p, p.q, s.actions, p.entropy, alpha)
            share = load64(work, p.share)
            loss -= total(value * share)
            entropy += total(load64(work, p.entropy) * share)
            policy_gradient(work, p.p, p.q, s.actions, p.share, alpha, p.d)
            if s.actor == MLP:
                mlp_backward(
                    theta,
                    g * actor_size,
                    s.state,
                    s.hidden,
                    s.actions,
                    work,
                    p.state,
                    p.h,
                    p.d,
                    p.e,
                    p.gradient,
                    p.tile,
                )
            else:
                chain_backward(theta, g * actor_size, chain, coefficients, work, p.state, p.d, p.gradient, p.tile)
        measured[g, 1], measured[g, 2], measured[g, 3] = loss, entropy, alpha
        measured[g, 6] = adam(
            theta, actor_first, actor_second, actor_count, g, g * actor_size, actor_size, work, p.gradient, rates.actor
        )
        work[p.gradient] = alpha * (entropy - float32(rates.entropy))
        adam(log_temperature, cooling[0], cooling[1], cooling[2], g, g, 1, work, p.gradient, rates.temperature)
        blend(critic_target, critic, first, critic_size, float32(rates.target))
        blend(critic_target, critic, second, critic_size, float32(rates.target))
        if len(theta_target) and s.actor == FROM_NOISE:
            blend(theta_target, theta, g * actor_size, actor_size, float32(rates.target))


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
def remember(sizes, work, p0, x0, kind, memory, first, mask, task, count):
    """What a cell of the memory holds after a decision, for tasks that exist: of x_0 at x, of probabilities at p."""
    s = sizes
    if kind == PROBABILITIES:
        x0 = p0
    elif kind == STANDARDISED:
        mean, square = full64(ZERO), full64(ZERO)
        for a in range(0, s.actions * WIDTH, WIDTH):
            mean = mean + load64(work, x0 + a)
        mean = mean / float32(s.actions)
        for a in range(0, s.actions * WIDTH, WIDTH):
            square = fma(load64(work, x0 + a) - mean, load64(work, x0 + a) - mean, square)
        spread = sqrt(square / float32(s.actions)) + float32(1e-6)
        for a in range(0, s.actions * WIDTH, WIDTH):
            store(work, x0 + a, (load64(work, x0 + a) - mean) / spread)
    else:
        most = full64(float32(LARGEST_LATENT))
        for a in range(0, s.actions * WIDTH, WIDTH):
            store(work, x0 + a, smaller(larger(load64(work, x0 + a), full64(ZERO) - most), most))
    for m in range(count):
        if mask[task + m]:
            for a in range(s.actions):
                memory[first + a * s.tasks + m] = work[x0 + a * WIDTH + m]


@compiled()
def decide(
    turn,
    room,
    sizes,
    chain,
    coefficients,
    places,
    keys,
    calls,
    best,
    epsilon,
    kind,
    theta,
    features,
    mask,
    memory,
    action,
):
    """The action [G, N] of every task of a slot, as `choose` of the agents; memory [G, actions, N] is that of the slot.

    Greedy agents take the best value but with probability epsilon; others draw from their policy: epsilon is negative.
    """
    s, p, work = sizes, places, room[0]
    blocks = (s.tasks + WIDTH - 1) // WIDTH
    while True:
        g = taken(turn)
        if g >= s.agents:
            return
        seed, station = g // s.stations, g % s.stations
        key0, key1, call = keys[seed, 0], keys[seed, 1], calls[seed]
        for block in range(blocks):
            task, count = g * s.tasks + block * WIDTH, min(WIDTH, s.tasks - block * WIDTH)
            for f in range(s.state):
                for m in range(count):
                    work[p.state + f * WIDTH + m] = features[(task + m) * s.state + f]
            cells = g * s.actions * s.tasks + block * WIDTH
            if s.actor == FROM_LATENT:
                for a in range(s.actions):
                    for m in range(count):
                        work[p.latent + a * WIDTH + m] = memory[cells + a * s.tasks + m]
            draw_noise(s, work, p, key0, key1, station, call, block, blocks)
            actor(theta, g * (len(theta) // s.agents), s, chain, coefficients, work, p, p.state, p.latent, p.q, False)
            if epsilon >= 0:
                likeliest(work, p.q, s.actions, p.chosen)
            else:
                softmax(work, p.q, p.p, s.actions)
                if best:
                    likeliest(work, p.p, s.actions, p.chosen)
                else:
                    uniform_block(key0, key1, station, call + (s.noise > 0), block, work, p.uniform)
                    choice(work, p.p, s.actions, p.uniform, p.chosen)
            if s.actor == FROM_LATENT:
                remember(s, work, p.p, p.q, kind, memory, cells, mask, task, count)
            for m in range(count):
                action[task + m] = int(work[p.chosen + m])
            if epsilon >= 0 and not best:
                uniform_block(key0, key1, station, call, block, work, p.uniform)
                uniform_block(key0, key1, station, call, blocks + block, work, p.reward)
                for m in range(count):
                    if work[p.uniform + m] < float32(epsilon):
                        action[task + m] = int(work[p.reward + m] * float32(s.actions))


@compiled()
def learn_values(
    turn, room, sizes, places, rates, every, keys, calls, learning, replay, memory, nets, moments, measured
):
    """One update of every agent of `learning`, as DQNAgents.update; `measured` [G, 3] is what it measures.

    nets are theta and its target, which becomes theta after each `every` updates.
    """
    s, p = sizes, places
    (work, index), (rows, written), (theta, theta_target), (first, second, count) = room, replay, nets, moments
    size = len(theta) // s.agents
    while True:
        position = taken(turn)
        if position >= len(learning):
            return
        g = learning[position]
        seed, at = g // s.stations, g * size
        work[p.gradient : p.gradient + size] = ZERO
        loss, mean = ZERO, ZERO
        for block in range((s.samples + WIDTH - 1) // WIDTH):
            take(s, rows, written, memory, g, keys[seed, 0], keys[seed, 1], calls[seed], block, work, index, p)
            mlp_forward(theta_target, at, s.state, s.hidden, s.actions, work, p.after, p.h, p.q)
            most = load64(work, p.q)
            for a in range(WIDTH, s.actions * WIDTH, WIDTH):
                most = larger(most, load64(work, p.q + a))
            store(work, p.chosen, fma(float32(rates.gamma), most, load64(work, p.reward)))
            mlp_forward(theta, at, s.state, s.hidden, s.actions, work, p.state, p.h, p.q)
            part_loss, part_mean = critic_errors(s, work, p, p.q, p.chosen)
            mlp_backward(theta, at, s.state, s.hidden, s.actions, work, p.state, p.h, p.d, p.e, p.gradient, p.tile)
            loss += part_loss
            mean += part_mean
        measured[g, 0], measured[g, 1] = loss, mean
        measured[g, 2] = adam(theta, first, second, count, g, at, size, work, p.gradient, rates.critic)
        if int(count[g]) % every == 0:
            blend(theta_target, theta, at, size, ONE)

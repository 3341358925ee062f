"""An update of one agent's networks from a minibatch of its replay.

Agents share nothing but `turn`, which tells the next one whom nobody has taken up, so threads may call these functions
side by side. Start reading at `learn_actor_critic`.
"""

import math

from numba import float32

from fused.across import total, turned
from fused.agents import MLP, actor, draw_noise
from fused.chains import chain_backward
from fused.networks import ONE, TWO, WIDTH, ZERO, log_probability, mlp_backward, mlp_forward, softmax
from fused.random_lanes import uniform_block
from fused.vectors import (
    compiled,
    fma,
    full16,
    full64,
    larger,
    load16,
    load64,
    prefetch,
    select,
    smaller,
    sqrt,
    store,
    taken,
)

SMALL = float32(1e-8)


@compiled()
def look_up(sizes, places, rows, written, draw, g, block, room):
    """Begin a block of the minibatch of agent g: where its rows lie in the replay, which are fetched meanwhile."""
    s, p, (work, begins) = sizes, places, room
    seed, width, held = g // s.stations, 2 * s.state + 2 + 2 * s.latent, min(written[g], s.capacity)
    keys, call = draw.keys, draw.calls[seed]
    uniform_block(keys[seed, 0], keys[seed, 1], g % s.stations, call, block, work, p.uniform)
    for m in range(WIDTH):
        begins[m] = (g * s.capacity + min(int(work[p.uniform + m] * float32(held)), held - 1)) * width
        work[p.share + m] = ONE / float32(s.samples) if block * WIDTH + m < s.samples else ZERO
        for line in range(0, width, 16):
            prefetch(rows, begins[m] + line)


@compiled()
def take(sizes, places, rows, memory, g, room):
    """The block that `look_up` began, as panels, which have the order of a row's columns."""
    s, p, (work, begins) = sizes, places, room
    width = 2 * s.state + 2 + 2 * s.latent
    for m in range(0, WIDTH, 16):
        for first in range(0, width - 15, 16):
            turned(rows, begins, m, first, work, p.state + first * WIDTH + m, WIDTH)
        if width >= 16:  # the last square may overlap with that before
            turned(rows, begins, m, width - 16, work, p.state + (width - 16) * WIDTH + m, WIDTH)
    for column in range(width if width < 16 else 0):
        for m in range(WIDTH):
            work[p.state + column * WIDTH + m] = rows[begins[m] + column]
    if s.cells:
        latent = 2 * s.state + 2
        for m in range(WIDTH):
            for half in range(2):
                t, n = divmod(int(rows[begins[m] + latent + half]), s.tasks)
                cell = ((t * s.agents + g) * s.actions) * s.tasks + n
                to = p.latent if half == 0 else p.after_latent
                for a in range(s.actions):
                    work[to + a * WIDTH + m] = memory[cell + a * s.tasks]


@compiled()
def policy_value(work, p0, q0, rows, log0, entropy0, alpha):
    """The value of the policy p under q and its entropy, sum_a p q + alpha * entropy; log p, entropy kept."""
    value, entropy = full64(ZERO), full64(ZERO)
    for a in range(0, rows * WIDTH, WIDTH):
        p = load64(work, p0 + a)
        logarithm = log_probability(p)
        store(work, log0 + a, logarithm)
        value = fma(p, load64(work, q0 + a), value)
        entropy = entropy - p * logarithm
    store(work, entropy0, entropy)
    return fma(alpha, entropy, value)


@compiled()
def worst(theta, g, sizes, work, places, state):
    """q = min(Q1, Q2) [actions] of the critics of agent g."""
    s, p, size = sizes, places, len(theta) // (2 * sizes.agents)
    mlp_forward(theta, g * size, s, work, state, p.h, p.q)
    mlp_forward(theta, (s.agents + g) * size, s, work, state, p.h, p.other)
    for a in range(0, s.actions * WIDTH, WIDTH):
        store(work, p.q + a, smaller(load64(work, p.q + a), load64(work, p.other + a)))


@compiled(forceinline=True)
def is_action(action, a):
    """Above zero where the action is a."""
    off = action - float32(a)
    return full64(float32(0.25)) - off * off


@compiled()
def value_gradient(theta, at, sizes, work, places, g0):
    """work[g0:] += the gradient of the mean of (q(action) - chosen)^2; returns that mean, and q's."""
    s, p = sizes, places
    mlp_forward(theta, at, s, work, p.state, p.h, p.q)
    action, share, value = load64(work, p.action), load64(work, p.share), full64(ZERO)
    for a in range(s.actions):
        q = load64(work, p.q + a * WIDTH)
        value = value + select(is_action(action, a), q, full64(ZERO))
    error = value - load64(work, p.chosen)
    slope = error * share * TWO
    for a in range(s.actions):
        store(work, p.d + a * WIDTH, select(is_action(action, a), slope, full64(ZERO)))
    loss, mean = total(error * error * share), total(value * share)
    mlp_backward(theta, at, s, work, p.state, p.h, p.d, p.e, g0, p.tile)
    return loss, mean


@compiled()
def policy_gradient(work, p0, q0, rows, log0, share0, alpha, d0):
    """d, the gradient to x_0 of the mean of -(alpha * entropy + sum_a p q), p = softmax(x_0); log p is at hand."""
    dot, small, share = full64(ZERO), full64(SMALL), load64(work, share0)
    for a in range(0, rows * WIDTH, WIDTH):
        p = load64(work, p0 + a)
        d = share * ((load64(work, log0 + a) + p / (p + small)) * alpha - load64(work, q0 + a))
        dot = fma(p, d, dot)
        store(work, d0 + a, d)
    for a in range(0, rows * WIDTH, WIDTH):
        store(work, d0 + a, load64(work, p0 + a) * (load64(work, d0 + a) - dot))


@compiled()
def adam(net, target, row, size, gradient, g0, lr, weight):
    """A step of Adam on one row of networks, as StackedAdam's; returns the norm of the gradient.

    Then target += weight * (theta - target).
    """
    theta, first, second, count = net
    count[row] += 1.0
    root, at = math.sqrt(1.0 - 0.999 ** count[row]), row * size
    rate, epsilon = float32(lr * root / (1.0 - 0.9 ** count[row])), float32(1e-8 * root)
    whole, slow, slower, weight = full16(ZERO), float32(1 - 0.9), float32(1 - 0.999), float32(weight)
    for k in range(0, size - 15, 16):
        g, m, v = load16(gradient, g0 + k), load16(first, at + k), load16(second, at + k)
        m = fma(slow, g - m, m)
        v = fma(slower, g * g, v * float32(0.999))
        new = load16(theta, at + k) - m / (sqrt(v) + epsilon) * rate
        store(first, at + k, m)
        store(second, at + k, v)
        store(theta, at + k, new)
        old = load16(target, at + k)
        store(target, at + k, old + (new - old) * weight)
        whole = fma(g, g, whole)
    square = total(whole)
    for k in range(at + size - size % 16, at + size):
        g = gradient[g0 - at + k]
        first[k] += slow * (g - first[k])
        second[k] = second[k] * float32(0.999) + slower * (g * g)
        theta[k] -= first[k] / (math.sqrt(second[k]) + epsilon) * rate
        target[k] += weight * (theta[k] - target[k])
        square += g * g
    return math.sqrt(square)


@compiled()
def learn_actor_critic(
    turn, room, sizes, chain, coefficients, places, rates, draw, learning, replay, memory, nets, targets, measured
):
    """One update of every agent of `learning`, as SoftActorCritic.update; `measured` [G, 7] is what it measures.

    nets are actor, critics and log temperature, targets those of actor and critics, rates what Engine.update says.
    """
    s, p, work, (rows, written) = sizes, places, room.work, replay
    (policy, critic, temperature), (policy_target, critic_target) = nets, targets
    policy_size, critic_size = len(policy.theta) // s.agents, len(critic.theta) // (2 * s.agents)
    policy_rate, critic_rate, temperature_rate, gamma, weight, wanted = rates
    second, blocks = p.gradient + critic_size, (s.samples + WIDTH - 1) // WIDTH
    while True:
        position = taken(turn)
        if position >= len(learning):
            return
        g = learning[position]
        alpha, loss, mean = math.exp(temperature.theta[g]), ZERO, ZERO
        work[p.gradient : second + critic_size] = ZERO
        for block in range(blocks):
            look_up(s, p, rows, written, draw, g, block, room)
            draw_noise(s, work, p, draw, g, 1, block, blocks)
            take(s, p, rows, memory, g, room)
            actor(policy_target, g, s, chain, coefficients, work, p, p.after, p.after_latent, p.p, False)
            softmax(work, p.p, p.p, s.actions)
            worst(critic_target, g, s, work, p, p.after)
            value = policy_value(work, p.p, p.q, s.actions, p.other, p.entropy, alpha)
            store(work, p.chosen, fma(float32(gamma), value, load64(work, p.reward)))
            first_loss, first_mean = value_gradient(critic.theta, g * critic_size, s, work, p, p.gradient)
            other_loss, other_mean = value_gradient(critic.theta, (s.agents + g) * critic_size, s, work, p, second)
            loss += (first_loss + other_loss) / TWO
            mean += (first_mean + other_mean) / TWO
        norm = adam(critic, critic_target, g, critic_size, work, p.gradient, critic_rate, weight)
        norm += adam(critic, critic_target, s.agents + g, critic_size, work, second, critic_rate, weight)
        measured[g, 0], measured[g, 4], measured[g, 5] = loss, mean, norm / TWO

        work[p.gradient : p.gradient + policy_size] = ZERO
        loss, entropy = ZERO, ZERO
        for block in range(blocks):
            if blocks > 1:
                look_up(s, p, rows, written, draw, g, block, room)
                draw_noise(s, work, p, draw, g, 1, block, blocks)
                take(s, p, rows, memory, g, room)
            worst(critic.theta, g, s, work, p, p.state)
            actor(policy.theta, g, s, chain, coefficients, work, p, p.state, p.latent, p.p, True)
            softmax(work, p.p, p.p, s.actions)
            share = load64(work, p.share)
            loss -= total(policy_value(work, p.p, p.q, s.actions, p.other, p.entropy, alpha) * share)
            entropy += total(load64(work, p.entropy) * share)
            policy_gradient(work, p.p, p.q, s.actions, p.other, p.share, alpha, p.d)
            at = g * policy_size
            if s.actor == MLP:
                mlp_backward(policy.theta, at, s, work, p.state, p.h, p.d, p.e, p.gradient, p.tile)
            else:
                chain_backward(policy.theta, at, chain, coefficients, work, p.state, p.d, p.gradient, p.tile)
        measured[g, 1], measured[g, 2], measured[g, 3] = loss, entropy, alpha
        # Nothing is added to a target that is the policy itself.
        measured[g, 6] = adam(policy, policy_target, g, policy_size, work, p.gradient, policy_rate, weight)
        work[p.gradient] = alpha * (entropy - float32(wanted))
        adam(temperature, temperature.theta, g, 1, work, p.gradient, temperature_rate, 0.0)


@compiled()
def learn_values(turn, room, sizes, places, rates, draw, learning, replay, memory, net, target, measured):
    """One update of every agent of `learning`, as DQNAgents.update; `measured` [G, 3] is what it measures.

    The target becomes theta after every so many updates as the last of the rates says.
    """
    s, p, work, (rows, written), (rate, gamma, every) = sizes, places, room.work, replay, rates
    size = len(target) // s.agents
    while True:
        position = taken(turn)
        if position >= len(learning):
            return
        g = learning[position]
        loss, mean = ZERO, ZERO
        work[p.gradient : p.gradient + size] = ZERO
        for block in range((s.samples + WIDTH - 1) // WIDTH):
            look_up(s, p, rows, written, draw, g, block, room)
            take(s, p, rows, memory, g, room)
            mlp_forward(target, g * size, s, work, p.after, p.h, p.q)
            most = load64(work, p.q)
            for a in range(WIDTH, s.actions * WIDTH, WIDTH):
                most = larger(most, load64(work, p.q + a))
            store(work, p.chosen, fma(float32(gamma), most, load64(work, p.reward)))
            part_loss, part_mean = value_gradient(net.theta, g * size, s, work, p, p.gradient)
            loss += part_loss
            mean += part_mean
        measured[g, 0], measured[g, 1] = loss, mean
        weight = 1.0 if int(net.steps[g] + 1.0) % int(every) == 0 else 0.0
        measured[g, 2] = adam(net, target, g, size, work, p.gradient, rate, weight)

"""The fused engine: what agents do in a slot as one compiled function an agent, on the memory of their tensors.

It takes the place of `choose`, of the replay's `add` and of `update` of the stacked agents in lad_ts and baselines,
whose tensors it reads and writes, so that checkpoints and everything else do not know of it. Start reading at `Engine`.
"""

from collections import deque
from typing import Any

import numpy as np
import torch

from fused.agents import FROM_LATENT, FROM_NOISE, MLP, Draw, Learnt, Places, Sizes
from fused.chains import LINEAR, SOFTMAX, TANH, Chain, Coefficients
from fused.environment import Views, flat
from fused.learning import learn_actor_critic, learn_values
from fused.slots import AS_IT_IS, PROBABILITIES, STANDARDISED, Seen, decide, keep
from fused.threads import Crew, Plan


def chain_of(denoiser: Any, state: int, plan: Plan) -> tuple[Chain, Coefficients]:
    """What the compiled chain must know of a Denoiser, or of none, for actors without."""
    if denoiser is None:
        none = np.zeros(1, np.float32)
        return Chain(*[0] * 5, False, False, *[0] * 12), Coefficients(*[none] * 6)
    s, (actions, _, _) = denoiser.schedule, denoiser.inputs
    hidden, steps = denoiser.layout.widths[1], s.steps
    predictor = {"linear": LINEAR, "softmax": SOFTMAX, "tanh": TANH}[denoiser.ending]
    mish = denoiser.units == "mish"
    sizes = [actions, state, hidden, steps, predictor, mish, denoiser.clip]
    places = [plan.panels(hidden), plan.numbers(steps * hidden), plan.panels(hidden)]
    places += [plan.panels(steps * actions) for _ in range(2)] + [plan.panels(steps * hidden) for _ in range(2)]
    places += [plan.panels(steps * hidden * mish) for _ in range(2)]
    places += [plan.panels(steps * rows) for rows in (hidden, hidden, actions)]
    lists = s.from_latent, s.from_noise, s.mean_hat, s.mean_latent, s.spread
    rows = [np.array(values, np.float32) for values in lists]
    return Chain(*sizes, *places), Coefficients(*rows, flat(denoiser.embedding.T.contiguous()))


KINDS = {"latent": FROM_LATENT, "noise": FROM_NOISE, "mlp": MLP, "q": MLP}
MEMORIES = {"probabilities": PROBABILITIES, "x0_standardised": STANDARDISED, "x0": AS_IT_IS}


class Engine:
    """The compiled part of stacked agents.

    `kind` is that of their networks: actors from a remembered latent action (`latent`), from noise (`noise`) or
    without a chain (`mlp`), each with critics; or Q networks (`q`).
    """

    def __init__(self, agents: Any, kind: str) -> None:
        p, plan, state = agents.params, Plan(), agents.state_size
        self.agents, self.kind = agents, kind
        self.chain, self.coefficients = chain_of(getattr(agents, "denoiser", None), state, plan)
        noise, latent = getattr(agents, "noise_steps", 0), agents.replay.columns.get("latent", 0)
        self.cells = kind == "latent" and p.replay_latent == "present"
        numbers = agents.agents, p.num_bs, p.num_tasks, state, p.num_bs, p.hidden, p.batch_size, p.replay_capacity
        self.sizes = Sizes(*numbers, latent, self.cells, KINDS[kind], noise)
        n, h = p.num_bs, 2 * p.hidden
        places = [plan.panels(k) for k in (state, state, 1, 1, n, n, noise * n, 1, 1, 1, n, n, n, h, h, n)]
        theta = agents.theta if kind == "q" else agents.theta_actor
        critics = 0 if kind == "q" else agents.theta_critic[0].numel() * 2
        places += [plan.numbers(max(theta[0].numel(), critics)), plan.numbers(16), plan.panels(1)]
        self.places = Places(*places, plan.end)
        self.holds = MEMORIES[p.memory] if kind == "latent" else PROBABILITIES
        self.all = np.arange(agents.agents)
        self.crew, self.view = Crew(getattr(p, "threads", 1)), Views()
        self.known: deque[tuple[Any, ...]] = deque(maxlen=2)  # slots that were just seen, and what was seen

    # Tensors are asked for anew each time: whoever copies agents, or gives them others, changes what they are.

    @property
    def replay(self) -> tuple[np.ndarray, np.ndarray]:
        """The replay's rows, and how many were ever written to each agent's."""
        return self.view(self.agents.replay.rows), self.view(self.agents.replay.written)

    @property
    def memory(self) -> np.ndarray:
        """The latent memory [T, G, actions, N], for actors that have one."""
        return self.view(self.agents.memory) if self.kind == "latent" else np.zeros(1, np.float32)

    @property
    def nets(self) -> tuple[Any, Any]:
        """The networks and their targets, as the compiled functions take them."""
        a = self.agents
        if self.kind == "q":
            return self.learnt(a.adam), self.view(a.theta_target)
        nets = self.learnt(a.actor_adam), self.learnt(a.critic_adam), self.learnt(a.temperature_adam)
        return nets, (self.view(a.theta_actor_target), self.view(a.theta_critic_target))

    def learnt(self, adam: Any) -> Learnt:
        """The arrays of an optimiser and what it optimises."""
        return Learnt(*map(self.view, (adam.theta, adam.first, adam.second, adam.count)))

    def run(self, function: Any, count: int, *arguments: Any) -> None:
        """A compiled function for `count` agents."""
        self.crew.run(function, count, self.places.end, *arguments)

    def slot_cells(self, t: int) -> np.ndarray:
        """The memory [G, actions, N] of slot t, flat. Raises IndexError where there is none."""
        if self.kind == "latent" and not 0 <= t < len(self.agents.memory):
            raise IndexError(f"slot {t} is none of the {len(self.agents.memory)} of the latent memory")
        cells = self.sizes.agents * self.sizes.actions * self.sizes.tasks
        return self.memory[t * cells : (t + 1) * cells]

    def seen(self, slot: Any) -> Seen:
        """What agents see of a slot, which is made once. Raises ValueError for one that is not theirs."""
        capacity, parts = self.agents._capacity, (slot.mask, slot.size, slot.workload, slot.backlog)
        if any(part.is_inference() for part in parts):  # torch does not count what is written into these
            return self.looked_at(slot)
        state = [part._version for part in parts]
        for known, before, then, seen in self.known:
            if known is slot and before is capacity and then == state:
                return seen
        seen = self.looked_at(slot)
        self.known.append((slot, capacity, state, seen))
        return seen

    def looked_at(self, slot: Any) -> Seen:
        """`seen`, made anew."""
        a, tasks = self.agents, slot.mask.shape[-1]
        shape = len(a.seeds), a.num_bs, self.sizes.tasks if self.kind == "latent" else tasks
        found = {tuple(part.shape) for part in (slot.mask, slot.size, slot.workload)}
        if found != {shape} or tuple(slot.backlog.shape) != shape[:2]:
            raise ValueError(f"a slot of shape {sorted(found)} does not fit these agents, {list(shape)}")
        scales = (1.0, 1.0) if a.kind == "raw" else (a.scales.size, a.scales.workload)
        parts = flat(slot.mask.contiguous()), flat(slot.size.contiguous()), *self.view.per_station(slot.workload)
        return Seen(*parts, flat(a.queue_features(slot)), *scales)

    def choose(self, slot: Any) -> torch.Tensor:
        """The action [S, B, N] of the tasks of a slot; the memory is written."""
        a, s = self.agents, self.sizes
        action = torch.empty(slot.mask.shape, dtype=torch.int64)
        best = not a.training and a.params.evaluation_action == "argmax"
        draw = Draw(*a.draws.take((s.noise > 0) + (not best)))
        epsilon = a.params.epsilon if self.kind == "q" else -1.0
        if self.kind != "latent":
            s = s._replace(tasks=slot.mask.shape[2])  # agents without a memory take any number
        self.run(
            decide,
            s.agents,
            s,
            self.chain,
            self.coefficients,
            self.places,
            draw,
            self.seen(slot),
            self.view(a.theta if self.kind == "q" else a.theta_actor),
            best,
            epsilon,
            self.holds,
            self.slot_cells(slot.t),
            flat(action),
        )
        return action

    def keep(self, slot: Any, action: torch.Tensor, delay: torch.Tensor, following: Any) -> None:
        """Append a slot's transitions to the replay; the latent actions that it began with are in `decision`."""
        a, s = self.agents, self.sizes._replace(tasks=slot.mask.shape[2])
        latent = after = self.memory[:0]
        servers = flat(action.contiguous())
        fits = action.shape == slot.mask.shape == delay.shape
        if not fits or servers.min() < 0 or servers.max() >= s.actions:
            raise ValueError(f"actions {list(action.shape)} must be from 0 to {s.actions - 1}, for each of the tasks")
        if self.kind == "latent":
            following_cells = self.slot_cells(slot.t + 1)
            if not self.cells:
                latent, after = flat(a.decision["latent"]), following_cells
        self.run(
            keep,
            s.agents,
            s,
            self.seen(slot),
            self.seen(following),
            servers,
            flat(delay.contiguous()),
            latent,
            after,
            slot.t * s.tasks,
            *self.replay,
        )

    def update(self, learning: torch.Tensor | None) -> None:
        """One update of all agents or of those with the given indices, on minibatches of their replay."""
        a, p = self.agents, self.agents.params
        rows = self.all if learning is None else learning.numpy()
        measured = torch.zeros(a.agents, len(a.metrics.names))
        draw = Draw(*a.draws.take(1 + (self.sizes.noise > 0)))
        given = draw, rows, self.replay, self.memory, *self.nets, measured.numpy()
        if self.kind == "q":
            values = a.adam.lr, p.gamma, float(p.target_every)
            self.run(learn_values, len(rows), self.sizes, self.places, values, *given)
        else:
            lr = a.actor_adam.lr, a.critic_adam.lr, a.temperature_adam.lr
            rates = tuple(map(float, (*lr, p.gamma, p.target_rate, p.target_entropy)))
            known = self.sizes, self.chain, self.coefficients, self.places
            self.run(learn_actor_critic, len(rows), *known, rates, *given)
        a.metrics.add_all(learning, measured)

"""LAD-TS in a plain loop, each task decided and each agent updated by itself: the baseline of benchmarks.

It is written for this comparison, and is not the published code. Start reading at `PlainLoop`.
"""

import time
from collections.abc import Sequence

import torch
from torch import nn

from common.parameters import resolve
from lad_ts.environment_lad import Slot, draw_arrivals
from lad_ts.model_lad import LadConfig
from lad_ts.setting import Setting


class PlainAgent:
    """One LAD-TS agent as ordinary modules, called task by task: what the stacked agents are measured against."""

    def __init__(self, config: LadConfig, state_size: int) -> None:
        def mlp(inputs: int) -> nn.Sequential:
            h = config.hidden
            return nn.Sequential(
                nn.Linear(inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, config.num_bs)
            )

        self.config, self.steps = config, config.denoising_steps
        self.actor = mlp(config.num_bs + 16 + state_size)
        self.critics, self.targets = ([mlp(state_size) for _ in range(2)] for _ in range(2))
        self.embedding = torch.randn(self.steps, 16)
        self.log_alpha = torch.tensor(-3.0, requires_grad=True)
        self.optimisers = [
            torch.optim.Adam(parameters, 1e-3)
            for parameters in (self.actor.parameters(), *(c.parameters() for c in self.critics), [self.log_alpha])
        ]

    def probabilities(self, state: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Action probabilities [M, B] for state [M, F] and latent [M, B]."""
        for i in reversed(range(self.steps)):
            step = self.embedding[i].expand(len(state), -1)
            noise = self.actor(torch.cat([latent, step, state], 1)).softmax(1)
            latent = 1.1 * latent - 0.5 * noise + (0.3 * torch.randn_like(latent) if i else 0)
        return latent.softmax(1)

    def update(self, state: torch.Tensor, latent: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> None:
        """One step on a minibatch of M: state [M, F], latent [M, B], action and reward [M, 1]."""

        def value(networks: Sequence[nn.Module], p: torch.Tensor) -> torch.Tensor:
            return (p * torch.min(*(network(state) for network in networks))).sum(1, keepdim=True)

        def step(loss: torch.Tensor, optimiser: torch.optim.Adam) -> None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        with torch.no_grad():
            p = self.probabilities(state, latent)
            target = reward + 0.95 * value(self.targets, p)
        for critic, optimiser in zip(self.critics, self.optimisers[1:3], strict=True):
            step((critic(state).gather(1, action) - target).square().mean(), optimiser)
        p = self.probabilities(state, latent)
        entropy = -(p * (p + 1e-8).log()).sum(1, keepdim=True)
        step((-self.log_alpha.exp().detach() * entropy - value(self.critics, p)).mean(), self.optimisers[0])
        step(((entropy.detach() + 1) * self.log_alpha.exp()).mean(), self.optimisers[3])
        for critic, slow in zip(self.critics, self.targets, strict=True):
            for new, old in zip(critic.parameters(), slow.parameters(), strict=True):
                old.data.lerp_(new.data, 0.005)


class PlainLoop:
    """An environment with one plain agent at every base station."""

    def __init__(self) -> None:
        self.config = c = resolve(LadConfig, {"device": "cpu"})
        self.env = Setting.of(c).environment()
        self.agents = [PlainAgent(c, c.num_bs + 2) for _ in range(c.num_bs)]
        self.latent = torch.randn(c.num_bs, c.num_tasks, c.num_bs)
        states, latents = torch.randn(64, c.num_bs + 2), torch.randn(64, c.num_bs)
        self.minibatch = states, latents, torch.zeros(64, 1).long(), -torch.rand(64, 1)

    def seconds(self, slots: int) -> float:
        """Seconds per episode on one thread, by the fastest of an episode's first slots."""
        torch.set_num_threads(1)
        slot, times = self.env.reset(draw_arrivals(self.config, [(0, 0)])), []
        for _ in range(slots):
            began = time.perf_counter()
            slot = self.scheduled(slot)
            times.append(time.perf_counter() - began)
        return min(times) * (self.config.num_slots - 1)

    def scheduled(self, slot: Slot) -> Slot:
        """Schedule a slot task by task, update every agent by itself, and go on to the next slot."""
        action = torch.zeros(slot.mask.shape, dtype=torch.long)
        for b, agent in enumerate(self.agents):
            for n in range(int(slot.mask[0, b].sum())):
                with torch.no_grad():
                    state = torch.cat(
                        [slot.size[0, b, n : n + 1], slot.workload[0, b, n : n + 1], slot.backlog[0]]
                    ).float()
                    p = agent.probabilities(state[None], self.latent[b, n][None])
                self.latent[b, n] = p[0]
                action[0, b, n] = torch.distributions.Categorical(p[0]).sample().item()
            agent.update(*self.minibatch)
        return self.env.step(action)[1]

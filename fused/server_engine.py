"""The network that all servers share as a function of torch, computed by servers.py.

Start reading at `ServerNetwork`.
"""

from typing import Any

import numpy as np
import torch

from fused.environment import flat
from fused.networks import WIDTH
from fused.servers import Inputs, Rooms, Shape, backward, forward
from fused.threads import Crew, Plan


class ServerNetwork:
    """x_0 of tasks by a ServerActor `actor`, whose sizes do not change."""

    def __init__(self, actor: Any, threads: int) -> None:
        lists = actor.schedule.mean_hat, actor.schedule.mean_latent
        self.weights = [np.array(values, np.float32) for values in lists]
        self.embedding = flat(actor.embedding.contiguous())
        self.steps, self.hidden, self.size = actor.schedule.steps, actor.shapes[-1][0], sum(actor.sizes)
        self.crew = Crew(threads)

    def __call__(
        self, theta: torch.Tensor, servers: torch.Tensor, tasks: torch.Tensor, share: torch.Tensor
    ) -> torch.Tensor:
        """x_0 [M, C, B] of tasks [M, C, F] in M states with servers [M, B, F] and shares [M, B]; theta is [P]."""
        return Chains.apply(theta, self, servers.contiguous(), tasks.contiguous(), share.contiguous())

    def rooms(self, shape: Shape) -> Rooms:
        """Where a thread keeps what."""
        s, plan = shape, Plan()
        b, h, steps = s.servers, s.hidden, s.steps
        counts = [b * s.server_width, s.task_width, b, b * h, b * h, h, h, h, h, steps + 1]
        found = [plan.panels(count) for count in (*counts, *[steps * h] * 4, steps)]
        found += [plan.numbers(steps * h), plan.numbers(steps * h), plan.numbers(16)]
        plan.numbers(self.size)
        return Rooms(*found, plan.end)

    def inputs(self, theta: torch.Tensor, *seen: torch.Tensor) -> Inputs:
        """What the compiled functions see."""
        return Inputs(flat(theta), *map(flat, seen), *self.weights, self.embedding)


class Chains(torch.autograd.Function):
    """The chains of all servers, with gradients for theta only."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: torch.Tensor,
        network: ServerNetwork,
        servers: torch.Tensor,
        tasks: torch.Tensor,
        share: torch.Tensor,
    ) -> torch.Tensor:
        states, count = tasks.shape[:2]
        widths = servers.shape[2], tasks.shape[2]
        shape = Shape(states * count, count, servers.shape[1], *widths, network.hidden, network.steps)
        x0, rooms = torch.empty(states, count, shape.servers), network.rooms(shape)
        blocks = -(-shape.lanes // WIDTH)
        network.crew.run(
            forward, blocks, rooms.end, shape, rooms, network.inputs(theta, servers, tasks, share), flat(x0)
        )
        ctx.network, ctx.shape, ctx.rooms = network, shape, rooms
        ctx.save_for_backward(theta, servers, tasks, share)
        return x0

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        network, shape, rooms = ctx.network, ctx.shape, ctx.rooms
        blocks = -(-shape.lanes // WIDTH)
        gradient = torch.empty(blocks, network.size)
        inputs = network.inputs(*ctx.saved_tensors)
        network.crew.run(backward, blocks, rooms.end, shape, rooms, inputs, flat(g.contiguous()), flat(gradient))
        return gradient.sum(0), None, None, None, None

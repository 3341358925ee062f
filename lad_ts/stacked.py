"""Networks and optimiser for many agents at once.

G = seeds x BSs agents hold their parameters in one tensor theta [G, P], and every layer is one batched product over
all agents. Data is features first, [G, features, samples], which the batched products run fastest on. Adam is
elementwise, so one step on theta is one step of every agent. Start reading at `Layout`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch


class Layout:
    """Where the weights [out, in] and biases [out] of an MLP lie in an agent's P parameters.

    `widths` are the layer widths from input to output, as in `Layout(22, 20, 20, 20)`.
    """

    def __init__(self, *widths: int) -> None:
        self.widths = widths
        self.shapes: list[tuple[int, ...]] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            self.shapes += [(fan_out, fan_in), (fan_out, 1)]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """theta [G, P] as [W1 [G, out, in], b1 [G, out, 1], W2, b2, ..]; gradients flow back into theta."""
        parts = theta.split(self.sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def draw(self, generators: Sequence[torch.Generator], agents: int, device: torch.device) -> torch.Tensor:
        """Initial theta [len(generators) * agents, P]: uniform in +-1/sqrt(fan in), as torch.nn.Linear does."""
        fan_in = [width for width in self.widths[:-1] for _ in range(2)]
        bound = torch.cat([torch.full((n,), f**-0.5) for n, f in zip(self.sizes, fan_in, strict=True)])
        draws = [torch.rand(agents, self.size, generator=g, device=device) for g in generators]
        return (2 * torch.cat(draws) - 1) * bound.to(device)


def forward(
    parts: list[torch.Tensor], x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The MLP of every agent: x [G, in, M] -> [G, out, M]."""
    for layer in range(0, len(parts), 2):
        x = torch.baddbmm(parts[layer + 1], parts[layer], x)
        if layer + 2 < len(parts):
            x = activation(x)
    return x


class StackedAdam:
    """Adam (Kingma and Ba, 2015) on theta [G, P] with a step count for each agent.

    Agents begin to learn at different times, and the bias correction depends on an agent's own count.
    """

    def __init__(self, theta: torch.Tensor, lr: float, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.theta, self.lr, self.beta1, self.beta2, self.epsilon = theta, lr, beta1, beta2, 1e-8
        self.first, self.second = torch.zeros_like(theta), torch.zeros_like(theta)
        self.count = theta.new_zeros(theta.shape[0], 1, dtype=torch.float64)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, agents: torch.Tensor | None = None) -> None:
        """One step along gradient [G, P], of all agents or of those with the given indices only."""
        if agents is None:
            self._advance(self.theta, self.first, self.second, self.count, gradient)
            return
        parts = [tensor[agents] for tensor in (self.theta, self.first, self.second, self.count)]
        theta, first, second, count = parts
        self._advance(theta, first, second, count, gradient[agents])
        for whole, part in zip((self.theta, self.first, self.second, self.count), parts, strict=True):
            whole[agents] = part

    def _advance(
        self,
        theta: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        count: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        count += 1
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = (1 - self.beta2**count).sqrt()
        rate = (self.lr * root / (1 - self.beta1**count)).to(theta.dtype)
        # theta -= rate * first / (sqrt(second) + epsilon * root), the usual step with both corrections in front
        denominator = second.sqrt().add_((self.epsilon * root).to(theta.dtype))
        theta.sub_(torch.div(first, denominator, out=denominator).mul_(rate))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)

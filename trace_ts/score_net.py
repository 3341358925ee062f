"""The networks in torch, for learning by gradients: the score of score.py, and the value of a state.

Start reading at `ScoreNet.score`.
"""

import numpy as np
import torch

from trace_ts.model_trace import Design, chain_schedule
from trace_ts.rules import CONSTANTS
from trace_ts.score import ON_SERVER, ON_TASK


class ScoreNet(torch.nn.Module):
    """The score of score.py with gradients. Its parameter is the vector [P] of `Design.begin`."""

    def __init__(self, design: Design, parameters: np.ndarray) -> None:
        super().__init__()
        self.design = design
        self.vector = torch.nn.Parameter(torch.tensor(parameters, dtype=torch.float32))
        self.schedule = chain_schedule(design.steps).tolist()

    def parts(self) -> tuple[torch.Tensor, ...]:
        """Constants [7] and the four arrays of weights."""
        sizes = [len(CONSTANTS), *(int(np.prod(shape)) for shape in self.design.shapes)]
        constants, *flat = self.vector.split(sizes)
        return constants.exp(), *(part.view(shape) for part, shape in zip(flat, self.design.shapes, strict=True))

    def score(self, on_server: torch.Tensor, on_task: torch.Tensor) -> torch.Tensor:
        """Scores [N, B] in mean services, from on_server [N, ON_SERVER, B] and on_task [N, ON_TASK]."""
        constants, server_in, task_in, bias, out = self.parts()
        alpha, beta, theta, phi, psi, chi, _ = constants
        hidden = server_in @ on_server + (on_task @ task_in.T + bias)[:, :, None]
        heads = out @ torch.nn.functional.leaky_relu(hidden, 0.01)
        q, service, miss = on_server[:, 0].expm1(), on_server[:, 2].exp(), on_server[:, 3]
        own = on_server.shape[2] * ((3 * (on_task[:, 4] - 1)).exp() - 1e-3) / on_task[:, 3].expm1().clamp(min=1)
        price = self.design.price * (theta + phi * q + psi * on_server[:, 4].expm1()) / (1 + chi * own)[:, None]
        load = miss * on_task[:, 9, None] * price * heads[:, 0].clamp(-5, 5).exp()
        return alpha * q + beta * service + on_task[:, 0, None].exp() * heads[:, 1] + load

    def forward(self, on_server: torch.Tensor, on_task: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
        """The scores [N, B] by which tasks choose; a chain begins with begin [N, B]."""
        if not self.schedule:
            return self.score(on_server, on_task)
        x = begin
        for i, (end, present) in enumerate(self.schedule):
            step = torch.full_like(on_task[:, -1:], 1 - i / len(self.schedule))
            servers = torch.cat([on_server[:, :-1], x[:, None]], 1)
            found = self.score(servers, torch.cat([on_task[:, :-1], step], 1))
            x = end * (found.min(1, keepdim=True).values - found).clamp(min=-20) + present * x
        return -x


class ValueNet(torch.nn.Module):
    """What is to come from a state on, standardised; blind to the order of servers (Zaheer et al. 2017, deep sets).

    `centre` and `spread` [1] turn it into what it stands for. Weights are drawn by the generator.
    """

    def __init__(self, generator: np.random.Generator, hidden: int = 32) -> None:
        super().__init__()
        self.each = torch.nn.Linear(ON_SERVER, hidden)
        self.all = torch.nn.Sequential(
            torch.nn.Linear(hidden + ON_SERVER + ON_TASK, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 1),
        )
        for weights in self.parameters():
            scale = weights.shape[-1] ** -0.5 if weights.ndim > 1 else 0.0
            drawn = generator.uniform(-scale, scale, weights.shape)
            weights.data = torch.tensor(drawn, dtype=torch.float32)
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))

    def forward(self, on_server: torch.Tensor, on_task: torch.Tensor) -> torch.Tensor:
        """Values [N] from on_server [N, ON_SERVER, B] and on_task [N, ON_TASK]."""
        pooled = self.each(on_server.transpose(1, 2)).relu().mean(1)
        return self.all(torch.cat([on_task, pooled, on_server.mean(2)], 1))[:, 0]

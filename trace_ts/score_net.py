"""The networks in torch, for learning by gradients: the score of score.py, and the value of a state.

Start reading at `ScoreNet.forward`.
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

    def forward(self, on_server: torch.Tensor, on_task: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
        """The scores [N, B] in mean services by which tasks choose; a chain begins with begin [N, B].

        Inputs are on_server [N, ON_SERVER, B] and on_task [N, ON_TASK]; the last of each is the chain's own.
        """
        constants, server_in, task_in, bias, out = self.parts()
        servers = on_server.shape[2]
        same = on_task[:, :-1] @ task_in[:, :-1].T + bias
        each = on_server[:, :-1].transpose(1, 2).flatten(0, 1) @ server_in[:, :-1].T
        hidden = each.unflatten(0, (-1, servers)) + same[:, None]  # [N, B, H]
        rule, load, scale = self.rule(constants, on_server, on_task)

        def score(hidden: torch.Tensor) -> torch.Tensor:
            change, more = (torch.nn.functional.leaky_relu(hidden, 0.01) @ out.T).unbind(2)
            return rule + scale * more + load * change.clamp(-5, 5).exp()

        if not self.schedule:
            return score(hidden)
        x = begin
        for i, (end, present) in enumerate(self.schedule):
            step = (1 - i / len(self.schedule)) * task_in[:, -1]
            found = score(hidden + step + x[:, :, None] * server_in[:, -1])
            x = end * (found.min(1, keepdim=True).values - found).clamp(min=-20) + present * x
        return -x

    def rule(
        self, constants: torch.Tensor, on_server: torch.Tensor, on_task: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The priced rule: its score [N, B] without loading, what loading costs [N, B], and the scale [N, 1] of more.

        All in mean services.
        """
        alpha, beta, theta, phi, psi, chi, _ = constants
        q, service, miss = on_server[:, 0].expm1(), on_server[:, 2].exp(), on_server[:, 3]
        own = on_server.shape[2] * ((3 * (on_task[:, 4] - 1)).exp() - 1e-3) / on_task[:, 3].expm1().clamp(min=1)
        price = self.design.price * (theta + phi * q + psi * on_server[:, 4].expm1()) / (1 + chi * own)[:, None]
        return alpha * q + beta * service, miss * on_task[:, 9, None] * price, on_task[:, 0, None].exp()


class ValueNet(torch.nn.Module):
    """What is to come from a state on, standardised; blind to the order of servers (Zaheer et al. 2017, deep sets).

    `centre` and `spread` [1] turn it into what it stands for; they are 0 before the first round.
    Weights are drawn by the generator.
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
        self.register_buffer("spread", torch.zeros(1))

    def forward(self, on_server: torch.Tensor, on_task: torch.Tensor) -> torch.Tensor:
        """Values [N] from on_server [N, ON_SERVER, B] and on_task [N, ON_TASK]."""
        pooled = self.each(on_server.transpose(1, 2)).relu().mean(1)
        return self.all(torch.cat([on_task, pooled, on_server.mean(2)], 1))[:, 0]

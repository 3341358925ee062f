"""The latent action diffusion network (LADN) of every agent, as one chain of batched products.

A policy here is a denoising chain (arXiv 2412.18212, after Ho et al. 2020): from a latent action x_I, an MLP predicts
the noise in x_i given the state, and the posterior step gives x_{i-1}; softmax(x_0) are the action probabilities.
LAD-TS starts from the latent action that it remembers, D2SAC-TS from Gaussian noise. `Schedule` holds the step
coefficients, `Denoiser` the network: `forward` says what it computes, `forward_fast` computes the same with the
gradient worked out by hand. Start reading at `Denoiser.forward`.
"""

import dataclasses
import math
from typing import Any

import torch

from lad_ts.stacked import Layout

ACTIVATIONS = {"relu": torch.relu, "mish": torch.nn.functional.mish}
PREDICTORS = {"linear": lambda x: x, "softmax": lambda x: x.softmax(1), "tanh": torch.tanh}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Coefficients of the DDPM posterior step for i = 1..I, as lists that start with i = 1.

    x_hat = from_latent * x_i - from_noise * noise          (the predicted x_0)
    x_{i-1} = mean_hat * x_hat + mean_latent * x_i + spread * z,  z standard normal
    """

    from_latent: list[float]
    from_noise: list[float]
    mean_hat: list[float]
    mean_latent: list[float]
    spread: list[float]

    @property
    def steps(self) -> int:
        return len(self.spread)

    def keep(self, i: int) -> float:
        """The factor of x_i in x_{i-1} when both lines above are written as one."""
        return self.mean_hat[i] * self.from_latent[i] + self.mean_latent[i]

    def remove(self, i: int) -> float:
        """The factor of the predicted noise in x_{i-1}."""
        return -self.mean_hat[i] * self.from_noise[i]


def retained_signal(name: str, steps: int) -> list[float]:
    """alpha_i = 1 - beta_i for i = 1..I.

    `vp`: exp(-b_min/I - (b_max - b_min)(2i - 1)/(2 I^2)) with b_min 0.1 and b_max 10 (arXiv 2412.18212, after Xiao et
    al. 2022). `cosine`: Nichol and Dhariwal 2021, beta at most 0.999. `linear`: beta from 1e-4 to 0.02, stretched as if
    1,000 steps were cut to I (Ho et al. 2020).
    """
    indices = range(1, steps + 1)
    if name == "vp":
        low, high = 0.1, 10.0
        return [math.exp(-low / steps - (high - low) * (2 * i - 1) / (2 * steps**2)) for i in indices]
    if name == "cosine":

        def signal(i: int) -> float:
            return math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2

        return [max(signal(i) / signal(i - 1), 0.001) for i in indices]
    if name == "linear":
        scale = 1000 / steps
        fraction = [(i - 1) / max(steps - 1, 1) for i in indices]
        return [1 - min(scale * (1e-4 + (0.02 - 1e-4) * x), 0.999) for x in fraction]
    raise ValueError(f"schedule {name}: must be vp, cosine or linear")


def posterior_schedule(name: str, steps: int) -> Schedule:
    """The posterior coefficients of a noise schedule (Ho et al. 2020, equations 6, 7 and 15)."""
    rows, product = [], 1.0
    for alpha in retained_signal(name, steps):
        before, product = product, product * alpha
        beta = 1 - alpha
        rows.append(
            (
                product**-0.5,
                (1 / product - 1) ** 0.5,
                beta * before**0.5 / (1 - product),
                (1 - before) * alpha**0.5 / (1 - product),
                (beta * (1 - before) / (1 - product)) ** 0.5,
            )
        )
    return Schedule(*map(list, zip(*rows, strict=True)))


def step_embedding(steps: int, width: int = 16) -> torch.Tensor:
    """Sinusoidal embedding [I, width] of the denoising steps i = 1..I."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1))
    angle = torch.arange(1, steps + 1)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


class Denoiser:
    """The denoising chains of G agents.

    An MLP [x_i, embedding of i, state] -> hidden -> hidden -> B predicts the noise in x_i.
    `predictor` is what ends the MLP (linear, softmax, tanh); `clip` bounds the predicted x_0 to [-1, 1].
    """

    EMBEDDING = 16

    def __init__(
        self,
        state_size: int,
        num_actions: int,
        hidden: int,
        schedule: Schedule,
        activation: str = "relu",
        predictor: str = "linear",
        clip: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout = Layout(num_actions + self.EMBEDDING + state_size, hidden, hidden, num_actions)
        self.inputs = [num_actions, self.EMBEDDING, state_size]
        self.schedule, self.clip = schedule, clip
        self.units, self.ending = activation, predictor
        self.activation, self.predictor = ACTIVATIONS[activation], PREDICTORS[predictor]
        self.plain = activation == "relu" and predictor in ("linear", "softmax") and not clip
        self.softmax = predictor == "softmax"
        self.embedding = step_embedding(schedule.steps, self.EMBEDDING).T.to(device)

    def forward(
        self, theta: torch.Tensor, latent: torch.Tensor, state: torch.Tensor, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """x_0 [G, A, M] from theta [G, P], latent x_I [G, A, M], state [G, F, M] and noise [G, I - 1, A, M].

        noise[:, i - 2] is the z of step i; the last step, i = 1, adds none. None means no noise at all.
        """
        w1, b1, w2, b2, w3, b3 = self.layout.split(theta)
        w_latent, w_step, w_state = w1.split(self.inputs, dim=2)
        # The state's and the step's share of the first layer are the same whatever x_i is.
        from_state = torch.baddbmm(b1, w_state, state)
        from_step = w_step @ self.embedding
        s, x = self.schedule, latent
        for i in reversed(range(s.steps)):
            h = self.activation(torch.baddbmm(from_state + from_step[:, :, i : i + 1], w_latent, x))
            h = self.activation(torch.baddbmm(b2, w2, h))
            predicted = self.predictor(torch.baddbmm(b3, w3, h))
            x_hat = s.from_latent[i] * x - s.from_noise[i] * predicted
            if self.clip:
                x_hat = x_hat.clamp(-1, 1)
            x = s.mean_hat[i] * x_hat + s.mean_latent[i] * x
            if i > 0 and noise is not None:
                x = x + s.spread[i] * noise[:, i - 1]
        return x

    def forward_fast(
        self, theta: torch.Tensor, latent: torch.Tensor, state: torch.Tensor, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """`forward` for rectified units without clipping, with gradients for theta only; about twice as fast."""
        assert self.plain, "only for relu, a linear or softmax predictor, and no clipping"
        if torch.compiler.is_exporting():  # a gradient by hand has no place in a file
            return self.forward(theta, latent, state, noise)
        return FastChain.apply(theta, self, latent, state, noise)


class FastChain(torch.autograd.Function):
    """The denoising chain with its gradient by hand, which saves most of autograd's elementwise passes."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: torch.Tensor,
        denoiser: Denoiser,
        latent: torch.Tensor,
        state: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        s, steps = denoiser.schedule, denoiser.schedule.steps
        w1, b1, w2, b2, w3, b3 = denoiser.layout.split(theta)
        w_latent, w_step, w_state = w1.split(denoiser.inputs, dim=2)
        from_state = torch.baddbmm(b1, w_state, state)
        from_step = w_step @ denoiser.embedding
        x, saved, learning = latent, [], ctx.needs_input_grad[0]
        for i in reversed(range(steps)):
            h1 = (from_state + from_step[:, :, i : i + 1]).baddbmm_(w_latent, x).clamp_min_(0)
            h2 = torch.baddbmm(b2, w2, h1).clamp_min_(0)
            z = torch.baddbmm(b3, w3, h2)
            if denoiser.softmax:
                z = z.softmax(1)
            if learning:
                saved.append((x, h1, h2, z))
            x = x * s.keep(i)
            x.add_(z, alpha=s.remove(i))
            if i > 0 and noise is not None:
                x.add_(noise[:, i - 1], alpha=s.spread[i])
        ctx.denoiser, ctx.chain = denoiser, saved
        ctx.save_for_backward(theta, state)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        denoiser, s = ctx.denoiser, ctx.denoiser.schedule
        theta, state = ctx.saved_tensors
        w1, _, w2, _, w3, _ = denoiser.layout.split(theta)
        wt1, wt2, wt3 = (w.transpose(1, 2) for w in (w1[:, :, : denoiser.inputs[0]], w2, w3))
        # Gradients of the three weights and biases, added up over the steps; of the first layer's step share, too.
        weights = (w1[:, :, : denoiser.inputs[0]], w2, w3)
        g1, g2, g3 = (torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights)
        per_step = []
        for i, (x, h1, h2, z) in enumerate(reversed(ctx.chain)):
            d3 = torch._softmax_backward_data(gradient, z, 1, z.dtype) if denoiser.softmax else gradient
            d3 = d3 * s.remove(i)
            d2 = torch.ops.aten.threshold_backward(torch.bmm(wt3, d3), h2, 0)
            d1 = torch.ops.aten.threshold_backward(torch.bmm(wt2, d2), h1, 0)
            if i + 1 < s.steps:
                gradient = torch.baddbmm(gradient, wt1, d1, beta=s.keep(i))
            g3.baddbmm_(d3, h2.transpose(1, 2))
            g2.baddbmm_(d2, h1.transpose(1, 2))
            g1.baddbmm_(d1, x.transpose(1, 2))
            per_step.append(d1.sum(2))
            if i == 0:
                o1, o2, o3 = d1, d2, d3
            else:
                o1.add_(d1), o2.add_(d2), o3.add_(d3)
        steps = torch.stack(per_step, 2) @ denoiser.embedding.T
        first = torch.cat([g1, steps, torch.bmm(o1, state.transpose(1, 2))], 2)
        pieces = [first, o1.sum(2), g2, o2.sum(2), g3, o3.sum(2)]
        return torch.cat([piece.flatten(1) for piece in pieces], 1), None, None, None, None

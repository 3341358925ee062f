"""Sampling of Stable Diffusion 3: noise, the schedule of the rectified flow, guidance, and two samplers.

A latent x at noise level sigma is (1 - sigma) * data + sigma * noise, the model predicts the velocity noise - data, and
sampling goes from sigma = 1 to 0 (Liu et al. 2022; Esser et al. 2024). All latents are float32 whatever the weights
are. A model here is a function of (x [B, C, H, W], sigma as a float) to the velocity [B, C, H, W]. The file has the
name of the published code's, and holds the sampling only. Start reading at `euler`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from resd3_medium.mmdit import MMDiT

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
Sampler = Callable[[Velocity, torch.Tensor, Sequence[float]], Iterator[torch.Tensor]]


def initial_noise(generator: torch.Generator, channels: int, height: int, width: int) -> torch.Tensor:
    """Noise [1, channels, height, width] in float32, from a CPU generator: the same in every batch, on every device."""
    return torch.randn(1, channels, height, width, generator=generator)


def shifted(sigma: float, shift: float) -> float:
    """A noise level moved towards 1, which suits larger images (Esser et al. 2024, section 5.3.2)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def noise_levels(steps: int, shift: float = 3.0, exact_end: bool = False) -> list[float]:
    """Noise levels [steps + 1] from 1 down to 0.

    The published code takes `steps` equal parts from 1 down to the *shifted* level of timestep 1 of 1,000, and shifts
    those again, so the last level before 0 is shifted twice (0.0089 for shift 3). `exact_end` takes the unshifted one.
    """
    end = 1 / 1000 if exact_end else shifted(1 / 1000, shift)
    levels = [1 + (end - 1) * i / max(steps - 1, 1) for i in range(steps)]
    return [shifted(level, shift) for level in levels] + [0.0]


def image_to_image_levels(levels: Sequence[float], denoise: float) -> list[float]:
    """The last part of the levels: the start is left out in proportion to 1 - denoise, at least one step stays."""
    steps = len(levels) - 1
    return list(levels[min(int(steps * (1 - denoise)), steps - 1) :])


def noised(latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """The latent [B, C, H, W] at noise level sigma in 0..1, for noise of the same shape."""
    return (1 - sigma) * latent + sigma * noise


def guided(
    model: MMDiT,
    context: torch.Tensor,
    pooled: torch.Tensor,
    positions: torch.Tensor,
    cfg_scale: float,
) -> Velocity:
    """The velocity with classifier-free guidance (Ho and Salimans 2022).

    context [2 B, T, width] and pooled [2 B, width] hold the B prompts first, then their negative prompts; at a scale of
    1 the latter do not matter and are not computed.
    """

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        batch = len(x)
        if cfg_scale == 1:
            timestep = torch.full((batch,), 1000 * sigma, device=x.device)
            return model(x, timestep, context[:batch], pooled[:batch], positions).float()
        timestep = torch.full((2 * batch,), 1000 * sigma, device=x.device)
        both = model(torch.cat([x, x]), timestep, context, pooled, positions).float()
        positive, negative = both.chunk(2)
        return negative + cfg_scale * (positive - negative)

    return velocity


def euler(velocity: Velocity, x: torch.Tensor, levels: Sequence[float]) -> Iterator[torch.Tensor]:
    """Euler's method along the flow; yields x after every step."""
    for sigma, following in itertools.pairwise(levels):
        x = x + (following - sigma) * velocity(x, sigma)
        yield x


def dpmpp_2m(velocity: Velocity, x: torch.Tensor, levels: Sequence[float]) -> Iterator[torch.Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with the data level 1 - sigma; yields x after every step.

    Works in half log-SNRs, lambda = log((1 - sigma) / sigma), which are infinite at both ends: there the step is of
    first order.
    """
    before: tuple[torch.Tensor, float] | None = None  # the last step's data prediction and its length in lambda
    for sigma, following in itertools.pairwise(levels):
        data = x - sigma * velocity(x, sigma)
        length = half_log_snr(following) - half_log_snr(sigma)
        direction = data
        if before is not None and math.isfinite(length) and math.isfinite(before[1]):
            direction = data + (data - before[0]) * (length / before[1] / 2)
        # sigma' / sigma x - (1 - sigma') (exp(-length) - 1) D, where exp(-length) is a ratio that is 0 at either end
        decay = following * (1 - sigma) / sigma
        x = following / sigma * x + (1 - following - decay) * direction
        before = data, length
        yield x


def half_log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma) of a noise level; infinite where there is no data, or no noise."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log((1 - sigma) / sigma)


SAMPLERS: dict[str, Sampler] = {"euler": euler, "dpmpp_2m": dpmpp_2m}

"""Sampling of Stable Diffusion 3: noise, the schedule of the rectified flow, guidance, and two samplers.

A latent x at noise level sigma is (1 - sigma) * data + sigma * noise, the model predicts the velocity noise - data, and
sampling goes from sigma = 1 to 0 (Liu et al. 2022; Esser et al. 2024). All latents are float32 whatever the weights
are. A model here is a function of (x [B, C, H, W], sigma as a float) to the velocity [B, C, H, W]. The file has the
name of the published code's, and holds the sampling only. Start reading at `euler`, then `guided`.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from common.parameters import ParameterError
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
    return [level_at(i, steps, shift, exact_end) for i in range(steps)] + [0.0]


def level_at(place: float, steps: int, shift: float, exact_end: bool) -> float:
    """The noise level at a place from 0 to `steps` in the schedule, see `noise_levels`, also between two of its levels.

    There the levels before the shift are interpolated. A schedule of one step goes to the end of longer ones, not to 0.
    """
    end = 1 / 1000 if exact_end else shifted(1 / 1000, shift)
    if place > steps - 1 > 0:
        return shifted(end * (steps - place), shift)
    return shifted(1 + (end - 1) * place / max(steps - 1, 1), shift)


def image_to_image_levels(
    levels: Sequence[float], denoise: float, shift: float = 3.0, exact_end: bool = False
) -> list[float]:
    """The last part of the levels that `noise_levels` gives for this shift and end: the part 1 - denoise is left out.

    Where that is no whole number of steps, the first of the steps that stay begins on its way. So the start is pure
    noise for a denoise of 1 only, and at least one step stays.
    """
    steps = len(levels) - 1
    place = round(steps * (1 - denoise), 9)  # 10 * (1 - 0.6) is to be 4
    if denoise < 1:
        place = min(max(place, 1e-9), steps - 1e-9)
    return [level_at(place, steps, shift, exact_end), *levels[int(place) + 1 :]]


def noised(latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """The latent [B, C, H, W] at noise level sigma in 0..1, for noise of the same shape."""
    return (1 - sigma) * latent + sigma * noise


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How velocities are guided, and when.

    Classifier-free guidance (Ho and Salimans 2022) acts where cfg_end <= sigma <= cfg_start: an interval of noise
    levels (Kynkäänniemi et al. 2024, arXiv 2404.07724) spares its second pass elsewhere. Skip-layer guidance (as in
    Stability AI's sd3.5 repository) acts in the steps i, from 0, with slg_start * steps < i < slg_end * steps.
    """

    cfg_scale: float
    cfg_start: float = 1.0
    cfg_end: float = 0.0
    slg_scale: float = 0.0
    slg_layers: frozenset[int] = frozenset()
    slg_start: float = 0.01
    slg_end: float = 0.2

    @classmethod
    def of(cls, settings: Any) -> "Guidance":
        """What settings or parameters with fields of these names say; there the layers are text, see `parse_layers`."""
        values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        return cls(**values | {"slg_layers": parse_layers(settings.slg_layers)})

    def classifier_free(self, sigma: float) -> bool:
        """Whether classifier-free guidance acts at a noise level."""
        return self.cfg_scale != 1 and self.cfg_end <= sigma <= self.cfg_start

    def skip_layer(self, sigma: float, levels: Sequence[float]) -> bool:
        """Whether skip-layer guidance acts at a noise level, which is one of the schedule's, or between two."""
        steps = len(levels) - 1
        step = bisect.bisect_right(levels, -sigma, key=lambda level: -level) - 1  # the last whose level is not below
        return self.slg_scale > 0 and self.slg_start * steps < step < self.slg_end * steps


def parse_layers(text: str) -> frozenset[int]:
    """`7,8,9` as {7, 8, 9}. Raises ParameterError for what is no list of numbers."""
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*(,\s*[0-9]{1,4}\s*)*", text):
        raise ParameterError("slg_layers", text, "must be numbers of blocks from 0 on, separated by commas")
    return frozenset(int(number) for number in text.split(","))


def guided(
    model: MMDiT,
    context: torch.Tensor,
    pooled: torch.Tensor,
    positions: torch.Tensor,
    guidance: Guidance,
    levels: Sequence[float],
) -> Velocity:
    """The velocity with guidance: v- + cfg_scale (v+ - v-) + slg_scale (v+ - vs).

    v+ is that of the prompts, v- that of their negative prompts, and vs that of the prompts with `slg_layers` left
    out. What does not act is not computed: without classifier-free guidance the first two terms are v+.
    context [2 B, T, width] and pooled [2 B, width] hold the B prompts first, then their negative prompts; `levels`
    [steps + 1] is the whole schedule, also of a run that starts within it.
    """

    def evaluate(x: torch.Tensor, sigma: float, skip: frozenset[int] = frozenset()) -> torch.Tensor:
        timestep = torch.full((len(x),), 1000 * sigma, device=x.device)
        return model(x, timestep, context[: len(x)], pooled[: len(x)], positions, skip=skip).float()

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        if guidance.classifier_free(sigma):
            positive, negative = evaluate(torch.cat([x, x]), sigma).chunk(2)
            result = negative + guidance.cfg_scale * (positive - negative)
        else:
            result = positive = evaluate(x, sigma)
        if guidance.skip_layer(sigma, levels):
            result = result + guidance.slg_scale * (positive - evaluate(x, sigma, guidance.slg_layers))
        return result

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

"""MEG with shift maps, a scheme of this project: a latent's components, each on as many symbols as it is worth.

The sender takes a latent apart by `Transform`, and divides its components by their image's scale, which is one more
component. `allocate` gives each its symbols and its power for an SNR, `ShiftMaps` sends it. The receiver knows its own
SNR. It takes the posterior mean of every component, puts the latent together, and decodes it with the SNR that white
noise of the same error would have. No side information is sent. Start reading at `ShiftLink.__call__`.
"""

import dataclasses
import functools

import numpy as np
import torch
from torch import nn

from meg.allocation import Choices, allocate
from meg.channel import Channel, power, ratio
from meg.models import SplitModel
from meg.shift_maps import ShiftMaps, open_designs
from meg.transform import Transform, scales

OWN_DB = 14.5  # SNR of a latent from which on the generator's own decoder is better than the trained one
TRAINED_ON = (512, 1024, 4096)  # symbols of an image


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which components go over how many symbols, by which maps. The last component is the scale's logarithm."""

    symbols: int  # of an image
    groups: tuple[tuple[torch.Tensor, ShiftMaps], ...]  # components [M], and their maps

    def send(self, numbers: torch.Tensor) -> torch.Tensor:
        """Symbols [B, K] of normal numbers [B, D + 1]; those that are not needed are 0."""
        parts = [maps.send(numbers[:, own]).flatten(1) for own, maps in self.groups]
        sent = torch.cat(parts, 1) if parts else numbers[:, :0]
        return nn.functional.pad(sent, (0, self.symbols - sent.shape[1]))

    def estimate(
        self, received: torch.Tensor, noise: torch.Tensor, count: int, likeliest: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior means and variances [B, count] of the numbers behind symbols [B, K] with noise power [B]."""
        means, variances = received.new_zeros(len(received), count), received.new_ones(len(received), count)
        start = 0
        for own, maps in self.groups:
            size = maps.amplitudes.numel()
            part = received[:, start : start + size].unflatten(1, maps.amplitudes.shape)
            means[:, own], variances[:, own] = maps.estimate(part, noise, likeliest)
            start += size
        return means, variances


@functools.cache
def choices_for(channel: str, most: int | None) -> Choices:
    """The choices that a channel's best maps onto at most so many symbols give."""
    return Choices(open_designs(channel), most)


@functools.lru_cache(maxsize=512)
def plan_for(transform: Transform, symbols: int, snr_db: float, channel: str, most: int | None = None) -> Plan:
    """The plan of least square error, as pixels see it, for that many symbols at a mean SNR in dB."""
    variances, snr = with_scale(transform), float(ratio(snr_db))
    found = allocate(choices_for(channel, most), variances, symbols, symbols * snr)
    groups = []
    for count in range(1, found.symbols.max(initial=0) + 1):
        chosen = np.flatnonzero(found.symbols == count)
        if len(chosen):
            maps = open_designs(channel).maps(count, found.power[chosen])
            maps = ShiftMaps(maps.amplitudes / snr**0.5, maps.periods)  # the power of a symbol is 1 on average
            groups.append((torch.from_numpy(chosen), maps))
    return Plan(symbols, tuple(groups))


def with_scale(transform: Transform) -> np.ndarray:
    """The variances [D + 1] of components, and what a wrong scale does to all of them together."""
    own = transform.variances.double().cpu().numpy()
    return np.append(own, transform.log_scale[1] ** 2 * own.sum())


@functools.lru_cache(maxsize=512)
def of_maps(transform: Transform, symbols: int, snr_db: float, most: int | None = None) -> float:
    """The expected square error of components that are sent by maps onto at most so many symbols each; AWGN."""
    variances = with_scale(transform)
    found = allocate(choices_for("awgn", most), variances, symbols, symbols * float(ratio(snr_db)))
    return float((variances * found.mse).sum())


@dataclasses.dataclass(frozen=True)
class ShiftLink:
    """Sender and receiver of latents, for K symbols an image.

    `design_db` is the SNR that plans are made for; None: the mean SNR, which the sender then knows. The rest is for
    ablations: at most so many symbols for a component, the likeliest numbers in the place of posterior means, and by
    how much the SNR is wrong that both ends are told.
    """

    transform: Transform
    symbols: int
    design_db: float | None = None
    most: int | None = None
    likeliest: bool = False
    wrong_db: float = 0.0

    def sent(self, latent: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Symbols [B, K] of latents [B, C, h, w]."""
        t = self.transform
        components = t.components(latent)
        scale = scales(components, t.variances)
        numbers = components / t.variances.sqrt() / scale[:, None]
        log_scale = (scale.log() - t.log_scale[0]) / t.log_scale[1]
        return plan.send(torch.cat([numbers, log_scale[:, None]], 1))

    def received(self, symbols: torch.Tensor, snr_db: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        """The estimate [B, C, h, w] of the latents, and the SNRs [B] in dB of white noise with its error."""
        t = self.transform
        noise = power(symbols) / (1 + ratio(snr_db))  # as the receiver can measure it
        means, variances = plan.estimate(symbols, noise, len(t.variances) + 1, self.likeliest)
        log_scale = t.log_scale[0] + t.log_scale[1] * means[:, -1]
        spread = t.log_scale[1] ** 2 * variances[:, -1]  # of the scale's logarithm
        scale = (log_scale + spread / 2).exp()
        latent = t.latents(scale[:, None] * t.variances.sqrt() * means[:, :-1])
        wrong = spread.expm1().clamp(min=0)[:, None]  # relative square error of the scale
        errors = scale.square()[:, None] * t.variances * (variances[:, :-1] + wrong * means[:, :-1].square())
        return latent, t.snr_db(errors)

    def __call__(
        self,
        latent: torch.Tensor,
        channel: Channel,
        snr_db: float,
        generator: torch.Generator,
        noise_factor: torch.Tensor | float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `received` gives of clean latents [B, C, h, w] that are sent at a mean SNR in dB, see `Channel`."""
        design_db = snr_db + self.wrong_db if self.design_db is None else self.design_db
        plan = plan_for(self.transform, self.symbols, design_db, channel.kind, self.most)
        got = channel(self.sent(latent, plan), snr_db, generator, noise_factor)
        return self.received(got.symbols, got.snr_db + self.wrong_db, plan)


class ShiftModel(nn.Module):
    """The decoder of estimates while it is trained: numbers of symbols and SNRs differ from image to image."""

    def __init__(self, transform: Transform, split: SplitModel) -> None:
        super().__init__()
        self.split = split
        self.links = [ShiftLink(transform, count) for count in TRAINED_ON]

    def through(
        self,
        latent: torch.Tensor,
        channel: Channel,
        snr_db: torch.Tensor | float,
        generator: torch.Generator,
        noise_factor: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Images [B, 3, H, W] of clean latents [B, C, h, w] that are sent at mean SNRs [B] in dB, see `Channel`.

        While it is trained SNRs are rounded to 1 dB, and the number of symbols is drawn; else it is the middle one.
        """
        count = len(latent)
        snrs = torch.as_tensor(snr_db, dtype=torch.float64).expand(count)
        factors = torch.as_tensor(noise_factor, dtype=torch.float64).expand(count)
        chosen = torch.full((count,), len(TRAINED_ON) // 2)
        if self.training:
            snrs = snrs.round()
            chosen = torch.randint(len(TRAINED_ON), (count,), generator=generator)
        estimates, known = torch.empty_like(latent), latent.new_empty(count)
        with torch.no_grad(), torch.autocast(latent.device.type, enabled=False):
            for link, at_db in sorted({*zip(chosen.tolist(), snrs.tolist(), strict=True)}):
                own = ((chosen == link) & (snrs == at_db)).to(latent.device)
                found = self.links[link](latent[own], channel, at_db, generator, factors[own.cpu()])
                estimates[own], known[own] = found
        return self.split.images(estimates, known)


def decoded(split: SplitModel, own: SplitModel, latent: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] of estimates of latents, by the decoder that suits their SNRs [B] in dB.

    `own` is the generator's own decoder, for estimates that are better than what `split` was trained on.
    """
    good = snr_db >= OWN_DB
    if bool((good == good[0]).all()):
        return (own if bool(good[0]) else split).images(latent, snr_db)
    fine, rough = own.images(latent[good], snr_db[good]), split.images(latent[~good], snr_db[~good])
    made = torch.empty(len(latent), *fine.shape[1:], device=fine.device, dtype=fine.dtype)
    made[good], made[~good] = fine, rough
    return made

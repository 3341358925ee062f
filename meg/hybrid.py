"""Hybrid MEG, a scheme of this project: a coded latent on some symbols, and what its quantiser left out on the others.

The digital part is that of coded_latents.py, by the finest step that fits into a channel code's bits. The quantiser's
errors have variances that both ends know, and are sent as they are, a symbol each: for normal numbers of equal
variance that is as good as the best code (Goblick 1965), and no code of finite length is. How many symbols each part
gets, and how often the code may fail, follows from expected errors. Without a digital part the scheme is MEG with shift
maps. Start reading at `HybridLink.__call__`.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import torch
from torch import nn

from meg.allocation import reverse_water_filling
from meg.channel import Channel, per_image, power, ratio
from meg.coded_latents import CodedLatents
from meg.competitors import HYBRID
from meg.component_coder import COARSEST, Quantised
from meg.digital import Sending
from meg.meg_shift import ShiftLink, decoded, of_maps
from meg.rates import LABELS
from meg.schemes import Scheme
from meg.transform import Transform

SHARES = 16  # parts of the symbols that are tried for errors
FEWER_LOST = (1.0, 0.3, 0.1)  # parts of the block error that are tried
LEAST = 1e-300  # square error, which very many bits leave none of
WORSE, BESIDE = 1.6, 25  # than reverse water-filling: the quantiser's square error, and bits that say no component


def powers(variances: torch.Tensor, symbols: int, total: float) -> torch.Tensor:
    """The powers [N, D] in units of the noise by which numbers of variances [N, D] leave the least square error.

    The largest are sent, at most so many. Of variance v, one gets sqrt(v) c - 1 where that is positive (linear
    precoding, water-filling).
    """
    roots, order = variances.sqrt().sort(1, descending=True)
    count = torch.arange(1, roots.shape[1] + 1)
    levels = (total + count) / roots.cumsum(1)  # c if that many are sent
    last = ((roots * levels > 1) & (count <= symbols)).sum(1, keepdim=True).clamp(min=1) - 1
    found = torch.where(count <= last + 1, (roots * levels.gather(1, last) - 1).clamp(min=0), 0)
    return torch.zeros_like(found).scatter(1, order, found)


@functools.lru_cache(maxsize=512)
def digital_part(transform: Transform, sending: Sending, snr_db: float) -> Sending | None:
    """The symbols and the block error of the digital part, by the least expected mean of decibels; None: there is none.

    The block error is that of `sending`, or less: the better the image, the dearer is a lost one.
    """
    variances, snr, k = transform.variances.double().cpu().numpy(), float(ratio(snr_db)), sending.symbols
    lost, best, found = variances.sum(), math.log(max(of_maps(transform, k, snr_db), LEAST)), None
    for share, part in itertools.product(FEWER_LOST, range(SHARES)):
        own = 2 * round(part * k / SHARES / 2)
        coding = dataclasses.replace(sending, symbols=k - own, block_error=share * sending.block_error)
        (bits,) = coding.bits([snr])
        if bits > BESIDE:
            errors = np.minimum(variances, WORSE * reverse_water_filling(variances, bits - BESIDE))
            sent = powers(torch.from_numpy(errors)[None], own, own * snr)[0].numpy() if own else 0.0
            chance = float(sending.rate.error(bits, k - own, snr))
            left = max((errors / (1 + sent)).sum(), LEAST)
            decibels = (1 - chance) * math.log(left) + chance * math.log(lost)
            if decibels < best:
                best, found = decibels, coding
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class HybridLink:
    """Sender and receiver of latents. The sender knows the mean SNR; under fading there is no digital part."""

    coded: CodedLatents
    sending: Sending
    alone: ShiftLink  # what is used without a digital part
    lengths: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)

    def block(self, components: np.ndarray, scale: int, bits: int) -> np.ndarray | None:
        """A block of so many bits with components [D] by the finest step that fits; None where none does."""
        coder, key = self.coded.coder, components.tobytes()
        if key not in self.lengths:
            self.lengths[key] = np.array([coder.length(coder.quantise(components, scale, r)) for r in coder.rungs])
        for place in np.flatnonzero(self.lengths[key] + coder.rung_length(bits) <= bits)[::-1]:
            block = coder.block(coder.quantise(components, scale, int(coder.rungs[place])), bits)
            if block is not None:
                return block
        return None

    def with_errors(
        self, components: torch.Tensor, read: list[Quantised], symbols: int, snr_db: float, draw: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Estimates [B, D] of components [B, D] whose coded part was read, and their mean square errors [B, D].

        The errors of the coded part are sent on so many symbols by AWGN, and estimated linearly.
        """
        values = [self.coded.coder.values(q) for q in read]
        means, errors = (torch.from_numpy(np.stack(part)) for part in zip(*values, strict=True))
        if not symbols:
            return means, errors
        snr, count = float(ratio(snr_db)), min(symbols, errors.shape[1])
        gains = (powers(errors, symbols, symbols * snr) / snr / errors).sqrt()  # the power of a symbol is 1 on average
        gains, own = gains.topk(count, 1)
        sent = nn.functional.pad(gains * (components - means).gather(1, own), (0, symbols - count))
        got = Channel()(sent, snr_db, draw)
        noise = per_image(power(got.symbols) / (1 + ratio(got.snr_db)), sent)  # as the receiver can measure it
        before = errors.gather(1, own)
        heard = gains.square() * before / (gains.square() * before + noise)
        found = torch.where(gains > 0, heard / gains.clamp(min=1e-30) * got.symbols[:, :count], 0)
        return means.scatter_add(1, own, found), errors.scatter(1, own, before * (1 - heard))

    def __call__(
        self, latents: torch.Tensor, channel: Channel, snr_db: float, draw: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Estimates [B, C, h, w] of latents, the SNRs [B] in dB of white noise with their errors, and the lost [B]."""
        transform, rate = self.coded.transform, self.sending.rate
        coding = digital_part(transform, self.sending, snr_db) if channel.kind == "awgn" else None
        if coding is None:
            return *self.alone(latents, channel, snr_db, draw), torch.zeros(len(latents), dtype=torch.bool)
        own = self.sending.symbols - coding.symbols
        (bits,) = coding.bits([float(ratio(snr_db))])
        chance = float(rate.error(bits, coding.symbols, float(ratio(snr_db))))
        each = self.coded.components(latents)
        blocks = [self.block(components, scale, bits) for components, scale in each]
        lost = torch.rand(len(latents), generator=draw, dtype=torch.float64) < chance
        lost |= torch.tensor([block is None for block in blocks])
        coder = self.coded.coder
        read = [
            coder.quantise(y, scale, COARSEST) if b is None else coder.read(b)
            for b, (y, scale) in zip(blocks, each, strict=True)
        ]
        components = torch.from_numpy(np.stack([y for y, _ in each]))
        found, errors = self.with_errors(components, read, own, snr_db, draw)
        return transform.latents(found.float()), transform.snr_db(errors).float(), lost


def hybrid_scheme(coded: CodedLatents, sending: Sending, mean_image: torch.Tensor) -> Scheme:
    """The scheme of a coded latent's source; what is lost is shown as the mean image [3, H, W]."""
    link = HybridLink(coded, sending, ShiftLink(coded.transform, sending.symbols))

    def send(
        latents: torch.Tensor, images: torch.Tensor, channel: Channel, snr_db: float, generator: torch.Generator
    ) -> torch.Tensor:
        found, known, lost = link(latents.float().cpu(), channel, snr_db, generator)
        made = decoded(coded.split, coded.own, found.to(images.device), known.to(images.device))
        made[lost.to(images.device)] = mean_image.to(images.device)
        return made

    title = f"hybrid MEG, {sending.symbols} symbols, {LABELS[sending.rate.name]}"
    name = f"{HYBRID}_{sending.symbols}_{sending.rate.name}"
    return Scheme(name, sending.symbols, 0, send, title, "mean", coded.device_flop)

"""The radio channel from edge server to user equipment: symbols, power, noise, fading, energy and time.

Conventions. A symbol is one real number; two of them, in phase and quadrature, make a complex symbol, which takes one
second per hertz of bandwidth. The power P of an image's signal is the mean square of its symbols, the noise has power
N per real symbol, and the signal-to-noise ratio (SNR) is P / N, which is that of the complex symbols, too. Every image
is a block of its own: power, fading and SNR belong to it alone. Noise is relative to P, so the signal is not scaled.
Start reading at `Channel.__call__`.
"""

import dataclasses
import math

import torch

CHANNELS = ("awgn", "rayleigh")


def ratio(decibels: torch.Tensor | float) -> torch.Tensor | float:
    """A power ratio from decibels."""
    return 10 ** (decibels / 10)


def per_image(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers [B] in a shape that works on `like` [B, ...]."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def power(signal: torch.Tensor) -> torch.Tensor:
    """The mean square [B] of each image's symbols [B, ...]."""
    return signal.square().flatten(1).mean(1)


@dataclasses.dataclass(frozen=True)
class Received:
    """What the user equipment has: symbols [B, ...] with the channel's gain taken out, and their SNR [B] in dB."""

    symbols: torch.Tensor
    snr_db: torch.Tensor

    def mmse(self) -> torch.Tensor:
        """The linear estimate [B, ...] of zero-mean symbols with the least mean square error: y SNR / (1 + SNR)."""
        return self.symbols * per_image(torch.sigmoid(self.snr_db * math.log(10) / 10), self.symbols)


@dataclasses.dataclass(frozen=True)
class Channel:
    """Additive white Gaussian noise (`awgn`), or `rayleigh`: block fading under it, known to the receiver.

    Rayleigh: y = h x + n with one complex gain h ~ CN(0, 1) per image. The receiver knows h and divides by it, which
    leaves x + n / h: noise of power N / |h|^2. So its SNR is |h|^2 times the mean one, with |h|^2 ~ Exp(1).
    """

    kind: str = "awgn"

    def gains(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """The power gains |h|^2 [count] of as many images, in float64: 1 without fading."""
        if self.kind == "awgn":
            return torch.ones(count, dtype=torch.float64)
        parts = torch.randn(count, 2, generator=generator, dtype=torch.float64) / math.sqrt(2)
        return parts.square().sum(1)

    def __call__(
        self,
        signal: torch.Tensor,
        snr_db: torch.Tensor | float,
        generator: torch.Generator,
        noise_factor: torch.Tensor | float = 1.0,
    ) -> Received:
        """Send symbols [B, ...] at a mean SNR [B] in dB. `noise_factor` [B] multiplies the noise's power.

        All randomness comes from the host's `generator`. Gradients flow through the symbols and through their power.
        """
        count, device = len(signal), signal.device
        snr = ratio(torch.as_tensor(snr_db, dtype=torch.float64).expand(count)) / noise_factor
        snr = snr * self.gains(count, generator)
        noise = torch.randn(signal.shape, generator=generator).to(device, signal.dtype)
        deviation = (power(signal) / snr.to(device, signal.dtype)).sqrt()
        return Received(
            signal + per_image(deviation, signal) * noise, (10 * torch.log10(snr)).to(device, torch.float32)
        )


def equal_energy_snr_db(snr_db: float, symbols: int, reference: int) -> float:
    """The SNR in dB at which `symbols` have the same energy together as `reference` symbols at `snr_db`."""
    return snr_db + 10 * math.log10(reference / symbols)


@dataclasses.dataclass(frozen=True)
class Link:
    """What turns symbols and operations into time and energy.

    Bandwidth in Hz, noise density in dBm/Hz, losses on the way in dB, and what the device computes for a joule.
    """

    bandwidth_hz: float
    noise_dbm_hz: float
    loss_db: float
    gflop_per_joule: float = 100.0

    def seconds(self, symbols: float) -> float:
        """Transmission time in s of real symbols, two per hertz and second."""
        return symbols / (2 * self.bandwidth_hz)

    def joules(self, symbols: float, snr_db: float) -> float:
        """Transmitted energy in J: complex symbols times SNR times noise density, times the loss on the way."""
        noise = ratio(self.noise_dbm_hz) / 1000
        return symbols / 2 * ratio(snr_db) * noise * ratio(self.loss_db)

    def device_joules(self, flop: float) -> float:
        """Energy in J of the device's floating-point operations."""
        return flop / (1e9 * self.gflop_per_joule)

    def symbols_for(self, bits: float, snr_db: float) -> float:
        """The least real symbols that can carry bits without error at that SNR (Shannon's capacity)."""
        return bits / (0.5 * math.log2(1 + ratio(snr_db)))

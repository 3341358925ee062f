"""Digital schemes: what is to be sent becomes bits, a channel code carries them, and they arrive whole or not at all.

A source turns an image into a block of bits and back; a `Sending` says how many bits an image may have at an SNR, and
how often they are lost. What is lost is shown as the mean image: the receiver always notices, and the check sum by
which a real one does is not counted. It knows its SNR, and so the block's size; where the sender does not know it, the
sender picks the size for each image, and the pick is side information. Start reading at `digital_scheme`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from meg.channel import Channel, ratio
from meg.codecs import PEAK_DB, Album, best_under, message, parsed, psnr_db
from meg.rates import LABELS, Rate
from meg.schemes import Scheme

SENDER_KNOWS = ("mean", "gain")
GAINS = np.geomspace(0.003, 3.0, 32)  # power gains that a block may be meant for when the sender knows the mean only
PICK_BITS = math.ceil(math.log2(len(GAINS)))  # that say which
FADES = -np.log1p(-(np.arange(1000) + 0.5) / 1000)  # evenly likely power gains of Rayleigh fading


class Source(Protocol):
    """What digital schemes send of images. Blocks are arrays of bits; latents and images are those of `Scheme.send`."""

    name: str
    label: str
    device_flop: float  # of an image on the device, nan where it is not counted

    def psnr_db(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> np.ndarray:
        """PSNRs [N, len(bits)] in dB that the sender expects of images sent in so many bits, if nothing is lost."""

    def encode(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> list[np.ndarray | None]:
        """A block of bits[i] bits for image i; None where so few bits cannot say anything."""

    def decode(self, blocks: Sequence[np.ndarray]) -> list[torch.Tensor | None]:
        """The images [3, H, W] in 0..1 on the host of blocks; None where the block says that the mean image is best."""


@dataclasses.dataclass(frozen=True)
class Sending:
    """How bits are sent: real symbols of an image, the rule for the rate, and the block error that it is used at.

    Under fading the sender knows the `mean` SNR, and picks the rate that maximises each image's mean PSNR, or every
    image's `gain`.
    """

    symbols: int
    rate: Rate
    block_error: float = 0.01
    sender_knows: str = "mean"

    def picks(self, channel: Channel) -> bool:
        """Whether the sender picks among rates without knowing the gain."""
        return channel.kind == "rayleigh" and self.sender_knows == "mean"

    def bits(self, snrs: Iterable[float]) -> list[int]:
        """The bits of blocks at known SNRs, which are power ratios."""
        return [self.rate.bits(self.symbols, float(snr), self.block_error) for snr in snrs]

    def picked(self, snr: float, psnr: Callable[[Sequence[int]], np.ndarray], lost_db: np.ndarray) -> list[int]:
        """The bits of each image that give the best mean PSNR under Rayleigh fading of a mean SNR.

        `psnr` gives those [N, R] in dB of R numbers of bits, `lost_db` [N] are those of the mean image.
        """
        bits = self.bits([snr * gain for gain in GAINS])
        lost = np.array([self.rate.error(b, self.symbols, snr * FADES).mean() if b else 1.0 for b in bits])
        mean = (1 - lost) * psnr(bits) + lost * lost_db[:, None]
        return [bits[best] for best in mean.argmax(1)]


def pixels(images: torch.Tensor) -> np.ndarray:
    """Images [N, 3, H, W] in 0..1 as bytes [N, H, W, 3]."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()


def digital_scheme(source: Source, sending: Sending, mean_image: torch.Tensor, channel: Channel) -> Scheme:
    """A scheme that sends a source's blocks over that channel; what is lost is shown as the mean image [3, H, W]."""
    mean = mean_image.cpu()
    shown = pixels(mean[None])[0]

    def send(
        latents: torch.Tensor, images: torch.Tensor, channel: Channel, snr_db: float, generator: torch.Generator
    ) -> torch.Tensor:
        snr = float(ratio(snr_db))
        snrs = snr * channel.gains(len(images), generator).numpy()
        chance = torch.rand(len(images), generator=generator, dtype=torch.float64).numpy()
        if sending.picks(channel):
            lost_db = np.array([psnr_db(shown, image) for image in pixels(images)])
            bits = sending.picked(snr, lambda few: source.psnr_db(latents, images, few), lost_db)
        else:
            bits = sending.bits(snrs)
        blocks = source.encode(latents, images, bits)
        errors = [float(sending.rate.error(b, sending.symbols, own)) for b, own in zip(bits, snrs, strict=True)]
        whole = {i: block for i, block in enumerate(blocks) if block is not None and chance[i] >= errors[i]}
        result = mean.repeat(len(images), 1, 1, 1)
        for i, image in zip(whole, source.decode(list(whole.values())), strict=True):
            if image is not None:
                result[i] = image
        return result.to(images.device)

    known = sending.sender_knows == "gain"
    name = f"{source.name}_{sending.symbols}_{sending.rate.name}" + ("_gain" if known else "")
    label = f"{source.label}, {sending.symbols} symbols, {LABELS[sending.rate.name]}" + (
        ", gain known" if known else ""
    )
    side_bits = PICK_BITS if sending.picks(channel) else 0
    return Scheme(name, sending.symbols, side_bits, send, label, sending.sender_knows, source.device_flop, source.name)


class Files:
    """Images as the best of JPEG, WebP and AVIF; a decoder of those is not counted in operations."""

    device_flop = math.nan

    def __init__(self, album: Album, whole_files: bool, mean_image: torch.Tensor, threads: int = 1) -> None:
        self.album, self.whole_files, self.threads = album, whole_files, threads
        self.mean = pixels(mean_image[None])[0]
        self.name = "cg_digital_files" if whole_files else "cg_digital"
        self.label = "digital CG, whole files" if whole_files else "digital CG, headers left out"

    def psnr_db(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> np.ndarray:
        """PSNRs [N, len(bits)] in dB of the best files in so many bits, at least those of the mean image."""
        pictures = list(pixels(images))
        self.album.prepare(pictures, self.threads)
        rows = []
        for picture in pictures:
            entries, least = self.album.entries(picture, self.whole_files), psnr_db(self.mean, picture)
            best = [best_under(entries, b) for b in bits]
            rows.append([max(least, entry.psnr_db) if entry else least for entry in best])
        return np.array(rows)

    def encode(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> list[np.ndarray | None]:
        """Each image's best file in so many bits, or none where the mean image is better."""
        pictures, blocks = list(pixels(images)), []
        self.album.prepare(pictures, self.threads)
        for picture, b in zip(pictures, bits, strict=True):
            entry = best_under(self.album.entries(picture, self.whole_files), b)
            if entry and entry.psnr_db <= psnr_db(self.mean, picture):
                entry = None
            blocks.append(self.album.block(entry, b, self.whole_files))
        return blocks

    def decode(self, blocks: Sequence[np.ndarray]) -> list[torch.Tensor | None]:
        """The pictures of the files in blocks."""
        pictures = [self.album.picture(block, self.whole_files) for block in blocks]
        return [p if p is None else torch.from_numpy(p.copy()).movedim(-1, 0).float() / 255 for p in pictures]


class Prompts:
    """Prompt and seed: 32 bits of seed, the text in UTF-8, and the end's mark. The device makes the image by itself.

    It has the server's generator, and so the server's image but for rounding.
    """

    name, label = "prompt", "prompt and seed, the device generates"

    def __init__(
        self,
        images: torch.Tensor,
        requests: Sequence[tuple[str, int]],
        generate: Callable[[Sequence[str], Sequence[int]], torch.Tensor],
        device_flop: float = math.nan,
        batch: int = 50,
    ) -> None:
        """`requests` are prompts and seeds of images [N, 3, H, W]; `generate` makes images in 0..1 of such."""
        self.requests = {picture.tobytes(): request for picture, request in zip(pixels(images), requests, strict=True)}
        self.generate, self.device_flop, self.batch = generate, device_flop, batch
        self.made: dict[tuple[str, int], torch.Tensor] = {}

    def contents(self, images: torch.Tensor) -> list[bytes]:
        """Seed and text of the requests that images were made by."""
        requests = [self.requests[picture.tobytes()] for picture in pixels(images)]
        return [seed.to_bytes(4) + text.encode() for text, seed in requests]

    def psnr_db(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> np.ndarray:
        """PEAK_DB where prompt and seed fit, which any number of bits beside is no better than; else nothing."""
        needed = np.array([8 * len(content) + 1 for content in self.contents(images)])
        return np.where(needed[:, None] <= np.array(bits), PEAK_DB, 0.0)

    def encode(self, latents: torch.Tensor, images: torch.Tensor, bits: Sequence[int]) -> list[np.ndarray | None]:
        """Prompt and seed of each image where they fit."""
        empty = np.zeros(0, np.uint8)
        return [message(empty, content, b) for content, b in zip(self.contents(images), bits, strict=True)]

    def decode(self, blocks: Sequence[np.ndarray]) -> list[torch.Tensor | None]:
        """The images of prompts and seeds in blocks; the device makes each pair's image once."""
        contents = [parsed(block, 0)[1] for block in blocks]
        wanted = [(content[4:].decode(), int.from_bytes(content[:4])) for content in contents]
        new = [request for request in dict.fromkeys(wanted) if request not in self.made]
        for start in range(0, len(new), self.batch):
            few = new[start : start + self.batch]
            images = self.generate([text for text, _ in few], [seed for _, seed in few]).cpu()
            self.made.update(zip(few, images, strict=True))
        return [self.made[request] for request in wanted]

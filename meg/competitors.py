"""What MEG has to be better than: coded images, and the prompt alone; their parameters, and their schemes by name.

Start reading at `competitors`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from common.parameters import ParameterError, Parameters, parameter
from common.run_folder import describe
from meg.channel import Channel
from meg.codecs import Album
from meg.digital import SENDER_KNOWS, Files, Prompts, Sending, Source, digital_scheme
from meg.image_generator import ImageGenerator
from meg.rates import RATES, open_rate
from meg.schemes import LABELS, Scheme
from meg.shift_schemes import SHIFTED

ALL = "all"  # in the place of schemes' names
BOTH = "both"  # in the place of all that a sender may know
HYBRID = "meg_hybrid"
COMPETITORS = ("cg_digital", "cg_digital_files", "meg_digital", HYBRID, "prompt")
USED_BY = {  # parameters, and the schemes that they are for
    "symbols": (*SHIFTED, *COMPETITORS),
    "design_db": ("meg_shift_blind",),
    "rates": COMPETITORS,
    "block_error": COMPETITORS,
    "sender_knows": COMPETITORS,
}
MOST_SHIFTED = 10**6  # symbols, all but a few thousand of which stay unused
MEAN_IMAGE = "mean.png"  # of training images, in the folder of trained models


def words_of(text: str) -> list[str]:
    """The parts of a list in a parameter."""
    return [part.strip(" '\"") for part in text.strip("()[] ").split(",")]


@dataclasses.dataclass(kw_only=True)
class CompetitorParameters(Parameters):
    """Which schemes are compared, and how the digital ones send."""

    GROUP: ClassVar[str] = "schemes"

    schemes: str | None = parameter(
        None,
        "schemes to compare, separated by commas, or all; default those of a number of symbols of their own, and "
        "meg_shift",
        more=f"Of a number of their own: {', '.join(LABELS)}. Of any number: {', '.join(SHIFTED)}. Of any number, and "
        f"digital: {', '.join(COMPETITORS)}. With all, those are left out that there are no files for.",
    )
    symbols: str = parameter(
        "512,1024,12288",
        "real symbols of an image in schemes that take any number, separated by commas",
        more="Without --schemes, meg_shift takes as many as a latent has values.",
    )
    design_db: float = parameter(0.0, "SNR that senders plan for which do not know it", unit="dB", low=-60, high=60)
    rates: str = parameter("capacity", f"what a symbol carries in digital schemes, of {', '.join(RATES)}")
    block_error: float = parameter(
        0.01, "block error that rates with errors are used at", unit="probability", low=1e-9, high=0.5
    )
    sender_knows: str = parameter(
        "mean",
        "what the sender of digital schemes knows under fading: mean, the SNR's; gain, that of every image; or both",
    )

    def check(self) -> None:
        """Raises ParameterError for schemes, symbols and rates that are none."""
        super().check()
        counts = self.symbol_counts()
        if set(self.chosen()) & {*SHIFTED, HYBRID} and self.schemes and max(counts) > MOST_SHIFTED:
            raise ParameterError("symbols", self.symbols, f"must be at most {MOST_SHIFTED} with shift maps")
        self.rate_names()
        self.knowledge()

    def check_given(self, given: Collection[str]) -> None:
        """Raises ParameterError for parameters that are given, and that none of the schemes has a use for."""
        chosen = set(self.chosen()) if self.schemes else set()
        for name, schemes in USED_BY.items():
            if name in given and not chosen & set(schemes):
                words = f"must be combined with --schemes that it is for: {', '.join(schemes)}"
                raise ParameterError(name, getattr(self, name), words)
        if "block_error" in given and self.rate_names() == ["capacity"]:
            raise ParameterError("block_error", self.block_error, "must be combined with --rates that have errors")

    def chosen(self) -> list[str]:
        """The names of the schemes. Raises ParameterError for unknown ones."""
        known = (*LABELS, *SHIFTED, *COMPETITORS)
        if self.schemes == ALL:
            return list(known)
        return self.known("schemes", words_of(self.schemes) if self.schemes else [*LABELS, "meg_shift"], known)

    def named(self) -> bool:
        """Whether schemes are named one by one, so that each must be there."""
        return self.schemes not in (None, ALL)

    def rate_names(self) -> list[str]:
        """The names of the rates. Raises ParameterError for unknown ones."""
        return self.known("rates", words_of(self.rates), RATES)

    def knowledge(self) -> list[str]:
        """What the sender knows, a scheme for each. Raises ParameterError for unknown words."""
        if self.sender_knows == BOTH:
            return list(SENDER_KNOWS)
        return self.known("sender_knows", words_of(self.sender_knows), SENDER_KNOWS)

    def symbol_counts(self) -> list[int]:
        """Real symbols of an image. Raises ParameterError unless they are even numbers in range."""
        texts = words_of(self.symbols)
        if not all(
            t.isascii() and t.isdigit() and len(t) <= 9 and 2 <= int(t) <= 10**8 and int(t) % 2 == 0 for t in texts
        ):
            raise ParameterError(
                "symbols", self.symbols, "must be even numbers from 2 to 100000000, separated by commas"
            )
        return list(dict.fromkeys(map(int, texts)))

    def sendings(self, channel: Channel) -> list[Sending]:
        """How bits are sent, for every number of symbols and rate, and all that the sender may know."""
        knowledge = self.knowledge() if channel.kind == "rayleigh" else ["mean"]  # which is all without fading
        return [
            Sending(symbols, open_rate(rate), self.block_error, knows)
            for symbols in self.symbol_counts()
            for rate in self.rate_names()
            for knows in knowledge
        ]

    def known(self, name: str, found: list[str], known: Sequence[str]) -> list[str]:
        """The names, each once. Raises ParameterError for one that is not known."""
        if not all(word in known for word in found):
            raise ParameterError(name, getattr(self, name), f"must be some of {', '.join(known)}, separated by commas")
        return list(dict.fromkeys(found))


def mean_image(folder: Path) -> torch.Tensor | None:
    """The mean image [3, H, W] in 0..1 of a folder, None where it has none. Raises ParameterError for no picture."""
    path = folder / MEAN_IMAGE
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0).float() / 255
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ParameterError("decoders", folder, f"{MEAN_IMAGE} must be a picture ({describe(error)})") from None


def operations(work: Callable[[], object]) -> float:
    """The floating-point operations of matrix products and convolutions in some work, two a multiplication."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def counted(scheme: Scheme, latents: torch.Tensor, images: torch.Tensor) -> Scheme:
    """An uncoded scheme with its operations for the first image, which are the device's but for an encoder's few."""
    work = operations(lambda: scheme.send(latents[:1], images[:1], Channel(), 0.0, torch.Generator().manual_seed(0)))
    return dataclasses.replace(scheme, device_flop=work or math.nan)


def competitors(
    config: CompetitorParameters,
    names: Sequence[str],
    channel: Channel,
    generator: ImageGenerator,
    images: torch.Tensor,
    requests: Sequence[tuple[str, int]],
    mean: torch.Tensor,
    batch: int,
    coded: Source | None = None,
) -> list[Scheme]:
    """The digital schemes among those names, for every number of symbols and rate.

    `requests` are prompts and seeds of images [N, 3, H, W], `coded` is the source of meg_digital. Raises ParameterError
    when Pillow lacks a codec.
    """

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        return generator.images(generator.latents(prompts, seeds))

    album = None
    sources: list[Source] = []
    if "cg_digital" in names or "cg_digital_files" in names:
        album = Album((images.shape[3], images.shape[2]))
    for name in names:
        if name == "prompt":
            flop = operations(lambda: generate([requests[0][0]], [requests[0][1]]))
            sources.append(Prompts(images, requests, generate, flop, batch))
        elif coded and name == coded.name:
            sources.append(coded)
        elif album and name in ("cg_digital", "cg_digital_files"):
            sources.append(Files(album, name == "cg_digital_files", mean, torch.get_num_threads()))
    return [
        digital_scheme(source, sending, mean, channel) for source in sources for sending in config.sendings(channel)
    ]

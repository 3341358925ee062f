"""The parameters of test_MEG.py. Start reading at `TestConfig`."""

import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar

from common.parameters import ParameterError, Parameters, parameter
from meg.channel import CHANNELS
from meg.competitors import HYBRID, CompetitorParameters
from meg.decoders import TRAINED
from meg.sources import SourceParameters
from resd3_medium.tasks import DATASET

PROMPTS = DATASET / "pocket_test_captions.txt"
BUDGETS = {"symbol": ("symbol",), "energy": ("energy",), "both": ("symbol", "energy")}


@dataclasses.dataclass(kw_only=True)
class LinkParameters(Parameters):
    """The channel, its SNRs, and what times and energies are for."""

    GROUP: ClassVar[str] = "channel"

    channel: str = parameter("awgn", "the channel", choices=CHANNELS)
    snr_db: str = parameter("-20,-15,-10,-5,0,5,10,15,20", "SNRs of the points, separated by commas", unit="dB")
    bandwidth_hz: float = parameter(1e6, "bandwidth that transmission times are for", unit="Hz", above=0)
    noise_dbm_hz: float = parameter(-174.0, "noise density that energies are for", unit="dBm/Hz", low=-300, high=100)
    loss_db: float = parameter(120.0, "loss between the antennas that energies are for", unit="dB", low=0, high=300)
    gflop_per_joule: float = parameter(
        100.0, "what the device computes for its energy, of matrix products and convolutions", unit="GFLOP/J", low=1e-6
    )

    def check(self) -> None:
        """Raises ParameterError for SNRs that are none."""
        super().check()
        self.snrs()

    def snrs(self) -> list[float]:
        """The points in dB. Raises ParameterError unless they are numbers in range."""
        refusal = ParameterError("snr_db", self.snr_db, "must be numbers from -60 to 60, separated by commas")
        try:
            values = [float(text) for text in self.snr_db.strip("()[] ").split(",")]
        except ValueError:
            raise refusal from None
        if not values or not all(-60 <= value <= 60 for value in values):
            raise refusal
        return list(dict.fromkeys(values))


@dataclasses.dataclass(kw_only=True)
class TestConfig(CompetitorParameters, LinkParameters, SourceParameters):
    """Every parameter of test_MEG.py."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {"images": 200}, "published": {"images": 6}}
    GROUP: ClassVar[str] = "figure"

    preset: str = parameter(
        "default",
        "default: an image for each of 200 prompts; published: 2 images for each of 3 prompts",
        choices=("default", "published"),
        more="Six images are too few for any distance between sets.",
    )
    decoders: str = parameter(str(TRAINED), "folder of trained models; what is not there is left out", path=True)
    prompts: str = parameter(
        str(PROMPTS), "file with a prompt on each line, or folder of pictures with captions", path=True
    )
    images: int | None = parameter(None, "images for each point; default by preset", low=2)
    budget: str = parameter(
        "both",
        "what schemes have in common: SNR of a symbol, energy of an image, or first one, then the other",
        choices=tuple(BUDGETS),
    )
    inception: str = parameter(
        "auto",
        "auto: also FID, KID and LPIPS where their packages are",
        choices=("auto", "off"),
        more="The packages may fetch weights.",
    )
    st_lpips: str = parameter(
        "auto",
        "auto: also ST-LPIPS where the package stlpips-pytorch is; off; or its wheel, or its weights",
        path=True,
        more="Only the weights are read, no code of the package, which need not be installed if its wheel is named.",
    )
    resamples: int = parameter(50, "draws behind the intervals of the Fréchet distance", low=0)
    batch_size: int = parameter(50, "images that are made, sent and decoded together", low=1, high=1024)
    seed: int = parameter(0, "seed of the first image, and of fading and noise", low=0)
    threads: int = parameter(2, "CPU threads", low=1, high=1024)
    out: str | None = parameter(None, "folder of the results; default results/meg/test", path=True)

    def check(self) -> None:
        """Raises ParameterError for schemes that cannot be as images are made, or as their sender knows the channel."""
        super().check()
        if self.pictures and self.named() and "prompt" in self.chosen():
            raise ParameterError("schemes", self.schemes, "must not hold prompt with --pictures, made of no prompts")
        if self.named() and HYBRID in self.chosen() and self.channel != "awgn" and "mean" not in self.knowledge():
            raise ParameterError("sender_knows", self.sender_knows, f"must hold mean for {HYBRID} under fading")

    def check_given(self, given: Collection[str]) -> None:
        """Raises ParameterError for parameters that are given, and that neither schemes nor channel have a use for."""
        super().check_given(given)
        if "sender_knows" in given and self.channel == "awgn":
            raise ParameterError("sender_knows", self.sender_knows, "must be combined with --channel rayleigh")

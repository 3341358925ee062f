"""From prompts to images: the stages text, denoise and decode, and which weights are in memory meanwhile.

Memory levels: `none` keeps every model on the device; `model` lets text encoders, transformer and autoencoder take
turns; `block` also streams the layers of encoders and transformer through two buffers. All levels give the same
pixels. Start reading at `Pipeline.generate`.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from common.memory import give_back
from common.parameters import ParameterError
from common.pictures import to_image
from resd3_medium.building import build
from resd3_medium.finding import Weights, find_weights
from resd3_medium.initial_image import load_image
from resd3_medium.mmdit import MMDiT
from resd3_medium.parts import PARTS
from resd3_medium.preview import estimate
from resd3_medium.prompt_tokens import Tokens
from resd3_medium.sd3_impls import (
    SAMPLERS,
    Guidance,
    guided,
    image_to_image_levels,
    initial_noise,
    noise_levels,
    noised,
)
from resd3_medium.text import Conditioning, TextEncoding, contexts
from resd3_medium.vae import VAE


@dataclasses.dataclass(frozen=True)
class Settings:
    """What images of one batch have in common."""

    steps: int = 28
    width: int = 512
    height: int = 512
    cfg_scale: float = 5.0
    shift: float = 3.0
    sampler: str = "euler"
    exact_end: bool = False
    denoise: float = 1.0
    init_image: str | None = None
    fit: str = "crop"
    cfg_start: float = 1.0
    cfg_end: float = 0.0
    slg_scale: float = 0.0
    slg_layers: str = "7,8,9"
    slg_start: float = 0.01
    slg_end: float = 0.2


class Pipeline:
    """The models that were found on a device, at a dtype and a memory level.

    `weights` may be a folder or file to look in. `keep` says how large matrices are kept, see `building.build`.
    `t5_rows` is the number of T5 tokens per prompt, 0 without T5; `zero_rows` appends as many rows of zeros where T5
    is left out, as diffusers does (256). `tile` is the side, in latent cells, above which the decoder works in tiles.
    `long_prompts` is "cut" or "chunk", see `TextEncoding`.
    Raises ParameterError for files that are not whole, hold other models, or do not belong together.
    """

    def __init__(
        self,
        weights: Weights | Path,
        device: torch.device,
        dtype: torch.dtype,
        level: str = "none",
        t5_rows: int = 0,
        zero_rows: int = 0,
        tile: int = 0,
        keep: str = "stored",
        long_prompts: str = "cut",
    ) -> None:
        if isinstance(weights, Path):
            weights = find_weights(weights, "on" if t5_rows else "off")
        self.weights, self.device, self.dtype, self.level, self.keep = weights, device, dtype, level, keep
        self.t5_rows, self.tile = t5_rows, tile
        self.resident: dict[str, nn.Module] = {}
        names = [name for name in PARTS if name != "T5" or t5_rows]
        sizes = {name: weights[name].config for name in names}
        check_fit(weights.given, sizes)
        self.config, self.clip, self.factor = sizes["MMDiT"], sizes["CLIP-L"], sizes["VAE"].factor
        self.text = TextEncoding(
            self.bring, self.clip, self.config.context_width, weights.given, device, t5_rows, zero_rows, long_prompts
        )
        if level == "none":
            for name in names:
                self.bring(name)

    # --- models ---

    def bring(self, name: str, without: str = "$") -> nn.Module:
        """The named model on the device. Below level `none`, what was there before goes first.

        Then submodules whose names start with `without` are left out. At level `block`, on a GPU, the transformer's
        share is small enough to stay beside the autoencoder, and takes long to come in again.
        """
        if name in self.resident and (without != "$" or not has_gaps(self.resident[name])):
            return self.resident[name]
        if self.level != "none":
            self.resident.pop(name, None)
            stays = self.level == "block" and self.device.type != "cpu" and name in ("MMDiT", "VAE")
            staying = {"MMDiT", "VAE"} if stays else set()
            for other in self.resident.keys() - staying:
                del self.resident[other]
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            give_back()
        block = self.level == "block"
        gaps = "$" if self.level == "none" else without
        self.resident[name] = build(self.weights[name], self.device, self.dtype, self.keep, block, gaps)
        return self.resident[name]

    # --- text ---

    def tokens(self, prompt: str) -> dict[str, Tokens]:
        """The prompt's tokens for every encoder."""
        return self.text.tokens(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words that a model with a vocabulary of its own has never seen."""
        return self.text.unknown_words(prompt)

    def encode(self, prompts: Sequence[str], progress: Callable[[], None] = lambda: None) -> dict[str, Conditioning]:
        """Every different prompt's conditioning, see `TextEncoding.encode`."""
        return self.text.encode(prompts, progress)

    def batch_key(self, prompt: str, negative_prompt: str, settings: Settings) -> Hashable:
        """What images of one batch have in common, see `batches`: settings, and how long their contexts are."""
        return settings, self.text.chunks(prompt, *([] if settings.cfg_scale == 1 else [negative_prompt]))

    # --- image ---

    def generators(self, seeds: Sequence[int]) -> list[torch.Generator]:
        """A CPU generator for each image: its noise, then what else it draws, depends on its own seed only."""
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    @torch.inference_mode()
    def encode_image(self, settings: Settings, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Scaled latents [B, channels, H/8, W/8] of the initial image, one draw for each generator.

        Raises ParameterError when the image cannot be read.
        """
        image = load_image(settings.init_image, settings.width, settings.height, settings.fit).to(self.device)
        vae: VAE = self.bring("VAE")
        return vae.encode(image, generators)

    def levels(self, settings: Settings) -> list[float]:
        """The noise levels [steps + 1] that the sampler goes through, the last of them 0."""
        schedule = settings.shift, settings.exact_end
        levels = noise_levels(settings.steps, *schedule)
        return levels if settings.init_image is None else image_to_image_levels(levels, settings.denoise, *schedule)

    def steps(self, settings: Settings) -> int:
        """Denoising steps that are really taken: an initial image leaves some out."""
        return len(self.levels(settings)) - 1

    @torch.inference_mode()
    def denoise(
        self,
        positive: Sequence[Conditioning],
        negative: Sequence[Conditioning],
        seeds: Sequence[int],
        settings: Settings,
        step_done: Callable[[], None] = lambda: None,
        watch: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Scaled latents [B, channels, H/8, W/8] in float32 for B prompts, negative prompts and seeds.

        `step_done` is called after each denoising step, and `watch` with the data [B, channels, H/8, W/8] that it aims
        at, see `preview.estimate`. Raises ParameterError when the initial image cannot be read, or the
        latents are not finite, as at float16 they may be; ValueError for images beyond the position table, and for
        prompts with different `batch_key`.
        """
        if settings.cfg_scale == 1:
            negative = positive  # nobody asks for the others, so they must not lengthen the context
        height, width = settings.height // self.factor, settings.width // self.factor
        levels = self.levels(settings)
        generators = self.generators(seeds)
        noise = torch.cat([initial_noise(g, self.config.channels, height, width) for g in generators]).to(self.device)
        x = noise
        if settings.init_image is not None:
            x = noised(self.encode_image(settings, generators), noise, levels[0])
        model: MMDiT = self.bring("MMDiT")
        both = [*positive, *negative]
        velocity = guided(
            model,
            contexts(positive, negative).to(self.device, self.dtype),
            torch.cat([c.pooled for c in both]).to(self.device, self.dtype),
            model.positions(height, width).to(self.device, self.dtype),
            Guidance.of(settings),
            noise_levels(settings.steps, settings.shift, settings.exact_end),
        )
        for i, latent in enumerate(SAMPLERS[settings.sampler](velocity, x, levels)):
            if watch is not None:
                watch(estimate(x, latent, levels[i], levels[i + 1]))
            x = latent
            step_done()
        self.check_finite(x, "latent")
        return x

    def check_finite(self, values: torch.Tensor, what: str) -> None:
        """Raise ParameterError unless all values are finite."""
        if not bool(torch.isfinite(values).all()):
            used = str(self.dtype).removeprefix("torch.")
            others = " or ".join(name for name in ("float32", "bfloat16", "float16") if name != used)
            raise ParameterError("dtype", used, f"the {what} is no longer finite; try {others}, or check the weights")

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Images of scaled latents [B, channels, H/8, W/8], one by one, with pixels rounded to 0..255.

        Raises ParameterError when the pixels are not finite.
        """
        vae: VAE = self.bring("VAE", without="encoder.")
        images = []
        for latent in latents:
            pixels = vae.decode(latent[None], self.tile)[0]
            self.check_finite(pixels, "image")
            images.append(to_image(pixels))
        return images


def has_gaps(model: nn.Module) -> bool:
    """Whether some of a model has no weights."""
    return any(parameter.is_meta for parameter in model.parameters())


def check_fit(models: Path, sizes: dict[str, Any]) -> None:
    """Raise ParameterError unless the models of a folder, by their sizes, work on each other's outputs."""
    mmdit, vae, rows = sizes["MMDiT"], sizes["VAE"], [sizes[name].rows for name in ("CLIP-L", "CLIP-G")]
    clip = sizes["CLIP-L"].width + sizes["CLIP-G"].width
    wrong = [
        (mmdit.pooled_width != clip, f"widths of CLIP-L and CLIP-G add up to {clip}, not {mmdit.pooled_width}"),
        (rows[0] != rows[1], f"CLIP-L reads {rows[0]} tokens, CLIP-G {rows[1]}"),
        (clip > mmdit.context_width, f"widths of CLIP-L and CLIP-G exceed the context's {mmdit.context_width}"),
        (vae.channels != mmdit.channels, f"latents have {vae.channels} channels, not {mmdit.channels}"),
        ("T5" in sizes and sizes["T5"].width != mmdit.context_width, f"T5 is not {mmdit.context_width} wide"),
    ]
    for is_wrong, words in wrong:
        if is_wrong:
            raise ParameterError("models", models, f"must hold files that belong together; {words}")


def batches(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Indices of images that are made together: those with equal keys, in their order, at most `size` each."""
    alike: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        alike.setdefault(key, []).append(i)
    parts = [group[k : k + size] for group in alike.values() for k in range(0, len(group), size)]
    yield from sorted(parts)

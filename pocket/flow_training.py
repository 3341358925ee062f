"""Training of the pocket model's text encoders and transformer, together, on latents of captioned emoji.

Rectified flow as in Stable Diffusion 3 (Esser et al. 2024): the transformer learns the velocity noise - latent at
logit-normal noise levels, with an empty caption in a tenth of the cases for classifier-free guidance. The latents of
all emoji and of many compositions are computed once. Start reading at `FlowStage.loss`.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.progress import Progress
from common.stages import AveragedStage
from pocket.captions import ROWS, Captions
from pocket.compositions import Compositions, Renderer, draw
from resd3_medium.mmdit import MMDiT, MMDiTConfig
from resd3_medium.refine_other_impls import ClipConfig, ClipTextModel, joined
from resd3_medium.sd3_impls import Guidance, euler, guided, noise_levels
from resd3_medium.vae import VAE, LatentFormat

CLIP_WIDTH, CLIP_DEPTH, WIDTH, DEPTH, GRID = 128, 2, 384, 2, 4  # at equal cost, wide learns faster than deep
CFG_SCALE, STEPS, SHIFT = 3.0, 20, 1.0  # of images made by default; the shift of larger images does not suit these
EMPTY, UNIFORM = 0.1, 0.2  # shares of empty captions, and of noise levels drawn uniformly
PLAIN = 0.5  # share of emoji without attributes
NOISE_LOGIT = 1.2  # mean of the noise levels' logits, with deviation 1: what the words decide is decided in much noise


@dataclasses.dataclass(frozen=True)
class Latents:
    """Scaled latents [N, 16, 8, 8] in float16 of compositions; the first are all emoji as they are."""

    values: torch.Tensor
    shown: Compositions
    format: LatentFormat


@torch.no_grad()
def make_latents(vae: VAE, renderer: Renderer, out: torch.Tensor, count: int, seed: int) -> Latents:
    """The latents of all emoji and of `count` compositions with attributes, none of them held `out` [N, attributes]."""
    generator = torch.Generator().manual_seed(seed)
    wanted = Compositions.joined(
        [Compositions.plain(torch.arange(len(out))), draw(count, renderer, out, generator, plain=0.0)]
    )
    raw = []
    for start in Progress(range(0, len(wanted), 64), unit="batch", desc="latents", mininterval=1):
        with torch.autocast(renderer.pictures.device.type, torch.bfloat16):
            moments = vae.encoder(renderer(wanted[start : start + 64]))
        raw.append(moments.chunk(2, 1)[0].half().cpu())
    values = torch.cat(raw)
    of_emoji = values[: len(out)].float()
    found = LatentFormat(scale=1 / float(of_emoji.std()), shift=float(of_emoji.mean()))
    return Latents(found.scaled(values), wanted, found)


def position_table(grid: int, width: int) -> torch.Tensor:
    """Sines and cosines [1, grid * grid, width] of the patches' places, half for columns and half for rows."""
    place = torch.arange(grid, dtype=torch.float64)
    frequency = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    waves = torch.cat([(place[:, None] * frequency).sin(), (place[:, None] * frequency).cos()], 1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([columns, rows], 2).reshape(1, grid * grid, width).float()


class TextToLatent(nn.Module):
    """Both text encoders and the transformer, for texts of the `known` tokens, in ascending order."""

    def __init__(self, known: list[int]) -> None:
        super().__init__()
        clip = ClipConfig(CLIP_DEPTH, CLIP_WIDTH, 4 * CLIP_WIDTH, len(known) + 1, False, ROWS, tuple(known))
        self.clip_l = ClipTextModel(clip, quick=True)
        self.clip_g = ClipTextModel(dataclasses.replace(clip, projection=True), quick=False)
        for encoder in (self.clip_l, self.clip_g):
            encoder.known = torch.tensor(known)
            nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=0.5)
            nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.1)
        self.mmdit = MMDiT(MMDiTConfig(DEPTH, WIDTH, 2, 16, 2 * CLIP_WIDTH, 2 * CLIP_WIDTH, 256, GRID))
        self.mmdit.pos_embed = position_table(GRID, WIDTH)
        for name, parameter in self.mmdit.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(parameter)  # every block begins as the identity

    def to_device(self, device: torch.device) -> "TextToLatent":
        """This model with weights and known tokens on the device."""
        self.to(device)
        for encoder in (self.clip_l, self.clip_g):
            encoder.known = encoder.known.to(device)
        return self

    def text(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Context [B, ROWS, 2 CLIP_WIDTH] and pooled [B, 2 CLIP_WIDTH] of tokens [B, ROWS], as the pipeline has them.

        CLIP-G fills up with 0 instead of the end token.
        """
        after_end = (ids == ids.amax(1, keepdim=True)).cumsum(1) > 1
        return joined(self.clip_l(ids), self.clip_g(ids.masked_fill(after_end, 0)), None, 2 * CLIP_WIDTH)

    def forward(self, latent: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The velocity [B, 16, H, W] of latents at noise levels sigma [B] in 0..1, for tokens [B, ROWS]."""
        positions = self.mmdit.positions(*latent.shape[2:])
        return self.mmdit(latent, 1000 * sigma, *self.text(ids), positions)


class FlowStage(AveragedStage):
    """The model, its moving average, and one training step after the other."""

    name = "flow"
    measure = "top1"

    def __init__(
        self,
        latents: Latents,
        captions: Captions,
        vae: VAE,
        device: torch.device,
        seed: int,
        steps: int,
        batch: int,
        rate: float,
    ) -> None:
        torch.manual_seed(seed)  # for the initial weights, which torch draws from its global generator
        self.latents, self.captions, self.vae, self.device = latents, captions, vae, device
        self.seed, self.steps, self.batch, self.rate = seed, steps, batch, rate
        self.model = TextToLatent(captions.vocabulary).to_device(device)
        self.average = TextToLatent(captions.vocabulary).to_device(device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)

    def batch_of(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean latents and noise [B, 16, 8, 8], noise levels [B] in 0..1 and tokens [B, ROWS] of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        words = np.random.default_rng([self.seed, number])
        emoji, batch = len(self.captions.emoji), self.batch
        is_plain = torch.rand(batch, generator=generator) < PLAIN
        plain = torch.randint(emoji, (batch,), generator=generator)
        other = torch.randint(emoji, len(self.latents.values), (batch,), generator=generator)
        chosen = torch.where(is_plain, plain, other)
        texts = self.captions.draw(self.latents.shown[chosen], words)
        texts = ["" if empty else text for text, empty in zip(texts, words.random(batch) < EMPTY, strict=True)]
        sigma = (NOISE_LOGIT + torch.randn(batch, generator=generator)).sigmoid()
        uniform = torch.rand(batch, generator=generator)
        sigma = torch.where(torch.rand(batch, generator=generator) < UNIFORM, uniform, sigma)
        latent = self.latents.values[chosen].float()
        noise = torch.randn(latent.shape, generator=generator)
        ids = self.captions.ids(texts, words)
        return tuple(x.to(self.device) for x in (latent, noise, sigma, ids))

    def loss(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The mean square error of the velocity, a scalar, for what `batch_of` gives (Esser et al. 2024)."""
        level = sigma[:, None, None, None]
        # On the CPU, the backward pass of torch's fused attention takes longer than plain products at these sizes.
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = self.model((1 - level) * latent + level * noise, sigma, ids)
        return (velocity.float() - (noise - latent)).square().mean()

    def step(self, number: int) -> float:
        """Train on one batch; it depends on seed and step number only. Returns the loss."""
        done = number / self.steps
        decay = 1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (number + 1) / 300) * decay
        return self.update(self.loss(*self.batch_of(number)), min(0.998, (number + 1) / (number + 10)))

    @torch.no_grad()
    def made(self, texts: list[str], seed: int, steps: int = STEPS) -> torch.Tensor:
        """Scaled latents [B, 16, 8, 8] that the average model makes of texts."""
        shape = self.latents.values.shape[1:]
        noise = torch.randn(len(texts), *shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        context, pooled = self.average.text(self.captions.ids(texts + [""] * len(texts)).to(self.device))
        positions = self.average.mmdit.positions(*shape[1:])
        levels = noise_levels(steps, SHIFT)
        velocity = guided(self.average.mmdit, context, pooled, positions, Guidance(CFG_SCALE), levels)
        for x in euler(velocity, noise, levels):
            latents = x
        return latents

    @torch.no_grad()
    def evaluate(self) -> tuple[float, torch.Tensor]:
        """Of 64 emoji, which share is nearest to its own latent among all; and 64 pictures for a sheet."""
        names = self.captions.emoji.names
        asked = list(range(0, len(names), max(1, len(names) // 64)))[:64]
        made = self.made([names[i] for i in asked], self.seed, steps=10).cpu()
        truth = self.latents.values[: len(names)].float().flatten(1)
        top = float((torch.cdist(made.flatten(1), truth).argmin(1) == torch.tensor(asked)).float().mean())
        words = ["blue apple", "a photo of a rocket", "two cats", "green heart on a black background"]
        words += ["red car on the left", "three pink roses", "small dog", "purple rocket on a yellow background"]
        more = self.made(words * 2, self.seed + 1).to(self.device)
        self.vae.latents = self.latents.format
        return top, self.vae.decode(torch.cat([made[:48].to(self.device), more]))

"""SDXL in its PeRFlow form (Yan et al. 2024, arXiv 2405.07510), through diffusers: the published generator.

A piecewise rectified flow goes straight within each of K time windows. Start reading at `PeRFlowScheduler.step`.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import tomesd
import torch
from diffusers import AutoencoderKL, ConfigMixin, SchedulerMixin, StableDiffusionXLPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from common.device import choose_device
from common.parameters import ParameterError
from common.run_folder import describe
from meg.decoders import Base, Description
from meg.image_generator import ImageOptions
from resd3_medium.dtypes import choose_dtype
from resd3_medium.folders import MODELS

STEPS, CFG_SCALE, SIDE = 12, 2.5, 1024  # published
UNIT, LARGEST = 8, 4096  # pixels: the side of a latent's cell, and of the largest image
MERGED = 0.5  # share of the tokens that are merged within the attention, published
# The published prompts have a fixed beginning and a fixed negative prompt; these words are this project's.
BEGINNING, NEGATIVE = "a detailed, sharp picture of ", "blurred, noisy, distorted"


class PeRFlowOutput(BaseOutput):
    """What a step returns: `prev_sample`, the latents at the next time."""

    prev_sample: torch.Tensor


class PeRFlowScheduler(SchedulerMixin, ConfigMixin):
    """Euler's method along a piecewise rectified flow whose network predicts the noise ("ddim_eps").

    Times run from 1 (noise) to 0 in `windows` equal windows [t_e, t_s]. Each gets as many steps as any other, those of
    most noise one more when they do not divide.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        windows: int = 4,
    ) -> None:
        # the "scaled linear" noise schedule of Stable Diffusion
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)
        self.set_timesteps(windows)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Set the times of a run: `times` [steps + 1] in 1..0, and `timesteps` [steps] for the network.

        Raises ValueError for fewer steps than windows.
        """
        windows = self.config.windows
        if num_inference_steps < windows:
            raise ValueError(f"a piecewise rectified flow of {windows} windows takes at least as many steps")
        self.num_inference_steps = num_inference_steps
        times = []
        for window in range(windows):
            count = num_inference_steps // windows + (window < num_inference_steps % windows)
            times += [1 - (window + k / count) / windows for k in range(count)]
        self.times = [*times, 0.0]
        self.timesteps = torch.tensor([self.timestep(t) for t in times], device=device)
        self.position = 0

    def timestep(self, time: float) -> int:
        """The network's timestep, from 0, of a time in 0..1."""
        return max(0, round(time * self.config.num_train_timesteps) - 1)

    def alpha_bar(self, time: float) -> float:
        """How much of the data is in the latents at a time; all of it at 0."""
        return 1.0 if time <= 0 else float(self.alphas_cumprod[self.timestep(time)])

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """The latents as they are; diffusers' pipelines ask for it."""
        return sample

    def window(self, time: float) -> tuple[float, float]:
        """End t_e and start t_s of the window that a step from that time lies in, t_e < time <= t_s."""
        windows = self.config.windows
        number = min(windows - 1, int((1 - time) * windows + 1e-6))
        return 1 - (number + 1) / windows, 1 - number / windows

    def velocity(self, noise: torch.Tensor, time: float, sample: torch.Tensor) -> torch.Tensor:
        """The flow's direction dz/dt within the window, from noise predicted at a time, for latents of any shape.

        DDIM ties the window's ends: z_s = l z_e + h eps, with l = sqrt(a_s / a_e) and h = sqrt(1 - a_s) -
        l sqrt(1 - a_e). The flow is straight between them: z_t = (1 - c) z_e + c z_s with c = (t - t_e) / (t_s - t_e).
        Both together give z_e, then z_s, then (z_s - z_e) / (t_s - t_e).
        """
        end, start = self.window(time)
        a_end, a_start = self.alpha_bar(end), self.alpha_bar(start)
        scale = (a_start / a_end) ** 0.5
        spread = (1 - a_start) ** 0.5 - scale * (1 - a_end) ** 0.5
        c = (time - end) / (start - end)
        z_end = (sample - c * spread * noise) / (1 - c + c * scale)
        return (scale * z_end + spread * noise - z_end) / (start - end)

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> PeRFlowOutput | tuple[torch.Tensor]:
        """The latents at the next time. Steps come in order, so the time is known without `timestep`."""
        time, following = self.times[self.position], self.times[self.position + 1]
        self.position += 1
        z = sample.float()
        made = (z + (following - time) * self.velocity(model_output.float(), time, z)).to(sample.dtype)
        return PeRFlowOutput(prev_sample=made) if return_dict else (made,)


class SDXLGenerator:
    """SDXL from a folder in diffusers' layout, with PeRFlow's scheduler and token merging in its attention.

    Raises ParameterError when the folder is not whole, and for fewer steps than the flow has windows.
    """

    def __init__(self, options: ImageOptions) -> None:
        folder = Path(options.models or MODELS / "sdxl_perflow")
        if not (folder / "model_index.json").is_file():
            raise ParameterError("models", folder, "must be a folder of SDXL PeRFlow in diffusers' layout")
        self.device = choose_device(options.device)
        dtype = choose_dtype(options.dtype, self.device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.pipeline = StableDiffusionXLPipeline.from_pretrained(
                    folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
                ).to(self.device)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise ParameterError("models", folder, f"must be whole ({describe(error)})") from None
        self.pipeline.scheduler = PeRFlowScheduler()
        self.pipeline.set_progress_bar_config(disable=True)
        tomesd.apply_patch(self.pipeline, ratio=MERGED)
        self.steps = options.steps or STEPS
        if self.steps < self.pipeline.scheduler.config.windows:
            raise ParameterError("steps", self.steps, "must be at least 4, the flow's windows")
        self.cfg_scale = CFG_SCALE if options.cfg_scale is None else options.cfg_scale
        self.side = options.side or SIDE
        if self.side % UNIT or self.side > LARGEST:
            raise ParameterError("side", self.side, f"must be a multiple of {UNIT} up to {LARGEST}, for SDXL")

    @torch.inference_mode()
    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], step_done: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """Scaled latents [B, 4, H/8, W/8] in float32.

        One image at a time: a batch at 1024 x 1024 takes more memory than it saves time.
        """
        found = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            found.append(
                self.pipeline(
                    prompt=BEGINNING + prompt,
                    negative_prompt=NEGATIVE,
                    num_inference_steps=self.steps,
                    guidance_scale=self.cfg_scale,
                    height=self.side,
                    width=self.side,
                    generator=torch.Generator().manual_seed(seed),
                    output_type="latent",
                    callback_on_step_end=lambda pipe, step, time, values: step_done() or values,
                ).images.float()
            )
        return torch.cat(found)

    @torch.inference_mode()
    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean images [B, 3, H, W] in 0..1, computed in float32, since SDXL's autoencoder overflows float16."""
        vae: AutoencoderKL = self.pipeline.vae.float()
        raw = latents.to(self.device).float() / vae.config.scaling_factor
        return ((torch.cat([vae.decode(latent[None]).sample for latent in raw]) + 1) / 2).clamp(0, 1)

    @torch.inference_mode()
    def encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, 4, H/8, W/8], the encoder's means, of images [B, 3, H, W] in 0..1, in float32."""
        vae: AutoencoderKL = self.pipeline.vae.float()
        pixels = images.to(self.device).float() * 2 - 1
        means = torch.cat([vae.encode(image[None]).latent_dist.mode() for image in pixels])
        return means * vae.config.scaling_factor

    def base(self) -> Base:
        """The autoencoder's decoder and post-quantisation convolution, copies in float32."""
        vae: AutoencoderKL = self.pipeline.vae
        sizes = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
        copy = AutoencoderKL.from_config(sizes)
        copy.load_state_dict({name: tensor.float().cpu() for name, tensor in vae.state_dict().items()})
        channels = vae.config.latent_channels
        description = Description("sdxl", sizes, channels, scale=vae.config.scaling_factor, shift=0.0)
        return Base(copy.decoder, copy.post_quant_conv, description)

"""The pocket model's files, in the layout that Stable Diffusion 3 is released in.

Shapes say most of what a file is; the rest stands in its metadata: which tokens the text encoders know, how latents are
scaled, the groups of the autoencoder's norms, and the parameters that suit the model. Start reading at `write_models`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from common.run_folder import made, replace_file
from pocket.emoji import SIDE
from pocket.flow_training import CFG_SCALE, SHIFT, STEPS, TextToLatent
from resd3_medium.parts import Extras
from resd3_medium.vae import VAE, LatentFormat

NOTE = f"pocket model: {SIDE} x {SIDE} emoji, not SD3"
DEFAULTS = {"steps": str(STEPS), "width": SIDE, "height": SIDE, "cfg_scale": CFG_SCALE, "shift": SHIFT}


def tensors(model: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The model's weights in float16, on the host."""
    return {prefix + name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}


def write_models(folder: Path, model: TextToLatent, vae: VAE, latents: LatentFormat) -> int:
    """Write clip_l, clip_g and sd3_medium .safetensors. Returns how many bytes they are.

    Raises ParameterError when the folder cannot be written.
    """
    image = tensors(model.mmdit, "model.diffusion_model.") | tensors(vae, "first_stage_model.")
    image["model.diffusion_model.pos_embed"] = model.mmdit.pos_embed.cpu().half()
    words = Extras(known_tokens=model.clip_l.config.known)
    more = Extras(
        group_norm_groups=vae.config.groups,
        latent_scale=latents.scale,
        latent_shift=latents.shift,
        defaults=DEFAULTS,
        note=NOTE,
    )
    files = {
        "clip_l.safetensors": (tensors(model.clip_l), words),
        "clip_g.safetensors": (tensors(model.clip_g), words),
        "sd3_medium.safetensors": (image, more),
    }
    made(folder)
    for name, (content, extras) in files.items():
        replace_file(folder / name, lambda path, c=content, e=extras: save_file(c, path, e.to_metadata()))
    return sum((folder / name).stat().st_size for name in files)

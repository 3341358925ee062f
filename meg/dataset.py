"""Reference latents and images on disk, made once and read by every training.

A folder of safetensors parts with the fields `latents` [N, C, H/8, W/8] in float16, scaled, and `diffusion`
[N, 3, H, W] in bytes: the images that the generator's own decoder makes of them, or pictures of one's own. captions.txt
or pictures.csv has a line for each, and config.json says what made them. Start reading at `load_dataset`.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.parameters import ParameterError
from common.run_folder import describe, replace_file

PART = 64  # images of a file


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Latents [N, C, h, w] in float16 and the clean images [N, 3, H, W] in bytes that belong to them."""

    latents: torch.Tensor
    diffusion: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, chosen: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and images in 0..1, both in float32, of the chosen numbers."""
        return self.latents[chosen].to(device).float(), self.diffusion[chosen].to(device).float() / 255


def fitted_to(pairs: Pairs, validation: int) -> int:
    """How many images are trained on or fitted to, the first ones; tells of it where these are less than half.

    Raises ParameterError where `validation` leaves none.
    """
    count = len(pairs) - validation
    if count < 1:
        raise ParameterError("validation", validation, f"must be less than the {len(pairs)} images of --data")
    if count < validation:
        words = f"only {count} of the {len(pairs)} images of --data are trained on or fitted to"
        print(f"note: {words}; --validation keeps {validation} of them back", file=sys.stderr)
    return count


def part_path(folder: Path, number: int) -> Path:
    """The file of that part."""
    return folder / f"part-{number:05d}.safetensors"


def save_part(folder: Path, number: int, latents: torch.Tensor, images: torch.Tensor) -> None:
    """Write scaled latents [B, C, h, w] and images [B, 3, H, W] in 0..1 as one part."""
    content = {
        "latents": latents.cpu().half().contiguous(),
        "diffusion": (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous(),
    }
    replace_file(part_path(folder, number), lambda temporary: save_file(content, temporary))


def load_dataset(folder: Path, flag: str = "data") -> Pairs:
    """All pairs of a folder. Raises ParameterError when it holds none, or not whole ones of one size."""
    paths = sorted(folder.glob("part-*.safetensors"))
    if not paths:
        raise ParameterError(
            flag, folder, "must be a folder of latents and images; make it with python meg/make_dataset.py"
        )
    found: dict[str, list[torch.Tensor]] = {"latents": [], "diffusion": []}
    for path in paths:
        try:
            content = load_file(path)
            for name, values in found.items():
                values.append(content[name])
        except (SafetensorError, OSError, LookupError) as error:
            raise ParameterError(flag, folder, f"{path.name} must be whole ({describe(error)})") from None
    try:
        pairs = Pairs(*(torch.cat(values) for values in found.values()))
        fits = (
            pairs.latents.is_floating_point()
            and pairs.diffusion.dtype == torch.uint8
            and pairs.latents.ndim == pairs.diffusion.ndim == 4
            and pairs.diffusion.shape[1] == 3
            and len(pairs.latents) == len(pairs.diffusion)
        )
    except RuntimeError:
        fits = False
    if not fits:
        raise ParameterError(flag, folder, "must hold latents [N, C, h, w] and as many images [N, 3, H, W] in bytes")
    if not bool(torch.isfinite(pairs.latents).all()):
        raise ParameterError(flag, folder, "must hold finite latents")
    return pairs

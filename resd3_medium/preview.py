"""Previews: what the latent of a step would look like, by one matrix instead of the decoder.

The data that a step aims at is estimated from the latents around it, and each of its cells becomes one pixel by a
linear map of its channels. Start reading at `save_preview`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.nn.functional import interpolate

from common.parameters import ParameterError
from common.pictures import to_image
from common.run_folder import describe, read_json, replace_file
from resd3_medium.initial_image import quiet
from resd3_medium.vae import LatentFormat

FILE = "preview.json"  # beside the weights of an autoencoder other than the released one; scripts/fit_preview.py
# Red, green and blue of each channel for the released autoencoder, as Stability AI's sd3-ref has them.
RELEASED = (
    *((-0.0645, 0.0177, 0.1052), (0.0028, 0.0312, 0.0650), (0.1848, 0.0762, 0.0360), (0.0944, 0.0360, 0.0889)),
    *((0.0897, 0.0506, -0.0364), (-0.0020, 0.1203, 0.0284), (0.0855, 0.0118, 0.0283), (-0.0539, 0.0658, 0.1047)),
    *((-0.0057, 0.0116, 0.0700), (-0.0412, 0.0281, -0.0039), (0.1106, 0.1171, 0.1220), (-0.0248, 0.0682, -0.0481)),
    *((0.0815, 0.0846, 0.1207), (-0.0120, -0.0055, -0.0867), (-0.0749, -0.0634, -0.0456), (-0.1418, -0.1457, -0.1259)),
)
MARK = "Comment", "preview of an image in work"  # text by which a file is known as a preview
Factors = tuple[torch.Tensor, torch.Tensor]  # [C, 3] and [3]: an image in -1..1 is latent @ factors + bias


def preview_factors(channels: int, latents: LatentFormat, models: Path) -> Factors:
    """The factors for an autoencoder: those of the file beside its weights, else those of the released one.

    `channels` and `latents` are the autoencoder's, `models` the folder of its weights. Raises ParameterError when
    neither fits.
    """
    path = models / FILE
    if path.is_file():
        try:
            content = read_json(path)
            factors, bias = (torch.tensor(content[name], dtype=torch.float32) for name in ("factors", "bias"))
            if factors.shape != (channels, 3) or bias.shape != (3,):
                raise ValueError(f"it has numbers of other shapes than [{channels}, 3] and [3]")
            if not (factors.isfinite().all() and bias.isfinite().all()):
                raise ValueError("its numbers are not finite")
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise ParameterError("models", models, f"{FILE} must be of fit_preview.py ({describe(error)})") from None
        return factors, bias
    if channels == len(RELEASED) and latents == LatentFormat():
        return torch.tensor(RELEASED), torch.zeros(3)
    raise ParameterError(
        "preview", None, f"must be 0: {models} has no {FILE}; python scripts/fit_preview.py --models {models} makes it"
    )


def estimate(before: torch.Tensor, after: torch.Tensor, sigma: float, following: float) -> torch.Tensor:
    """The data that a step from noise level `sigma` to `following` aims at, by the latents before and after it.

    Exact for a step along a straight line, x0 = x - sigma * v, as Euler's are; near for steps of higher order.
    """
    if following == sigma:
        return after
    return before - sigma * (after - before) / (following - sigma)


def fitted_factors(latents: torch.Tensor, images: torch.Tensor) -> Factors:
    """Factors by least squares for scaled latents [N, C, h, w] and their images [N, 3, H, W] in -1..1."""
    cells, colours = samples(latents, images)
    ones = torch.ones(len(cells), 1, dtype=cells.dtype)
    solution = torch.linalg.lstsq(torch.cat([cells, ones], dim=1), colours, driver="gelsd").solution
    return solution[:-1].float(), solution[-1].float()


def explained(latents: torch.Tensor, images: torch.Tensor, factors: Factors) -> float:
    """The share R^2 of the variance of images that factors explain, for tensors as `fitted_factors` takes them."""
    cells, colours = samples(latents, images)
    rest = colours - (cells @ factors[0].double() + factors[1].double())
    return 1 - float(rest.square().sum() / (colours - colours.mean(dim=0)).square().sum())


def samples(latents: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells [N h w, C] and the mean colours [N h w, 3] of the pixels that each stands for, in float64."""
    small = interpolate(images.double(), size=latents.shape[2:], mode="area")
    return latents.double().movedim(1, -1).flatten(0, 2), small.movedim(1, -1).flatten(0, 2)


def preview_image(data: torch.Tensor, factors: Factors, size: tuple[int, int]) -> Image.Image:
    """An image of `size`, width and height, of the scaled latent [C, h, w] of data; what is not finite is grey."""
    pixels = torch.einsum("chw,cd->dhw", data.float().cpu(), factors[0]) + factors[1][:, None, None]
    return to_image(torch.nan_to_num(pixels, nan=0.0)).resize(size, Image.Resampling.BILINEAR)


def save_preview(path: Path, data: torch.Tensor, factors: Factors, size: tuple[int, int]) -> None:
    """Write the previews of scaled latents [B, C, h, w] as one PNG, side by side, over the one before.

    Raises OSError when it cannot be written.
    """
    images = [preview_image(latent, factors, size) for latent in data]
    sheet = Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*MARK)
    replace_file(path, lambda temporary: sheet.save(temporary, format="PNG", pnginfo=mark))


def check_place(path: Path) -> None:
    """Raise ParameterError unless a preview may be written to `path`: nothing lies there, or an earlier preview."""
    name, text = MARK
    try:
        with quiet(), Image.open(path) as image:
            if image.info.get(name) == text:
                return
    except FileNotFoundError:
        return
    except Exception:  # Pillow's plugins raise nearly every kind; what they do not read is no preview
        pass
    raise ParameterError("preview", None, f"must be 0, since {path} is no preview, and would be overwritten")

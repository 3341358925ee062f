"""Initial images: whatever Pillow opens, as the autoencoder takes it. Start reading at `load_image`."""

import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

from common.parameters import ParameterError
from common.run_folder import describe


def load_image(path: str, width: int, height: int) -> torch.Tensor:
    """An image file as [1, 3, height, width] in -1..1, upright, on white, resized. Raises ParameterError otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(Image.open(path))
            if image.mode.startswith("I"):  # 16 bits a pixel
                image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ParameterError("init_image", path, f"must be an image that can be read ({describe(error)})") from None
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1

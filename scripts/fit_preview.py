"""Fit the factors that previews need for an autoencoder other than the released one.

Makes images of captions, fits their colours on their latents by least squares, and writes preview.json beside the
weights. Every second image is kept apart, to say how much of its colours the factors explain. Example:
python scripts/fit_preview.py --models models/pocket
"""

import common.quiet_start  # noqa: F401

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from common.command_line import command_line
from common.device import DEVICE_CHOICES
from common.parameters import Parameters, parameter
from common.run_folder import write_text
from resd3_medium.folders import POCKET
from resd3_medium.infer_parameters import InferConfig, with_model
from resd3_medium.opening import open_pipeline
from resd3_medium.pipeline import Settings
from resd3_medium.preview import FILE, explained, fitted_factors
from resd3_medium.tasks import DATASET, parse_steps, read_lines


@dataclasses.dataclass(kw_only=True)
class FitConfig(Parameters):
    """Every parameter of fit_preview.py."""

    GROUP: ClassVar[str] = "fit"

    models: str = parameter(str(POCKET), "folder of the model files, where preview.json is written", path=True)
    prompts: str = parameter(
        str(DATASET / "pocket_test_captions.txt"), "file with a prompt on each line to draw from", path=True
    )
    images: int = parameter(64, "images that are made", low=2, high=10_000)
    batch_size: int = parameter(16, "images that are made together", low=1, high=1024)
    seed: int = parameter(0, "seed of the first image, and of which prompts are drawn", low=0)
    device: str = parameter("auto", "where the models run", choices=DEVICE_CHOICES)


def main(config: FitConfig, given: dict[str, Any]) -> None:
    """Images and their latents, the fit, and the file. Raises ParameterError."""
    lines = read_lines(Path(config.prompts), "prompts")
    prompts = [lines[i] for i in np.random.default_rng(config.seed).integers(len(lines), size=config.images)]
    model = with_model(InferConfig(models=config.models, device=config.device))
    pipeline = open_pipeline(model)
    settings = Settings(
        steps=parse_steps(model.steps)[1],
        **{name: getattr(model, name) for name in ("width", "height", "cfg_scale", "shift", "sampler")},
    )
    texts = pipeline.encode([*prompts, ""])
    latents, images = [], []
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        seeds = [config.seed + start + i for i in range(len(batch))]
        made = pipeline.denoise([texts[prompt] for prompt in batch], [texts[""]] * len(batch), seeds, settings)
        latents.append(made.cpu())
        images += [np.asarray(image) for image in pipeline.decode(made)]
    x, y = torch.cat(latents), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    factors = fitted_factors(x[::2], y[::2])
    share = explained(x[1::2], y[1::2], factors)
    rounded = [[round(value, 4) for value in row] for row in factors[0].tolist()]
    content = {
        "factors": rounded,
        "bias": [round(value, 4) for value in factors[1].tolist()],
        "explained": round(share, 4),
        "images": config.images,
        "seed": config.seed,
    }
    path = Path(config.models) / FILE
    write_text(path, json.dumps(content) + "\n")
    print(f"{path}: explains {share:.1%} of the variance of images that it was not fitted on")


if __name__ == "__main__":
    command_line(FitConfig, main, __doc__)

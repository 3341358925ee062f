"""Previews: the estimate against the velocity that made a step, the fit against numpy, the pocket model's factors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from PIL import Image

from common.parameters import ParameterError
from resd3_medium import refine_sd3_infer
from resd3_medium.building import build
from resd3_medium.finding import find_part
from resd3_medium.folders import POCKET
from resd3_medium.preview import estimate, explained, fitted_factors, preview_factors, preview_image, save_preview
from resd3_medium.sd3_impls import SAMPLERS, noise_levels
from resd3_medium.vae import LatentFormat

EMOJI = Path(__file__).resolve().parent / "data" / "emoji.png"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sampler", "limit"), [("euler", 1e-5), ("dpmpp_2m", 0.3)])
def test_the_estimate_is_the_data_of_the_step(sampler, limit):
    """x0 = x - sigma v of each step, for a velocity that bends."""
    levels, start, seen = noise_levels(12, 3.0), noise(2, 16, 4, 4), []

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        v = x.tanh() - sigma * x.roll(1, dims=1)
        seen.append(x - sigma * v)
        return v

    before = start
    for i, after in enumerate(SAMPLERS[sampler](velocity, start, levels)):
        found = estimate(before, after, levels[i], levels[i + 1])
        assert (found - seen[i]).norm() <= limit * seen[i].norm()
        before = after
    assert torch.allclose(found, after, atol=1e-5)


def test_the_fit_is_that_of_numpy():
    latents, factors = noise(3, 5, 4, 6), noise(5, 3, seed=1).double() / 10
    small = torch.einsum("nchw,cd->ndhw", latents.double(), factors) + 0.3
    images = small.repeat_interleave(8, 2).repeat_interleave(8, 3).float() + noise(3, 3, 32, 48, seed=2) / 50
    fitted, bias = fitted_factors(latents, images)
    cells = np.c_[latents.permute(0, 2, 3, 1).reshape(-1, 5).numpy(), np.ones(72)]
    means = images.reshape(3, 3, 4, 8, 6, 8).mean(dim=(3, 5)).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    theirs = np.linalg.lstsq(cells, means, rcond=None)[0]
    assert np.abs(torch.cat([fitted, bias[None]]).numpy() - theirs).max() < 1e-5
    assert 0.99 < explained(latents, images, (fitted, bias)) < 1


def test_the_pocket_models_factors_explain_its_images():
    """On emoji that it decodes; the released autoencoder's explain nothing there."""
    sheet = np.asarray(Image.open(EMOJI).convert("RGB").crop((0, 0, 256, 64)).resize((512, 128)))
    emoji = torch.from_numpy(sheet.copy()).reshape(2, 64, 8, 64, 3).permute(0, 2, 4, 1, 3).reshape(16, 3, 64, 64)
    vae = build(find_part(POCKET, "VAE"), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        latents = vae.encode(emoji / 127.5 - 1)
        images = vae.decode(latents)
    own, released = preview_factors(16, vae.latents, POCKET), preview_factors(16, LatentFormat(), POCKET / "nowhere")
    assert explained(latents, images, own) > 0.5 > explained(latents, images, released)
    small = torch.from_numpy(np.asarray(preview_image(latents[0], own, (8, 8))).copy()).permute(2, 0, 1)
    pixels = torch.nn.functional.avg_pool2d((images[0].clamp(-1, 1) + 1) * 127.5, 8)
    assert (small - pixels).abs().mean() < 20


def test_previews_stand_side_by_side(tmp_path):
    factors = torch.zeros(4, 3), torch.tensor([1.0, -1.0, 0.0])
    latents = torch.stack([noise(4, 2, 3), torch.full((4, 2, 3), torch.nan)])
    save_preview(tmp_path / "preview.png", latents, factors, (48, 32))
    image = Image.open(tmp_path / "preview.png")
    assert image.size == (96, 32) and image.getpixel((5, 5)) == (255, 0, 128)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_without_factors_a_preview_is_refused(tmp_path):
    other = LatentFormat(0.36, 0.11)
    with pytest.raises(ParameterError, match=r"fit_preview\.py --models"):
        preview_factors(16, other, tmp_path)
    good = {"factors": [[0.0] * 3] * 16, "bias": [0.0] * 3}
    for change in ({"bias": [1]}, {"factors": "x"}, {"factors": [[float("nan")] * 3] * 16}, {"bias": None}):
        (tmp_path / "preview.json").write_text(json.dumps(good | change))
        with pytest.raises(ParameterError, match=r"must be of fit_preview\.py"):
            preview_factors(16, other, tmp_path)
    assert find_part(POCKET, "VAE").extras.latent_scale != LatentFormat.scale


def test_a_users_own_file_is_no_place_for_previews(tmp_path, capsys):
    picture = tmp_path / "preview.png"
    for content in (b"my notes", None):
        if content is None:
            Image.new("RGB", (8, 8)).save(picture)
            content = picture.read_bytes()
        picture.write_bytes(content)
        told = refusal(capsys, refine_sd3_infer, "--prompt=a", "--steps=2", "--preview=1", "--out", tmp_path)
        assert str(picture) in told and [p.name for p in tmp_path.iterdir()] == ["preview.png"]
        assert picture.read_bytes() == content
    picture.unlink()
    for _ in range(2):  # a preview of its own is written over
        run_here(refine_sd3_infer, "--prompt=a", "--steps=2", "--preview=1", "--out", tmp_path)
    assert len(list(tmp_path.glob("*_s0.png"))) == 2

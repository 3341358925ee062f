"""Schedules and samplers against closed forms, and image to image against a plain loop over diffusers' models."""

import math
from itertools import pairwise

import numpy as np
import pytest
import reference_sd3 as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resd3_medium import vae
from resd3_medium.building import build
from resd3_medium.finding import find_part
from resd3_medium.pipeline import Pipeline, Settings, batches
from resd3_medium.sd3_impls import SAMPLERS, image_to_image_levels, noise_levels
from resd3_medium.vae import decode_tiled, tile_starts


def test_noise_levels_are_those_of_the_published_code():
    """Shift 3, 28 steps: the last level above 0 is 0.0089, since the end is shifted twice."""
    levels = noise_levels(28, 3.0)
    assert len(levels) == 29 and levels[0] == 1 and levels[-1] == 0
    assert levels[-2] == pytest.approx(0.0089, abs=5e-5)
    assert noise_levels(28, 3.0, exact_end=True)[-2] == pytest.approx(3 * 0.001 / 1.002)
    assert noise_levels(1, 3.0) == [1, 0]
    even = noise_levels(11, 1.0)
    np.testing.assert_allclose(np.diff(even[:-1]), -0.0999, rtol=1e-9)  # from 1 to 0.001


def test_image_to_image_keeps_the_last_levels():
    levels = noise_levels(10, 3.0)
    assert image_to_image_levels(levels, 1.0) == levels
    assert image_to_image_levels(levels, 0.6) == levels[4:]
    assert image_to_image_levels(levels, 0.9) == levels[1:]  # 10 * (1 - 0.9) is a little less than 1


@given(st.integers(1, 60), st.floats(0.001, 1), st.floats(0.001, 1), st.sampled_from([1.0, 3.0, 9.5]), st.booleans())
def test_image_to_image_starts_at_the_level_that_denoise_says(steps, denoise, more, shift, exact_end):
    """Between two levels of the schedule before its shift, on a straight line; never at pure noise but for 1."""
    levels = noise_levels(steps, shift, exact_end)
    taken, others = (image_to_image_levels(levels, d, shift, exact_end) for d in sorted((denoise, more)))
    assert len(taken) >= 2 and taken[-1] == 0 and all(a > b for a, b in pairwise(taken))
    assert taken[1:] == levels[-len(taken) + 1 :]
    assert taken[0] <= others[0]  # more is made anew
    denoise = min(denoise, more)
    assert (taken[0] == 1) == (denoise == 1)
    end = 0.001 if exact_end else shift * 0.001 / (1 + (shift - 1) * 0.001)
    even = [*np.linspace(1, end, steps), 0 if steps > 1 else end]
    level = np.interp(steps * (1 - denoise), range(steps + 1), even)
    assert taken[0] == pytest.approx(shift * level / (1 + (shift - 1) * level), abs=1e-7)


@pytest.mark.parametrize("denoise", [1e-12, 5e-324, 1 - 1e-16])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_image_to_image_takes_extreme_parts(denoise, steps):
    levels = image_to_image_levels(noise_levels(steps, 3.0), denoise, 3.0)
    assert 1 > levels[0] > 1e-13 and all(a > b for a, b in pairwise(levels))


def final_error(sampler: str, steps: int) -> float:
    """Of the flow to normal data of deviation 0.3: exactly, x shrinks by that factor on the way from 1 to 0."""
    deviation = 0.3

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        signal = (1 - sigma) ** 2 * deviation**2
        data = x * (1 - sigma) * deviation**2 / (signal + sigma**2)
        return (x - data) / sigma

    start = torch.tensor([1.7], dtype=torch.float64)
    levels = [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)] + [0.0]
    *_, end = SAMPLERS[sampler](velocity, start, levels)
    return abs(end.item() - 1.7 * deviation)


def test_samplers_converge_with_their_order():
    """Twice the steps: Euler halves its error, DPM-Solver++(2M) quarters it, and is closer."""
    euler, dpm = ([final_error(name, n) for n in (80, 160, 320)] for name in ("euler", "dpmpp_2m"))
    assert all(1.7 < a / b < 2.3 for a, b in pairwise(euler))
    assert all(3.5 < a / b < 5 for a, b in pairwise(dpm))
    assert dpm[0] < euler[0] / 5


def test_batches_hold_equal_settings():
    a, b = Settings(steps=1), Settings(steps=2)
    assert list(batches([a, a, b, a, a, b], 3)) == [[0, 1, 3], [2, 5], [4]]


@pytest.mark.parametrize(("steps", "denoise"), [(5, 0.6), (5, 0.7), (1, 0.1)])
@torch.inference_mode()
def test_image_to_image_equals_a_plain_loop(models, tmp_path, steps, denoise):
    """Noise and the draw of the autoencoder come from one generator; Euler steps with guidance."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    picture.save(tmp_path / "start.png")
    pipeline = Pipeline(models, torch.device("cpu"), torch.float32)
    texts = pipeline.encode(["a boat", ""])
    settings = Settings(
        steps=steps, width=64, height=48, cfg_scale=3.0, denoise=denoise, init_image=str(tmp_path / "start.png")
    )
    ours = pipeline.denoise([texts["a boat"]], [texts[""]], [9], settings)

    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(1, 16, 6, 8, generator=generator)
    pixels = torch.tensor(np.asarray(picture) / 255 * 2 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    raw = reference.autoencoder(models).encode(pixels).latent_dist.sample(generator)
    end = 3 * 0.001 / 1.002
    even = {0.6: 1 + (end - 1) / 2, 0.7: 1 + (end - 1) * 0.375, 0.1: 1 + (end - 1) * 0.9}[denoise]
    left_out = {0.6: 2, 0.7: 1, 0.1: 0}[denoise]  # 2, 1.5 and 0.9 steps
    levels = [3 * even / (1 + 2 * even), *noise_levels(steps, 3.0)[left_out + 1 :]]
    x = (1 - levels[0]) * (raw - 0.0609) * 1.5305 + levels[0] * noise
    transformer = reference.transformer(models)
    for sigma, following in pairwise(levels):
        v = [
            transformer(x, texts[text].context, texts[text].pooled, torch.tensor([1000 * sigma])).sample
            for text in ("a boat", "")
        ]
        x = x + (following - sigma) * (v[1] + 3.0 * (v[0] - v[1]))
    assert ((ours - x).abs().max() / x.abs().max()).item() < 1e-5


def test_tiles_cover_the_image_and_blend_to_it():
    """A decoder without context, nearest upsampling, must come out unchanged however it is tiled."""
    latent = torch.randn(1, 3, 37, 50)

    def decoder(raw: torch.Tensor) -> torch.Tensor:
        return raw.repeat_interleave(8, 2).repeat_interleave(8, 3)

    torch.testing.assert_close(decode_tiled(decoder, latent, 16, 8), decoder(latent), rtol=0, atol=1e-5)
    for size in (16, 17, 28, 100):
        starts = tile_starts(size, 16)
        assert starts[0] == 0 and starts[-1] == size - 16
        assert all(b - a <= 12 for a, b in pairwise(starts))  # overlaps by a quarter


def test_the_autoencoder_attends_without_a_matrix_of_all_cells():
    """The fused kernel (flash on the CPU) is chosen, so that memory does not grow with the cells squared."""
    calls = []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(torch._fused_sdp_choice(q, k, v))
        return original(q, k, v)

    original, vae.scaled_dot_product_attention = vae.scaled_dot_product_attention, spy
    try:
        with torch.no_grad():
            vae.PixelAttention(64, 32)(torch.randn(1, 64, 8, 8))
    finally:
        vae.scaled_dot_product_attention = original
    assert calls == [1]  # 0 is the plain product


@torch.inference_mode()
def test_large_features_take_little_memory_and_give_the_same_image(models, monkeypatch):
    """Convolutions in strips, with and without doubling, and norms in place, in encoder and decoder."""
    whole = build(find_part(models, "VAE"), torch.device("cpu"), torch.float32)
    latent, image = torch.randn(1, 16, 7, 6), torch.rand(1, 3, 48, 56) * 2 - 1
    wanted = whole.decode(latent), whole.encode(image)
    monkeypatch.setattr(vae, "LARGE", 0)
    for strip in (1, 5000, 2**30):
        monkeypatch.setattr(vae, "STRIP", strip)
        for found, exact in zip((whole.decode(latent), whole.encode(image)), wanted, strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_a_convolution_of_doubled_features_is_computed_from_the_small_ones(layout):
    conv = torch.nn.Conv2d(6, 5, 3, padding=1).double()
    for shape in ((3, 6, 4, 7), (1, 6, 1, 1), (2, 6, 5, 2)):
        x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
        exact = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(vae.convolved(conv, x, doubled=True), exact, rtol=0, atol=1e-14)

"""resd3_medium against diffusers and transformers, with tiny random weights in the released layout, in float32."""

from pathlib import Path

import numpy as np
import pytest
import reference_sd3 as reference
import torch
from PIL import Image

from common.pictures import to_image
from resd3_medium.building import build
from resd3_medium.finding import find_part
from resd3_medium.parts import PARTS
from resd3_medium.pipeline import Pipeline, Settings

CPU, EXACT = torch.device("cpu"), torch.float32
PROMPTS = ("A red bicycle leans against a wall.", "", "naïve café — 東京 🙂, isn't it?", "word " * 200)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(models, prompt):
    pipeline = Pipeline(models, CPU, EXACT, t5_rows=77)
    tokens = pipeline.tokens(prompt)
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    assert tokens["CLIP-L"].ids == reference.clip_tokenizer("<|endoftext|>")(prompt, **options)["input_ids"]
    assert tokens["CLIP-G"].ids == reference.clip_tokenizer("!")(prompt, **options)["input_ids"]
    assert tokens["T5"].ids == reference.t5_tokenizer()(prompt, **options)["input_ids"]
    if len(prompt) < 100:
        assert not any(t.left_out for t in tokens.values())
    else:
        assert tokens["CLIP-L"].left_out.split() == ["word"] * 125
        assert set(tokens["T5"].left_out.split()) == {"word"}


@pytest.mark.parametrize("name", ["CLIP-L", "CLIP-G", "T5"])
@torch.inference_mode()
def test_text_encoders_are_those_of_transformers(models, name):
    ids = torch.randint(0, 32000, (2, 77), generator=torch.Generator().manual_seed(0))
    ours = build(find_part(models, name), CPU, EXACT)
    if name == "T5":
        assert error(ours(ids), reference.t5(models)(ids).last_hidden_state) < 1e-5
        return
    activation = "quick_gelu" if name == "CLIP-L" else "gelu"
    theirs = reference.clip(models / PARTS[name].usual, activation)(ids, output_hidden_states=True)
    rows, pooled = ours(ids)
    assert error(rows, theirs.hidden_states[-2]) < 1e-5
    assert error(pooled, theirs.text_embeds) < 1e-5


@pytest.mark.parametrize(("height", "width", "rows"), [(12, 16, 154), (2, 2, 77), (384, 2, 77)])
@torch.inference_mode()
def test_the_transformer_is_that_of_diffusers(models, height, width, rows):
    """Rectangular, smallest, and as high as the position table."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 16, height, width, generator=generator)
    context, pooled = torch.randn(2, rows, 256, generator=generator), torch.randn(2, 192, generator=generator)
    timestep = torch.tensor([999.0, 3.7])
    ours = build(find_part(models, "MMDiT"), CPU, EXACT)
    theirs = reference.transformer(models)(latent, context, pooled, timestep).sample
    assert error(ours(latent, timestep, context, pooled, ours.positions(height, width)), theirs) < 1e-5


@torch.inference_mode()
def test_the_autoencoder_is_that_of_diffusers_both_ways(models):
    generator = torch.Generator().manual_seed(2)
    image, latent = (
        torch.rand(1, 3, 48, 80, generator=generator) * 2 - 1,
        torch.randn(1, 16, 6, 10, generator=generator),
    )
    ours, theirs = build(find_part(models, "VAE"), CPU, EXACT), reference.autoencoder(models)
    moments = theirs.encode(image).latent_dist
    assert error(ours.encode(image), (moments.mean - 0.0609) * 1.5305) < 1e-5
    drawn = moments.sample(torch.Generator().manual_seed(3))
    assert error(ours.encode(image, [torch.Generator().manual_seed(3)]), (drawn - 0.0609) * 1.5305) < 1e-5
    assert error(ours.decode(latent), theirs.decode(latent / 1.5305 + 0.0609).sample) < 1e-5


@pytest.mark.parametrize("with_t5", [True, False])
def test_a_whole_image_is_that_of_diffusers(models, with_t5):
    theirs = reference.pipeline(models, with_t5)
    noise = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(1))
    words = {"prompt": "a boat on a lake", "negative_prompt": "blurry"}
    options = {"height": 96, "width": 128, "num_inference_steps": 6, "guidance_scale": 5.0, "latents": noise}
    options["max_sequence_length"] = 77 if with_t5 else 256
    latent = theirs(**words, **options, output_type="latent").images
    picture = np.asarray(theirs(**words, **options, output_type="pil").images[0])

    pipeline = Pipeline(models, CPU, EXACT, t5_rows=77 if with_t5 else 0, zero_rows=256)
    texts = pipeline.encode(list(words.values()))
    positive, negative = (texts[text] for text in words.values())
    ours = pipeline.denoise([positive], [negative], [1], Settings(steps=6, width=128, height=96))
    assert error(ours, latent) < 1e-5
    difference = np.asarray(pipeline.decode(ours)[0]).astype(int) - picture
    assert abs(difference).max() <= 1


def run(models: Path, level: str, seeds: list[int], **more) -> tuple[torch.Tensor, list[Image.Image]]:
    pipeline = Pipeline(models, CPU, more.pop("dtype", EXACT), level, t5_rows=77)
    texts = pipeline.encode(["a boat", "no boat"])
    latents = pipeline.denoise(
        [texts["a boat"]] * len(seeds),
        [texts["no boat"]] * len(seeds),
        seeds,
        Settings(steps=3, width=64, height=48, **more),
    )
    return latents, pipeline.decode(latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_levels_give_the_same_pixels(models, dtype):
    """In bfloat16 the float32 files are converted, and level `block` streams the layers through two buffers."""
    latents = [run(models, level, [3], dtype=dtype)[0] for level in ("none", "model", "block")]
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


def test_an_image_does_not_depend_on_its_batch(models):
    together, pictures = run(models, "none", [5, 6, 7])
    alone, picture = run(models, "none", [6])
    assert error(together[1:2], alone) < 1e-5
    assert abs(np.asarray(pictures[1]).astype(int) - np.asarray(picture[0])).max() <= 1


def test_pixels_are_rounded():
    values = torch.tensor([-2.0, -1.0, 0.0, 1 / 127.5 - 1 + 1e-4, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1.0, 2.0])
    pixels = np.asarray(to_image(values.expand(3, 1, -1)))[0, :, 0]
    assert pixels.tolist() == [0, 0, 128, 1, 0, 1, 255, 255]

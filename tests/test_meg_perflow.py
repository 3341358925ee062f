"""The PeRFlow scheduler against what it is derived from, and SDXL in that form on tiny random weights."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from helpers import refusal, run_here
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from meg import make_dataset, train_split
from meg.dataset import load_dataset
from meg.decoders import load_model
from meg.perflow import PeRFlowScheduler
from resd3_medium.folders import TOKENIZERS


@pytest.mark.parametrize("steps", [4, 5, 12])
def test_true_noise_leads_to_the_data_whatever_the_steps(steps):
    """At every window's end the true path is sqrt(a) x + sqrt(1 - a) eps, and straight in between."""
    scheduler = PeRFlowScheduler()
    scheduler.set_timesteps(steps)
    x, noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).chunk(2)

    def on_path(time: float) -> torch.Tensor:
        return scheduler.alpha_bar(time) ** 0.5 * x + (1 - scheduler.alpha_bar(time)) ** 0.5 * noise

    z = on_path(1.0)
    for number, timestep in enumerate(scheduler.timesteps):
        time = scheduler.times[number]
        end, start = scheduler.window(time)
        assert end < time <= start + 1e-9
        share = (time - end) / (start - end)
        assert torch.allclose(z, (1 - share) * on_path(end) + share * on_path(start), atol=1e-5)
        z = scheduler.step(noise, timestep, z).prev_sample
    assert torch.allclose(z, x, atol=1e-5)


def test_steps_are_shared_out_over_the_windows():
    scheduler = PeRFlowScheduler()
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == [999, 874, 749, 624, 499, 249]
    with pytest.raises(ValueError, match="4 windows"):
        scheduler.set_timesteps(3)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    """A folder in diffusers' layout with SDXL's parts, tiny and random."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = CLIPTextConfig(**text, projection_dim=32, hidden_act="gelu", eos_token_id=49407, bos_token_id=49406)
    tokenizer = CLIPTokenizer(str(TOKENIZERS / "vocab.json"), str(TOKENIZERS / "merges.txt"), model_max_length=77)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * 6 + 32,
            cross_attention_dim=64,
        ),
        scheduler=EulerDiscreteScheduler(),
    )
    folder = tmp_path_factory.mktemp("sdxl") / "sdxl"
    pipeline.save_pretrained(folder)
    return folder


def test_sdxl_makes_data_that_its_decoder_is_trained_on(sdxl, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a boat\na tree\n")
    flags = ["--generator=sdxl", "--models", sdxl, "--device=cpu"]
    run_here(make_dataset, *flags, "--captions", prompts, "--steps=4", "--side=64", "--out", tmp_path / "data")
    pairs = load_dataset(tmp_path / "data")
    assert pairs.latents.shape == (2, 4, 8, 8) and pairs.diffusion.shape == (2, 3, 64, 64)
    assert not torch.equal(pairs.latents[0], pairs.latents[1])
    short = ["--steps=1", "--batch=1", "--validation=1", "--out", tmp_path / "run"]
    run_here(train_split, *flags, "--data", tmp_path / "data", *short)
    _, description = load_model(tmp_path / "run/meg_dt.safetensors")
    assert (description.family, description.channels, description.scale) == ("sdxl", 4, 0.13025)
    more = ["--captions", prompts, "--out", tmp_path / "more"]
    assert "--steps=3: must be at least 4" in refusal(capsys, make_dataset, *flags, *more, "--steps=3")
    for side in (20, 100, 4104, 2**31 - 1):
        words = refusal(capsys, make_dataset, *flags, *more, f"--side={side}")
        assert f"--side={side}: must be a multiple of 8 up to 4096" in words
    nowhere = ["--generator=sdxl", "--models=nowhere", "--device=cpu"]
    assert "--models=nowhere: must be a folder of SDXL" in refusal(capsys, make_dataset, *nowhere, *more)


def test_sdxl_encodes_pictures_to_what_it_decodes(sdxl, tmp_path):
    Image.new("RGB", (80, 70), "red").save(tmp_path / "a.png")
    flags = ["--generator=sdxl", "--models", sdxl, "--device=cpu", "--side=64", "--pictures", tmp_path, "--split=all"]
    run_here(make_dataset, *flags, "--out", tmp_path / "data")
    pairs = load_dataset(tmp_path / "data")
    vae = AutoencoderKL.from_pretrained(sdxl / "vae")
    red = torch.tensor([1.0, -1, -1])[None, :, None, None].expand(1, 3, 64, 64)
    with torch.no_grad():
        mean = vae.encode(red).latent_dist.mean
        image = ((vae.decode(mean).sample + 1) / 2).clamp(0, 1)
    assert torch.allclose(pairs.latents.float(), mean * vae.config.scaling_factor, atol=1e-3)
    assert torch.allclose(pairs.diffusion / 255, image, atol=0.01)

"""Text to image on the GPU against the CPU: models, memory levels, streaming, LoRA and 8-bit forms, at tiny sizes."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_here
from safetensors.torch import load_file, save_file
from scripts_by_path import load
from torch import nn

from resd3_medium.building import build
from resd3_medium.finding import add_loras, find_part, find_weights
from resd3_medium.packed import PackedLinear, quantised
from resd3_medium.pipeline import Pipeline, Settings
from resd3_medium.streaming import BlockStream

pytestmark = pytest.mark.cuda
CPU = torch.device("cpu")
SMALL = Settings(steps=3, width=64, height=48)
PROMPTS = ["a red bicycle", ""]


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, against the largest value."""
    assert found.shape == wanted.shape
    return ((found.cpu().float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()


def velocity(model: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """What the transformer makes of a fixed noisy latent of 6 x 10 cells, on the host."""
    sizes = model.config
    latent, context, pooled = drawn((2, 16, 6, 10), (2, 77, sizes.context_width), (2, sizes.pooled_width))
    positions = model.positions(6, 10).to(device, dtype)
    with torch.inference_mode():
        found = model(
            latent.to(device, dtype),
            torch.tensor([999.0, 3.7], device=device),
            context.to(device, dtype),
            pooled.to(device, dtype),
            positions,
        )
    assert found.device.type == device.type and found.dtype == dtype
    return found.cpu()


@pytest.fixture(scope="module")
def newer(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion 3.5 medium."""
    folder = tmp_path_factory.mktemp("newer")
    run_here(load("make_random_models"), "--model=sd3.5_medium", "--out", folder)
    return folder


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.float16, 0.01), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("release", ["models", "newer"])
def test_the_transformers_are_those_of_the_cpu(release, dtype, most, gpu, request):
    weights = find_part(request.getfixturevalue(release), "MMDiT")
    assert weights.config.qk_norm == (release == "newer")
    wanted = velocity(build(weights, CPU, torch.float32), CPU, torch.float32)
    assert error(velocity(build(weights, gpu, dtype), gpu, dtype), wanted) < most


@pytest.mark.parametrize("name", ["CLIP-L", "CLIP-G", "T5"])
@torch.inference_mode()
def test_text_encoders_are_those_of_the_cpu(name, models, gpu):
    ids = torch.randint(0, 32000, (2, 77), generator=torch.Generator().manual_seed(0))
    found = [build(find_part(models, name), device, torch.float32)(ids.to(device)) for device in (CPU, gpu)]
    here, there = ((part,) if name == "T5" else part for part in found)
    for wanted, other in zip(here, there, strict=True):
        assert error(other, wanted) < 1e-3


@torch.inference_mode()
def test_the_autoencoder_is_that_of_the_cpu_both_ways(models, gpu):
    here, there = (build(find_part(models, "VAE"), device, torch.float32) for device in (CPU, gpu))
    latents, images = drawn((1, 16, 6, 8), (1, 3, 48, 64))
    assert error(there.decode(latents.to(gpu)), here.decode(latents)) < 1e-3
    draws = [torch.Generator().manual_seed(0)], [torch.Generator().manual_seed(0)]
    wanted = here.encode(images.clamp(-1, 1), draws[0])
    assert error(there.encode(images.clamp(-1, 1).to(gpu), draws[1]), wanted) < 1e-3


def pictures(pipeline: Pipeline) -> np.ndarray:
    """The levels 0 to 255 of two small images."""
    texts = pipeline.encode(PROMPTS)
    latents = pipeline.denoise([texts[PROMPTS[0]]] * 2, [texts[""]] * 2, [0, 1], SMALL)
    return np.stack([np.asarray(image) for image in pipeline.decode(latents)]).astype(int)


@pytest.mark.parametrize("keep", ["full", "int8", "fp8"])
def test_memory_levels_give_equal_pixels_near_those_of_the_cpu(keep, models, gpu):
    found = [pictures(Pipeline(models, gpu, torch.float32, level, keep=keep)) for level in ("none", "model", "block")]
    assert np.ptp(found[0]) > 50
    assert np.array_equal(found[1], found[0]) and np.array_equal(found[2], found[0])
    off = np.abs(found[0] - pictures(Pipeline(models, CPU, torch.float32, keep=keep)))
    assert off.mean() < 0.5 and off.max() <= 8


@pytest.mark.parametrize("keep", ["full", "int8"])
def test_levels_keep_that_much_memory_at_most(keep, models, gpu):
    """The transformer alone, and two of its blocks, against all models together."""

    def memory() -> int:
        gc.collect()  # what is of no more use
        return torch.cuda.memory_allocated(gpu) if gpu.type == "cuda" else 0

    held = []
    for level in ("none", "model", "block"):
        before = memory()
        pipeline = Pipeline(models, gpu, torch.float32, level, keep=keep)
        transformer = pipeline.bring("MMDiT")
        held.append(memory() - before)
        assert set(pipeline.resident) == ({"MMDiT"} if level != "none" else {"CLIP-L", "CLIP-G", "MMDiT", "VAE"})
        assert (transformer.stream is not None) == (level == "block" and (keep == "int8" or gpu.type == "cuda"))
        del pipeline, transformer
    assert gpu.type != "cuda" or held[0] > held[1] > held[2] > 0


@torch.inference_mode()
def test_streamed_blocks_come_in_whole_and_in_order(gpu):
    """Blocks of different sizes, some left out, several passes: the copies must wait for what still computes."""
    torch.manual_seed(0)
    resident = [nn.Linear(256, 256, bias=i % 2 == 0) for i in range(7)]
    weights = [{name: value.detach().clone() for name, value in block.state_dict().items()} for block in resident]
    with torch.device("meta"):
        blocks = [nn.Linear(256, 256, bias=i % 2 == 0) for i in range(7)]
    stream = BlockStream(blocks, [[lambda w=w: w] for w in weights], gpu)
    if gpu.type == "cuda":
        assert all(row.is_pinned() for row in stream.pinned)
    (x,) = drawn((4096, 256))
    for skip in ((), (1, 2), (0, 6), ()):
        wanted, found = x, x.to(gpu)
        for i, (block, visiting) in enumerate(zip(resident, stream, strict=True)):
            if i not in skip:
                wanted, found = block(wanted).relu(), visiting(found).relu()
        assert error(found, wanted) < 1e-4


@pytest.mark.parametrize("keep", ["full", "stored"])
def test_a_lora_adds_the_same(keep, models, gpu, tmp_path):
    """To matrices that are dense, and to those that the file has in fp8."""
    folder = tmp_path / "models"
    folder.mkdir()
    for path in models.glob("*.safetensors"):
        tensors = load_file(path)
        if keep == "stored" and path.stem == "sd3_medium":
            tensors = {n: t.to(torch.float8_e4m3fn) if "joint_blocks" in n else t for n, t in tensors.items()}
        save_file(tensors, folder / path.name)
    up, down = drawn((3 * 192, 2), (2, 192))
    stem = "transformer.transformer_blocks.1.attn"
    parts = zip("qkv", up.split(192), strict=True)
    lora = {f"{stem}.to_{part}.lora_B.weight": rows.contiguous() for part, rows in parts}
    lora |= {f"{stem}.to_{part}.lora_A.weight": down.clone() for part in "qkv"}
    save_file(lora, tmp_path / "lora.safetensors")
    found = {}
    for text in ([], [f"{tmp_path / 'lora.safetensors'}:0.5"]):
        for device in (CPU, gpu):
            weights = find_weights(folder, "off")
            add_loras(weights, text)
            model = build(weights["MMDiT"], device, torch.float32, keep)
            found[len(text), device is gpu] = velocity(model, device, torch.float32)
    assert error(found[1, True], found[1, False]) < 1e-3
    assert error(found[1, True], found[0, True]) > 1e-2


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@torch.inference_mode()
def test_matrices_at_eight_bits_are_rounded_and_multiplied_alike(kind, gpu):
    weight, x, bias = drawn((320, 192), (5, 192), (320,))
    weight[7] = 0
    here, there = quantised(weight, kind), quantised(weight.to(gpu), kind)
    assert torch.equal(there.data.cpu().view(torch.uint8), here.data.view(torch.uint8))
    assert torch.equal(there.floats().cpu(), here.floats())
    wanted = x @ here.floats().T + bias
    for dtype, most in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        layer = PackedLinear.of(there, nn.Parameter(bias.to(gpu, dtype), requires_grad=False))
        assert error(layer(x.to(gpu, dtype)), wanted) < most

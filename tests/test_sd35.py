"""Stable Diffusion 3.5's transformers, guidance and random model files, against diffusers and plain loops."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import reference_sd3 as reference
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from helpers import refusal, run_here
from PIL import Image
from safetensors.torch import load_file
from scripts_by_path import load

from resd3_medium import refine_sd3_infer
from resd3_medium.mmdit import MMDiT, MMDiTConfig
from resd3_medium.refine_other_impls import RMSNorm
from resd3_medium.sd3_impls import Guidance, euler, guided, image_to_image_levels, noise_levels
from resd3_medium.streaming import BlockStream

random_models = load("make_random_models")
PARAMETERS = {  # of the transformer, of its position table, and its tensors
    "sd3_medium": (2_028_328_000, 56_623_104, 491),
    "sd3.5_medium": (2_243_171_520, 226_492_416, 665),
    "sd3.5_large": (8_056_627_520, 89_653_248, 923),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Tiny random files of both models."""
    found = {}
    for model in ("sd3.5_medium", "sd3.5_large"):
        found[model] = tmp_path_factory.mktemp(model)
        run_here(random_models, "--model", model, "--out", found[model])
    return found


def ours(folder: Path) -> MMDiT:
    tensors = reference.part(folder, "model.diffusion_model.")
    model = MMDiT(MMDiTConfig.from_shapes({name: tuple(value.shape) for name, value in tensors.items()}))
    model.pos_embed = tensors.pop("pos_embed")
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def error(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    assert mine.shape == theirs.shape
    return ((mine - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("model", PARAMETERS)
def test_full_sizes_are_the_released_ones(model):
    tensors = random_models.files(model, "full", t5=False)[f"{model}.safetensors"]
    sizes = {name.split("diffusion_model.")[1]: shape for name, shape in tensors.items() if "diffusion" in name}
    total, table = sum(map(math.prod, sizes.values())), math.prod(sizes["pos_embed"])
    assert (total - table, table, len(sizes)) == PARAMETERS[model]
    config = MMDiTConfig.from_shapes(sizes)
    assert config == random_models.MMDIT[model]["full"] and config.depth == config.width // 64


def test_one_file_has_the_numbers_of_the_separate_ones(models, folders, tmp_path):
    run_here(random_models, "--model=sd3.5_medium", "--t5=True", "--all_in_one=True", "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "sd3.5_medium_incl_clips_t5xxl.safetensors"
    together = load_file(path)
    for name in ("clip_l", "clip_g", "t5xxl"):
        for key, value in load_file(models / f"{name}.safetensors").items():
            assert torch.equal(together.pop(f"text_encoders.{name}.transformer.{key}"), value)
    for key, value in load_file(folders["sd3.5_medium"] / "sd3.5_medium.safetensors").items():
        assert torch.equal(together.pop(key), value)
    assert not together


@pytest.mark.parametrize("model", ["sd3.5_medium", "sd3.5_large"])
@torch.inference_mode()
def test_the_transformers_are_those_of_diffusers(folders, model):
    """Rectangular, an odd rest around the crop, and as high as the position table; with blocks left out, too."""
    mine, theirs = ours(folders[model]), reference.transformer(folders[model])
    assert mine.config.qk_norm and mine.config.dual == ((0, 1) if model == "sd3.5_medium" else ())
    for height, width, rows in ((12, 16, 154), (6, 10, 77), (64, 2, 77)):
        latent, context, pooled = drawn((2, 16, height, width), (2, rows, 256), (2, 192))
        timestep, positions = torch.tensor([999.0, 3.7]), mine.positions(height, width)
        for skip in ([], [0], [1, mine.config.depth - 1]):
            wanted = theirs(latent, context, pooled, timestep, skip_layers=skip).sample
            assert error(mine(latent, timestep, context, pooled, positions, frozenset(skip)), wanted) < 1e-5


@torch.inference_mode()
def test_streamed_blocks_may_be_left_out(folders):
    """Blocks of different sizes come through the buffers in order, used or not."""
    mine = ours(folders["sd3.5_medium"])
    latent, context, pooled = drawn((1, 16, 4, 4), (1, 77, 256), (1, 192))
    arguments = latent, torch.tensor([500.0]), context, pooled, mine.positions(4, 4)
    skips = [frozenset(skip) for skip in ([1], [], [0, 2], [0])]
    resident = [mine(*arguments, skip) for skip in skips]
    blocks = list(mine.joint_blocks)
    weights = [{name: value.clone() for name, value in block.state_dict().items()} for block in blocks]
    mine.stream = BlockStream(blocks, [[lambda w=w: w] for w in weights], torch.device("cpu"))
    assert all(torch.equal(mine(*arguments, skip), wanted) for skip, wanted in zip(skips, resident, strict=True))


def test_queries_beyond_the_squares_of_float16_are_normalised():
    norm = RMSNorm(64).half()
    norm.weight.data.fill_(2.0)
    values = torch.tensor([-300.0, 300.0]).half().repeat(32)
    assert torch.equal(norm(values), torch.tensor([-2.0, 2.0]).half().repeat(32))


@pytest.mark.parametrize(("model", "scale"), [("sd3.5_medium", 2.5), ("sd3.5_large", 0.0)])
@torch.inference_mode()
def test_a_sampled_latent_is_that_of_diffusers(folders, model, scale):
    """Twelve steps with classifier-free guidance, the medium size with skip-layer guidance in steps 1 to 5."""
    noise, *texts = drawn((1, 16, 12, 16), *[(1, 77, 256), (1, 192)] * 2)
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    theirs = StableDiffusion3Pipeline(
        transformer=reference.transformer(folders[model]),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(["vae", *(f"{kind}{i}" for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))]),
    )
    theirs.set_progress_bar_config(disable=True)
    more = {"num_inference_steps": 12, "guidance_scale": 4.0, "latents": noise, "output_type": "latent"}
    if scale:
        more |= {"skip_guidance_layers": [1, 2], "skip_layer_guidance_scale": scale, "skip_layer_guidance_stop": 0.5}
    latent = theirs(height=96, width=128, **dict(zip(names, texts, strict=True)), **more).images

    mine, levels = ours(folders[model]), noise_levels(12, 3.0)
    guidance = Guidance(4.0, slg_scale=scale, slg_layers=frozenset({1, 2}), slg_end=0.5)
    context, pooled = torch.cat(texts[::2]), torch.cat(texts[1::2])
    velocity = guided(mine, context, pooled, mine.positions(12, 16), guidance, levels)
    *_, found = euler(velocity, noise, levels)
    assert error(found, latent) < 1e-5


class Counted:
    """A model that is a formula, and notes the rows and the blocks left out of every pass."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, frozenset[int]]] = []

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        pooled: torch.Tensor,
        positions: torch.Tensor,
        skip: frozenset[int] = frozenset(),
    ) -> torch.Tensor:
        self.passes.append((len(x), skip))
        return x.sin() * (1 + sum(skip)) + (context.sum((1, 2)) + pooled.sum(1) + timestep / 1000)[:, None, None, None]


def plain(x: torch.Tensor, taken: Sequence[float], full: Sequence[float], guidance: Guidance, text: list) -> list:
    """The latent of Euler's method, written out, and how many rows and skipped passes each step takes."""
    model, counts, steps = Counted(), [], len(full) - 1
    for sigma, following in pairwise(taken):
        step = max(i for i in range(steps) if full[i] >= sigma)
        v, vn = (model(x, torch.full((2,), 1000 * sigma), *text[k], None) for k in (0, 1))
        left_out = model(x, torch.full((2,), 1000 * sigma), *text[0], None, guidance.slg_layers)
        inside = guidance.cfg_scale != 1 and guidance.cfg_end <= sigma <= guidance.cfg_start
        skips = guidance.slg_scale > 0 and guidance.slg_start < step / steps < guidance.slg_end
        total = vn + guidance.cfg_scale * (v - vn) if inside else v
        x = x + (following - sigma) * (total + guidance.slg_scale * skips * (v - left_out))
        counts += [(4 if inside else 2, frozenset())] + [(2, guidance.slg_layers)] * skips
    return [x, counts]


FULL = noise_levels(20, 3.0)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(1.0),
        Guidance(4.0),
        Guidance(4.0, cfg_start=FULL[3], cfg_end=FULL[11]),  # both ends belong to the interval
        Guidance(4.0, cfg_start=0.0),
        Guidance(1.0, slg_scale=2.5, slg_layers=frozenset({1, 2})),
        Guidance(0.0, 0.9, 0.4, 2.5, frozenset({3}), 0.1, 0.4),  # steps 3 to 7: both strict
    ],
)
@pytest.mark.parametrize("denoise", [1.0, 0.83])  # the latter begins at step 3.4, which is step 3
def test_guidance_acts_where_it_is_to_and_costs_nothing_elsewhere(guidance, denoise):
    x, *texts = drawn((2, 4, 2, 2), *[(2, 3, 5), (2, 6)] * 2)
    taken = image_to_image_levels(FULL, denoise)
    wanted, counts = plain(x, taken, FULL, guidance, [texts[:2], texts[2:]])
    model = Counted()
    velocity = guided(model, torch.cat(texts[::2]), torch.cat(texts[1::2]), None, guidance, FULL)
    *_, found = euler(velocity, x, taken)
    assert error(found, wanted) < 1e-5
    assert model.passes == counts


def images(models: Path, out: Path, *arguments: object) -> list[bytes]:
    run_here(refine_sd3_infer, "--models", models, "--device=cpu", "--out", out, *arguments)
    return [Image.open(path).tobytes() for path in sorted(out.glob("*.png"))]


def test_parameters_of_the_guidance_reach_the_image_and_its_repetition(models, tmp_path):
    common = ("--prompt=a boat", "--width=32", "--height=32", "--steps=3")
    flags = ("--slg_scale=2", "--slg_layers=0, 1", "--slg_start=0", "--slg_end=1"), ("--cfg_start=0.9",)
    made = [images(models, tmp_path / str(k), *common, *more) for k, more in enumerate(((), *flags))]
    assert len({image for (image,) in made}) == 3
    for k, image in enumerate(made):
        (first,) = (tmp_path / str(k)).glob("*.png")
        assert images(models, tmp_path / f"again{k}", "--from_image", first) == image


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--slg_scale=1", "--slg_layers=1,x"], "--slg_layers=1,x: must be numbers of blocks"),
        (["--slg_scale=1", "--slg_layers=-1"], "--slg_layers=-1: must be numbers of blocks"),
        (["--slg_scale=1", "--slg_layers=1,,2"], "--slg_layers=1,,2: must be numbers of blocks"),
        (["--slg_scale=1", "--slg_layers=2,3"], "--slg_layers=2,3: must be numbers of blocks from 0 to 2, separated"),
        (["--slg_scale=1"], "--slg_layers=7,8,9: must be numbers of blocks from 0 to 2"),
        (["--slg_layers=1"], "--slg_layers=1: must come with --slg_scale above 0"),
        (["--slg_end=0.5"], "--slg_end=0.5: must come with --slg_scale above 0"),
        (["--slg_scale=1", "--slg_start=0.5"], "--slg_start=0.5: must be at most --slg_end=0.2"),
        (["--cfg_start=0.2", "--cfg_end=0.3"], "--cfg_start=0.2: must be at least --cfg_end=0.3: noise goes from 1"),
        (["--fit=pad"], "--fit=pad: must come with --init_image"),
        (["--denoise=0.6"], "--denoise=0.6: must come with --init_image"),
        (["--cfg_end=0.3", "--cfg_scale=1"], "--cfg_end=0.3: must come with another --cfg_scale than 1"),
    ],
)
def test_guidance_that_cannot_act_is_refused(models, tmp_path, capsys, flags, told):
    line = refusal(capsys, refine_sd3_infer, "--models", models, "--prompt=a", "--out", tmp_path, *flags)
    assert line.startswith(f"error: {told}")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--slg_scale=1", "--slg_layers=1"], "--slg_scale=1.0 acts in none of 2 steps: no step lies between"),
        (["--cfg_start=0.5", "--cfg_end=0.4"], "between --cfg_start=0.5 and --cfg_end=0.4"),
        (["--cfg_scale=1", "--negative_prompt=b"], "the negative prompt is not read: --cfg_scale=1"),
        (["--t5=off", "--t5_tokens=100"], "--t5_tokens=100 does nothing: T5 is not used"),
        (["--t5=on", "--zero_rows=9"], "--zero_rows=9 does nothing: T5 is used"),
        (["--preview=3"], "--preview=3 does nothing: no image takes more than 2 steps"),
    ],
)
def test_what_acts_in_no_step_or_on_nothing_is_told(models, tmp_path, capsys, flags, told):
    images(models, tmp_path, "--prompt=a", "--width=32", "--height=32", "--steps=2", *flags)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told in line

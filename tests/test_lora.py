"""LoRA: what diffusers and peft make of a file, ours makes too; other layouts say the same; the rest is refused."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import reference_sd3
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict
from reference_layouts import FORMS, as_ours, shapes_of, transformer
from safetensors.torch import load_file, save_file

from common.parameters import ParameterError
from resd3_medium.lora import Lora, read_lora
from resd3_medium.mmdit import MMDiT, MMDiTConfig

Tensors = dict[str, torch.Tensor]
ENCODER = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def base(models) -> dict[str, Tensors]:
    """Our tensors of the tiny model files, by part."""
    return {
        "MMDiT": reference_sd3.part(models, "model.diffusion_model."),
        "CLIP-L": load_file(models / "clip_l.safetensors"),
        "CLIP-G": load_file(models / "clip_g.safetensors"),
        "T5": load_file(models / "t5xxl.safetensors"),
    }


def shapes(base: dict[str, Tensors]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {part: shapes_of(tensors) for part, tensors in base.items()}


def merged(base: dict[str, Tensors], *loras: Lora) -> dict[str, Tensors]:
    """Copies of the base's tensors with the LoRAs added."""
    found = {part: {name: tensor.clone() for name, tensor in tensors.items()} for part, tensors in base.items()}
    for lora in loras:
        for part, deltas in lora.deltas.items():
            for name, several in deltas.items():
                for delta in several:
                    delta.add_to(found[part][name])
    return found


def assert_close(here: Tensors, there: Tensors, names: Iterable[str] | None = None) -> None:
    for name in names or there:
        assert (here[name] - there[name]).abs().max() <= 1e-6 * there[name].abs().max(), name


def layers(model: torch.nn.Module) -> list[str]:
    """Every module that can take a LoRA."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]


def adapter(model: torch.nn.Module, targets: list[str], **settings: Any) -> tuple[Tensors, dict[str, Any]]:
    """A random LoRA that peft makes for a model, and its settings."""
    config = LoraConfig(target_modules=targets, init_lora_weights=False, **settings)
    model.add_adapter(config)
    return get_peft_model_state_dict(model), config.to_dict()


@pytest.fixture(scope="module")
def diffusers_file(models, tmp_path_factory) -> Path:
    """A LoRA on every matrix of the transformer and on both CLIPs, as diffusers writes it."""
    torch.manual_seed(0)
    pipeline = reference_sd3.pipeline(models, with_t5=False)
    patterns = {"alpha_pattern": {"transformer_blocks.1.attn.to_q": 3}, "rank_pattern": {"^proj_out": 2, "ff.net.2": 5}}
    image, image_config = adapter(pipeline.transformer, layers(pipeline.transformer), r=4, lora_alpha=6, **patterns)
    clip_l, l_config = adapter(pipeline.text_encoder, ENCODER, r=3, lora_alpha=5, use_rslora=True)
    clip_g, g_config = adapter(pipeline.text_encoder_2, [*ENCODER, "text_projection"], r=2, lora_alpha=1)
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        image,
        clip_l,
        clip_g,
        transformer_lora_adapter_metadata=image_config,
        text_encoder_lora_adapter_metadata=l_config,
        text_encoder_2_lora_adapter_metadata=g_config,
    )
    return folder / "pytorch_lora_weights.safetensors"


def fused(models: Path, path: Path, strength: float) -> StableDiffusion3Pipeline:
    """The pipeline that diffusers makes of a LoRA file."""
    pipeline = reference_sd3.pipeline(models, with_t5=False)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["transformer", "text_encoder", "text_encoder_2"], lora_scale=strength)
    pipeline.unload_lora_weights()
    return pipeline


def test_a_file_of_diffusers_changes_every_matrix_as_diffusers_does(models, base, diffusers_file):
    lora = read_lora(f"{diffusers_file}:0.7", shapes(base))
    assert lora.strength == 0.7 and len(lora.sha256) == 64
    here, there = merged(base, lora), fused(models, diffusers_file, 0.7)
    ours = as_ours(there.transformer.state_dict(), "transformer")
    assert_close(here["MMDiT"], ours)
    for part, encoder in (("CLIP-L", there.text_encoder), ("CLIP-G", there.text_encoder_2)):
        assert_close(here[part], encoder.state_dict(), base[part])
        assert all(not torch.equal(here[part][name], base[part][name]) for name in lora.deltas[part])
    matrices = {name for name, tensor in base["MMDiT"].items() if tensor.ndim > 1 and name != "pos_embed"}
    assert lora.deltas["MMDiT"].keys() == matrices

    model = MMDiT(MMDiTConfig.from_shapes(shapes_of(base["MMDiT"]))).requires_grad_(False)
    model.pos_embed = here["MMDiT"].pop("pos_embed")
    model.load_state_dict(here["MMDiT"])
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 16, 8, 12, generator=generator)
    context = torch.randn(1, 5, model.config.context_width, generator=generator)
    pooled = torch.randn(1, model.config.pooled_width, generator=generator)
    timestep = torch.tensor([500.0])
    velocity = model(latent, timestep, context, pooled, model.positions(8, 12))
    with torch.no_grad():
        judge = there.transformer(latent, context, pooled, timestep).sample
    assert (velocity - judge).abs().max() < 1e-5 * judge.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_transformers_of_sd35_take_the_same_sums(form, tmp_path):
    model = transformer(form)
    before = as_ours(model.state_dict(), "transformer")
    tensors, _ = adapter(model, layers(model), r=3, lora_alpha=3)
    path = tmp_path / "lora.safetensors"
    save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, path)
    model.fuse_lora(lora_scale=-1.3)
    model.unload_lora()
    here = merged({"MMDiT": before}, read_lora(f"{path}:-1.3", {"MMDiT": shapes_of(before)}))
    assert_close(here["MMDiT"], as_ours(model.state_dict(), "transformer"))


def test_strengths_of_several_files_add_up(base, tmp_path):
    sizes, (first, second) = shapes(base), (tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    save_file(kohya(base["MMDiT"]), first)
    save_file(kohya(base["MMDiT"], rank=3), second)

    def change(*texts: str) -> Tensors:
        found = merged(base, *(read_lora(text, sizes) for text in texts))["MMDiT"]
        return {name: tensor - base["MMDiT"][name] for name, tensor in found.items()}

    one, other, both = change(f"{first}:1"), change(f"{second}:1"), change(f"{first}:0.5", f"{second}:-2", f"{first}:1")
    for name, tensor in both.items():
        assert torch.allclose(tensor, 1.5 * one[name] - 2 * other[name], atol=1e-5), name
    assert any(tensor.abs().max() > 1 for tensor in both.values())
    none = read_lora(f"{first}:0", sizes)
    assert "changes nothing" in none.notes[-1]
    assert_close(merged(base, none)["MMDiT"], base["MMDiT"])


def test_t5_takes_what_peft_merges(models, base, tmp_path):
    torch.manual_seed(0)
    encoder = reference_sd3.t5(models)
    tensors, config = adapter(encoder, ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], r=2, lora_alpha=3)
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, path)
    settings = {name: value for name, value in config.items() if isinstance(value, int | float | dict)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for module in encoder.modules():
        if hasattr(module, "merge"):
            module.merge()
    there = {name.replace(".base_layer", ""): t for name, t in encoder.state_dict().items() if "lora_" not in name}
    lora = read_lora(str(path), shapes(base))
    assert lora.deltas.keys() == {"T5"} and not lora.notes
    assert_close(merged(base, lora)["T5"], there)

    without = {part: named for part, named in shapes(base).items() if part != "T5"}
    with pytest.raises(ParameterError, match=r"also changes 14 matrices of T5, which is not in use"):
        read_lora(str(path), without)
    mixed = tmp_path / "mixed.safetensors"
    save_file(load_file(path) | kohya(base["MMDiT"], alpha=1.0), mixed)
    lora = read_lora(str(mixed), without)
    assert lora.deltas.keys() == {"MMDiT"} and "14 matrices of T5, which is not in use: left out" in lora.notes[0]


# --- the same LoRA in other layouts -----------------------------------------------------------------------------------


def kohya(tensors: Tensors, alpha: float | None = None, rank: int = 2) -> Tensors:
    """A random LoRA on all matrices of a part with our names, as kohya's scripts write it."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not name.endswith(".weight"):
            continue
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        found[f"{module}.lora_down.weight"] = torch.randn(rank, tensor.shape[1], generator=generator)
        found[f"{module}.lora_up.weight"] = torch.randn(tensor.shape[0], rank, generator=generator)
        if alpha is not None:
            found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_file_of_kohya_adds_up_times_down_over_the_rank(base, tmp_path, alpha):
    tensors = kohya(base["MMDiT"], alpha)
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    here = merged(base, read_lora(f"{path}:2", shapes(base)))["MMDiT"]
    changed = 0
    for name, weight in base["MMDiT"].items():
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        if up := module + ".lora_up.weight" in tensors:
            up, down = tensors[f"{module}.lora_up.weight"], tensors[f"{module}.lora_down.weight"]
            weight = weight + 2 * (1.0 if alpha is None else alpha / 2) * (up @ down)
            changed += 1
        assert (here[name] - weight).abs().max() <= 1e-6 * weight.abs().max(), name
    assert changed == len(tensors) // (2 if alpha is None else 3)


def renamed(tensors: Tensors, prefix: str, points: bool, halves: tuple[str, str]) -> Tensors:
    """A file of diffusers' transformer modules under other names."""
    found = {}
    for name, tensor in tensors.items():
        module, kind = name.removeprefix("transformer.").removesuffix(".weight").rsplit(".", 1)
        module = module if points else module.replace(".", "_")
        found[f"{prefix}{module}.{halves[kind == 'lora_B']}.weight"] = tensor
    return found


@pytest.mark.parametrize(
    ("prefix", "points", "halves"),
    [
        ("transformer.", True, ("lora.down", "lora.up")),
        ("transformer.", True, ("lora_A.default", "lora_B.default")),
        ("base_model.model.", True, ("lora_A", "lora_B")),
        ("", True, ("lora_linear_layer.down", "lora_linear_layer.up")),
        ("lora_transformer_", False, ("lora_down", "lora_up")),
        ("lycoris_", False, ("lora_down", "lora_up")),
    ],
)
def test_other_prefixes_and_suffixes_say_the_same(base, diffusers_file, tmp_path, prefix, points, halves):
    tensors = {name: t for name, t in load_file(diffusers_file).items() if name.startswith("transformer.")}
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, plain)
    save_file(renamed(tensors, prefix, points, halves), other)
    wanted = merged(base, read_lora(str(plain), shapes(base)))["MMDiT"]
    assert_close(merged(base, read_lora(str(other), shapes(base)))["MMDiT"], wanted)


@pytest.mark.parametrize(
    ("prefix", "points", "part"),
    [
        ("lora_te1_", False, "CLIP-L"),
        ("lora_te2_", False, "CLIP-G"),
        ("lora_te3_", False, "T5"),
        ("text_encoder_3.", True, "T5"),
        ("text_encoders.clip_g.transformer.", True, "CLIP-G"),
        ("base_model.model.", True, "CLIP-G"),
        ("diffusion_model.", True, "MMDiT"),
    ],
)
def test_every_part_is_found_under_its_prefixes(base, tmp_path, prefix, points, part):
    modules = {n.removesuffix(".weight"): n for n, t in base[part].items() if t.ndim == 2 and n.endswith(".weight")}
    tensors, found = {}, 0
    for module, name in modules.items():
        if "embed" in module or "shared" in module or "bias" in module:
            continue
        written = prefix + (module if points else module.replace(".", "_"))
        tensors[f"{written}.lora_down.weight"] = torch.ones(1, base[part][name].shape[1])
        tensors[f"{written}.lora_up.weight"] = torch.full((base[part][name].shape[0], 1), 0.25)
        found += 1
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    lora = read_lora(str(path), shapes(base))
    assert lora.deltas.keys() == {part} and len(lora.deltas[part]) == found > 5
    here = merged(base, lora)[part]
    for name in lora.deltas[part]:
        assert torch.equal(here[name], base[part][name] + 0.25)

"""LoRA files that cannot be added, or not to this base: each is refused in words that say what it is."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.parameters import ParameterError
from resd3_medium.lora import parse_lora, read_lora
from resd3_medium.mmdit import MMDiT, MMDiTConfig

Tensors = dict[str, torch.Tensor]
WIDTH = 64
MLP = "transformer.transformer_blocks.0.ff.net.2"  # [WIDTH, 4 * WIDTH]
KOHYA = "lora_unet_joint_blocks_0_x_block_attn_qkv"
DUAL = "transformer.transformer_blocks.0.norm1.linear"


def shapes(form: str = "SD3 medium") -> dict[str, dict[str, tuple[int, ...]]]:
    """A base of one part, with two blocks."""
    dual = (0,) if form == "SD3.5 medium" else ()
    config = MMDiTConfig(2, WIDTH, 2, 16, 32, 24, 16, 8, qk_norm=form != "SD3 medium", dual=dual)
    with torch.device("meta"):
        return {"MMDiT": {name: tuple(t.shape) for name, t in MMDiT(config).state_dict().items()}}


def lora(module: str = MLP, rows: int = WIDTH, columns: int = 4 * WIDTH, rank: int = 2) -> Tensors:
    halves = ("lora_down", "lora_up") if module.startswith("lora_") else ("lora_A", "lora_B")
    return {
        f"{module}.{halves[0]}.weight": torch.ones(rank, columns),
        f"{module}.{halves[1]}.weight": torch.ones(rows, rank),
    }


def written(folder: Path, tensors: Tensors, **metadata: Any) -> Path:
    path = folder / "style.safetensors"
    texts = {name.replace("__", "."): v if isinstance(v, str) else json.dumps(v) for name, v in metadata.items()}
    save_file(tensors, path, texts)
    return path


def one(key: str, *size: int) -> Tensors:
    """A sound LoRA with another tensor beside it."""
    return lora() | {key: torch.ones(size)}


def without(key: str) -> Tensors:
    return {name: tensor for name, tensor in lora().items() if key not in name}


FOREIGN = [  # tensors, words
    (one(f"{MLP}.dora_scale", 1, WIDTH), "DoRA"),
    (one(f"{MLP}.lora_magnitude_vector", WIDTH), "DoRA"),
    (one(f"{KOHYA}.hada_w1_a", WIDTH, 2), "LoHa"),
    (one("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", 8, 8), "LoKr"),
    (one(f"{KOHYA}.lora_mid.weight", 2, 2, 3, 3), "LoCon in Tucker form"),
    (one(f"{KOHYA}.oft_blocks", 4, 16, 16), "OFT"),
    (one(f"{KOHYA}.on_input"), "IA3"),
    (one(f"{KOHYA}.a1.weight", 2, 2), "GLoRA"),
    (one(f"{KOHYA}.diff", WIDTH, WIDTH), "differences of whole tensors"),
    (one(f"{KOHYA}.diff_b", WIDTH), "differences of whole tensors"),
    (one(f"{MLP}.lora_B.bias", WIDTH), "changes of biases"),
    (one("bundle_emb.word.clip_l", 4, 768), "a textual inversion"),
    (one(f"{MLP}.weight", WIDTH, WIDTH), "holds 1 other tensors: " + MLP),
    ({"model.diffusion_model.double_blocks.0.img_attn.qkv.bias": torch.ones(9)}, "must be a LoRA; .* a FLUX model"),
    ({"text_model.final_layer_norm.bias": torch.ones(9)}, "must be a LoRA; .* a CLIP text model"),
    (lora("transformer.single_transformer_blocks.3.attn.to_q"), "a FLUX model"),
    (lora("lora_unet_double_blocks_0_img_attn_qkv"), "a FLUX model: 1 of its modules .* lora_unet_double_blocks_0"),
    (lora("lora_unet_down_blocks_1_attentions_0_proj_in"), "a Stable Diffusion 1, 2 or XL model"),
    (lora("lora_unet_input_blocks_4_1_proj_in"), "a Stable Diffusion 1, 2 or XL model"),
    (lora("transformer.transformer_blocks.0.img_mlp.net.2"), "a Qwen-Image model"),
    (lora("transformer.transformer_blocks.37.ff.net.2"), "a transformer of 38 blocks, and the base has 2"),
    (lora("transformer.transformer_blocks.0.attn2.to_q", WIDTH, WIDTH), "made for Stable Diffusion 3.5 medium"),
    (lora("two\nlines"), "1 of its modules are not there, such as two lines"),
    (lora() | lora("transformer.transformer_blocks.0.attn.to_w"), "1 of its modules are not there, such as .*to_w"),
    (lora("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "matrices of CLIP-L, which is not in use"),
    (lora(DUAL, 9 * WIDTH, WIDTH), r"\[576, 64\], as in Stable Diffusion 3.5 medium, but .* has \[384, 64\]"),
    (lora(f"{MLP}", 2432, 9728), r"ff.net.2 is for \[2432, 9728\], but joint_blocks.0.x_block.mlp.fc2.weight has"),
    (lora(DUAL, 6 * 2432, 2432), "as in Stable Diffusion 3.5 large"),
    (lora(DUAL, 6 * 3072, 3072), "as in FLUX"),
    (without("lora_A"), f"{MLP} lacks down"),
    (without("lora_B"), f"{MLP} lacks up"),
    ({f"{MLP}.alpha": torch.ones(())}, "lacks down and up"),
    (
        without("lora_B") | {f"{MLP}.lora_B.weight": torch.ones(WIDTH, 3)},
        r"equal ranks; .* is \[2, 256\], .* \[64, 3\]",
    ),
    (lora(rank=0), "ranks above 0"),
    (without("lora_B") | {f"{MLP}.lora_B.weight": torch.ones(WIDTH)}, "must hold matrices"),
    ({name: tensor / 0 for name, tensor in lora().items()}, "finite numbers; .*lora_B.weight has others"),
    ({name: tensor.int() for name, tensor in lora().items()}, "floating-point numbers; .* is I32"),
    (one(f"{MLP}.alpha", 2), r"one number as alpha; .* is \[2\]"),
    (lora() | {f"{MLP}.alpha": torch.tensor(float("nan"))}, "finite numbers as alpha; .* is nan"),
    (lora() | {f"{MLP}.lora_down.weight": torch.ones(2, 9)}, "must hold each matrix once"),
    (lora() | lora("lora_transformer_transformer_blocks_0_ff_net_2"), "must change each matrix once"),
]


@pytest.mark.parametrize(("tensors", "words"), FOREIGN)
def test_what_cannot_be_added_is_refused_by_name(tmp_path, tensors, words):
    with pytest.raises(ParameterError, match=words) as refused:
        read_lora(f"{written(tmp_path, tensors)}:0.5", shapes())
    assert refused.value.flag == "lora" and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is an HTML page"),
        (b"PK\x03\x04" + bytes(60), "is a pickle"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"GGUF" + bytes(60), "is a GGUF file"),
        (b"", "is an empty file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "is cut off within its header"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, words):
    path = tmp_path / "lora.bin"
    path.write_bytes(content)
    with pytest.raises(ParameterError, match=words):
        read_lora(str(path), shapes())


@pytest.mark.parametrize(
    "settings",
    [
        "no JSON",
        "[1]",
        {"transformer.r": 4, "transformer.lora_alpha": 4},  # the file has 2
        {"transformer.r": 2, "transformer.lora_alpha": "much"},
        {"transformer.r": 10**400, "transformer.lora_alpha": 2},
        {"transformer.lora_alpha": 1e999},
        {"transformer.r": 2, "transformer.alpha_pattern": {"(": 3}},
        {"transformer.r": 2, "transformer.alpha_pattern": [3]},
        {"transformer.use_dora": True, "transformer.r": 2},
    ],
)
def test_metadata_that_are_wrong_or_speak_of_another_method_are_refused(tmp_path, settings):
    path = written(tmp_path, lora(), lora_adapter_metadata=settings)
    with pytest.raises(ParameterError, match="metadata"):
        read_lora(str(path), shapes())


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    lengths = set()
    for padding in range(0, 512, 8):  # headers are multiples of 8 bytes
        start = written(tmp_path, lora(), note="x" * padding).read_bytes()[:2]
        lengths.add(start)
        assert start != b"\x80\x02" or read_lora(str(tmp_path / "style.safetensors"), shapes()).deltas
    assert b"\x80\x02" in lengths


# --- the base that a file is for --------------------------------------------------------------------------------------


def notes(folder: Path, form: str, tensors: Tensors, **metadata: Any) -> tuple[str, ...]:
    return read_lora(str(written(folder, tensors, **metadata)), shapes(form)).notes


@pytest.mark.parametrize(
    ("metadata", "model"),
    [
        ({"modelspec__architecture": "stable-diffusion-3-medium/lora"}, "Stable Diffusion 3 medium"),
        ({"modelspec__architecture": "stable-diffusion-3-5-medium/lora"}, "Stable Diffusion 3.5 medium"),
        ({"modelspec__architecture": "stable-diffusion-3.5-large"}, "Stable Diffusion 3.5 large"),
        ({"modelspec__architecture": "stable-diffusion-xl-v1-base/lora"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "sd3-m"}, "Stable Diffusion 3 medium"),
        ({"ss_base_model_version": "5-medium"}, "Stable Diffusion 3.5 medium"),
        ({"ss_base_model_version": "sd_v1"}, "Stable Diffusion 1 or 2"),
        ({"ss_base_model_version": "flux1"}, "FLUX"),
        ({"ss_sd_model_name": "sd3.5_medium.safetensors"}, "Stable Diffusion 3.5 medium"),
        (
            {
                "lora_adapter_metadata": {
                    "transformer.base_model_name_or_path": "stabilityai/stable-diffusion-3-medium-diffusers"
                }
            },
            "Stable Diffusion 3 medium",
        ),
    ],
)
def test_metadata_that_name_another_base_are_told(tmp_path, metadata, model):
    for form in ("SD3 medium", "SD3.5 medium"):
        found = notes(tmp_path, form, lora(), **metadata)
        ours = form.replace("SD", "Stable Diffusion ")
        told = (f"style.safetensors says that it is made for {model}; the model here is {ours}",)
        assert found == (() if model == ours else told)


def test_what_the_shapes_tell_needs_no_metadata_and_what_nothing_tells_is_told(tmp_path):
    assert "does not say" in notes(tmp_path, "SD3 medium", lora())[0]
    assert "does not say" in notes(tmp_path, "SD3.5 medium", lora(), ss_base_model_version="other")[0]
    assert notes(tmp_path, "SD3 medium", lora(DUAL, 6 * WIDTH, WIDTH)) == ()
    assert notes(tmp_path, "SD3.5 medium", lora(DUAL, 9 * WIDTH, WIDTH)) == ()
    assert notes(tmp_path, "SD3.5 medium", lora("transformer.transformer_blocks.0.attn2.to_v", WIDTH, WIDTH)) == ()
    assert notes(tmp_path, "SD3.5 large", lora()) == ()
    with pytest.raises(ParameterError, match="as in Stable Diffusion 3 medium, but"):
        notes(tmp_path, "SD3.5 medium", lora(DUAL, 6 * WIDTH, WIDTH))


# --- FILE:strength ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "strength"),
    [
        ("a.safetensors", "{}", 1.0),
        ("a.safetensors", "{}:0.5", 0.5),
        ("a.safetensors", "{}:-10", -10.0),
        ("a.safetensors", "{}:0", 0.0),
        ("a.safetensors", "{}:1e-1", 0.1),
        ("v1:0.5", "{}", 1.0),
        ("v1:0.5", "{}:2", 2.0),
        ("C:\\loras\\a.safetensors", "{}:.25", 0.25),
    ],
)
def test_the_strength_follows_the_last_colon_behind_a_file(tmp_path, monkeypatch, name, given, strength):
    path = tmp_path / name
    path.write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_lora(given.format(path)) == (path, strength)
    assert parse_lora(given.format(f"~/{name}")) == (path, strength)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{}/a.safetensors:strong", "FILE:strength with a number from -10 to 10"),
        ("{}/a.safetensors:", "FILE:strength with a number from -10 to 10"),
        ("{}/a.safetensors:0,5", "FILE:strength with a number from -10 to 10"),
        ("{}/a.safetensors:11", "from -10 to 10"),
        ("{}/a.safetensors:nan", "from -10 to 10"),
        ("{}/a.safetensors:-inf", "from -10 to 10"),
        ("{}/b.safetensors", "there is no file .*b.safetensors$"),
        ("{}/b.safetensors:0.5", "there is no file .*b.safetensors$"),
        ("C:\\a.safetensors", "there is no file C:"),
        ("~nobody-here/a.safetensors", "there is no file"),
        ("{}", "that is a folder"),
        ("{}:0.5", "that is a folder"),
        ("x" * 5000, "there is no file"),
        ("", "must be a LoRA file"),
        (":0.5", "must be a LoRA file"),
    ],
)
def test_a_strength_or_a_file_that_is_none_is_refused(tmp_path, given, words):
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ParameterError, match=words):
        parse_lora(given.format(tmp_path))


def test_a_file_is_told_by_its_hash_and_keeps_its_rows(tmp_path):
    path = written(
        tmp_path, lora("transformer.transformer_blocks.0.attn.to_k", WIDTH, WIDTH), ss_base_model_version="sd3-m"
    )
    found = read_lora(f"{path}:3", shapes())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and not found.notes
    weight = torch.zeros(3 * WIDTH, WIDTH)
    (delta,) = found.deltas["MMDiT"]["joint_blocks.0.x_block.attn.qkv.weight"]
    delta.add_to(weight)
    assert weight.unique().tolist() == [0.0, 6.0]  # 3 times the sum of two products of ones
    assert (
        torch.equal(weight[WIDTH : 2 * WIDTH], torch.full((WIDTH, WIDTH), 6.0)) and weight.count_nonzero() == WIDTH**2
    )

"""Where users put weights, and what else lies there: all of it is used, named or refused, nothing is passed over."""

import hashlib
import json
import os
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from safetensors.torch import load_file
from scripts_by_path import load
from weight_forms import Tensors, all_in_one, fp8_scaled, save, sharded, write_gguf

from resd3_medium import finding, refine_sd3_infer
from resd3_medium.building import build
from resd3_medium.finding import find_weights
from resd3_medium.places import weight_files
from resd3_medium.weight_files import WeightsFile

SMALL = ["--prompt=a", "--device=cpu", "--width=64", "--height=48", "--steps=1"]
PREFIX = "model.diffusion_model."


def linked(models: Path, folder: Path, without: str = "") -> Path:
    """A folder with links to the models' files, but for one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in models.iterdir():
        if path.stem != without:
            (folder / path.name).symlink_to(path)
    return folder


def notes(given: Path, t5: str = "auto") -> str:
    return "\n".join(line for line in find_weights(given, t5).lines() if line.startswith("not used: "))


# --- places ---


@pytest.mark.parametrize("name", ["sd3_medium_typo.safetensors", "no/such/folder", "no/such/file.safetensors"])
def test_a_path_that_is_not_there_is_refused_whatever_lies_beside_it(models, tmp_path, capsys, name):
    given = linked(models, tmp_path) / name
    line = refusal(capsys, refine_sd3_infer, "--models", given, *SMALL, "--out", tmp_path / "out")
    assert f"--models={given}" in line and "it does not exist" in line


def test_a_path_that_is_no_file_is_refused_whatever_lies_beside_it(models, tmp_path, capsys):
    os.mkfifo(linked(models, tmp_path) / "pipe.safetensors")
    line = refusal(capsys, refine_sd3_infer, "--models", tmp_path / "pipe.safetensors", *SMALL, "--out", tmp_path / "o")
    assert "neither a file nor a folder" in line


@pytest.mark.parametrize("stem", ["t5xxl", "clip_g", "sd3_medium"])
def test_a_link_to_nothing_is_refused(models, tmp_path, capsys, stem):
    (linked(models, tmp_path, stem) / f"{stem}.safetensors").symlink_to("../blobs/gone")
    line = refusal(capsys, refine_sd3_infer, "--models", tmp_path, *SMALL, "--out", tmp_path / "out")
    assert f"{stem}.safetensors must" in line and "a link to a file that is not there" in line


def test_folders_are_named_that_hold_weights_or_seem_to_be_some(models, tmp_path):
    linked(models, tmp_path / "models")
    linked(models, tmp_path / "models" / "snapshots" / "abc")
    linked(models, tmp_path / "models" / "checkpoints" / "SD3")
    (tmp_path / "models" / "vae.safetensors").mkdir()
    told = notes(tmp_path / "models")
    assert "checkpoints/SD3/: a folder with weights" in told
    assert (
        "vae.safetensors: it is a folder" in told
        and "snapshots/abc/: a folder with weights, which is not looked in" in told
    )


@pytest.mark.parametrize(
    "name",
    [
        "sd3_medium.safetensors.part",
        "sd3_medium.ckpt",
        "sd3_medium.safetensors",
        ".cache/huggingface/download/a.incomplete",
    ],
)
def test_what_lies_in_models_and_is_no_weights_never_gives_emoji(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(finding, "MODELS", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"half")
    line = refusal(capsys, refine_sd3_infer, *SMALL, "--out", tmp_path / "out")
    assert name.split("/")[0] in line


def test_a_folder_with_weights_in_models_is_named_beside_emoji(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finding, "MODELS", tmp_path / "models")
    linked(models, tmp_path / "models" / "stable-diffusion-3.5-medium")
    run_here(refine_sd3_infer, *SMALL, "--out", tmp_path / "out")
    assert "stable-diffusion-3.5-medium holds weights, which are not used" in capsys.readouterr().err


def test_shards_that_no_index_names_are_told(models, tmp_path):
    sharded(linked(models, tmp_path, "t5xxl"), "model", load_file(models / "t5xxl.safetensors"))
    assert "T5" in find_weights(tmp_path)
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "old-00001-of-00002.safetensors")
    assert "old-00001-of-00002.safetensors: it is a shard, and the index file" in notes(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert notes(tmp_path).count("it is a shard") == 3


def test_plain_files_come_before_their_variants(models, tmp_path):
    linked(models, tmp_path, "t5xxl")
    for name in ("model.safetensors", "model.fp16.safetensors"):
        shutil.copy(models / "t5xxl.safetensors", tmp_path / name)
    assert find_weights(tmp_path).names["T5"] == "model.safetensors"


def test_encoders_may_lie_in_a_folder_that_is_called_as_one_of_diffusers(models, tmp_path):
    linked(models, tmp_path / "text_encoder", "sd3_medium")
    (tmp_path / "sd3_medium.safetensors").symlink_to(models / "sd3_medium.safetensors")
    names = find_weights(tmp_path).names
    assert {part: names[part] for part in ("CLIP-L", "CLIP-G", "T5")} == {
        "CLIP-L": "text_encoder/clip_l.safetensors",
        "CLIP-G": "text_encoder/clip_g.safetensors",
        "T5": "text_encoder/t5xxl.safetensors",
    }


def test_components_that_a_diffusers_folder_lacks_and_tensors_of_no_model_are_told(models, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"text_encoder_3": ["transformers", "T5EncoderModel"]}))
    save(tmp_path / "sd3_medium.safetensors", all_in_one(models, t5=False) | {"model_ema.decay": torch.ones(1)})
    told = notes(tmp_path)
    assert "model_index.json names text_encoder_3, which is not there" in told
    assert "sd3_medium.safetensors: 1 tensors of no model here: model_ema.decay" in told


def test_hashes_tell_files_of_one_name_apart(models, tmp_path, capsys):
    for place, stem in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").symlink_to(models / f"{stem}.safetensors")
    (tmp_path / "sd3_medium.safetensors").symlink_to(models / "sd3_medium.safetensors")
    run_here(load("check_models"), "--models", tmp_path, "--hash=True")
    lines = capsys.readouterr().out.splitlines()
    for name in ("text_encoder/model.safetensors", "text_encoder_2/model.safetensors", "sd3_medium.safetensors"):
        assert f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}" in lines


# --- damaged headers ---

DEEP = "[" * 100_000  # JSON that is too deep to be read


def bomb_in_metadata(folder: Path, tensors: Tensors, key: str) -> None:
    save(folder / "clip_g.safetensors", tensors, {key: DEEP})


def bomb_in_a_tensor(folder: Path, tensors: Tensors) -> None:
    code = torch.tensor(list(DEEP.encode()), dtype=torch.uint8)
    save(folder / "clip_g.safetensors", tensors | {"text_projection.comfy_quant": code})


def bomb_in_an_index(folder: Path, tensors: Tensors) -> None:
    (folder / "clip_g.safetensors.index.json").write_text(DEEP)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder, tensors: bomb_in_metadata(folder, tensors, "dedgeai"),
        lambda folder, tensors: bomb_in_metadata(folder, tensors, "_quantization_metadata"),
        bomb_in_a_tensor,
        bomb_in_an_index,
    ],
)
def test_json_that_is_too_deep_is_refused_in_a_line(models, tmp_path, capsys, spoil):
    spoil(linked(models, tmp_path, "clip_g"), load_file(models / "clip_g.safetensors"))
    assert "clip_g.safetensors" in refusal(
        capsys, refine_sd3_infer, "--models", tmp_path, *SMALL, "--out", tmp_path / "out"
    )


@pytest.fixture(scope="module")
def gguf_models(models, tmp_path_factory) -> Path:
    """The tiny models with the transformer as GGUF."""
    folder = linked(models, tmp_path_factory.mktemp("gguf"), "sd3_medium")
    tensors = load_file(models / "sd3_medium.safetensors")
    save(folder / "vae.safetensors", {n: t for n, t in tensors.items() if not n.startswith(PREFIX)})
    transformer = {n[len(PREFIX) :]: t for n, t in tensors.items() if n.startswith(PREFIX)}
    write_gguf(folder / "sd3_medium.gguf", transformer, "Q8_0")
    return folder


def endless(content: bytes) -> bytes:
    """With an array of 2^40 bytes as its first pair."""
    pair = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**40)
    return content[:16] + struct.pack("<Q", 1) + pair + content[24:]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c[: len(c) // 2], "half a download"),
        (lambda c: c[:-10], "half a download"),
        (lambda c: c[:1000], "cut off within its header"),
        (lambda c: c[:4] + b"\x09" + c[5:], "of version 9"),
        (lambda c: b"GGML" + c[4:], "no GGUF file"),
        (endless, "damaged header"),
    ],
)
def test_gguf_files_that_are_not_whole_are_refused_at_once_in_words(gguf_models, tmp_path, capsys, spoil, words):
    path = linked(gguf_models, tmp_path) / "sd3_medium.gguf"
    path.unlink()
    path.write_bytes(spoil((gguf_models / "sd3_medium.gguf").read_bytes()))
    start = time.perf_counter()
    line = refusal(capsys, refine_sd3_infer, "--models", path, *SMALL, "--out", tmp_path / "out")
    assert words in line and time.perf_counter() - start < 5


def test_big_endian_gguf_is_refused(models, tmp_path, capsys):
    path = linked(models, tmp_path) / "big.gguf"
    writer = gguf.GGUFWriter(path, "sd3", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("joint_blocks.0.x_block.attn.proj.weight", torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big-endian" in refusal(capsys, refine_sd3_infer, "--models", path, *SMALL, "--out", tmp_path / "out")


def test_gguf_is_told_by_its_first_bytes_too(gguf_models, tmp_path):
    blob = linked(gguf_models, tmp_path) / ("0" * 64)
    (tmp_path / "sd3_medium.gguf").rename(blob)
    assert find_weights(blob).names["MMDiT"] == blob.name and weight_files(blob)[blob] == blob.name


# --- precision ---


def test_what_is_stored_at_few_bits_is_said_to_stay_so(models, gguf_models, tmp_path):
    weights = find_weights(gguf_models)
    assert "(SD3 medium, Q8_0, not rounded to int8)" in weights.lines("int8")[3]
    assert "kept" not in weights.record("int8")["MMDiT"] and weights.record("int8")["T5"]["kept"] == "int8"
    stored, _ = fp8_scaled(load_file(models / "t5xxl.safetensors"))
    name = "encoder.block.0.layer.0.SelfAttention.q"
    dense = load_file(models / "t5xxl.safetensors")[f"{name}.weight"]
    del stored[f"{name}.scale_weight"]
    save(linked(models, tmp_path, "t5xxl") / "t5xxl.safetensors", stored | {f"{name}.weight": dense})
    weights = find_weights(tmp_path)
    assert "the rest kept at fp8)" in weights.lines("fp8")[2] and weights.record("fp8")["T5"]["kept"] == "fp8"


def test_no_part_of_a_matrix_is_rounded_twice(models, tmp_path):
    """IQ4_NL has no packed form here, and a fused matrix may have one part in fp8: both stay as they are read."""
    folder = linked(models, tmp_path, "sd3_medium")
    tensors = load_file(models / "sd3_medium.safetensors")
    save(folder / "vae.safetensors", {n: t for n, t in tensors.items() if not n.startswith(PREFIX)})
    writer = gguf.GGUFWriter(folder / "sd3_medium.gguf", "sd3")
    kind, generator = gguf.GGMLQuantizationType.IQ4_NL, np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name.endswith("x_block.mlp.fc1.weight"):
            blocks = generator.integers(0, 60, (tensor.shape[0], tensor.shape[1] // 32 * 18), dtype=np.uint8)
            writer.add_tensor(name.removeprefix(PREFIX), blocks, raw_dtype=kind)
        elif name.startswith(PREFIX):
            writer.add_tensor(name.removeprefix(PREFIX), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = find_weights(folder)
    model = build(weights["MMDiT"], torch.device("cpu"), torch.float32, "int8")
    stored = weights["MMDiT"].weight("joint_blocks.0.x_block.mlp.fc1.weight").floats()
    assert torch.equal(model.joint_blocks[0].x_block.mlp.fc1.weight, stored)
    assert model.joint_blocks[0].x_block.mlp.fc2.kind == "INT8"
    assert "the rest kept at int8" in weights.lines("int8")[3]


def test_scales_of_the_wrong_number_or_kind_are_found_by_the_header(models, tmp_path, capsys):
    stored, _ = fp8_scaled(load_file(models / "t5xxl.safetensors"))
    name = next(name for name in stored if name.endswith(".scale_weight"))
    linked(models, tmp_path, "t5xxl")
    for scale, words in ((torch.ones(3), "has 3 scales"), (torch.ones(1, dtype=torch.int32), "floating-point scales")):
        save(tmp_path / "t5xxl.safetensors", stored | {name: scale})
        with pytest.raises(SystemExit, match="1"):
            run_here(load("check_models"), "--models", tmp_path)
        assert words in capsys.readouterr().out


# --- models of other programs ---


def controlnet(models: Path) -> Tensors:
    """As diffusers names its parts: some are those of the transformer."""
    return {
        "controlnet_blocks.0.weight": torch.ones(2, 2),
        "transformer_blocks.0.attn.add_k_proj.weight": torch.ones(2),
    }


def stability_controlnet(models: Path) -> Tensors:
    return {"control_model.joint_blocks.0.x_block.attn.qkv.weight": torch.ones(2, 2)}


def umt5(models: Path) -> Tensors:
    """T5 with a table of distances in every block."""
    tensors = load_file(models / "t5xxl.safetensors")
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    return tensors | {bias.format(1): tensors[bias.format(0)]}


def vit_h(models: Path) -> Tensors:
    """A CLIP of a third width."""
    return {n: t[..., :32] for n, t in load_file(models / "clip_l.safetensors").items()}


def embedding(models: Path) -> Tensors:
    return {"emb_params": torch.ones(2, 64)}


@pytest.mark.parametrize(
    ("make", "name", "told"),
    [
        (controlnet, "sd3.5_large_controlnet_canny", "a ControlNet"),
        (stability_controlnet, "sd3.5_large_turbo", "a ControlNet"),
        (umt5, "t5xxl_fp16", "a UMT5 encoder"),
        (vit_h, "a", "a CLIP text model of another width, 32"),
        (embedding, "EasyNegative", "a textual inversion"),
    ],
)
def test_models_of_other_kinds_never_take_the_place_of_the_right_ones(models, tmp_path, make, name, told):
    save(linked(models, tmp_path) / f"{name}.safetensors", make(models))
    weights = find_weights(tmp_path)
    assert set(weights.names.values()) == {path.name for path in models.iterdir()}
    assert f"not used: {name}.safetensors: it holds {told}" in "\n".join(weights.lines())


@pytest.mark.parametrize(("name", "code"), [("t5xxl", 1), ("umt5_xxl", 0), ("concept5", 0)])
def test_a_file_with_the_name_of_t5_that_is_another_model_is_refused_and_others_are_told(
    models, tmp_path, capsys, name, code
):
    save(linked(models, tmp_path, "t5xxl") / f"{name}.safetensors", umt5(models))
    if code:
        with pytest.raises(SystemExit, match="1"):
            run_here(load("check_models"), "--models", tmp_path)
        assert "UMT5" in refusal(capsys, refine_sd3_infer, "--models", tmp_path, *SMALL, "--out", tmp_path / "out")
    else:
        run_here(load("check_models"), "--models", tmp_path)
        assert f"{name}.safetensors: it holds a UMT5 encoder" in notes(tmp_path)


def test_the_autoencoder_of_flux_is_known_by_its_name_and_its_encoders_are_ours(models, tmp_path):
    linked(models, tmp_path, "t5xxl")
    (tmp_path / "flux_t5xxl_fp16.safetensors").symlink_to(models / "t5xxl.safetensors")
    tensors = load_file(models / "sd3_medium.safetensors").items()
    autoencoder = {n.removeprefix("first_stage_model."): t for n, t in tensors if n.startswith("first_stage_model.")}
    save(tmp_path / "vae" / "my_flux_vae.safetensors", autoencoder)
    assert "my_flux_vae.safetensors: it is a part of FLUX" in notes(tmp_path)
    assert find_weights(tmp_path).names["T5"] == "flux_t5xxl_fp16.safetensors"


def test_a_change_of_one_tensor_of_a_large_file_changes_the_fingerprint(tmp_path):
    tensors = {str(k): torch.zeros(2**19) for k in range(24)}
    before = save(tmp_path / "a.safetensors", tensors)
    after = save(tmp_path / "b.safetensors", tensors | {"17": torch.ones(2**19)})
    assert WeightsFile(before).fingerprint != WeightsFile(after).fingerprint
    assert WeightsFile(before).fingerprint == WeightsFile(save(tmp_path / "c.safetensors", tensors)).fingerprint

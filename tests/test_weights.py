"""Weights in the forms that people have: found by name or content, equal in what they compute, refused in words."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import reference_sd3 as reference
import torch
from helpers import refusal, run_here
from safetensors.torch import load_file
from weight_forms import all_in_one, fp8, fp8_scaled, is_matrix, named, replaced, save, sharded, write_gguf

from resd3_medium import refine_sd3_infer
from resd3_medium.finding import find_weights
from resd3_medium.layouts import llama_t5
from resd3_medium.pipeline import Pipeline, Settings

CPU = torch.device("cpu")
SMALL = ["--device=cpu", "--width=64", "--height=48", "--steps=2"]


def latent(models: Path, t5: bool = True, dtype: torch.dtype = torch.float32, **how: str) -> torch.Tensor:
    """Two guided steps with whatever lies there."""
    weights = find_weights(models, "on" if t5 else "off")
    pipeline = Pipeline(weights, CPU, dtype, t5_rows=77 if t5 else 0, **how)
    texts = pipeline.encode(["a boat on a lake", "blurry"])
    settings = Settings(steps=2, width=64, height=48)
    return pipeline.denoise([texts["a boat on a lake"]], [texts["blurry"]], [1], settings)


@pytest.fixture(scope="module")
def usual(models) -> torch.Tensor:
    return latent(models)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# --- where they lie ---


def one_file(models: Path, out: Path) -> Path:
    return save(out / "sd3_medium_incl_clips_t5xxlfp16.safetensors", all_in_one(models))


def one_file_in_a_folder(models: Path, out: Path) -> Path:
    return one_file(models, out).parent


def one_file_and_t5_apart(models: Path, out: Path) -> Path:
    shutil.copy(models / "t5xxl.safetensors", out / "t5xxl_fp16.safetensors")
    return save(out / "sd3_medium_incl_clips.safetensors", all_in_one(models, t5=False))


def names_that_tell_nothing(models: Path, out: Path) -> Path:
    for letter, path in zip("dcba", sorted(models.iterdir()), strict=True):
        shutil.copy(path, out / f"{letter}.safetensors")
    return out


def folders_of_other_programs(models: Path, out: Path) -> Path:
    places = {"clip_l": "clip", "clip_g": "text_encoders", "t5xxl": "text_encoders", "sd3_medium": "checkpoints"}
    for stem, place in places.items():
        (out / place).mkdir(exist_ok=True)
        shutil.copy(models / f"{stem}.safetensors", out / place)
    return out


def a_file_among_folders(models: Path, out: Path) -> Path:
    return folders_of_other_programs(models, out) / "checkpoints" / "sd3_medium.safetensors"


def transformer_and_autoencoder_apart(models: Path, out: Path) -> Path:
    tensors = load_file(models / "sd3_medium.safetensors")
    for prefix, name in (("model.diffusion_model.", "diffusion_models/mine"), ("first_stage_model.", "vae/sd3_vae")):
        save(out / f"{name}.safetensors", {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
    for stem in ("clip_l", "clip_g", "t5xxl"):
        shutil.copy(models / f"{stem}.safetensors", out)
    return out


def t5_with_one_table(models: Path, out: Path) -> Path:
    return replaced(models, out, "t5xxl", lambda t: {n: v for n, v in t.items() if n != "shared.weight"})


@pytest.mark.parametrize(
    "arrange",
    [
        one_file,
        one_file_in_a_folder,
        one_file_and_t5_apart,
        names_that_tell_nothing,
        folders_of_other_programs,
        a_file_among_folders,
        transformer_and_autoencoder_apart,
        t5_with_one_table,
    ],
)
def test_weights_are_found_wherever_they_lie(models, usual, tmp_path, arrange):
    assert torch.equal(latent(arrange(models, tmp_path)), usual)


# --- how they are stored ---


def fp8_plain_form(models: Path, out: Path) -> tuple[Path, Path]:
    stored = {stem: fp8(t) for stem, t in named(models).items()}
    for k, folder in enumerate(("stored", "values")):
        for stem, pair in stored.items():
            save(out / folder / f"{stem}.safetensors", pair[k])
    return out / "stored", out / "values"


def scaled_form(models: Path, out: Path, ending: str, rows: bool, marker: str) -> tuple[Path, Path]:
    for stem, tensors in named(models).items():
        stored, values = fp8_scaled(tensors, ending, rows)
        if stem == "sd3_medium":  # where both models' prefixes stand
            marks = {f"model.diffusion_model.{marker}": torch.zeros(2).to(torch.float8_e4m3fn)}
        else:
            marks = {marker: torch.zeros(2).to(torch.float8_e4m3fn)}
        marks |= {"encoder.block.0.layer.0.SelfAttention.q.scale_input": torch.ones(1)} if stem == "t5xxl" else {}
        save(out / "stored" / f"{stem}.safetensors", stored | marks)
        save(out / "values" / f"{stem}.safetensors", values)
    return out / "stored", out / "values"


def gguf_form(models: Path, out: Path, kind: str) -> tuple[Path, Path]:
    """The transformer without a prefix, and T5 under llama.cpp's names; the rest as it is."""
    prefix = "model.diffusion_model."
    tensors = load_file(models / "sd3_medium.safetensors")
    rest = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
    transformer = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
    for folder in ("stored", "values"):
        (out / folder).mkdir()
        for stem in ("clip_l", "clip_g", "t5xxl"):
            shutil.copy(models / f"{stem}.safetensors", out / folder)
    values = write_gguf(out / "stored" / f"sd3_medium-{kind}.gguf", transformer, kind)
    if kind == "Q8_0":
        encoder = {n: t for n, t in load_file(models / "t5xxl.safetensors").items() if "embed_tokens" not in n}
        (out / "stored" / "t5xxl.safetensors").unlink()
        theirs = {llama_t5(n).names[0]: t for n, t in encoder.items()}
        stands_for = write_gguf(out / "stored" / "t5-v1_1-xxl-encoder-Q8_0.gguf", theirs, kind, "t5encoder")
        save(out / "values" / "t5xxl.safetensors", {n: stands_for[llama_t5(n).names[0]] for n in encoder})
    save(out / "stored" / "vae" / "sd3_vae.safetensors", rest)
    save(out / "values" / "sd3_medium.safetensors", rest | {prefix + n: t for n, t in values.items()})
    return out / "stored", out / "values"


FORMS = {
    "fp8": fp8_plain_form,
    "scaled fp8": lambda m, o: scaled_form(m, o, ".scale_weight", False, "scaled_fp8"),
    "scaled fp8, newer": lambda m, o: scaled_form(m, o, ".weight_scale", False, "scaled_fp8"),
    "scaled fp8 by row": lambda m, o: scaled_form(m, o, ".weight_scale", True, "scaled_fp8"),
    "Q8_0": lambda m, o: gguf_form(m, o, "Q8_0"),
    "Q4_0": lambda m, o: gguf_form(m, o, "Q4_0"),
}


@pytest.mark.parametrize("form", FORMS)
def test_low_precision_is_what_it_stands_for(models, usual, tmp_path, form):
    stored, values = FORMS[form](models, tmp_path)
    found = latent(stored)
    assert difference(found, latent(values)) < 1e-6
    assert 1e-4 < difference(found, usual) < 0.5  # else it was not low


@pytest.mark.parametrize("form", ["scaled fp8", "Q4_0"])
def test_low_precision_stays_low_in_memory_at_every_level(models, tmp_path, form):
    stored, _ = FORMS[form](models, tmp_path)
    pipeline = Pipeline(find_weights(stored, "off"), CPU, torch.bfloat16)
    blocks = pipeline.bring("MMDiT").joint_blocks
    numbers = sum(module.shape[0] * module.shape[1] for module in blocks.modules() if hasattr(module, "packed"))
    kept = sum(module.packed.nbytes for module in blocks.modules() if hasattr(module, "packed"))
    assert numbers > 5e5 and kept / numbers == (1 if form == "scaled fp8" else 18 / 32)
    levels = [latent(stored, t5=False, dtype=torch.bfloat16, level=level) for level in ("none", "model", "block")]
    assert torch.equal(levels[0], levels[1]) and torch.equal(levels[0], levels[2])
    assert difference(latent(stored, t5=False, keep="full"), latent(stored, t5=False)) < 1e-5


@pytest.mark.parametrize(("keep", "least", "most"), [("int8", 1e-4, 0.05), ("fp8", 1e-3, 0.2)])
def test_ordinary_files_are_kept_at_eight_bits_on_request(models, usual, keep, least, most):
    levels = [latent(models, level=level, keep=keep) for level in ("none", "model", "block")]
    assert torch.equal(levels[0], levels[1]) and torch.equal(levels[0], levels[2])
    assert least < difference(levels[0], usual) < most


def test_a_diffusers_folder_with_shards_and_variants_is_that_of_diffusers(models, usual, tmp_path):
    pipeline = reference.pipeline(models, with_t5=True)
    pipeline.save_pretrained(tmp_path / "whole")
    assert difference(latent(tmp_path / "whole"), usual) < 1e-6
    shutil.copytree(tmp_path / "whole", tmp_path / "shards")
    for component, name in (("transformer", "diffusion_pytorch_model"), ("text_encoder_3", "model")):
        path = tmp_path / "shards" / component / f"{name}.safetensors"
        tensors = load_file(path)
        path.unlink()
        sharded(path.parent, name, tensors, "fp16")
    assert torch.equal(latent(tmp_path / "shards"), latent(tmp_path / "whole"))
    index = tmp_path / "shards" / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    assert torch.equal(latent(index), latent(tmp_path / "whole"))


# --- what is said ---


def test_every_file_is_named_whether_it_is_used_or_not(models, tmp_path, capsys):
    one_file(models, tmp_path)
    shutil.copy(models / "clip_l.safetensors", tmp_path / "clip_l.safetensors")
    save(tmp_path / "flux1-dev.safetensors", {"double_blocks.0.img_attn.qkv.weight": torch.ones(2)})
    save(tmp_path / "style.safetensors", {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": torch.ones(2)})
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02")
    (tmp_path / "t5xxl.safetensors.part").write_bytes(b"123")
    run_here(refine_sd3_infer, "--models", tmp_path, "--prompt=a", *SMALL, "--out", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    used = [line for line in lines if "sd3_medium_incl_clips_t5xxlfp16.safetensors (" in line]
    assert [line.split()[0] for line in used] == ["CLIP-L", "CLIP-G", "T5", "MMDiT", "VAE"]
    assert all("float32" in line for line in used)
    told = " ".join(line for line in lines if line.startswith("not used: "))
    for words in (
        "clip_l.safetensors: CLIP-L, which sd3_medium_incl",
        "a FLUX model",
        "add it with --lora",
        "old.ckpt: it is a pickle",
        "t5xxl.safetensors.part: it is an unfinished download",
    ):
        assert words in told


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4337667306\n")


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>Log in</body></html>")


def half(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def pickled(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path)


def unknown_scale(path: Path) -> None:
    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if is_matrix(n, t))
    path.unlink()
    save(path, tensors | {name.removesuffix("weight") + "weight_scale_2": torch.ones(1)})


def lost_scale(path: Path) -> None:
    stored, _ = fp8_scaled(load_file(path))
    scale = next(name for name in stored if name.endswith(".scale_weight"))
    del stored[scale]
    path.unlink()
    save(path, stored | {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)})


def other_format(path: Path) -> None:
    tensors = load_file(path)
    path.unlink()
    save(path, tensors, {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "nvfp4"}}})})


def flux(path: Path) -> None:
    path.unlink()
    save(path, {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)})


def sdxl(path: Path) -> None:
    path.unlink()
    save(
        path,
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2), "conditioner.embedders.0.a": torch.ones(1)},
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lfs, "Git-LFS pointer"),
        (web_page, "an HTML page"),
        (half, "half a download"),
        (pickled, "a pickle"),
        (unknown_scale, "unknown kind of quantisation"),
        (lost_scale, "lacks 1 scales"),
        (other_format, "quantised as nvfp4"),
        (flux, "a FLUX model"),
        (sdxl, "a Stable Diffusion XL model"),
        (lambda path: path.write_bytes(struct.pack("<Q", 50) + b"{"), "cut off within its header"),
        (lambda path: path.write_bytes(b""), "an empty file"),
    ],
)
@pytest.mark.parametrize("stem", ["clip_g", "t5xxl", "sd3_medium"])
def test_what_is_no_weights_is_refused_in_words(models, tmp_path, capsys, spoil, told, stem):
    for path in models.iterdir():
        shutil.copy(path, tmp_path)
    path = tmp_path / f"{stem}.safetensors"
    spoil(path)
    line = refusal(capsys, refine_sd3_infer, "--models", tmp_path, "--prompt=a", *SMALL, "--out", tmp_path / "new")
    assert told in line and path.name in line
    assert not (tmp_path / "new").exists()

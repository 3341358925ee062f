"""The tiny models of a folder in the other forms that people have them in."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl"}


def named(models: Path) -> dict[str, Tensors]:
    """The tensors of each file of a folder, by its stem."""
    return {path.stem: load_file(path) for path in models.glob("*.safetensors")}


def all_in_one(models: Path, t5: bool = True) -> Tensors:
    """All tensors under the names that one file with everything has."""
    files = named(models)
    found = {}
    for stem, tensors in files.items():
        if stem not in ENCODERS:
            found |= tensors
        elif stem != "t5xxl" or t5:
            found |= {f"text_encoders.{stem}.transformer.{name}": tensor for name, tensor in tensors.items()}
            found[f"text_encoders.{stem}.logit_scale"] = torch.tensor(4.6)
    return found


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is the matrix of a linear layer, not a table."""
    tables = ("embedding", "embed_tokens", "shared", "pos_embed", "relative_attention_bias")
    return tensor.ndim == 2 and name.endswith(".weight") and not any(table in name for table in tables)


def fp8(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Everything cast to fp8, as a plain file has it; and the values that it stands for."""
    cast = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    return cast, {name: tensor.float() for name, tensor in cast.items()}


def fp8_scaled(tensors: Tensors, ending: str = ".scale_weight", rows: bool = False) -> tuple[Tensors, Tensors]:
    """Matrices in fp8 with a scale each, or one for each row; and the values that they stand for."""
    stored, values = {}, {}
    for name, tensor in tensors.items():
        stored[name] = values[name] = tensor
        if is_matrix(name, tensor):
            scale = (tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().max()) / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + ending] = scale
            values[name] = stored[name].float() * scale
    return stored, values


def write_gguf(path: Path, tensors: Tensors, kind: str, architecture: str = "sd3") -> Tensors:
    """A GGUF file with its matrices in `kind`, the rest in float32. Returns the values that it stands for."""
    writer = gguf.GGUFWriter(str(path), architecture)
    type_ = gguf.GGMLQuantizationType[kind]
    values = {}
    for name, tensor in tensors.items():
        array, used = tensor.float().contiguous().numpy(), gguf.GGMLQuantizationType.F32
        if is_matrix(name, tensor) and array.shape[1] % gguf.GGML_QUANT_SIZES[type_][0] == 0:
            used = type_
        data = gguf.quants.quantize(array, used)
        values[name] = torch.from_numpy(np.array(gguf.quants.dequantize(data, used))).reshape(tensor.shape)
        writer.add_tensor(name, data, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of tensors that may share memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def replaced(models: Path, folder: Path, stem: str, change: Callable[[Tensors], Tensors]) -> Path:
    """The folder's files as links, but for one, which is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in models.iterdir():
        if path.stem != stem:
            (folder / path.name).symlink_to(path)
    save(folder / f"{stem}.safetensors", change(load_file(models / f"{stem}.safetensors")))
    return folder


def sharded(folder: Path, name: str, tensors: Tensors, variant: str = "") -> None:
    """Two shards and their index."""
    dot = f".{variant}" if variant else ""
    names = [f"{name}{dot}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    keys = sorted(tensors)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    for file, half in zip(names, halves, strict=True):
        save(folder / file, {key: tensors[key] for key in half})
    where = {key: file for file, half in zip(names, halves, strict=True) for key in half}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{name}.safetensors.index{dot}.json").write_text(json.dumps(index))

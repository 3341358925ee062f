"""What a file is that should hold weights and does not: pointers, web pages, half downloads, pickles, other models.

Start reading at `not_weights`.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path

WEIGHTS = (".safetensors", ".sft", ".gguf")  # suffixes of files that are read
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # files of weights that are never read, since loading them may run code
UNFINISHED = (".part", ".partial", ".incomplete", ".crdownload", ".aria2", ".download", ".tmp", ".!ut")
NO_SAFETENSORS = "no safetensors file"
LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def not_weights(path: Path) -> str:
    """What a file is in words, when it is no whole safetensors or GGUF file; empty when it may be one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        return "a link to a file that is not there"
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        return "an empty file"
    if start.startswith(b"GGUF"):
        return ""
    if start[8:9] == b"{":  # the length that stands before may look like anything
        return torn(start, size, path)
    if text.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file that it stands for; run `git lfs pull`, or fetch the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML page, as a download without a login leaves it"
    if start.startswith((b"PK\x03\x04", *(b"\x80" + bytes([k]) for k in range(2, 6)))):
        return "a pickle, which may run code when it is read; convert it to safetensors"
    if text.startswith((b'{"', b'{ "', b"{\n", b"access to model", b"invalid ")):
        return "text, maybe the answer of a server that refused the download"
    return torn(start, size, path)


def gguf_words(path: Path) -> str:
    """That a file is GGUF, in words, for readers of safetensors alone; else empty."""
    try:
        with path.open("rb") as file:
            return "a GGUF file" if file.read(4) == b"GGUF" else ""
    except OSError:
        return ""


def torn(start: bytes, size: int, path: Path) -> str:
    """What is missing of a safetensors file whose first bytes are `start`, in words; empty when it is whole."""
    if size < 8:
        return f"a file of {size} bytes"
    (length,) = struct.unpack("<Q", start[:8])
    if length > LARGEST_HEADER or start[8:9] not in (b"{", b""):
        return NO_SAFETENSORS
    if 8 + length > size:
        return f"cut off within its header, after {size:,} bytes; fetch it anew"
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        whole = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return "a safetensors file with a damaged header"
    if size < whole:
        return f"half a download: {size:,} of {whole:,} bytes; fetch the rest"
    return ""


def other_name(path: Path) -> str:
    """What a file is by a name that no weights are read from, in words; empty for other files."""
    suffix = path.suffix.lower()
    if suffix in UNFINISHED:
        return "an unfinished download"
    return "a pickle, which is never read; convert it to safetensors" if suffix in PICKLES else ""


# Parts of tensors' names, and the models that have them. The first that is met counts.
SIGNS = (
    (("lora_A.", "lora_B.", "lora_down.", "lora_up.", "lora.down.", "lora.up."), "a LoRA; add it with --lora"),
    (("control_model.", "controlnet"), "a ControlNet"),
    (("ip_adapter", "image_proj"), "an IP-Adapter"),
    (("emb_params", "string_to_param"), "a textual inversion"),
    (("encoder.block.1.layer.0.SelfAttention.relative_attention_bias",), "a UMT5 encoder, not T5"),
    (("lokr_", "hada_", "lora_mid", "dora_scale"), "an adapter of another kind than LoRA"),
    (("double_stream_modulation", "double_blocks.", "single_blocks.", "single_transformer_blocks."), "a FLUX model"),
    (("conditioner.embedders.", "add_embedding.linear"), "a Stable Diffusion XL model"),
    (("cond_stage_model.",), "a Stable Diffusion 1 or 2 model"),
    (("input_blocks.", "down_blocks.0.attentions"), "a Stable Diffusion 1, 2 or XL model"),
    (("cap_embedder.", "noise_refiner."), "a Lumina model"),
    (("img_in.", "txt_in."), "a Qwen-Image, Hunyuan or similar model"),
    (("blocks.0.cross_attn",), "a Wan video model"),
    (("vision_model.", "visual."), "a model that reads images"),
    (("model.layers.", "blk.0.attn_q"), "a language model"),
    (("joint_blocks.",), "a Stable Diffusion 3 transformer"),
    (("transformer_blocks.",), "a transformer in diffusers' layout"),
    (("text_model.",), "a CLIP text model"),
    (("encoder.block.", "enc.blk."), "a T5 encoder"),
    (("decoder.up", "encoder.down"), "an autoencoder"),
)


def other_model(names: Iterable[str]) -> str:
    """The model that tensors of these names belong to, in words."""
    listed = list(names)
    for signs, words in SIGNS:
        if any(sign in name for name in listed for sign in signs):
            return words
    return f"{len(listed)} tensors, such as {', '.join(sorted(listed)[:2])}" if listed else "no tensor"

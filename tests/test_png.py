"""Text chunks: what is written is read again, other programs read it and are read, and nothing hostile goes through."""

import hashlib
import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from common.parameters import ParameterError, resolve
from resd3_medium.infer_parameters import InferConfig, with_stored
from resd3_medium.parameters_text import parameters_text
from resd3_medium.pipeline import Settings
from resd3_medium.png import differing_weights, png_bytes, read_task
from resd3_medium.tasks import ImageTask

PICTURE = Image.new("RGB", (16, 16))
WEIGHTS = {
    "MMDiT": {"file": "/home/ann/models/sd3_medium.safetensors", "precision": "float16", "sha256": "abcdef1234" * 6}
}
SETTINGS = Settings(steps=28, width=512, height=768, cfg_scale=4.5, sampler="dpmpp_2m")
PROMPTS = (
    'a boat, (red:1.2) and: "quoted" \\ back',
    "two\nlines",
    "näive 🙂 日本",
    "",
    "a cat\nNegative prompt: in the prompt\nSteps: 1, Sampler: Euler a, CFG scale: 2, Seed: 3",
    "Steps: 9, Seed: 8, Size: 16x16",
)
FOREIGN = """a castle <lora:stone:0.8>, at dusk
second line
Negative prompt: blurry,
 dark
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4123, Size: 512x768, Model hash: 1234567890, \
Model: other, Denoising strength: 0.4, Clip skip: 2, Hires upscale: 2, Note: "a, b: \\"c\\"", Version: v1.9"""


def task(prompt: str = "a", negative: str = "", **settings: Any) -> ImageTask:
    return ImageTask(prompt, negative, 2**63, Settings(**settings) if settings else SETTINGS)


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def with_texts(path: Path, **texts: str) -> str:
    """A picture with text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_itxt(name, text)
    PICTURE.save(path, pnginfo=chunks)
    return str(path)


def stored(path: str, **given: Any) -> InferConfig:
    """The parameters of --from_image=path."""
    return with_stored(resolve(InferConfig, {"from_image": path, **given}), {"from_image": path, **given})


def others_reading(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings, as the program that the convention comes from reads them."""
    *lines, last = text.strip().split("\n")
    prompt, negative, behind = [], [], False
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            behind, line = True, line.strip()[16:]
        (negative if behind else prompt).append(line.strip())
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return "\n".join(prompt), "\n".join(negative), {k: json.loads(v) if v[:1] == '"' else v for k, v in pairs}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", ["", "blurry, 'dark'\nSteps: 2, Seed: 1, Size: 1x1"])
def test_what_is_written_is_read_again(tmp_path, prompt, negative):
    for metadata in ("full", "plain"):
        made = task(prompt, negative)
        path = written(tmp_path / "a.png", png_bytes(PICTURE, made, {"weights": WEIGHTS, "t5": "on"}, metadata))
        found, more = read_task(path)
        assert found == made
        assert more.get("t5") == ("on" if metadata == "full" else None)
        config = stored(path)
        assert (config.prompt, config.negative_prompt, config.seed) == ((prompt,), negative, str(2**63))
        assert (config.steps, config.cfg_scale, config.sampler, config.width) == ("28", 4.5, "dpmpp_2m", 512)


def test_the_parameters_follow_the_convention(tmp_path):
    lora = [{"file": "/x/paint, oil.safetensors", "strength": 0.5, "sha256": "0123456789abcdef"}]
    made = task("a boat", "blurry", steps=28, cfg_scale=5.0, denoise=0.6, init_image="/home/ann/photo.png")
    text = parameters_text(made, {"weights": WEIGHTS, "lora": lora})
    assert text == (
        "a boat\nNegative prompt: blurry\n"
        "Steps: 28, Sampler: Euler, CFG scale: 5, Seed: 9223372036854775808, Size: 512x512, "
        "Model hash: abcdef1234, Model: sd3_medium, Denoising strength: 0.6, Shift: 3, "
        'Lora hashes: "paint, oil: 0123456789", Lora strengths: "paint, oil: 0.5"'
    )
    for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[2]):
        text = parameters_text(task(prompt, "x, y"), {"weights": WEIGHTS, "lora": lora})
        read, negative, pairs = others_reading(text)
        assert (read, negative) == (prompt, " x, y".strip()) and pairs["Lora hashes"] == "paint, oil: 0123456789"
        assert pairs["Sampler"] == "DPM++ 2M" and pairs["Size"] == "512x768"


def chunk_types(content: bytes) -> list[str]:
    """Types of a PNG's chunks, in their order."""
    types, place = [], 8
    while place < len(content):
        types.append(content[place + 4 : place + 8].decode())
        place += 12 + int.from_bytes(content[place : place + 4])
    return types


def test_each_kind_of_metadata_has_its_chunks_and_no_folder():
    made = task("a", steps=3, init_image="/home/ann/photo.png", denoise=0.5)
    more = {"weights": WEIGHTS, "models": "/home/ann/models", "lora": [{"file": "/home/ann/l.safetensors"}]}
    for metadata in ("full", "plain", "off"):
        content = png_bytes(PICTURE, made, more, metadata)
        texts = Image.open(io.BytesIO(content)).text
        assert b"ann" not in content and b"home" not in content
        assert ("dedgeai" in texts, "parameters" in texts) == (metadata == "full", metadata != "off")
        assert metadata == "full" or len(texts) == (metadata == "plain")
    assert chunk_types(content) == ["IHDR", "IDAT", "IEND"]
    assert chunk_types(png_bytes(PICTURE, task("näive"), {}, "plain"))[1] == "tEXt"
    assert chunk_types(png_bytes(PICTURE, task("日本"), {}, "plain"))[1] == "iTXt"


def test_a_picture_of_another_program_is_read(tmp_path, capsys):
    path = with_texts(tmp_path / "a.png", parameters=FOREIGN)
    config = stored(path)
    assert config.prompt == ("a castle , at dusk\nsecond line",) and config.negative_prompt == "blurry,\n dark"
    assert (config.steps, config.seed, config.sampler, config.cfg_scale) == ("25", "4123", "dpmpp_2m", 6.5)
    assert (config.width, config.height, config.shift, config.init_image) == (512, 768, None, None)
    told = capsys.readouterr().err
    for words in ("<lora:stone:0.8>", "Karras", "Clip skip", "Hires upscale", "Model hash", "Denoising strength, 0.4"):
        assert words in told, words
    assert all(line.startswith(path) for line in told.splitlines())
    PICTURE.save(tmp_path / "start.png")
    assert stored(path, init_image=str(tmp_path / "start.png")).denoise == 0.4

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + FOREIGN.encode("utf-16-be")
    for suffix in ("jpg", "webp"):
        PICTURE.save(tmp_path / f"a.{suffix}", exif=exif)
        assert stored(str(tmp_path / f"a.{suffix}")).seed == "4123"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Seed: 12345678901234567890", "Seed, 12345678901234567890"),
        ("Seed: -1", "Seed, -1"),
        ("Sampler: Euler a", "Sampler, Euler a"),
        ("Sampler: DPM++ 2M SDE Karras", "Sampler, DPM++ 2M SDE Karras"),
        ("CFG scale: 1000", "cfg_scale, 1000.0, must be"),
        ("CFG scale: nan", "CFG scale, nan"),
        ("Shift: 0", "shift, 0.0, must be"),
    ],
)
def test_what_is_not_known_here_is_told_and_not_used(tmp_path, capsys, line, told):
    config = stored(with_texts(tmp_path / "a.png", parameters=f"a\nSteps: 4, Size: 64x64, Version: x, {line}"))
    assert config.prompt == ("a",) and config.steps == "4"
    assert told in capsys.readouterr().err
    assert (config.seed, config.sampler, config.cfg_scale, config.shift) == ("0", None, None, None)


def test_a_size_that_is_no_multiple_of_16_asks_for_another(tmp_path):
    path = with_texts(tmp_path / "a.png", parameters="a\nSteps: 4, Seed: 1, Size: 500x64")
    with pytest.raises(ParameterError, match=r"its width, 500, must be a multiple of 16; .*--width"):
        stored(path)
    assert stored(path, width=512).height == 64


def test_the_initial_image_is_checked_and_found(tmp_path, monkeypatch, capsys):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    folder.mkdir()
    monkeypatch.chdir(elsewhere)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    made = task("a", steps=3, init_image=str(tmp_path / "photo.png"), denoise=0.25)
    more = {"init_image_sha256": hashlib.sha256(content).hexdigest()}
    path = written(folder / "made.png", png_bytes(PICTURE, made, more))
    with pytest.raises(ParameterError, match=r"--init_image: must be given, since .* from photo.png"):
        stored(path)
    assert stored(path, init_image=str(tmp_path / "photo.png")).denoise == 0.25
    assert capsys.readouterr().err == ""
    Image.new("RGB", (8, 8), "blue").save(folder / "photo.png")
    with pytest.raises(ParameterError, match="must be given"):
        stored(path)
    stored(path, init_image=str(folder / "photo.png"))
    assert "is not the image that" in capsys.readouterr().err
    for place in (folder, elsewhere):
        written(place / "photo.png", content)
        assert Path(stored(path).init_image).resolve() == place / "photo.png"
        assert "photo.png" in capsys.readouterr().out


def test_weights_that_differ_are_named():
    assert (
        differing_weights(WEIGHTS, WEIGHTS) == differing_weights({}, WEIGHTS) == differing_weights("x", WEIGHTS) == []
    )
    now = {"MMDiT": WEIGHTS["MMDiT"] | {"precision": "int8"}, "T5": {"file": "t5.safetensors"}}
    lines = differing_weights(WEIGHTS, now)
    assert len(lines) == 2 and "float16" in lines[0] and "int8" in lines[0]
    assert lines[1] == "T5: the image was made without, this run is with t5.safetensors"
    assert len(differing_weights({"MMDiT": [1], "VAE": {"sha256": {}}}, now)) == 3


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"workflow": "{}", "prompt": "{}"}, "workflow, prompt, as ComfyUI writes them"),
        ({"invokeai_metadata": "{}"}, "as InvokeAI writes them"),
        ({"Title": "a", "Author": "b"}, "of another kind: Title, Author)"),
        ({"dedgeai": "[]"}, "not of this project"),
        ({}, "it has no such text"),
    ],
)
def test_what_else_a_picture_says_is_named(tmp_path, texts, told):
    with pytest.raises(ParameterError, match=re.escape(told)):
        stored(with_texts(tmp_path / "a.png", **texts))
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ParameterError, match=r"--from_image=.*of no known format"):
        stored(tmp_path / "a.png")


def hostile(rng: np.random.Generator) -> Any:
    """A JSON value that nobody expects."""
    deep = ["[" * 100_000, "[" * 400 + "]" * 400, '{"a":' * 50_000]
    plain = ["NaN", "Infinity", "true", "null", "[]", "{}", "1e400", "1" * 5000, "1" * 30, "-1", '""', '"\\u0000x"']
    return rng.choice([*deep, *plain, json.dumps("x" * 10_000)])


def test_nothing_hostile_ends_in_a_traceback(tmp_path):
    """Values of our own chunk exchanged, texts of others damaged: it is read, or refused in a short line."""
    rng = np.random.default_rng(0)
    content = json.loads(Image.open(io.BytesIO(png_bytes(PICTURE, task("a"), {"t5": "on", "tile": 0}))).text["dedgeai"])
    names = [*content, *content["settings"], "odd"]
    for i in range(150):
        name = names[i % len(names)]
        part = dict(content["settings"]) if name in content["settings"] else dict(content)
        text = json.dumps(part | {name: "@"}).replace('"@"', hostile(rng))
        if name in content["settings"]:
            text = json.dumps(content | {"settings": "@"}).replace('"@"', text)
        line = bytearray(FOREIGN.encode())
        for place in rng.integers(0, len(line), 8):
            line[place] = rng.choice(list(b'\n",:\\0x9-'))
        for texts in ({"dedgeai": text}, {"parameters": line.decode("utf-8", "replace")}):
            path = with_texts(tmp_path / "a.png", **texts)
            try:
                assert isinstance(stored(path), InferConfig)
            except ParameterError as error:
                assert len(str(error)) < 800, str(error)


def test_long_texts_and_bombs_take_no_time(tmp_path):
    bomb = b"parameters\0\0" + zlib.compress(bytes(50_000_000))
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    plain = buffer.getvalue()
    paths = [written(tmp_path / "bomb.png", plain[:33] + chunk + plain[33:])]
    for i, piece in enumerate(("a", " ", 'a:"', "a: ", '\\"', "a" * 60 + " ", "<lora:", "Negative prompt:\n")):
        paths.append(with_texts(tmp_path / f"{i}.png", parameters=f"{piece * (900_000 // len(piece))}, Steps: 1"))
    for path in paths:
        try:
            assert isinstance(stored(path), InferConfig)
        except ParameterError as error:
            assert error.flag == "from_image" and len(str(error)) < 800

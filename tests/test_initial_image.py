"""Initial images: pixels as Pillow's own operations give them, whatever the mode; one line for what is no picture."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from common.parameters import ParameterError
from resd3_medium import initial_image
from resd3_medium.initial_image import cropped, image_size, load_image, size_from_image

FITS = ("crop", "pad", "stretch")


def loaded(path: Path, width: int, height: int, *more: object) -> np.ndarray:
    """What is read, as levels [height, width, 3]."""
    return ((load_image(str(path), width, height, *more)[0].permute(1, 2, 0) + 1) * 127.5).numpy().round().astype(int)


def plainly(image: Image.Image, width: int, height: int, fit: str) -> np.ndarray:
    """The same by Pillow's own operations, on the whole image."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if fit == "stretch":
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)).astype(int)
    made = ImageOps.fit if fit == "crop" else lambda *args: ImageOps.pad(*args, color="white")
    return np.asarray(made(image, (width, height), Image.Resampling.LANCZOS)).astype(int)


def drawn(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An image with edges and transparent parts."""
    blocks = rng.integers(0, 256, (height // 7 + 2, width // 7 + 2, 4), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("large", [False, True])
def test_pixels_are_those_of_pillows_own_operations(tmp_path, monkeypatch, large):
    """Every mode, orientation and fit; a large image goes tile by tile and is made smaller first, which rounds."""
    if large:
        monkeypatch.setattr(initial_image, "LARGE", 0)
        monkeypatch.setattr(initial_image, "TILE", 32)
    rng = np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"] * 12):
        image = drawn(rng, *rng.integers(90, 300, 2)).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
        if mode == "P" and i % 2:
            image.info["transparency"] = 3
        exif = Image.Exif()
        exif[0x112] = i % 8 + 1
        path = tmp_path / ("a.tiff" if mode == "CMYK" or i % 3 == 0 else "a.png")
        image.save(path, exif=exif)
        width, height = (int(n) for n in rng.integers(1, 6, 2) * 16)
        with path.open("rb") as file:  # Pillow maps a path into memory, and then turns uncompressed TIFFs wrongly
            plain = plainly(Image.open(file), width, height, FITS[i % 3])
        difference = abs(loaded(path, width, height, FITS[i % 3]) - plain)
        assert difference.mean() < 4 if large else difference.max() <= 1, (i, mode, path.suffix, difference.mean())
        with path.open("rb") as file:
            assert image_size(str(path)) == ImageOps.exif_transpose(Image.open(file)).size


def test_every_mode_has_its_colours(tmp_path):
    """A red ramp on each mode that has colours, a grey one on those without; premultiplied ones, too."""
    ramp = Image.linear_gradient("L").rotate(90)
    red = Image.merge("RGB", (ramp, Image.new("L", ramp.size), Image.new("L", ramp.size)))
    for mode in ("RGBX", "YCbCr", "HSV", "LAB", "PA", "RGBa", "La", "LA"):
        image = red.convert("RGBA").convert(mode) if mode == "RGBa" else red.convert(mode) if mode != "La" else None
        image = ramp.convert("LA").convert("La") if image is None else image
        colours = initial_image.Colours(image, pytest.fail).rgb(image)
        source = ramp.convert("RGB") if mode == "La" else red.convert("L").convert("RGB") if mode == "LA" else red
        assert abs(np.asarray(colours).astype(int) - np.asarray(source)).max() <= (60 if mode == "PA" else 16), mode


def test_inverted_and_deep_files_have_their_colours(tmp_path):
    """CMYK as Photoshop has it in a JPEG; 16 bits a channel; 16 bits with a value that stands for transparency."""
    Image.new("RGB", (16, 16), (220, 30, 20)).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert abs(loaded(tmp_path / "a.jpg", 16, 16) - (220, 30, 20)).max() <= 2
    (tmp_path / "a.ppm").write_bytes(b"P6 16 16 65535\n" + struct.pack(">3H", 65535, 32768, 0) * 256)
    assert abs(loaded(tmp_path / "a.ppm", 16, 16) - (255, 128, 0)).max() <= 1
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + struct.pack(">H", 1024) * 256)
    assert abs(loaded(tmp_path / "a.pgm", 16, 16) - 64).max() <= 1
    grey = Image.fromarray(np.where(np.eye(16), 30000, 20000).astype(np.uint16))
    grey.save(tmp_path / "a.png", transparency=30000)
    levels = loaded(tmp_path / "a.png", 16, 16)
    assert (levels[np.eye(16, dtype=bool)] == 255).all() and (levels[0, 1:] == round(20000 / 257)).all()


def grey_file(path: Path, kind: str) -> np.ndarray:
    """Write a picture of one number a pixel; the shares of white that it is to be read as."""
    share = np.linspace(0, 1, 64)[None, :].repeat(16, axis=0)
    if kind == "float":
        Image.fromarray((share * 7 - 3).astype(np.float32)).save(path)
    elif kind == "not finite":
        values = (share * 1e30).astype(np.float32)
        values[0, :3] = np.nan, np.inf, -np.inf
        Image.fromarray(values).save(path)
        share[0, :3] = 0, 1, 0
    elif kind == "constant":
        Image.new("F", (64, 16), 1e9).save(path)
        share[:] = 0.5
    elif kind == "integer":
        Image.fromarray((share * 200_000 - 100_000).astype(np.int32)).save(path)
    elif kind == "16 bits, big end":
        Image.fromarray((share * 32767.5).astype(">u2")).save(path)
        share /= 2
    else:  # unsigned 32 bits, and 12 bits, as other programs write them
        depth = int(kind.split()[0])
        values = np.rint(share * (2**depth - 1)).astype(np.uint64)
        data = values.astype("<u4").tobytes()
        if depth == 12:
            pairs = values.reshape(-1, 2)
            data = b"".join(struct.pack(">I", int(a) << 12 | int(b))[1:] for a, b in pairs)
        tags = [
            (256, 64),
            (257, 16),
            (258, depth),
            (259, 1),
            (262, 1),
            (273, 134),
            (277, 1),
            (278, 16),
            (279, len(data)),
        ]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
        path.write_bytes(head.ljust(134, b"\0") + data)
    return share


@pytest.mark.parametrize(
    "kind", ["float", "not finite", "constant", "integer", "16 bits, big end", "32 bits, unsigned", "12 bits"]
)
def test_numbers_of_more_than_8_bits_are_scaled(tmp_path, kind):
    share = grey_file(tmp_path / "a.tif", kind)
    levels = loaded(tmp_path / "a.tif", 64, 16)
    assert abs(levels - np.rint(share * 255)[:, :, None]).max() <= 1


def test_a_profile_is_used_and_a_damaged_one_is_told(tmp_path):
    """In the profile, red and blue have changed places."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = data.replace(b"rXYZ", b"xxxx").replace(b"bXYZ", b"rXYZ").replace(b"xxxx", b"bXYZ")
    told: list[str] = []
    for profile in (data, swapped, data[:100]):
        Image.new("RGBA", (16, 16), (200, 40, 10, 255)).save(tmp_path / "a.png", icc_profile=profile)
        colour = loaded(tmp_path / "a.png", 16, 16, "crop", told.append)[8, 8]
        expected = (10, 40, 200) if profile is swapped else (200, 40, 10)
        assert abs(colour - expected).max() <= 12
    (line,) = told
    assert "profile" in line and "\n" not in line


def test_damaged_exif_is_told_and_stops_nothing(tmp_path):
    told: list[str] = []
    for suffix in ("png", "webp"):
        Image.new("RGB", (16, 32), "red").save(tmp_path / f"a.{suffix}", exif=b"no such data", lossless=True)
        assert (loaded(tmp_path / f"a.{suffix}", 16, 32, "crop", told.append) == (255, 0, 0)).all()
        assert image_size(str(tmp_path / f"a.{suffix}")) == (16, 32)
    assert len(told) == 2 and all("EXIF" in line for line in told)


def test_exif_behind_the_pixels_counts(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 32)).save(buffer, "PNG")
    content, exif = buffer.getvalue(), b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)
    chunk = b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert image_size(str(tmp_path / "a.png")) == (32, 16)


def test_odd_shapes_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for size in ((1, 1), (10_000, 1), (1, 10_000)):
        Image.new("RGB", size, "red").save(tmp_path / "a.png")
        for fit in FITS:
            levels = loaded(Path("~/a.png"), 32, 48, fit)
            assert (levels == (255, 0, 0)).all(axis=2).any()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png", "tiff"):
        frames[0].save(tmp_path / f"b.{suffix}", save_all=True, append_images=frames[1:])
        assert abs(loaded(tmp_path / f"b.{suffix}", 16, 16) - (255, 0, 0)).max() < 5


def test_what_is_no_picture_is_refused_in_one_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (8, 8)).save(tmp_path / "program.eps")
    Image.new("RGB", (8, 8)).save(tmp_path / "page.pdf")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "empty.png").touch()
    Image.new("1", (20_000, 9_000)).save(tmp_path / "huge.png")
    values = np.full((8, 8), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "nan.tiff")
    (tmp_path / "none.ppm").write_bytes(b"P6 0 0 255\n")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    names = ["pipe", "program.eps", "page.pdf", "drawing.svg", "empty.png", "huge.png", "nan.tiff", "none.ppm", "."]
    names += ["nowhere.png", "~nobody/a", "\0"]
    for name in names:
        with pytest.raises(ParameterError, match="must be an image that can be read") as refused:
            load_image(str(tmp_path / name) if name[0] not in "~\0" else name, 16, 16)
        assert refused.value.flag == "init_image" and "\n" not in refused.value.reason
    with pytest.raises(ParameterError, match="more than 178956970 pixels"):
        image_size(str(tmp_path / "huge.png"))


def test_damaged_files_are_read_or_refused(tmp_path):
    """Bytes changed and ends cut off, in every format that Pillow writes."""
    Image.init()
    rng, image, files = np.random.default_rng(0), drawn(np.random.default_rng(1), 40, 24), []
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in sorted(Image.SAVE.keys() - {"PDF", "PALM"}):
        for mode in ("RGB", "RGBA", "P", "L", "1"):
            buffer = io.BytesIO()
            try:
                image.convert(mode).save(buffer, name, exif=Image.Exif(), icc_profile=profile)
            except (OSError, ValueError, KeyError):
                continue
            files.append(buffer.getvalue())
            break
    assert len(files) > 20
    outcomes = []
    for i in range(120):
        content = bytearray(files[i % len(files)])
        for place in rng.integers(0, len(content) if i % 2 else min(len(content), 120), 1 + i % 9):
            content[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(content[: rng.integers(len(content))] if i % 4 == 0 else content)
        try:
            levels = loaded(tmp_path / "a", 32, 16, FITS[i % 3])
            assert levels.min() >= 0 and levels.max() <= 255
            outcomes.append("read")
        except ParameterError as error:
            assert "\n" not in str(error)
            outcomes.append("refused")
    assert min(map(outcomes.count, ("read", "refused"))) > 15


def test_large_pictures_need_no_second_copy(tmp_path):
    """18 megapixels: 4 bytes each where they are kept as they are, next to nothing for a JPEG."""
    Image.new("RGBA", (4200, 4200), (9, 9, 9, 99)).save(tmp_path / "a.png", compress_level=1)
    Image.new("RGB", (4200, 4200)).save(tmp_path / "a.jpg")
    code = """
import resource, sys
from resd3_medium.initial_image import load_image
for path in sys.argv[1:]:
    load_image(path, 64, 64) if path else None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    paths = ["", str(tmp_path / "a.jpg"), str(tmp_path / "a.png")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    before, jpeg, png = map(float, done.stdout.split())
    assert jpeg - before < 40 and png - before < 110


@pytest.mark.parametrize(
    ("size", "given", "side", "made"),
    [
        ((512, 512), (None, None), 512, (512, 512)),
        ((100, 60), (None, None), 512, (96, 64)),
        ((3000, 2000), (None, None), 512, (624, 416)),
        ((4000, 3000), (None, None), 512, (576, 432)),
        ((1920, 1080), (None, None), 512, (672, 384)),
        ((640, 480), (None, None), 64, (64, 48)),
        ((10_000, 1), (None, None), 512, (3072, 16)),
        ((1, 1), (None, None), 512, (16, 16)),
        ((3000, 2000), (768, None), 512, (768, 512)),
        ((3000, 2000), (None, 320), 512, (480, 320)),
        ((1, 9999), (512, None), 512, (512, 3072)),
        ((640, 480), (512, 512), 512, (512, 512)),
    ],
)
def test_the_size_follows_the_image(size, given, side, made):
    assert size_from_image(size, *given, side, 16, 3072) == made


def test_sizes_of_any_image_are_allowed_ones():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(int(n) for n in np.exp(rng.uniform(0, 9, 2)))
        width, height = size_from_image(size, None, None, 512, 16, 3072)
        assert width % 16 == height % 16 == 0 and min(width, height) >= 16 and max(width, height) <= 3072
        assert width * height <= 512 * 512
        if min(size) > 100 and max(size) < 4 * min(size):
            assert 0.8 < width / height / (size[0] / size[1]) < 1.25


def test_what_is_cropped_is_told():
    line = cropped((800, 600), 512, 512)
    assert "800x600" in line and "600x600 at left and right" in line and "--fit" in line
    assert "top and bottom" in cropped((600, 800), 512, 512) and cropped((300, 200), 96, 64) == ""


def test_formats_whose_decoders_take_much_memory_are_refused_when_they_are_large(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.webp")
    load_image(str(tmp_path / "a.webp"), 16, 16)
    monkeypatch.setitem(initial_image.HUNGRY, "WEBP", 599)
    with pytest.raises(ParameterError, match="must be a PNG or JPEG at this size"):
        load_image(str(tmp_path / "a.webp"), 16, 16)

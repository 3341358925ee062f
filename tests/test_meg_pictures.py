"""Folders of pictures and captions: which are found, odd files, the split, and MEG's scripts on them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from PIL import Image

from common.parameters import ParameterError
from common.tables import read_csv
from meg import make_dataset, picture_folder, pictures, test_MEG, train_split
from meg.dataset import load_dataset
from meg.picture_folder import find_pictures
from meg.pictures import captions_of, open_pictures

FEW = ["--device=cpu", "--steps=1"]


def picture(seed: int = 0, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, files: dict[str, bytes | str | Image.Image]) -> Path:
    """Write files by their names; the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def numbered(folder: Path, count: int, prefix: str = "") -> Path:
    """Pictures whose captions are their numbers."""
    for i in range(count):
        write(folder, {f"{prefix}{i:03}.png": picture(i), f"{prefix}{i:03}.txt": f"number {i}"})
    return folder


def of(folder: Path) -> list[tuple[str, str]]:
    """Names and captions."""
    return [(p.name, p.caption) for p in find_pictures(folder, "pictures")]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ParameterError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is found ---


def test_captions_come_from_metadata_and_from_text_files_in_the_order_of_names(tmp_path):
    lines = [{"file_name": "b.png", "text": "bee\n bumble"}, {"file_name": "./in/c.png", "text": None, "label": 3}]
    more = {"file_name": "a.png", "captions": ["first", "second"], "text\u2028": 1}
    files = {
        "b.png": picture(),
        "b.txt": "not this one",
        "a.png": picture(),
        "in/c.png": picture(),
        "in/c.txt": b"\xef\xbb\xbf  see\r\n\tit ",
        "Z.JPG": picture(),
        "csv/d.e.webp": picture(),
        "csv/f.png": picture(),
        "csv/metadata.csv": '\ufefffile_name,prompt\nd.e.webp,"dee, ""D"""\n',
        "csv/f.txt": "eff",
        "metadata.jsonl": "\n".join(map(json.dumps, [*lines, more])) + "\n\n",
        "notes.txt": "no caption",
        ".hidden.png": picture(),
        ".git/g.png": picture(),
    }
    assert of(write(tmp_path, files)) == [
        *(("Z.JPG", ""), ("a.png", "first"), ("b.png", "bee bumble"), ("csv/d.e.webp", 'dee, "D"')),
        *(("csv/f.png", "eff"), ("in/c.png", "see it")),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it holds no files"),
        ({"a.heic": "x", "b.txt": "y"}, "it holds 2 other files, such as a.heic"),
        ({"a.png": picture(), "a.txt": b"\xff\xfe\xff"}, "a.txt: must be a text file"),
        ({"metadata.jsonl": '{"file_name": "a.png"}\n'}, "line 1: names 'a.png', which is no file in this folder"),
        ({"a.png": picture(), "metadata.jsonl": "\n{'file_name'}\n"}, "metadata.jsonl: line 2: must be a JSON object"),
        ({"a.png": picture(), "metadata.jsonl": "[1]"}, "line 1: must be a JSON object"),
        ({"a.png": picture(), "metadata.jsonl": '{"text": "a"}'}, "line 1: must have the picture's file_name"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "a.png", "text": 5}'}, "must be text, not '5'"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "a.png"}\n' * 2}, "line 2: names 'a.png' a second"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "../a.png"}'}, "names '../a.png', which is no file"),
        ({"a.png": picture(), "metadata.csv": "name,text\na.png,x\n"}, "lacks file_name"),
        ({"a.png": picture(), "metadata.csv": "file_name,text\na.png\n"}, "line 2: has 1 values"),
        ({"a.png": picture(), "metadata.csv": "file_name", "metadata.jsonl": ""}, "must hold one of"),
        ({"a.png": picture(), "metadata.parquet": "x"}, "metadata.parquet: is not read"),
        ({"dataset_dict.json": "{", "a.png": picture()}, "dataset_dict.json"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_in_one_line(tmp_path, files, words, monkeypatch):
    monkeypatch.setattr("meg.arrow_folder.find_spec", lambda name: True)
    message = refused(lambda: find_pictures(write(tmp_path, files), "pictures"))
    assert message.startswith(f"--pictures={tmp_path}") and words in message


def test_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", write(tmp_path, {"a.png": picture()}) / "a.png"):
        assert f"--pictures={path}: must be a folder" in refused(lambda path=path: find_pictures(path, "pictures"))


# --- odd files ---


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB", size: int = 32) -> Image.Image:
    image = Image.new(mode, (size, size), left)
    image.paste(right, (size // 2, 0, size, size))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[0] * 16 + [65535] * 16], dtype=np.uint16), 32, 0))


def turned() -> tuple[Image.Image, dict]:
    exif = Image.Exif()
    exif[274] = 6  # shown turned by a quarter, clockwise
    return halves((255, 0, 0), (0, 0, 255)), {"exif": exif}


def colours(folder: Path, name: str) -> list[list[int]]:
    """The colours near the left, right, top and bottom edge of a folder's only picture, in bytes."""
    found = open_pictures(folder, "all", 0.1)
    assert [p.name for p in found.pictures] == [name]
    image = (found.load([0], 32)[0] * 255).round()
    assert image.shape == (3, 32, 32)
    return [image[:, y, x].int().tolist() for y, x in ((16, 3), (16, 28), (3, 16), (28, 16))]


MOVING = {"save_all": True, "append_images": [picture(0, 32, 32)]}
RED, BLUE, WHITE = [255, 0, 0], [0, 0, 255], [255, 255, 255]


@pytest.mark.parametrize(
    ("name", "image", "options", "left", "right"),
    [
        ("cmyk.tif", halves((0, 255, 255, 0), (0, 0, 0, 0), "CMYK"), {}, RED, WHITE),
        ("deep.png", sixteen_bits(), {}, [0, 0, 0], WHITE),
        ("moving.gif", halves((255, 0, 0), (0, 0, 255)), MOVING, RED, BLUE),
        ("clear.png", halves((255, 0, 0, 255), (0, 255, 0, 0), "RGBA"), {}, RED, WHITE),
        ("palette.png", halves((255, 0, 0), (0, 0, 255)).quantize(4), {}, RED, BLUE),
    ],
)
def test_pictures_of_any_mode_are_seen_as_a_viewer_shows_them(tmp_path, name, image, options, left, right):
    image.save(tmp_path / name, **options)
    assert colours(tmp_path, name)[:2] == [left, right]


def test_exif_turns_a_picture(tmp_path):
    image, options = turned()
    image.save(tmp_path / "a.png", **options)
    assert colours(tmp_path, "a.png")[2:] == [RED, BLUE]


BROKEN = {"started": b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "empty": b"", "text": b"<html>"}


@pytest.mark.parametrize("kind", [*BROKEN, "cut", "huge", "link", "arrow"])
def test_files_that_cannot_be_read_are_named_before_anything_is_made(tmp_path, capsys, monkeypatch, kind):
    folder, bad = numbered(tmp_path / "in", 3), tmp_path / "in/001.png"
    if kind == "cut":
        bad.write_bytes(bad.read_bytes()[:-200])
    elif kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        picture(1, 30, 30).save(bad)
    elif kind == "link":
        bad.unlink()
        bad.symlink_to("nowhere.png")
    elif kind == "arrow":  # an image that is no file of its own
        lone = picture_folder.Picture("1", "", "", f"{bad}: row 1", content=lambda: BROKEN["text"])
        monkeypatch.setattr(pictures, "find_pictures", lambda *_: [lone])
    else:
        bad.write_bytes(BROKEN[kind])
    out = tmp_path / "out"
    words = refusal(capsys, make_dataset, "--pictures", folder, "--split=all", "--out", out, *FEW)
    assert words.startswith(f"error: --pictures={bad}") and "must be an image that can be read" in words
    assert not out.exists()


# --- the split ---


def test_the_split_is_by_the_files_hashes_and_lasts_when_pictures_come_or_are_renamed(tmp_path):
    folder = numbered(tmp_path, 60)
    train, test = (open_pictures(folder, split, 0.25) for split in ("train", "test"))
    hashes = {p.name: hashlib.sha256((folder / p.name).read_bytes()).hexdigest() for p in find_pictures(folder, "f")}
    expected = [name for name, h in hashes.items() if int(h, 16) / 2**256 < 0.25]
    assert [p.name for p in test.pictures] == expected and 5 <= len(expected) <= 25
    assert [p.name for p in train.pictures] == [name for name in hashes if name not in expected]
    (folder / expected[0]).rename(folder / "renamed.png")
    write(folder, {"copy.png": (folder / expected[1]).read_bytes()})
    numbered(folder / "more", 0)
    write(folder, {f"more/{i}.png": picture(1000 + i) for i in range(20)})
    after = open_pictures(folder, "test", 0.25)
    names = [p.name for p in after.pictures if not p.name.startswith("more/")]
    assert sorted(names) == sorted([*expected[1:], "renamed.png", "copy.png"])
    assert not set(after.digests) & set(open_pictures(folder, "train", 0.25).digests)
    few = [p.name for p in train.first(5).pictures]
    assert set(few) <= {p.name for p in train.first(9).pictures} and few == sorted(few) and len(few) == 5


def test_folders_named_for_the_parts_are_the_split_and_no_file_is_in_both(tmp_path):
    def names(split: str) -> list[str]:
        return [p.name for p in open_pictures(tmp_path, split, 0.5).pictures]

    numbered(tmp_path / "train", 6)
    by_hash = names("train"), names("test")  # of a folder that has only one part
    assert sorted(by_hash[0] + by_hash[1]) == [f"train/{i:03}.png" for i in range(6)] and all(by_hash)
    write(tmp_path, {"val/x.png": picture(3), "val/y.png": picture(50)})
    assert names("test") == ["val/x.png", "val/y.png"]
    assert names("train") == [f"train/{i:03}.png" for i in (0, 1, 2, 4, 5)]
    write(tmp_path, {"test/z.png": picture(60)})
    assert names("test") == ["test/z.png"] and len(names("train")) == 6 and len(names("all")) == 9
    write(tmp_path, {"loose.png": picture(70)})  # so that the folders' names say nothing
    assert len(names("test")) + len(names("train")) == 10


def test_a_split_without_pictures_is_refused(tmp_path):
    folder = write(tmp_path, {"a.png": picture()})
    words = {split: "" for split in ("train", "test")}
    for split in words:
        try:
            assert len(open_pictures(folder, split, 0.5)) == 1
        except ParameterError as error:
            words[split] = str(error)
    assert sorted(map(bool, words.values())) == [False, True] and "--split all" in "".join(words.values())


# --- the scripts ---


def test_a_picture_folder_is_trained_on_and_tested_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(test_MEG, "plot_quality", lambda *_: None)
    folder, data = numbered(tmp_path / "in", 12), tmp_path / "data"
    flags = ["--pictures", folder, "--test_share=0.4", "--device=cpu"]
    run_here(make_dataset, *flags, "--out", data)
    rows = read_csv(data / "pictures.csv")
    train = open_pictures(folder, "train", 0.4)
    assert [(r["picture"], r["sha256"], r["caption"]) for r in rows] == [
        (p.name, d, f"number {int(p.name[:3])}") for p, d in zip(train.pictures, train.digests, strict=True)
    ]
    assert "caption" not in capsys.readouterr().err
    pairs = load_dataset(data)
    assert pairs.latents.shape == (len(train), 16, 8, 8) and pairs.diffusion.shape == (len(train), 3, 64, 64)
    run_here(make_dataset, *flags, "--clean=picture", "--out", tmp_path / "plain")
    plain = load_dataset(tmp_path / "plain")
    assert torch.equal(plain.latents, pairs.latents)
    assert torch.equal(plain.diffusion, (train.load(range(len(train)), 64) * 255).round().byte())
    assert not torch.equal(plain.diffusion, pairs.diffusion)
    (data / "part-00000.safetensors").unlink()
    run_here(make_dataset, "--resume", data)
    assert torch.equal(load_dataset(data).diffusion, pairs.diffusion)
    short = ["--steps=1", "--batch=2", "--validation=2", "--device=cpu", "--out", tmp_path / "run"]
    run_here(train_split, "--data", data, *short)
    figure = ["--snr_db=10", "--budget=symbol", "--resamples=0", "--threads=1", "--decoders", tmp_path / "run"]
    run_here(test_MEG, *flags, *figure, "--out", tmp_path / "test")
    tested = read_csv(tmp_path / "test/quality.csv")
    assert {int(row["images"]) for row in tested} == {12 - len(train)}
    assert "pictures of one's own, clean images are what the decoder makes" in (tmp_path / "test/report.md").read_text()
    own = [float(r["value"]) for r in tested if (r["scheme"], r["measure"]) == ("own_mmse", "psnr_db")]
    run_here(test_MEG, *flags, *figure, "--clean=picture", "--out", tmp_path / "plain_test")
    rows = read_csv(tmp_path / "plain_test/quality.csv")
    assert own > [float(r["value"]) for r in rows if (r["scheme"], r["measure"]) == ("own_mmse", "psnr_db")]
    capsys.readouterr()
    write(folder, {"zz.png": picture(99), "zzz.png": picture(98), "zzzz.png": picture(97)})
    assert "--pictures=" in refusal(capsys, make_dataset, "--resume", data)  # begun with others
    new = [*flags, "--out", tmp_path / "new"]
    assert "--images=99: must be at most" in refusal(capsys, make_dataset, *new, "--images=99")
    assert "--captions=a: must not be combined" in refusal(capsys, make_dataset, *new, "--captions=a")
    assert "--prompts=a: must not be combined" in refusal(capsys, test_MEG, *new, "--prompts=a")
    for script in (make_dataset, test_MEG):
        for side in ("24", "96"):
            assert f"--side={side}: must be " in refusal(capsys, script, *new, "--side", side)
    assert not (tmp_path / "new").exists()


def test_images_are_made_anew_of_a_folders_captions(tmp_path, capsys):
    folder = numbered(tmp_path / "in", 8)
    expected = {s: open_pictures(folder, s, 0.4).captions for s in ("train", "test", "all")}
    run_here(make_dataset, "--captions", folder, "--test_share=0.4", "--out", tmp_path / "data", *FEW)
    assert (tmp_path / "data/captions.txt").read_text().splitlines() == expected["train"]
    for split, captions in expected.items():
        assert captions_of(folder, "prompts", split, 0.4) == captions
    (folder / "005.txt").unlink()
    run_here(make_dataset, "--pictures", folder, "--split=all", "--out", tmp_path / "bare", *FEW)
    told = f"note: 1 of 8 pictures have no caption, such as {folder / '005.png'}; they are used without"
    assert told in capsys.readouterr().err
    words = refusal(capsys, make_dataset, "--captions", folder, "--split=all", "--out", tmp_path / "new", *FEW)
    assert f"--captions={folder / '005.png'}: has no caption, as 1 of 8 pictures" in words


# --- data sets in Arrow form ---


def arrow_part(folder: Path, columns: dict[str, list], shards: int = 1) -> None:
    """A part of a data set as datasets.save_to_disk writes it."""
    import pyarrow

    folder.mkdir(parents=True)
    rows, names = len(next(iter(columns.values()))), []
    for i in range(shards):
        table = pyarrow.table({n: v[i * rows // shards : (i + 1) * rows // shards] for n, v in columns.items()})
        names.append({"filename": f"data-{i:05}-of-{shards:05}.arrow"})
        with pyarrow.ipc.new_stream(folder / names[-1]["filename"], table.schema) as file:
            file.write_table(table)
    write(folder, {"state.json": json.dumps({"_data_files": names}), "dataset_info.json": "{}"})


def test_a_data_set_in_arrow_form_is_read_as_its_files_are(tmp_path):
    pytest.importorskip("pyarrow")
    files = numbered(tmp_path / "files", 6)
    images = [{"bytes": (files / f"{i:03}.png").read_bytes(), "path": f"{i}.png"} for i in range(6)]
    captions = [f"number {i}" for i in range(6)]
    arrow_part(tmp_path / "one", {"label": [*range(6)], "pic": images, "text": captions}, shards=3)
    found, same = (open_pictures(tmp_path / name, "train", 0.4) for name in ("one", "files"))
    assert (found.captions, found.digests) == (same.captions, same.digests) and len(found) > 1
    assert torch.equal(found.load([1], 32), same.load([1], 32))
    arrow_part(tmp_path / "two/train", {"image": images[:4], "caption": [[c, "other"] for c in captions[:4]]})
    arrow_part(tmp_path / "two/test", {"image": images[3:], "caption": [[c] for c in captions[3:]]})
    write(tmp_path / "two", {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    assert open_pictures(tmp_path / "two", "train", 0.4).captions == captions[:3]
    assert open_pictures(tmp_path / "two", "test", 0.4).captions == captions[3:]
    arrow_part(tmp_path / "bare", {"image": [{"bytes": None, "path": "a.png"}], "text": [None]})
    assert "bare: row 0: must be an image" in refused(lambda: open_pictures(tmp_path / "bare", "all", 0.4))
    arrow_part(tmp_path / "none", {"text": captions})
    assert "must have a column of pictures; its columns are text" in refused(
        lambda: find_pictures(tmp_path / "none", "pictures")
    )
    for path in (tmp_path / "one").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert "must be whole" in refused(lambda: find_pictures(tmp_path / "one", "pictures"))


def test_arrow_form_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("meg.arrow_folder.find_spec", lambda name: None)
    for files in ({"dataset_dict.json": "{}"}, {"state.json": "{}", "dataset_info.json": "{}"}):
        folder = write(tmp_path / str(len(files)), files)
        words = refused(lambda folder=folder: find_pictures(folder, "pictures"))
        assert (
            words == f"--pictures={folder}: is a data set in Arrow form, which needs the package pyarrow (or datasets)"
        )

"""Odd pictures, and MEG's scripts on folders of pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from picture_folders import numbered, picture, write
from PIL import Image

from common.tables import read_csv
from meg import figure_parameters, make_dataset, test_MEG, train_split
from meg.channel import Channel
from meg.dataset import Pairs, fitted_to, load_dataset
from meg.picture import Picture
from meg.pictures import captions_of, open_pictures

FEW = ["--device=cpu", "--steps=1"]


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
        lone = Picture("1", "", "", f"{bad}: row 1", content=lambda: BROKEN["text"])
        monkeypatch.setattr("meg.pictures.find_pictures", lambda *_: [lone])
    else:
        bad.write_bytes(BROKEN[kind])
    out = tmp_path / "out"
    words = refusal(capsys, make_dataset, "--pictures", folder, "--split=all", "--out", out, FEW[0])
    assert words.startswith(f"error: --pictures={bad}") and "must be an image that can be read" in words
    assert not out.exists()


# --- the scripts ---


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("--clean=picture", "must be combined with --pictures"),
        ("--fit=pad", "must be combined with --pictures"),
        ("--split=test", "with a folder as --prompts"),
        ("--test_share=0.2", "with a folder as --prompts"),
        ("--steps=3 --pictures=in", "must not be combined with --pictures"),
        ("--cfg_scale=3.0 --pictures=in", "must not be combined with --pictures"),
        ("--symbols=512", "must be combined with --schemes"),
        ("--rates=ldpc --schemes=meg_shift", "must be combined with --schemes"),
        ("--sender_knows=gain --schemes=meg_shift", "must be combined with --schemes"),
        ("--sender_knows=gain --schemes=meg_digital", "must be combined with --channel rayleigh"),
        ("--design_db=3.0 --schemes=meg_shift", "meg_shift_blind"),
        ("--block_error=0.1 --schemes=meg_digital", "must be combined with --rates"),
    ],
)
def test_a_parameter_without_effect_is_refused(capsys, given, reason):
    first, *rest = given.split()
    words = refusal(capsys, test_MEG, first, *rest)
    assert words.startswith(f"error: {first}: ") and reason in words


def test_a_seed_of_images_that_no_seed_makes_is_refused(capsys, tmp_path):
    words = refusal(capsys, make_dataset, "--seed=3", f"--pictures={tmp_path}")
    assert words.startswith("error: --seed=3: must not be combined with --pictures")


def test_words_of_the_figure_that_say_the_same_are_the_same():
    config = figure_parameters.TestConfig.of(snr_db="5,-5,5.0", sender_knows="both", schemes="meg_digital")
    assert config.snrs() == [5, -5]
    assert {s.sender_knows for s in config.sendings(Channel("rayleigh"))} == {"mean", "gain"}


def test_data_of_which_most_is_kept_back_say_so(capsys):
    pairs = Pairs(torch.zeros(72, 1, 1, 1), torch.zeros(72, 3, 8, 8))
    assert fitted_to(pairs, 36) == 36 and not capsys.readouterr().err
    assert fitted_to(pairs, 64) == 8
    assert "only 8 of the 72 images" in capsys.readouterr().err


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
    run_here(make_dataset, "--pictures", folder, "--split=all", "--out", tmp_path / "bare", FEW[0])
    told = f"note: 1 of 8 pictures have no caption, such as {folder / '005.png'}; they are used without"
    assert told in capsys.readouterr().err
    words = refusal(capsys, make_dataset, "--captions", folder, "--split=all", "--out", tmp_path / "new", *FEW)
    assert f"--captions={folder / '005.png'}: has no caption, as 1 of 8 pictures" in words

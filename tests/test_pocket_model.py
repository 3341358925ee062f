"""The pocket model that comes with the project: it draws what it is asked for, at once, and as it always did.

tests/data/emoji.png holds 64 emoji in the order of tests/data/emoji.txt, 32 x 32 pixels each: what its pictures are
compared with. It was drawn from the archive of scripts/prepare_emoji.py; see models/pocket/LICENSES.md.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import refusal, run_here, start_script
from PIL import Image
from scripts_by_path import load

from resd3_medium import finding, refine_sd3_infer
from resd3_medium.folders import POCKET

DATA = Path(__file__).resolve().parent / "data"
NAMES = (DATA / "emoji.txt").read_text().split("\n")[:64]
ASKED = ("rocket", "banana", "umbrella", "guitar", "dog face")


def references() -> np.ndarray:
    """The 64 known emoji, [64, 32 * 32 * 3]."""
    sheet = np.asarray(Image.open(DATA / "emoji.png").convert("RGB"), dtype=float)
    return sheet.reshape(8, 32, 8, 32, 3).swapaxes(1, 2).reshape(64, -1)


def nearest(path: Path) -> str:
    """The name of the known emoji that a picture is nearest to in pixels."""
    picture = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BOX), dtype=float).reshape(-1)
    return NAMES[np.square(references() - picture).sum(1).argmin()]


@pytest.mark.alone
def test_five_named_things_are_recognised_and_quickly_made(tmp_path):
    prompts = [word for name in ASKED for word in ("--prompt", f"a photo of a {name}")]
    start = time.perf_counter()
    process = start_script(
        "resd3_medium/refine_sd3_infer.py", "--out", "images", "--models", POCKET, *prompts, folder=tmp_path
    )
    stdout, stderr = process.communicate()
    seconds = time.perf_counter() - start
    assert process.returncode == 0, stderr
    assert stdout.splitlines()[0] == "pocket model: 64 x 64 emoji, not SD3"
    made = sorted((tmp_path / "images").glob("*.png"))
    assert [nearest(path) for path in made] == list(ASKED)
    assert all(Image.open(path).size == (64, 64) for path in made)
    assert seconds < 25, f"five images took {seconds:.1f} s from a cold start"


def test_the_pixels_are_those_of_before(tmp_path):
    """A change in any stage, from tokenizer to autoencoder, shows here, even where pictures stay good."""
    run_here(refine_sd3_infer, "--models", POCKET, "--prompt", "two blue rockets", "--seed", "5", "--out", tmp_path)
    (path,) = tmp_path.glob("*.png")
    made, before = (np.asarray(Image.open(p), dtype=float) for p in (path, DATA / "two_blue_rockets.png"))
    assert abs(made - before).mean() < 0.5 and abs(made - before).max() < 8


def test_it_stands_in_where_no_weights_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finding, "MODELS", tmp_path / "none")
    run_here(refine_sd3_infer, "--prompt", "apple", "--steps", "2", "--out", tmp_path / "images")
    assert capsys.readouterr().out.startswith("pocket model: 64 x 64 emoji, not SD3\n")
    assert len(list((tmp_path / "images").glob("*.png"))) == 1

    (tmp_path / "none").mkdir()
    shutil.copy(POCKET / "clip_l.safetensors", tmp_path / "none")  # something is there, so the rest is missed
    line = refusal(capsys, refine_sd3_infer, "--prompt", "apple", "--out", tmp_path / "more")
    assert "clip_g.safetensors, sd3_medium.safetensors missing" in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--width=512"], "--width=512: must be at most 64, the model's largest"),
        (["--t5=on"], "t5xxl.safetensors missing"),
    ],
)
def test_what_it_cannot_do_is_told(tmp_path, capsys, flags, told):
    line = refusal(capsys, refine_sd3_infer, "--models", POCKET, "--prompt=a", "--out", tmp_path / "new", *flags)
    assert told in line and not (tmp_path / "new").exists()


def test_words_outside_its_vocabulary_are_named(tmp_path, capsys):
    flags = ("--models", POCKET, "--steps", "2", "--out", tmp_path)
    run_here(refine_sd3_infer, *flags, "--prompt", "a defenestrated rocket", "--prompt", "a red apple")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: the model does not know: defenestrated"]


def test_its_files_are_small_and_right(capsys):
    run_here(load("check_models"), "--models", POCKET)  # else it exits with 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["right:", "right:", "missing", "right:", "right:", "medium"]
    assert sum(path.stat().st_size for path in POCKET.iterdir()) <= 30_000_000

"""The pocket model's data, pictures and training, on a few painted shapes instead of emoji."""

import colorsys
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from scripts_by_path import load

from common.parameters import ParameterError
from pocket import compositions, flow_training, vae_training
from pocket.captions import Captions, caption
from pocket.compositions import ATTRIBUTES, COLOURS, LAYOUTS, Compositions, Renderer, draw, held_out
from pocket.emoji import SIDE, EmojiSet, load_emoji, matched, save_emoji
from pocket.measures import background_of, colour_of, count_of, features, pixels, ranks
from resd3_medium.folders import TOKENIZERS


def painted() -> EmojiSet:
    """Twelve discs and squares of different colours on a transparent ground."""
    pictures, names = [], []
    for k in range(12):
        image = Image.new("RGBA", (SIDE, SIDE))
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k / 12, 0.8, 0.9))
        shape = ImageDraw.Draw(image).ellipse if k % 2 else ImageDraw.Draw(image).rectangle
        shape((8 + k, 8, 55, 55 - k), fill=(*colour, 255))
        pictures.append(np.array(image))
        names.append(f"{'disc' if k % 2 else 'square'} {['one', 'two', 'three', 'four', 'five', 'six'][k // 2]}")
    return EmojiSet(np.stack(pictures), names, [[f"thing {k}"] for k in range(12)], [["shape"]] * 12)


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return painted()


@pytest.fixture(scope="module")
def renderer(emoji) -> Renderer:
    return Renderer(emoji)


@pytest.fixture
def archive(tmp_path, emoji) -> Path:
    save_emoji(tmp_path / "emoji.npz", emoji)
    return tmp_path / "emoji.npz"


# --- data ---


def test_the_archive_comes_back_whole_or_is_refused(archive, emoji):
    again = load_emoji(archive)
    assert again.digest() == emoji.digest() and (again.pictures == emoji.pictures).all()

    with np.load(archive) as content:
        changed = dict(content)
    changed["pictures"] = changed["pictures"].copy()
    changed["pictures"][0, 30, 30, 0] ^= 1  # one bit
    np.savez_compressed(archive, **changed)
    with pytest.raises(ParameterError, match="damaged"):
        load_emoji(archive)
    for content in (b"", b"PK\x03\x04 no archive", archive.read_bytes()[:-300]):
        archive.write_bytes(content)
        with pytest.raises(ParameterError, match=r"made by prepare_emoji\.py"):
            load_emoji(archive)


def test_pictures_and_names_are_matched_without_flags_and_doubles():
    shape = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    shape.save(file := io.BytesIO(), "PNG")
    entry = {"non_qualified": None, "category": "Food & Drink"}
    entries = [
        entry | {"unified": "1F34E", "name": "RED APPLE", "short_name": "apple", "short_names": ["apple"]},
        entry | {"unified": "1F415", "name": "DOG", "short_name": "dog2", "short_names": ["dog2"]},
        entry
        | {"unified": "2764-FE0F", "name": "HEAVY-HEART", "short_name": "heart", "short_names": ["apple", "heart"]},
        entry | {"unified": "1F1E8", "name": "FLAG", "short_name": "flag", "short_names": [], "category": "Flags"},
        entry | {"unified": "1F680", "name": "ROCKET", "short_name": "rocket", "short_names": ["rocket"]},
    ]
    assets = {code: file.getvalue() for code in ("1f34e", "1f415", "2764", "1f1e8")}
    found = matched(assets, entries, {"🍎": ["fruit", "red apple", "näive"], "❤️": ["love"]})
    assert found.names == ["red apple", "dog", "heavy heart"]
    assert found.aliases == [["apple"], [], ["heart"]]  # "dog2" is "dog", which is a name; "apple" is taken
    assert found.keywords == [["fruit"], [], ["love"]]
    assert found.pictures.shape == (3, SIDE, SIDE, 4)


def test_a_foreign_download_is_refused(tmp_path, capsys):
    prepare = load("prepare_emoji")
    path, expected = prepare.PACKAGES["pictures"]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(b"another package")
    assert prepare.checksum(b"another package") != expected
    flags = ("--registry", tmp_path.as_uri(), "--downloads", tmp_path / "kept", "--out", tmp_path / "emoji.npz")
    assert "fluent-emoji-3d-1.1.0.tgz must have the SHA-512" in refusal(capsys, prepare, *flags)
    flags = ("--registry", (tmp_path / "nowhere").as_uri(), *flags[2:])
    assert "must be a registry that gives @lobehub" in refusal(capsys, prepare, *flags)
    assert not (tmp_path / "emoji.npz").exists() and not list((tmp_path / "kept").iterdir())


# --- pictures ---


def test_a_turned_hue_is_that_of_colorsys():
    rgb = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    degrees = torch.tensor([0.0, 100.0, 271.0])
    turned = compositions.with_hue_turned(rgb, degrees)
    for b in range(3):
        for y, x in np.ndindex(4, 4):
            hue, saturation, value = colorsys.rgb_to_hsv(*rgb[b, :, y, x].tolist())
            expected = colorsys.hsv_to_rgb((hue + float(degrees[b]) / 360) % 1, saturation, value)
            np.testing.assert_allclose(turned[b, :, y, x], expected, atol=1e-5)


def test_attributes_can_be_seen_in_pictures(renderer, emoji):
    everyone = torch.arange(len(emoji))
    assert renderer.colourful.all()
    for number, attribute in enumerate(ATTRIBUTES):
        wanted = Compositions.single(everyone, torch.full_like(everyone, number))
        pictures = renderer(wanted)
        if attribute.endswith("colour"):
            assert (colour_of(pictures) == list(COLOURS).index(attribute.split()[0])).all()
        if attribute.endswith("background"):
            assert (background_of(pictures) == wanted.background).all() and (wanted.background > 0).all()
        if attribute in LAYOUTS:
            assert (count_of(pictures) == {"two": 2, "three": 3}.get(attribute, 1)).all()
            inked = (pictures < 0.9).any(1).float()
            left, right = inked[:, :, : SIDE // 2].sum((1, 2)), inked[:, :, SIDE // 2 :].sum((1, 2))
            assert {"left": (right == 0).all(), "right": (left == 0).all()}.get(attribute, True)
    assert (background_of(renderer(Compositions.plain(everyone))) == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), plain=st.floats(0, 1))
def test_held_out_pairs_are_never_drawn(seed, plain):
    renderer = Renderer(painted())
    out = held_out(renderer, seed, share=0.5)
    drawn = draw(300, renderer, out, torch.Generator().manual_seed(seed), plain)
    colours, backgrounds = len(COLOURS), len(compositions.BACKGROUNDS) - 1
    for first, number in (
        (0, drawn.colour),
        (colours, drawn.background - 1),
        (colours + backgrounds, drawn.layout - 1),
    ):
        has = number >= 0
        assert not out[drawn.emoji[has], first + number[has]].any()
    kinds = (drawn.colour >= 0).int() + (drawn.background > 0) + (drawn.layout > 0)
    assert kinds.max() <= 2 and (plain < 1 or kinds.max() == 0)


def test_captions_say_what_is_in_the_picture(emoji):
    assert caption("apple", "blue", "black", "two") == "two blue apple on a black background"
    assert caption("apple", layout="left") == "apple on the left"
    captions = Captions(emoji, TOKENIZERS)
    everyone = torch.arange(12)
    wanted = Compositions(everyone, everyone % 8 - 1, everyone % 7, everyone % 7)
    for text, e, c, b, s in zip(captions.draw(wanted, np.random.default_rng(0)), *vars(wanted).values(), strict=True):
        assert c < 0 or list(COLOURS)[c] in text
        assert b == 0 or f"on a {list(compositions.BACKGROUNDS)[b]} background" in text
        assert s == 0 or LAYOUTS[s] in text.split()
        assert any(word.rstrip("s") in text for word in (*emoji.names[e].split(), f"thing {int(e)}"))
    ids = captions.ids(["disc one", ""])
    assert ids[0].tolist()[:4] == [49406, *captions.tokenizer.ids("disc one"), 49407]
    assert set(ids.flatten().tolist()) <= set(captions.vocabulary)


def test_ranks_agree_with_sorting():
    generator = torch.Generator().manual_seed(0)
    truth, made = torch.rand(20, 5, generator=generator), torch.rand(6, 5, generator=generator)
    answers = torch.randint(20, (6,), generator=generator)
    for row, answer, rank in zip(made.numpy(), answers.tolist(), ranks(made, truth, answers).tolist(), strict=True):
        order = np.argsort(((truth.numpy() - row) ** 2).sum(1))
        assert order.tolist().index(answer) + 1 == rank


def test_features_know_shapes_and_colours(renderer, emoji):
    truth = renderer(Compositions.plain(torch.arange(len(emoji))))
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    for space in (features, pixels):
        assert (ranks(space(blurred), space(truth), torch.arange(len(emoji))) == 1).all()


# --- training ---

STEPS = ["--vae_steps=4", "--vae_batch=2", "--latents=30", "--flow_steps=4", "--flow_batch=2", "--every=2"]
SMALL = [*STEPS, "--threads=1", "--device=cpu"]


def interrupted_at(last: int, step: Callable[[Any, int], float]) -> Callable[[Any, int], float]:
    """A stage's step that Ctrl-C ends at that number."""

    def step_or_end(self: Any, number: int) -> float:
        if number == last:
            raise KeyboardInterrupt
        return step(self, number)

    return step_or_end


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Text encoders and transformer of half and a third of their widths, which train in a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_training, "CLIP_WIDTH", 64)
        patch.setattr(flow_training, "WIDTH", 128)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, emoji, narrow) -> Path:
    """A run of a few steps, of no use but whole."""
    folder = tmp_path_factory.mktemp("pocket")
    save_emoji(folder / "emoji.npz", emoji)
    run_here(load("train_pocket"), "--emoji", folder / "emoji.npz", "--out", folder / "run", *SMALL)
    return folder / "run"


def test_a_training_interrupted_in_either_stage_goes_on_to_the_same_model(trained, tmp_path, monkeypatch):
    train, flags = load("train_pocket"), ["--emoji", trained.parent / "emoji.npz", "--out", tmp_path / "run", *SMALL]
    for stage in (train.VAEStage, train.FlowStage):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(stage, "step", interrupted_at(3, stage.step))
            run_here(train, *flags)
        assert ended.value.code == 130 and not (tmp_path / "run/models").exists()
        flags = ["--resume", tmp_path / "run"]
    run_here(train, *flags)
    assert digests(tmp_path / "run/models") == digests(trained / "models")
    for name in ("vae.csv", "flow.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


def test_the_flow_is_trained_alone_on_a_given_autoencoder(trained, tmp_path):
    flags = ["--emoji", trained.parent / "emoji.npz", "--vae", trained / "models", "--out", tmp_path / "run", *SMALL]
    run_here(load("train_pocket"), *flags)
    assert not (tmp_path / "run/vae.csv").exists()
    before, after = (load_file(run / "models/sd3_medium.safetensors") for run in (trained, tmp_path / "run"))
    equal = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("first_stage_model.")} <= equal < before.keys()


def test_mistakes_of_the_training_are_told_in_one_line(trained, tmp_path, capsys, monkeypatch):
    train, archive = load("train_pocket"), trained.parent / "emoji.npz"
    assert "--emoji=nowhere: missing; make it with" in refusal(
        capsys, train, "--emoji", "nowhere", "--out", tmp_path / "a"
    )
    assert "--out=" in refusal(capsys, train, "--emoji", archive, "--out", trained, *SMALL)
    wrong = refusal(capsys, train, "--emoji", archive, "--vae", "nowhere", "--out", tmp_path / "b")
    assert "--vae=nowhere: no VAE: sd3_medium.safetensors missing" in wrong
    assert "--resume=nowhere" in refusal(capsys, train, "--resume", "nowhere")
    assert "--vae_steps=9: must not" in refusal(capsys, train, "--resume", trained, "--vae_steps", "9")
    assert "--device=mps: must be one of" in refusal(capsys, train, "--device=mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = refusal(capsys, train, "--emoji", archive, "--device=cuda", "--out", tmp_path / "c")
    assert words == "error: --device=cuda: must be a device of this machine, which has no CUDA"
    assert not (tmp_path / "a").exists() and not Path("nowhere").exists()


def test_the_evaluation_writes_its_tables_and_sheets(trained, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("disc one\nthing 3\n")
    flags = ["--models", trained / "models", "--emoji", trained.parent / "emoji.npz", "--names", names, "--steps", "2"]
    run_here(load("eval_pocket"), *flags, "--limit", "2", "--out", tmp_path / "out", "--device", "cpu")
    table = (tmp_path / "out/metrics.csv").read_text().splitlines()
    kinds = [row.split('"')[1] if '"' in row else row.split(",")[0] for row in table]
    assert kinds[1] == "reconstruction PSNR (dB)" and kinds[2] == "frequent names, top-1 in pixels"
    assert {"held-out pairs, colour", "trained pairs, count", "trained pairs, size and place"} <= set(kinds)
    for row in table[2:]:
        share, low, high = map(float, row.split(",")[-6:-3])
        assert 0 <= low <= share <= high <= 1
    for name in ("frequent", "all", "failures", "held-out", "trained"):
        assert Image.open(tmp_path / f"out/{name}.png").width % SIDE == 0


def test_psnr_is_that_of_its_definition():
    truth = torch.zeros(1, 3, 4, 4)
    assert float(vae_training.psnr(truth + 0.02, truth)) == pytest.approx(20 * np.log10(2 / 0.02), abs=1e-3)

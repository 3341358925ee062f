"""MEG's scripts as a user runs them, on the pocket model: data, both trainings, the figure, and mistakes."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import refusal, run_here
from PIL import Image
from safetensors.torch import load_file, save_file

from common.tables import read_csv
from meg import make_dataset, test_MEG, train_JSCC_merging, train_split
from meg.dataset import load_dataset, part_path
from meg.decoders import load_model
from meg.training import MEGStage
from resd3_medium.folders import POCKET

FEW = ["--device=cpu", "--steps=1"]
SHORT = ["--steps=4", "--batch=2", "--every=2", "--device=cpu", "--validation=2"]
PROMPTS = ["rocket", "two blue apples", "cat", "dog on the left", "red heart"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, prompts) -> Path:
    """Five latents and images of the pocket model, at one denoising step."""
    folder = tmp_path_factory.mktemp("data") / "data"
    run_here(make_dataset, "--captions", prompts, "--out", folder, *FEW)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> Path:
    """Runs of a few steps of every training, in folders named for their models."""
    folder = tmp_path_factory.mktemp("runs")
    for told in ("", "_snr"):
        flags = ["--data", data, *SHORT, f"--told_snr={bool(told)}"]
        run_here(train_split, *flags, "--out", folder / f"meg_dt{told}")
        start = folder / f"meg_dt{told}/meg_dt{told}.safetensors"
        run_here(train_JSCC_merging, *flags, "--start", start, "--out", folder / f"e2e_meg_dt{told}")
    return folder


@pytest.fixture(scope="module")
def decoders(tmp_path_factory, runs) -> Path:
    """A folder with the models of all runs."""
    folder = tmp_path_factory.mktemp("decoders")
    for path in runs.glob("*/*.safetensors"):
        shutil.copy(path, folder)
    return folder


def test_data_are_the_generators_and_are_made_once(data, prompts, tmp_path, capsys):
    pairs = load_dataset(data)
    assert pairs.latents.shape == (5, 16, 8, 8) and pairs.diffusion.shape == (5, 3, 64, 64)
    content = load_file(part_path(data, 0))
    assert set(content) == {"latents", "diffusion"}
    assert "--out=" in refusal(capsys, make_dataset, "--captions", prompts, "--out", data, *FEW)
    before = digests(data)
    run_here(make_dataset, "--resume", data)
    assert digests(data) == before
    again = tmp_path / "again"
    run_here(make_dataset, "--captions", prompts, "--out", again, *FEW, "--batch_size=2")
    close = load_dataset(again).latents.float() - pairs.latents.float()
    assert float(close.abs().max()) < 0.01  # the batch's size changes rounding only


def test_interrupted_data_go_on(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(make_dataset, "PART", 2)
    save, folder = make_dataset.save_part, tmp_path / "data"

    def killed(where, number, latents, images):
        if number == 1:
            raise KeyboardInterrupt
        save(where, number, latents, images)

    monkeypatch.setattr(make_dataset, "save_part", killed)
    with pytest.raises(SystemExit):
        run_here(make_dataset, "--captions", prompts, "--out", folder, *FEW)
    monkeypatch.setattr(make_dataset, "save_part", save)
    first = part_path(folder, 0).stat().st_mtime_ns
    run_here(make_dataset, "--resume", folder)
    assert len(load_dataset(folder)) == 5 and part_path(folder, 0).stat().st_mtime_ns == first


@pytest.mark.parametrize("name", ["meg_dt", "meg_dt_snr"])
def test_an_interrupted_training_goes_on_to_the_same_numbers(data, runs, tmp_path, monkeypatch, name):
    step = MEGStage.step

    def killed(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(MEGStage, "step", killed)
    with pytest.raises(SystemExit):
        run_here(train_split, "--data", data, *SHORT, f"--told_snr={name == 'meg_dt_snr'}", "--out", tmp_path / "parts")
    monkeypatch.setattr(MEGStage, "step", step)
    run_here(train_split, "--resume", tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(runs / name) != {}
    assert (tmp_path / f"parts/{name}.csv").read_bytes() == (runs / f"{name}/{name}.csv").read_bytes()


def test_training_lowers_the_error(data, tmp_path):
    flags = ["--steps=16", "--every=8", "--batch=3", "--device=cpu", "--validation=2"]
    run_here(train_split, "--data", data, *flags, "--out", tmp_path / "run")
    first, last = (float(row["loss"]) for row in read_csv(tmp_path / "run/meg_dt.csv"))
    assert last < first
    assert Image.open(tmp_path / "run/meg_dt.png").size == (16 * 64, 6 * 64)


def test_a_loss_that_is_no_number_names_step_and_images(data, tmp_path, monkeypatch, capsys):
    loss = MEGStage.loss
    monkeypatch.setattr(MEGStage, "loss", lambda self, n: loss(self, n) * (float("nan") if n == 1 else 1))
    words = refusal(capsys, train_split, "--data", data, *SHORT, "--out", tmp_path / "run")
    assert "--rate=0.001: the loss of meg_dt is nan at step 1 (images " in words
    assert not (tmp_path / "run/meg_dt.safetensors").exists()


def test_the_figure_has_every_scheme_and_numbers_that_come_again(decoders, prompts, tmp_path, capsys):
    flags = [
        "--prompts",
        prompts,
        "--decoders",
        decoders,
        *FEW,
        "--images=5",
        "--resamples=3",
        "--threads=1",
    ]
    run_here(test_MEG, *flags, "--snr_db=-20,10", "--out", tmp_path / "one")
    assert "E2E-MEG-DT" in capsys.readouterr().out
    rows = read_csv(tmp_path / "one/quality.csv")
    run_here(test_MEG, *flags, "--snr_db=10", "--budget=symbol", "--out", tmp_path / "two")
    alone = [row for row in rows if row["budget"] == "symbol" and row["snr_db"] == "10.0"]
    assert read_csv(tmp_path / "two/quality.csv") == alone  # a point depends on its seed only
    schemes = {"cg", "cg_mmse", "own_mmse", "meg_dt", "meg_dt_mmse", "meg_dt_snr", "e2e_meg_dt", "e2e_meg_dt_snr"}
    assert {row["scheme"] for row in rows} == schemes
    assert {row["measure"] for row in rows if row["measure"]} == {"psnr_db", "ssim", "frechet_pocket"}
    symbols = {row["scheme"]: int(row["symbols"]) for row in rows}
    assert (symbols["cg"], symbols["meg_dt"], symbols["e2e_meg_dt"]) == (12_288, 1024, 512)
    for row in rows:
        if row["measure"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        else:  # too little energy for the side information alone
            assert row["scheme"].startswith("e2e") and row["snr_db"] == "-20.0" and row["budget"] == "energy"
    cg = {
        (r["budget"], r["snr_db"]): float(r["value"]) for r in rows if r["scheme"] == "cg" and r["measure"] == "psnr_db"
    }
    assert cg["symbol", "10.0"] > cg["symbol", "-20.0"] + 5 and cg["symbol", "10.0"] == cg["energy", "10.0"]
    for name in ("quality_symbol", "quality_energy"):
        assert (tmp_path / f"one/{name}.png").exists() and (tmp_path / f"one/{name}.pdf").exists()
    assert Image.open(tmp_path / "one/samples_symbol_meg_dt.png").size == (5 * 64, 3 * 64)
    assert json.loads((tmp_path / "one/config.json").read_text())["parameters"]["images"] == 5


@pytest.mark.parametrize("script", [train_split, train_JSCC_merging])
def test_mistakes_of_the_trainings_are_told_in_one_line(script, data, decoders, tmp_path, capsys):
    out = ["--out", tmp_path / "run"]
    start = ["--start", decoders / "meg_dt.safetensors"]
    assert "--data=nowhere: must be a folder" in refusal(capsys, script, "--data", "nowhere", *start, *out)
    assert "--start=nowhere: missing" in refusal(capsys, script, "--data", data, "--start", "nowhere", *out)
    assert "--snr_db=high: must be a number" in refusal(capsys, script, "--snr_db", "high", *out)
    assert "--validation=5: must be less" in refusal(
        capsys, script, "--data", data, *start, *SHORT[:-1], "--validation=5", *out
    )
    merging = decoders / "e2e_meg_dt.safetensors"
    words = refusal(capsys, script, "--data", data, "--start", merging, *out)
    assert f"--start={merging}: must be a MEG-DT model with the same --told_snr" in words
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    content = {"latents": torch.zeros(3, 4, 8, 8).half(), "diffusion": torch.zeros(3, 3, 64, 64, dtype=torch.uint8)}
    save_file(content, wrong / "part-00000.safetensors")
    assert "must hold latents of 16 channels" in refusal(capsys, script, "--data", wrong, *start, *out)
    save_file({"latents": content["latents"]}, wrong / "part-00000.safetensors")
    assert "part-00000.safetensors must be whole" in refusal(capsys, script, "--data", wrong, *start, *out)
    (wrong / "part-00000.safetensors").write_bytes(b"damaged")
    assert "part-00000.safetensors must be whole" in refusal(capsys, script, "--data", wrong, *start, *out)
    assert not (tmp_path / "run").exists()


def test_mistakes_of_merging_and_of_the_figure_are_told_in_one_line(data, decoders, prompts, tmp_path, capsys):
    merging = [train_JSCC_merging, "--data", data, "--start", decoders / "meg_dt.safetensors", *SHORT]
    for ratio in ("-0.1", "0.8", "nan", "half"):
        words = refusal(capsys, *merging, "--ratio", ratio, "--out", tmp_path / "run")
        assert words.startswith("error: --ratio=") and "at least 0 and at most 0.75" in words
    assert "--token_columns=3" in refusal(capsys, *merging, "--token_columns=3", "--out", tmp_path / "run")
    figure = [test_MEG, "--out", tmp_path / "out", *FEW]
    run_here(*merging, "--token_columns=4", "--out", tmp_path / "wide")  # 8 x 2 tokens of 64 pixels, 4 x 1 of 32
    words = refusal(capsys, *figure, "--decoders", tmp_path / "wide", "--side=32")
    assert "--side=32: must be such that the tokens of e2e_meg_dt in --decoders" in words
    for text in ("loud", "0,,5", "nan", "0,100"):
        assert "--snr_db=" in refusal(capsys, *figure, "--snr_db", text)
    assert "--decoders=nowhere" in refusal(capsys, *figure, "--decoders", "nowhere")
    assert "--models=nowhere" in refusal(capsys, *figure, "--models", "nowhere", "--decoders", decoders)
    assert "--prompts=nowhere" in refusal(capsys, *figure, "--prompts", "nowhere", "--decoders", decoders)
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (decoders / "meg_dt.safetensors").read_bytes()
    for content in (b"", b"damaged", whole[: len(whole) // 2]):
        (broken / "meg_dt.safetensors").write_bytes(content)
        assert "must be a model written by meg" in refusal(capsys, *figure, "--decoders", broken)
    shutil.copy(POCKET / "clip_l.safetensors", broken / "meg_dt.safetensors")
    assert "must be a model written by meg" in refusal(capsys, *figure, "--decoders", broken)


def test_a_model_loads_without_its_generator(decoders):
    model, description = load_model(decoders / "e2e_meg_dt_snr.safetensors")
    assert (description.name, description.share, description.family) == ("e2e_meg_dt_snr", 0.5, "sd3")
    assert description.training["steps"] == 4 and sum(p.numel() for p in model.parameters()) > 1e6

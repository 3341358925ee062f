"""MEG's measures and the figure's points: against torchmetrics and definitions, and each thing computed once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from scipy.linalg import sqrtm
from test_meg_digital import as_bytes, pictures
from test_meg_parts import seeded
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common.tables import read_csv
from meg import test_MEG
from meg.codecs import Album
from meg.competitors import COMPETITORS
from meg.image_measures import Frechet, Similarity
from meg.metrics import Judge
from meg.schemes import LABELS
from meg.shift_schemes import SHIFTED

FEW = ["--device=cpu", "--steps=1", "--images=3", "--resamples=2", "--inception=off"]


def features(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3)) + images.square().mean((2, 3))


@pytest.mark.parametrize("size", [(11, 11), (16, 40), (64, 64)])
def test_ssim_is_that_of_torchmetrics_also_where_images_are_flat(size):
    clean, noise = torch.rand(2, 5, 3, *size, generator=seeded(0))
    clean[3], clean[4, :, : size[0] // 2] = 1.0, 0.0
    received = (clean + 0.2 * (noise - 0.5)).clamp(0, 1)
    numbers = torch.tensor([4, 0, 3, 3])
    found = Similarity(clean)(received[numbers], numbers)
    wanted = structural_similarity_index_measure(
        received.double(), clean.double(), data_range=1.0, reduction="none"
    ).reshape(-1)
    assert torch.allclose(found.double(), wanted[numbers], atol=5e-5)
    assert torch.allclose(Similarity(clean)(clean, torch.arange(5)), torch.ones(5), atol=1e-6)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """The Fréchet distance by its definition."""
    p, q = np.cov(x.T), np.cov(y.T)
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(p + q - 2 * sqrtm(p @ q).real)


def test_frechet_distances_of_all_and_of_draws_are_those_by_definition():
    x = torch.randn(40, 6, generator=seeded(0)).double() @ torch.randn(6, 6, generator=seeded(1)).double()
    y = 0.7 * x + torch.rand(40, 6, generator=seeded(2))
    frechet = Frechet(x, 3, seed=5)
    draw = seeded(5)
    chosen = [torch.arange(40), *[torch.randint(40, (40,), generator=draw) for _ in range(3)]]
    wanted = [distance(x[own].numpy(), y[own].numpy()) for own in chosen]
    assert frechet.distances(y).tolist() == pytest.approx(wanted, rel=1e-6)
    assert frechet.distances(x).tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_frechet_distances_hold_for_fewer_images_than_features():
    x, step = torch.randn(7, 50, generator=seeded(0)).double() * 1000, torch.arange(50.0).double()
    assert Frechet(x, 0, 0).distances(x + step).tolist() == pytest.approx([float(step.square().sum())], rel=1e-6)
    assert Frechet(x[:1], 0, 0).distances(x[:1] + 2).tolist() == pytest.approx([200])


def test_every_received_image_is_measured_once_and_as_any_other_time():
    clean, received = torch.rand(2, 21, 3, 16, 16, generator=seeded(0))
    asked = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return features(images)

    judge = Judge(clean, counting, 3, 0)
    asked.clear()
    first = judge(received)
    assert asked == [16, 16] and judge(received) == first and asked == [16, 16]  # the last part is filled up
    mixed = torch.cat([clean[:5], received[5:]])
    found = judge(mixed)
    assert asked == [16, 16, 16]
    assert found == Judge(clean, features, 3, 0)(mixed)
    shown = (mixed * 255).round() / 255
    psnr = peak_signal_noise_ratio(shown, judge.clean, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=60)
    assert found["psnr_db"].value == pytest.approx(float(psnr.mean()), rel=1e-6) and psnr[0] == 60
    assert judge(clean[:21])["frechet_pocket"].value == pytest.approx(0, abs=1e-6)
    swapped = torch.cat([received[1:2], received[:1], received[2:]])  # known images in each other's place
    assert judge(swapped)["psnr_db"].value != first["psnr_db"].value


def test_threads_code_each_picture_once(monkeypatch):
    album, coded = Album((64, 64)), []
    monkeypatch.setattr(Album, "coded", lambda self, picture: coded.append(picture.tobytes()) or ([], []))
    some = list(as_bytes(pictures(3)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: album.prepare(some, 2), range(8)))
    assert sorted(coded) == sorted(p.tobytes() for p in some)


def test_all_schemes_are_compared_and_equal_points_are_equal(tmp_path):
    flags = [*FEW, "--schemes=all", "--symbols=12288", "--snr_db=15", "--rates=ldpc"]
    run_here(test_MEG, *flags, "--out", tmp_path / "out")
    rows = read_csv(tmp_path / "out/quality.csv")
    names = {row["scheme"].removesuffix("_ldpc").removesuffix("_12288") for row in rows}
    assert names == {*LABELS, *SHIFTED, *COMPETITORS}
    at = {(r["budget"], r["scheme"], r["measure"]): r for r in rows}
    for name in ("cg", "meg_shift_12288", "cg_digital_12288_ldpc"):  # of as many symbols as CG
        symbol, energy = (at[budget, name, "ssim"] for budget in ("symbol", "energy"))
        assert symbol | {"budget": "energy"} == energy
    assert len(list((tmp_path / "out").glob("samples_*.png"))) == 2 * len(names)


def test_points_beside_each_other_are_those_one_after_the_other(tmp_path):
    flags = [*FEW, "--schemes=own_mmse,meg_shift,meg_digital,prompt", "--symbols=256,512", "--snr_db=-5,15"]
    found = []
    for threads in (1, 3):
        run_here(test_MEG, *flags, "--budget=symbol", f"--threads={threads}", "--out", tmp_path / str(threads))
        found.append(read_csv(tmp_path / f"{threads}/quality.csv"))
    assert len(found[0]) == len(found[1]) == 7 * 2 * 3
    for one, other in zip(*found, strict=True):
        assert {**one, "value": 0, "low": 0, "high": 0} == {**other, "value": 0, "low": 0, "high": 0}
        assert float(one["value"]) == pytest.approx(float(other["value"]), rel=1e-3, abs=1e-3)


def test_all_leaves_out_what_has_no_files(tmp_path, capsys):
    flags = [*FEW, "--snr_db=20", "--symbols=512", "--budget=symbol", "--decoders", tmp_path]
    run_here(test_MEG, *flags, "--schemes=all", "--out", tmp_path / "out")
    names = {row["scheme"] for row in read_csv(tmp_path / "out/quality.csv")}
    digital = {f"{name}_512_capacity" for name in ("cg_digital", "cg_digital_files", "prompt")}
    assert names == {"cg", "cg_mmse", "own_mmse"} | digital
    report = (tmp_path / "out/report.md").read_text()
    assert (
        "are left out: there are no models for them" in report
        and "meg_digital, meg_hybrid are left out: must hold" in report
    )
    assert "must hold models for meg_dt" in refusal(capsys, test_MEG, "--decoders", tmp_path, "--schemes=meg_dt")
    assert "--schemes=all,cg: must be some of" in refusal(capsys, test_MEG, *flags, "--schemes=all,cg")

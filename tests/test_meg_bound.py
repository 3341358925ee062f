"""The bound beside MEG with shift maps: reverse water-filling against bisection, and the command."""

import math

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from test_meg_digital import pictures
from test_meg_parts import seeded

from common.tables import read_csv
from meg import bound_shift
from meg.ablate_shift import psnr_db
from meg.bound_shift import ERRORS, IMAGES, SNRS_DB, of_maps, reverse_water_filling
from meg.dataset import save_part
from meg.decoders import TRAINED
from meg.rates import capacity
from meg.transform import TRANSFORM, load_transform


def by_bisection(variances: np.ndarray, bits: float) -> np.ndarray:
    """The errors at the level at which components take so many bits together."""
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        taken = sum(0.5 * math.log2(v / level) for v in variances if v > level)
        low, high = (level, high) if taken > bits else (low, level)
    return np.minimum(variances, high)


@pytest.mark.parametrize("bits", [0.0, 0.2, 1.0, 3.7, 40.0])
@pytest.mark.parametrize("variances", [[1.0], [2.0, 2.0], [9.0, 1.0, 4.0, 0.01], list(np.geomspace(1e-4, 1e3, 50))])
def test_reverse_water_filling_is_that_of_bisection(variances, bits):
    found = reverse_water_filling(np.array(variances), bits)
    assert found == pytest.approx(by_bisection(np.array(variances), bits), rel=1e-9)


def test_no_map_is_better_than_the_bound_and_linear_sending_reaches_it_for_equal_components():
    shipped = load_transform(TRAINED / TRANSFORM)
    variances = shipped.variances.double().numpy()
    for snr_db in (-20.0, 0.0, 20.0):
        bits = capacity(1024, 10 ** (snr_db / 10))
        whole, linear = (of_maps(shipped, 1024, snr_db, most) for most in (None, 1))
        assert reverse_water_filling(variances, bits).sum() < whole <= linear + 1e-6 * variances.sum()
    assert reverse_water_filling(np.ones(8), capacity(8, 3.0)) == pytest.approx(np.full(8, 1 / 4))  # 1 / (1 + SNR)


def test_psnr_is_of_bytes_and_at_most_60():
    images = (torch.rand(2, 3, 8, 8, generator=seeded(0)) * 255).round() / 255
    assert psnr_db(images + 0.4 / 255, images).tolist() == [60, 60]
    assert psnr_db(torch.full_like(images, 2.0), torch.full_like(images, 0.9)).tolist() == pytest.approx([20, 20])


def test_the_tables_are_written_and_mistakes_told_in_one_line(tmp_path, capsys):
    latents = torch.randn(4, 16, 8, 8, generator=seeded(0))
    save_part(tmp_path, 0, latents, pictures(4))
    flags = ["--data", tmp_path, "--out", tmp_path / "out"]
    run_here(bound_shift, *flags, "--validation=2", "--symbols=512")
    rows = read_csv(tmp_path / "out/bound.csv")
    assert len(rows) == len(SNRS_DB) * (len(ERRORS) + len(IMAGES))
    at = {(row["measure"], row["what"], float(row["snr_db"])): float(row["decibels"]) for row in rows}
    error = {name: [at["square error of components (dB)", name, s] for s in SNRS_DB] for name in ERRORS}
    assert all(np.diff(values).max() <= 1e-9 for values in error.values())
    assert (np.array(error["bound at capacity"]) < error["shift maps"]).all()
    assert (tmp_path / "out/bound.md").read_text().count("| bound at capacity |") == 2
    assert "--validation=4: must be less" in refusal(capsys, bound_shift, *flags, "--validation=4")
    assert "--symbols=7" in refusal(capsys, bound_shift, *flags, "--validation=2", "--symbols=7")
    assert "missing; train it" in refusal(capsys, bound_shift, *flags, "--validation=2", "--decoders", tmp_path)

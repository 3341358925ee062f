"""MEG with shift maps: maps, allocation and transform against plain versions, and the commands."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_meg_parts import seeded

from common.tables import read_csv
from meg import ablate_shift, fit_shift_maps, fit_statistics, make_dataset, test_MEG, train_shift
from meg.allocation import Choices, allocate
from meg.channel import CHANNELS, Channel, power
from meg.decoders import TRAINED
from meg.meg_shift import ShiftLink, plan_for
from meg.shift_maps import ShiftMaps, open_designs, place_in_period
from meg.transform import (
    TRANSFORM,
    Transform,
    covariance,
    fit_transform,
    load_transform,
    pixel_weights,
    save_transform,
    scales,
)

SNRS_DB = (-20.0, -5.0, 0.0, 10.0, 25.0)


@pytest.fixture(scope="module")
def shipped() -> Transform:
    return load_transform(TRAINED / TRANSFORM)


def latents_like(transform: Transform, count: int, seed: int = 0) -> torch.Tensor:
    """Latents of the transform's own distribution."""
    generator = seeded(seed)
    numbers = torch.randn(count, len(transform.variances), generator=generator)
    log_scale = transform.log_scale[0] + transform.log_scale[1] * torch.randn(count, 1, generator=generator)
    return transform.latents(log_scale.exp() * transform.variances.sqrt() * numbers)


# --- maps ---


def test_a_place_in_a_period_repeats_and_has_a_mean_square_of_one():
    x = torch.linspace(-3, 3, 60_001)
    inside = (x - x.round()).abs() < 0.499
    assert torch.allclose(place_in_period(x + 2)[inside], place_in_period(x)[inside], atol=1e-4)
    assert place_in_period(x).square().mean() == pytest.approx(1, abs=1e-3)
    assert place_in_period(torch.zeros(1)) == 0


@pytest.mark.parametrize("symbols", [1, 2, 3])
def test_estimates_are_posterior_means_by_brute_force(symbols):
    amplitudes = torch.tensor([[3.0, 2.0, 2.5][:symbols], [1.0, 4.0, 0.5][:symbols]])
    maps = ShiftMaps(amplitudes, torch.tensor([[0.9, 0.4][: symbols - 1], [2.0, 0.7][: symbols - 1]]))
    noise = torch.tensor([0.3, 1.0, 4.0])
    numbers = torch.randn(3, 2, generator=seeded(0))
    received = maps.send(numbers) + noise.sqrt()[:, None, None] * torch.randn(3, 2, symbols, generator=seeded(1))
    means, variances = maps.estimate(received, noise)
    z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    for b in range(3):
        for m in range(2):
            sent = [amplitudes[m, 0] * z]
            for j in range(1, symbols):
                x = z / maps.periods[m, j - 1]
                sent.append(amplitudes[m, j] * 2 * 3**0.5 * (x - torch.floor(x + 0.5)))
            misfit = sum((received[b, m, j] - sent[j]) ** 2 for j in range(symbols))
            weights = (-z.square() / 2 - misfit / (2 * noise[b])).softmax(0)
            mean = (weights * z).sum()
            variance = float((weights * (z - mean) ** 2).sum())
            assert means[b, m] == pytest.approx(float(mean), abs=0.05 * variance**0.5)
            assert variances[b, m] == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_table_of_maps_is_what_maps_do(channel):
    designs = open_designs(channel)
    assert (np.diff(designs.mse, axis=1) <= 1e-12).all()  # more power
    assert (np.diff(designs.mse, axis=0) <= 1e-12).all()  # more symbols
    numbers = torch.randn(40_000, 1, generator=seeded(2))
    gains = Channel(channel).gains(len(numbers), seeded(3)).float()
    for symbols in (1, 2, 3):
        for power_db in (0.0, 12.0, 22.0):
            maps = designs.maps(symbols, np.array([10 ** (power_db / 10)]))
            assert maps.amplitudes.square().sum() == pytest.approx(10 ** (power_db / 10), rel=1e-4)
            noise = torch.randn(len(numbers), 1, symbols, generator=seeded(4)) / gains.sqrt()[:, None, None]
            found, _ = maps.estimate(maps.send(numbers) + noise, 1 / gains)
            wanted = designs.mse[symbols - 1][np.argmin(abs(designs.power_db - power_db))]
            assert (found - numbers).square().mean() == pytest.approx(wanted, rel=0.12)


# --- allocation ---


@pytest.mark.parametrize("snr", [0.01, 1.0, 30.0])
def test_linear_allocation_is_water_filling(snr):
    variances, symbols = np.array([9.0, 4.0, 1.0, 0.25, 0.01]), 5
    found = allocate(Choices(open_designs("awgn"), 1), variances, symbols, symbols * snr)
    total = symbols * snr  # in units of the noise; powers p minimise sum v / (1 + p)
    for count in range(1, 6):
        level = (total + count) / np.sqrt(variances[:count]).sum()
        wanted = np.maximum(np.sqrt(variances) * level - 1, 0) * (np.arange(5) < count)
        if count == 5 or np.sqrt(variances[count]) * level <= 1:
            break
    assert found.power.sum() == pytest.approx(total)
    error = (variances / (1 + found.power)).sum()
    assert error == pytest.approx((variances / (1 + wanted)).sum(), rel=0.01)


@pytest.mark.parametrize("symbols", [1, 3, 8, 40])
@pytest.mark.parametrize("snr", [1e-3, 1.0, 1e3])
def test_allocations_keep_to_what_there_is_and_are_no_worse_than_random_ones(symbols, snr):
    variances, designs = np.array([30.0, 9.0, 9.0, 2.0, 0.1, 1e-4]), open_designs("awgn")
    found = allocate(Choices(designs), variances, symbols, symbols * snr)
    assert found.symbols.sum() <= symbols and found.power.sum() == pytest.approx(symbols * snr)
    assert (found.power[found.symbols == 0] == 0).all()
    generator = np.random.default_rng(0)
    for _ in range(200):
        counts = generator.integers(0, 4, len(variances))
        if 0 < counts.sum() <= symbols:
            share = generator.dirichlet(np.ones(len(variances))) * (counts > 0)
            power_db = 10 * np.log10(np.maximum(share / share.sum() * symbols * snr, 1e-12))
            errors = [
                np.exp(np.interp(p, designs.power_db, np.log(designs.mse[n - 1]))) if n else 1.0
                for n, p in zip(counts, power_db, strict=True)
            ]
            assert (variances * found.mse).sum() <= 1.05 * (variances * errors).sum()


# --- transform ---


def test_a_transform_undoes_itself_and_its_components_are_uncorrelated(tmp_path, monkeypatch):
    monkeypatch.setattr("meg.transform.KRONECKER", 0.0)
    mixing = torch.randn(24, 24, generator=seeded(0)) / 5
    latents = (torch.randn(4000, 24, generator=seeded(1)) @ mixing.T + 1).unflatten(1, (2, 3, 4))
    root = torch.randn(24, 24, generator=seeded(2), dtype=torch.float64)
    weights = root @ root.T / 24
    transform = fit_transform(latents, weights / weights.diagonal().mean())
    components = transform.components(latents)
    assert torch.allclose(transform.latents(components), latents, atol=1e-4)
    scaled = components / scales(components, transform.variances)[:, None]
    found = scaled.T @ scaled / len(scaled)
    deviations = found.diagonal().sqrt()
    assert ((found / deviations / deviations[:, None]) - torch.eye(24)).abs().max() < 0.2
    assert (transform.variances.diff() <= 0).all()
    errors = torch.zeros(24)
    errors[5] = 4.0
    change = transform.latents(torch.eye(24)[5:6] * 2) - transform.latents(torch.zeros(1, 24))
    white = 10 ** (transform.snr_db(errors) / 10)
    assert 1 / (1 + white) == pytest.approx(float(change.square().mean()), rel=1e-3)
    save_transform(tmp_path / "t.safetensors", transform)
    again = load_transform(tmp_path / "t.safetensors")
    assert torch.allclose(again.latents(again.components(latents[:5])), latents[:5], atol=1e-4)
    assert torch.equal(again.analysis, transform.analysis) and again.log_scale == transform.log_scale


def test_a_covariance_without_structure_is_that_of_numpy():
    values = torch.randn(500, 12, generator=seeded(0), dtype=torch.float64)
    found = covariance(values, 3)
    assert torch.allclose(found, torch.from_numpy(values.numpy().T @ values.numpy() / 500), atol=0.02)
    assert torch.equal(found, found.T)


def test_pixel_weights_of_a_linear_decoder_are_its_matrix():
    matrix = torch.randn(40, 6, generator=seeded(0))
    latents = torch.randn(3000, 1, 2, 3, generator=seeded(1))
    found = pixel_weights(lambda x: x.flatten(1) @ matrix.T, latents, 8, 0)
    wanted = (matrix.T @ matrix).double()
    assert torch.allclose(found, wanted / wanted.diagonal().mean(), atol=0.08)


# --- the link ---


@pytest.mark.parametrize("symbols", [2, 256, 1024, 12_288])
def test_nothing_but_symbols_of_unit_power_is_sent(shipped, symbols):
    latents = latents_like(shipped, 40)
    for snr_db in SNRS_DB:
        sent = ShiftLink(shipped, symbols).sent(latents, plan_for(shipped, symbols, snr_db, "awgn"))
        assert sent.shape == (40, symbols)
        assert power(sent).mean() == pytest.approx(1, abs=0.35 if symbols < 256 or snr_db < -5 else 0.1)


@pytest.mark.parametrize("channel", CHANNELS)
def test_more_snr_and_more_symbols_bring_better_latents_and_the_receiver_knows_how_good(shipped, channel):
    latents, errors = latents_like(shipped, 64), {}
    for symbols in (256, 1024, 4096):
        for snr_db in SNRS_DB:
            found, known = ShiftLink(shipped, symbols)(latents, Channel(channel), snr_db, seeded(1))
            error = (found - latents).square().flatten(1).mean(1)
            errors[symbols, snr_db] = float(error.mean())
            told = 1 / (1 + 10 ** (known / 10))
            assert float(told.median()) == pytest.approx(max(float(error.median()), 1e-6), rel=0.5)
    for symbols in (256, 1024, 4096):
        row = [errors[symbols, snr_db] for snr_db in SNRS_DB]
        assert row == sorted(row, reverse=True)
    assert all(errors[256, s] > errors[1024, s] > errors[4096, s] for s in SNRS_DB)


def test_a_receiver_reads_symbols_alone(shipped):
    latents, plan = latents_like(shipped, 3), plan_for(shipped, 1024, 30.0, "awgn")
    sent = ShiftLink(shipped, 1024).sent(latents, plan)
    other = dataclasses.replace(shipped)  # a receiver's own copy of what was fitted
    found, _ = ShiftLink(other, 1024).received(sent, torch.full((3,), 60.0), plan)
    assert (found - latents).square().mean() < 0.01 * latents.var()


# --- commands ---


def test_the_search_for_maps_writes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_shift_maps, "POWER_DB", np.array([0.0, 10.0, 20.0]))
    monkeypatch.setattr(fit_shift_maps, "MOST", 2)
    monkeypatch.setattr(
        fit_shift_maps, "HEADER", ("channel", "symbols", "power_db", "mse", "share_0", "share_1", "period_1")
    )
    run_here(fit_shift_maps, "--numbers=64", "--noises=4", "--out", tmp_path / "maps")
    rows = read_csv(tmp_path / "maps/shift_maps.csv")
    assert len(rows) == 12
    best = {(r["channel"], r["symbols"], r["power_db"]): float(r["mse"]) for r in rows}
    assert best["awgn", "2", "20"] < 0.3 * best["awgn", "1", "20"]
    assert best["awgn", "1", "10"] == pytest.approx(1 / 11, rel=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    captions = folder / "captions.txt"
    captions.write_text("rocket\ncat\nred heart\ntwo blue apples\ndog on the left\n")
    run_here(make_dataset, "--captions", captions, "--images=24", "--out", folder / "data", "--device=cpu", "--steps=1")
    return folder / "data"


def test_fitted_trained_and_measured(tmp_path, data, capsys):
    run_here(fit_statistics, "--data", data, "--validation=2", "--probes=1", "--out", tmp_path / "fitted")
    short = ["--steps=2", "--batch=2", "--every=2", "--device=cpu", "--validation=2", "--snr_db=0"]
    transform = ["--transform", tmp_path / "fitted" / TRANSFORM]
    run_here(train_shift, "--data", data, *short, *transform, "--out", tmp_path / "fitted" / "run")
    (tmp_path / "fitted/run/meg_shift.safetensors").rename(tmp_path / "fitted/meg_shift.safetensors")
    flags = ["--images=2", "--prompts", data / "captions.txt", "--device=cpu", "--steps=1", "--inception=off"]
    chosen = ["--schemes=meg_shift,meg_shift_blind", "--symbols=64,1024", "--snr_db=0,20", "--budget=symbol"]
    run_here(test_MEG, *flags, *chosen, "--decoders", tmp_path / "fitted", "--out", tmp_path / "test")
    rows = [r for r in read_csv(tmp_path / "test/quality.csv") if r["measure"] == "psnr_db"]
    assert {(r["scheme"], r["symbols"], r["side_bits"]) for r in rows} == {
        (f"{name}_{k}", k, "0") for name in ("meg_shift", "meg_shift_blind") for k in ("64", "1024")
    }
    words = refusal(capsys, test_MEG, *flags, "--schemes=meg_shift", "--decoders", data.parent)
    assert words.startswith("error: --decoders=") and "must hold models for meg_shift" in words
    small = [*flags, "--side=32", "--snr_db=0", "--budget=symbol", "--resamples=0", "--decoders", tmp_path / "fitted"]
    assert "must be for latents of 16 x 4 x 4" in refusal(capsys, test_MEG, *small, "--schemes=meg_shift")
    run_here(test_MEG, *small, "--out", tmp_path / "small")
    assert "MEG with shift maps is left out" in (tmp_path / "small/report.md").read_text()
    (tmp_path / "fitted" / TRANSFORM).write_bytes(b"nothing")
    assert "must be a transform" in refusal(capsys, test_MEG, *flags, "--decoders", tmp_path / "fitted")
    assert "--transform=" in refusal(capsys, train_shift, "--data", data, *short, *transform, "--out", tmp_path / "x")


DAMAGED = {
    "a scale without deviation": {"log_scale": torch.tensor([0.0, 0.0])},
    "a scale alone": {"log_scale": torch.tensor(0.3)},
    "a complex scale": {"log_scale": torch.tensor([0.1 + 0j, 0.3])},
    "a scale that no latent has": {"log_scale": torch.tensor([500.0, 1.0])},
    "a matrix without inverse": {"analysis": torch.ones(1024, 1024)},
    "a matrix of nothing": {"analysis": torch.full((1024, 1024), float("nan"))},
    "variances that no latent has": {"variances": torch.full((1024,), 1e38)},
    "variances of too few": {"variances": torch.ones(7)},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_transforms_are_refused_in_one_line(what, tmp_path, capsys):
    content = load_file(TRAINED / TRANSFORM) | DAMAGED[what]
    save_file(content, tmp_path / TRANSFORM)
    (tmp_path / "meg_shift.safetensors").write_bytes((TRAINED / "meg_shift.safetensors").read_bytes())
    words = refusal(capsys, test_MEG, "--decoders", tmp_path, "--out", tmp_path / "out")
    assert words.startswith("error: --decoders=") and "must be a transform" in words


def test_a_transform_in_other_precision_is_taken(tmp_path, shipped):
    content = {name: tensor.double() for name, tensor in load_file(TRAINED / TRANSFORM).items()}
    save_file(content, tmp_path / TRANSFORM)
    found = load_transform(tmp_path / TRANSFORM)
    assert torch.equal(found.analysis, shipped.analysis) and found.variances.dtype == torch.float32


def test_models_of_no_numbers_are_refused(tmp_path, capsys):
    path = tmp_path / "meg_shift.safetensors"
    with safe_open(TRAINED / path.name, framework="pt") as file:
        metadata = file.metadata()
    weights = {n: torch.full_like(t, float("nan")) for n, t in load_file(TRAINED / path.name).items()}
    save_file(weights, path, metadata)
    assert "not finite" in refusal(capsys, test_MEG, "--decoders", tmp_path, "--out", tmp_path / "out")
    assert refusal(capsys, train_shift, "--start", path).startswith("error: --start=")


@pytest.mark.parametrize("symbols", ["00000000211", "1000000001", "3", "2000000"])
def test_numbers_of_symbols_are_read_whole(symbols, capsys):
    words = refusal(capsys, test_MEG, "--schemes=meg_shift", f"--symbols={symbols}")
    assert words.startswith("error: --symbols=")


def test_where_nothing_can_be_received_the_table_says_so(tmp_path):
    flags = ["--images=2", "--device=cpu", "--steps=1", "--inception=off", "--resamples=0", "--budget=energy"]
    run_here(test_MEG, *flags, "--schemes=e2e_meg_dt_snr", "--snr_db=-60", "--out", tmp_path / "out")
    assert {row["value"] for row in read_csv(tmp_path / "out/quality.csv")} == {""}


def test_data_that_tell_no_transform_are_refused(tmp_path, data, capsys):
    for script in (fit_statistics, ablate_shift):
        name = script.__name__.split(".")[-1]
        for _ in range(2):  # a refused run leaves its folder free for the next one
            words = refusal(capsys, script, "--data", data, "--validation=22", "--out", tmp_path / name)
            assert "must tell a transform" in words and "smaller --validation" in words
    assert "--symbols=7" in refusal(capsys, ablate_shift, "--data", data, "--symbols=7")
    assert "at least 2" in refusal(capsys, ablate_shift, "--data", data, "--validation=1")
    assert "train_shift.py" in refusal(capsys, ablate_shift, "--data", data, "--validation=2", "--decoders", tmp_path)
    assert "--transform=" in refusal(capsys, train_shift, "--data", data, "--transform", tmp_path / "none")


def test_the_ablation_compares_with_the_whole_scheme(tmp_path, data):
    run_here(ablate_shift, "--data", data, "--validation=2", "--symbols=256", "--out", tmp_path / "ablation")
    rows = read_csv(tmp_path / "ablation/ablation.csv")
    whole = [r for r in rows if r["variant"] == "the whole scheme"]
    assert all(float(r["against_whole_db"]) == 0 for r in whole) and len(rows) % len(whole) == 0
    assert len({r["variant"] for r in rows}) == len(rows) / len(whole) == 11

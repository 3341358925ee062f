"""Coded latents: bits against what was quantised and against the model's entropy, and the scheme's command."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from test_meg_parts import seeded
from torch import nn

from common.tables import read_csv
from meg import test_MEG
from meg.coded_latents import CodedLatents
from meg.component_coder import EXACT, LARGEST, TOTAL, Coder, Quantised, least_of, quantiser, symbols_of
from meg.decoders import TRAINED
from meg.transform import TRANSFORM, Transform, load_transform, save_transform

DEVIATIONS = np.geomspace(20, 0.02, 48)
LOG_SCALE = (-0.1, 0.25)
RUNGS = (-112, -60, -3, 0, 41, 90, 128)


@pytest.fixture(scope="module")
def coder() -> Coder:
    return Coder(DEVIATIONS, LOG_SCALE)


def drawn(seed: int, count: int = 1) -> np.ndarray:
    """Components [count, D] of the deviations, each image with a scale of its own."""
    random = np.random.default_rng(seed)
    scale = np.exp(LOG_SCALE[0] + LOG_SCALE[1] * random.standard_normal((count, 1)))
    return scale * DEVIATIONS * random.standard_normal((count, len(DEVIATIONS)))


def used(block: np.ndarray) -> int:
    """The bits of a block up to its last 1."""
    return len(block) - int(np.argmax(block[::-1])) if block.any() else 0


# --- the quantiser ---


def test_magnitudes_are_symbols_and_rests_without_gap():
    sizes = np.unique(np.concatenate([np.arange(3000), 2 ** np.arange(22), 2 ** np.arange(1, 23) - 1, [LARGEST]]))
    sizes = sizes[sizes <= LARGEST]
    symbols, least, shift = symbols_of(sizes)
    assert (np.diff(symbols) >= 0).all() and (symbols[:EXACT] == np.arange(EXACT)).all()
    assert (least <= sizes).all() and (sizes < least + (1 << shift)).all()
    again, same = least_of(symbols)
    assert (again == least).all() and (same == shift).all()
    every = np.arange(quantiser().numbers.shape[1])
    starts, shifts = least_of(every)
    assert (starts[1:] == starts[:-1] + (1 << shifts[:-1])).all() and starts[-1] + (1 << shifts[-1]) == LARGEST + 1


def test_probabilities_are_whole_and_means_lie_between_their_thresholds():
    q = quantiser()
    assert (q.numbers.sum(1) == TOTAL).all() and q.numbers.min() >= 1
    assert (np.diff(q.thresholds, axis=1) >= 0).all() and (q.errors >= 0).all()
    likely = q.numbers[:, 1:EXACT] > 100
    assert (q.values[:, 1:EXACT] >= q.thresholds[:, 1:EXACT] - 1e-9)[likely].all()
    assert (q.values[:, 1:EXACT] <= q.thresholds[:, 2:] + 1e-9)[likely].all()


def test_expected_errors_and_bits_are_those_of_drawn_components(coder):
    """The oracle draws from the density itself."""
    random = np.random.default_rng(3)
    spread = np.array([0.72, 1.14, 2.5])[random.choice(3, p=[0.41, 0.57, 0.02], size=(400, len(DEVIATIONS)))]
    units = 2.0 ** (coder.units / 16)
    scale = 5
    for rung in (-20, 10, 60):
        numbers = 2.0 ** (coder.scales[scale] / 16) * units * spread * random.standard_normal(spread.shape)
        found = [coder.quantise(row, scale, rung) for row in numbers]
        real = np.mean([np.square(row - coder.values(q)[0]).sum() for row, q in zip(numbers, found, strict=True)])
        assert np.mean([coder.values(q)[1].sum() for q in found]) == pytest.approx(real, rel=0.1)
        side = -math.log2(coder.scale_numbers[scale] / TOTAL)
        bits = np.mean([coder.length(q) for q in found]) - side
        assert bits == pytest.approx(coder.expected[rung - coder.rungs[0]], rel=0.05)


def test_finer_steps_have_smaller_errors_and_more_bits(coder):
    for components in drawn(0, 5):
        found = [coder.quantise(components, 5, rung) for rung in range(-96, 129, 16)]
        errors = [np.square(components - coder.values(q)[0]).sum() for q in found]
        bits = [coder.length(q) for q in found]
        assert all(b < 1.05 * a for a, b in itertools.pairwise(errors)) and errors[-1] < 1e-4 * errors[0]
        assert all(b >= a - 0.5 for a, b in itertools.pairwise(bits))


# --- bits ---


def test_bits_say_exactly_what_was_quantised_close_to_the_models_length(coder):
    other = Coder(DEVIATIONS.copy(), LOG_SCALE)
    for number, components in enumerate(drawn(1, 11)):
        for rung in RUNGS:
            quantised = coder.quantise(components, number, rung)
            for spare in (4, 77):
                bits = math.ceil(coder.length(quantised)) + spare
                bits += math.ceil(coder.rung_length(bits)[rung - coder.rungs[0]])
                length = coder.length(quantised) + coder.rung_length(bits)[rung - coder.rungs[0]]
                block = coder.block(quantised, bits)
                if block is None:  # the likely rungs, and so the length, depend on the block
                    assert length > bits - 1.5
                    continue
                assert len(block) == bits and set(block.tolist()) <= {0, 1}
                assert used(block) <= length + 1.5
                found = other.read(block)
                assert (found.scale, found.rung) == (number, rung)
                assert (found.components == quantised.components).all()


@pytest.mark.parametrize("value", [0, 1, -1, EXACT - 1, EXACT, -LARGEST, LARGEST])
def test_extremes_come_back(value, coder):
    for rung in RUNGS:
        quantised = Quantised(0, rung, np.full(len(DEVIATIONS), value))
        found = coder.read(coder.block(quantised, 6000))
        assert (found.components == value).all() and (found.scale, found.rung) == (0, rung)


def test_what_is_beyond_every_step_is_cut():
    coder = Coder(np.ones(3), (0.0, 0.0))
    components = coder.quantise(np.array([1e30, -1e30, 0.0]), coder.scale_of(0.0), 128).components
    assert components.tolist() == [LARGEST, -LARGEST, 0]


def test_blocks_that_are_too_small_are_none(coder):
    quantised = coder.quantise(drawn(2)[0], 5, 40)
    least = next(bits for bits in range(2000) if coder.block(quantised, bits) is not None)
    assert coder.block(quantised, 0) is None and used(coder.block(quantised, least)) <= least
    assert coder.read(coder.block(None, 9)) is None
    assert coder.block(None, 9).size == 9


def test_any_bits_are_read_or_refused(coder):
    random = np.random.default_rng(0)
    for size in (0, 1, 31, 32, 33, 700):
        for _ in range(20):
            try:
                found = coder.read(random.integers(0, 2, size).astype(np.uint8))
            except ValueError:
                continue
            assert found is None or found.components.shape == DEVIATIONS.shape


# --- images ---


class Enlarged(nn.Module):
    """A decoder that shows three channels of a latent four times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def images(self, latent: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
        return (0.5 + 0.1 * self.weight * latent[:, :3]).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def source() -> CodedLatents:
    return CodedLatents(small_transform(), Enlarged(), Enlarged(), torch.full((3, 16, 16), 0.5))


def small_transform() -> Transform:
    matrix = torch.linalg.qr(torch.randn(48, 48, generator=seeded(0)))[0]
    variances = torch.from_numpy(np.geomspace(4, 0.02, 48)).float()
    return Transform(torch.zeros(3, 4, 4), matrix, matrix.T.contiguous(), variances, LOG_SCALE)


@torch.inference_mode()
def test_a_block_alone_becomes_the_image_that_the_sender_expects(source):
    numbers = torch.randn(4, 48, generator=seeded(1)) * source.transform.variances.sqrt()
    latents = source.transform.latents(numbers)
    images = Enlarged().images(latents, torch.zeros(4)).clamp(0, 1)
    device = CodedLatents(small_transform(), Enlarged(), Enlarged(), torch.full((3, 16, 16), 0.5))
    budgets = [2, 20, 60, 150, 400]
    expected, last = source.psnr_db(latents, images, budgets), -1.0
    assert (np.diff(expected, axis=1) >= 0).all()
    for column, bits in enumerate(budgets):
        blocks = source.encode(latents, images, [bits] * 4)
        assert all(block is None or len(block) == bits for block in blocks)
        shown = device.decode([block for block in blocks if block is not None])
        if bits == 2:
            assert not any(image is not None for image in shown)
            continue
        found = [torch.full_like(images[0], 0.5) if image is None else image for image in shown]
        psnr = [min(60, -10 * math.log10(float((a - b).square().mean()))) for a, b in zip(found, images, strict=True)]
        assert psnr == pytest.approx(expected[:, column], abs=2.5)
        assert np.mean(psnr) > last + 1
        last = np.mean(psnr)
    assert last > 30


def test_the_mean_image_is_shown_where_it_is_better(source):
    latents, images = source.transform.latents(torch.ones(1, 48)), torch.full((1, 3, 16, 16), 0.5)
    blocks = source.encode(latents, images, [300])
    assert source.decode(blocks) == [None] and source.psnr_db(latents, images, [300]) == 60
    assert source.encode(latents, images, [0]) == [None]


# --- the command ---


def test_the_scheme_is_named_on_the_command_line(tmp_path):
    flags = ["--device=cpu", "--steps=1", "--images=2", "--resamples=0", "--threads=1", "--snr_db=-30,20"]
    chosen = ["--schemes=meg_digital", "--symbols=1024", "--budget=symbol"]
    run_here(test_MEG, *flags, *chosen, "--out", tmp_path / "out")
    rows = [row for row in read_csv(tmp_path / "out/quality.csv") if row["measure"] == "psnr_db"]
    assert {row["scheme"] for row in rows} == {"meg_digital_1024_capacity"}
    assert float(rows[1]["value"]) > float(rows[0]["value"]) + 20


def test_a_missing_or_foreign_transform_is_told_in_one_line(tmp_path, capsys):
    flags = ["--schemes=meg_digital", "--decoders", tmp_path, "--images=2", "--steps=1", "--device=cpu"]
    words = refusal(capsys, test_MEG, *flags, "--out", tmp_path / "out")
    assert "must hold transform.safetensors and a model for meg_shift or meg_dt_snr" in words
    (tmp_path / "meg_dt_snr.safetensors").write_bytes((TRAINED / "meg_dt_snr.safetensors").read_bytes())
    whole = load_transform(TRAINED / TRANSFORM)
    save_transform(tmp_path / TRANSFORM, dataclasses.replace(whole, mean=whole.mean.reshape(4, 16, 16)))
    words = refusal(capsys, test_MEG, *flags, "--out", tmp_path / "out")
    assert words.startswith("error: --decoders=") and "for latents of 16 x 8 x 8; it is for 4 x 16 x 16" in words
    assert not list((tmp_path).glob("out/quality.csv"))

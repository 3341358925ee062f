"""Hybrid MEG: its powers against a search, its bits read again, its loss, and what it is better than."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import refusal
from test_meg_coded import source  # noqa: F401, a fixture
from test_meg_parts import seeded

from meg import hybrid, test_MEG
from meg.channel import Channel
from meg.coded_latents import CodedLatents
from meg.decoders import TRAINED
from meg.digital import Sending
from meg.hybrid import HybridLink, digital_part, hybrid_scheme, powers
from meg.meg_shift import ShiftLink
from meg.rates import open_rate
from meg.transform import TRANSFORM, Transform, load_transform


@pytest.fixture(scope="module")
def shipped() -> Transform:
    return load_transform(TRAINED / TRANSFORM)


@pytest.fixture(scope="module")
def link(shipped) -> HybridLink:
    return link_of(shipped, "ldpc")


def link_of(transform: Transform, rate: str, symbols: int = 1024) -> HybridLink:
    coded = CodedLatents(transform, None, None, torch.zeros(3, 64, 64))
    return HybridLink(coded, Sending(symbols, open_rate(rate)), ShiftLink(transform, symbols))


def latents(transform: Transform, count: int) -> torch.Tensor:
    """Latents whose components are normal, with scales of their own."""
    numbers = torch.randn(count, len(transform.variances), generator=seeded(0)) * transform.variances.sqrt()
    scale = (transform.log_scale[1] * torch.randn(count, 1, generator=seeded(1)) + transform.log_scale[0]).exp()
    return transform.latents(scale * numbers)


@pytest.mark.parametrize("total", [0.3, 4.0, 60.0])
def test_powers_leave_the_least_error(total):
    variances = torch.tensor([[0.5, 4.0, 1.0, 0.01], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    found = powers(variances, 4, total)
    assert found.sum(1).tolist() == pytest.approx([total] * 2) and float(found.min()) >= 0
    assert found[1].tolist() == pytest.approx([total / 4] * 4)

    slope = variances / (1 + found).square()  # by which more power lowers the error: alike where there is some
    for own, power, at_rest in zip(slope, found, variances, strict=True):
        price = float(own[power > 0].mean())
        assert own[power > 0].tolist() == pytest.approx([price] * int((power > 0).sum()), rel=1e-6)
        assert (at_rest[power == 0] <= price + 1e-9).all()
    few = powers(variances, 2, total)
    assert ((few > 0).sum(1) <= 2).all() and few[0, 1] > 0 and few[0, 3] == 0


def test_the_split_is_all_shift_maps_at_low_snr_and_all_bits_with_many_symbols(shipped):
    parts = [digital_part(shipped, Sending(1024, open_rate("ldpc")), s) for s in (-20.0, 0.0, 10.0, 20.0)]
    assert parts[0] is None and 1024 > parts[1].symbols > parts[2].symbols > parts[3].symbols > 0
    assert 0.01 == parts[1].block_error > parts[2].block_error >= parts[3].block_error == pytest.approx(0.001)
    assert digital_part(shipped, Sending(12_288, open_rate("ldpc")), 20.0).symbols == 12_288
    assert digital_part(shipped, Sending(2, open_rate("ldpc")), 20.0) is None
    whole = digital_part(shipped, Sending(10**6, open_rate("capacity")), 20.0)  # which leaves no error at all
    assert whole == Sending(10**6, open_rate("capacity"))


def error(link: HybridLink, clean: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    t = link.coded.transform
    return (t.components(found) - t.components(clean)).square().sum(1)


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 15.0])
def test_the_hybrid_leaves_less_error_than_maps_and_bits_alone_and_knows_how_much(link, snr_db):
    clean = latents(link.coded.transform, 8)
    found, known, lost = link(clean, Channel(), snr_db, seeded(2))
    kept = ~lost
    assert kept.sum() >= 7
    own = error(link, clean, found)[kept].log().mean()
    maps = error(link, clean, link.alone(clean, Channel(), snr_db, seeded(2))[0])[kept].log().mean()
    (bits,) = link.sending.bits([10 ** (snr_db / 10)])
    coder, each = link.coded.coder, link.coded.components(clean)
    values = [coder.values(coder.read(link.block(y, scale, bits)))[0] for y, scale in each]
    alone = link.coded.transform.latents(torch.from_numpy(np.stack(values)).float())
    assert own < maps - 0.05 and own < error(link, clean, alone)[kept].log().mean() - 0.05
    white = ((found - clean).square().flatten(1).mean(1))[kept]
    assert (1 / (1 + 10 ** (known[kept] / 10))).mean() == pytest.approx(float(white.mean()), rel=0.25)


def test_what_is_shown_comes_from_the_bits_and_the_noisy_symbols(link):
    clean = latents(link.coded.transform, 2)
    rich = link_of(link.coded.transform, "capacity", 12_288)
    found, _, lost = rich(clean, Channel(), 60.0, seeded(0))
    assert not lost.any() and torch.allclose(found, clean, atol=5e-2)
    coder, (y, scale) = link.coded.coder, link.coded.components(clean)[0]
    block = link.block(y, scale, 300)
    assert block.shape == (300,) and set(block.tolist()) <= {0, 1}
    read = coder.read(block)
    assert np.array_equal(read.components, coder.quantise(y, scale, read.rung).components)
    assert link.block(y, scale, 3) is None


def test_blocks_are_lost_as_often_as_the_rate_says(link, monkeypatch):
    monkeypatch.setattr(hybrid, "digital_part", lambda t, s, snr_db: dataclasses.replace(s, symbols=s.symbols - 128))
    often = dataclasses.replace(link, sending=dataclasses.replace(link.sending, block_error=0.3))
    clean = latents(link.coded.transform, 1).expand(300, -1, -1, -1)
    lost = often(clean, Channel(), 0.0, seeded(3))[2]
    assert lost.double().mean() == pytest.approx(0.3, abs=0.08)


def test_under_fading_and_at_low_snr_it_is_meg_with_shift_maps(link):
    clean = latents(link.coded.transform, 3)
    for channel, snr_db in ((Channel("rayleigh"), 5.0), (Channel(), -20.0)):
        found = link(clean, channel, snr_db, seeded(4))
        wanted = link.alone(clean, channel, snr_db, seeded(4))
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_a_hybrid_sender_that_is_to_know_the_gain_is_refused(capsys):
    flags = ["--schemes=meg_hybrid,meg_digital", "--channel=rayleigh"]
    words = refusal(capsys, test_MEG, *flags, "--sender_knows=gain")
    assert words.startswith("error: --sender_knows=gain: must hold mean for meg_hybrid")
    assert "--symbols=1000002: must be at most" in refusal(capsys, test_MEG, *flags, "--symbols=1000002")


def test_lost_images_are_the_mean_image(source, monkeypatch):  # noqa: F811
    monkeypatch.setattr(hybrid, "digital_part", lambda t, s, snr_db: dataclasses.replace(s, symbols=s.symbols - 16))
    scheme = hybrid_scheme(source, Sending(64, open_rate("normal"), block_error=0.5), torch.full((3, 16, 16), 0.25))
    clean = latents(source.transform, 30)
    shown = scheme.send(clean, torch.zeros(30, 3, 16, 16), Channel(), 10.0, seeded(0))
    lost = (shown == 0.25).flatten(1).all(1)
    assert 5 <= int(lost.sum()) <= 25
    assert (scheme.name, scheme.symbols, scheme.side_bits) == ("meg_hybrid_64_normal", 64, 0)

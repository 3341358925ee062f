"""MEG's channel, feature merging, models and schedule, each against its definition or a plain version."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meg.channel import Channel, Link, Received, equal_energy_snr_db, power
from meg.merging import Tokens, matching, merged_away, side_information_bits
from meg.models import MergingModel, Precoder, SplitModel, image_estimate
from meg.schemes import Scheme
from meg.training import PUBLISHED_MERGING, PUBLISHED_SPLIT, Phase, rate_at
from resd3_medium.vae import Decoder, LatentFormat, VAEConfig

DB = 10 / math.log(10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(VAEConfig((8, 8), 1, 4, 4))


# --- channel ---


@settings(max_examples=20, deadline=None)
@given(snr_db=st.floats(-20, 20), scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_noise_has_the_power_that_the_snr_says(snr_db, scale, seed):
    signal = (
        scale * torch.randn(3, 16, 64, 64, generator=seeded(seed)) * torch.tensor([1.0, 3, 0.2])[:, None, None, None]
    )
    received = Channel("awgn")(signal, snr_db, seeded(seed + 1))
    noise = power(received.symbols - signal)
    assert torch.allclose(power(signal) / noise, torch.tensor(10 ** (snr_db / 10)).expand(3), rtol=0.02)
    assert float((power(signal) / noise).mean()) == pytest.approx(10 ** (snr_db / 10), rel=0.01)
    assert torch.allclose(received.snr_db, torch.tensor(snr_db).float().expand(3), atol=1e-4)


def test_rayleigh_fading_is_that_of_complex_symbols():
    """The channel leaves what an explicit complex channel leaves: x + n / h, with |h|^2 exponential of mean 1."""
    signal = torch.randn(4000, 2, 64, generator=seeded(0))
    received = Channel("rayleigh")(signal, 3.0, seeded(1))
    gain = 10 ** (received.snr_db.double() / 10) / 10**0.3
    assert float(gain.mean()) == pytest.approx(1, abs=0.05)
    assert np.quantile(gain, [0.1, 0.5, 0.9]) == pytest.approx(-np.log1p([-0.1, -0.5, -0.9]), rel=0.1)
    rng = np.random.default_rng(0)
    x = signal[:, 0].double().numpy() + 1j * signal[:, 1].double().numpy()
    variance = np.square(signal.double().numpy()).mean((1, 2))[:, None] / 10**0.3  # of each of two parts
    noise = (rng.normal(size=x.shape) + 1j * rng.normal(size=x.shape)) * np.sqrt(variance)
    h = np.sqrt(gain.numpy())[:, None] * np.exp(2j * np.pi * rng.random((len(x), 1)))
    theirs = np.square(np.abs((h * x + noise) / h - x)).mean(1) / 2
    ours = power(received.symbols - signal).numpy()
    assert np.mean(ours / theirs) == pytest.approx(1, abs=0.02)


def test_the_noise_factor_lowers_the_snr_and_images_do_not_share_it():
    signal = torch.randn(2, 50_000, generator=seeded(0))
    received = Channel()(signal, torch.tensor([0.0, 10.0]), seeded(1), torch.tensor([0.5, 2.0]))
    wanted = [10 * math.log10(2), 10 - 10 * math.log10(2)]
    assert received.snr_db.tolist() == pytest.approx(wanted)
    assert (power(signal) / power(received.symbols - signal)).log().mul(DB).tolist() == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("snr_db", [-15.0, 0.0, 12.0])
def test_the_linear_estimates_have_the_least_error_of_all_scalings(snr_db):
    signal = torch.randn(1, 200_000, generator=seeded(0))
    received = Channel()(signal, snr_db, seeded(1))
    errors = [float(power(a * received.mmse() - signal)) for a in (0.5, 1.0, 1.5)]
    assert errors[1] < min(errors[0], errors[2])
    image = (0.7 + 0.2 * torch.randn(1, 3, 250, 250, generator=seeded(2))).double()
    seen = Channel()(image, snr_db, seeded(3))
    best = image_estimate(seen, 0.7, 0.04)
    errors = [float(power(0.7 + a * (best - 0.7) - image)) for a in (0.5, 1.0, 1.5)]
    assert errors[1] < min(errors[0], errors[2])


def test_time_energy_and_equal_energy_by_hand():
    link = Link(bandwidth_hz=1e6, noise_dbm_hz=-170, loss_db=100)
    assert link.seconds(2_000_000) == 1.0
    assert link.joules(2000, 10.0) == pytest.approx(1000 * 10 * 1e-20 * 1e10)
    assert link.symbols_for(100, 10 * math.log10(3)) == pytest.approx(100)  # log2(4) / 2 is one bit a symbol
    assert equal_energy_snr_db(3.0, 64, 64 * 48) == pytest.approx(3 + 10 * math.log10(48))


@pytest.mark.parametrize("bits", [0, 169])
def test_the_energy_of_a_scheme_is_spent_to_the_last(bits):
    scheme = Scheme("e2e_meg_dt", 512, bits, lambda *_: None)
    for energy in (300.0, 12288.0, 1e6):
        snr_db = scheme.snr_for_energy(energy)
        spent = 10 ** (snr_db / 10) * scheme.total_symbols(Link(1, 0, 0), snr_db)
        assert spent == pytest.approx(energy, rel=1e-6)
    assert math.isnan(Scheme("e2e_meg_dt", 512, 169, lambda *_: None).snr_for_energy(200.0))


# --- merging ---


def plainly_merged(tokens: np.ndarray, rows: int, columns: int, gone: int) -> tuple[np.ndarray, dict[int, int]]:
    """Token merging of one image as the paper describes it: the tokens left in each place, and who went where."""
    destinations = [r * columns + c for r in range(0, rows, 2) for c in range(0, columns, 2)]
    others = [i for i in range(rows * columns) if i not in destinations]
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    best = {i: max(destinations, key=lambda d: unit[i] @ unit[d]) for i in others}
    most_alike = sorted(others, key=lambda i: -(unit[i] @ unit[best[i]]))[:gone]
    went = {i: best[i] for i in most_alike}
    result = tokens.copy()
    for d in destinations:
        group = [d, *(i for i in went if went[i] == d)]
        for i in group:
            result[i] = tokens[group].mean(0)
    return result, went


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([2, 4, 6]),
    columns=st.sampled_from([2, 4, 8]),
    share=st.floats(0, 0.75),
    seed=st.integers(0, 99),
)
def test_merging_and_back_is_token_merging(rows, columns, share, seed):
    tokens = torch.randn(2, rows * columns, 5, generator=seeded(seed))
    merge, unmerge = matching(tokens, (rows, columns), share)
    left = merge(tokens)
    gone = merged_away(rows * columns, share)
    assert left.shape == (2, rows * columns - gone, 5)
    for image, back in zip(tokens.numpy(), unmerge(left).numpy(), strict=True):
        assert back == pytest.approx(plainly_merged(image, rows, columns, gone)[0], abs=1e-5)


@pytest.mark.parametrize("tokens", [Tokens(), Tokens(1, 4), Tokens(2, 2), Tokens(1, 4, as_square=True)])
def test_a_latent_comes_back_from_its_tokens_and_at_ratio_0_from_merging(tokens):
    latent = torch.randn(2, 4, 16, 16, generator=seeded(0))
    assert tokens.fits(16, 16)
    parts = tokens.of(latent)
    assert parts.shape[2] == 4 * tokens.rows * tokens.columns
    merge, unmerge = matching(parts, tokens.grid(16, 16), 0.0)
    assert torch.equal(tokens.back(unmerge(merge(parts)), 16, 16), latent)
    assert Tokens(1, 4).of(latent)[0, 0].tolist() == latent[0, :, 0, :4].flatten().tolist()


def test_what_does_not_fit_is_seen():
    assert not Tokens(1, 3).fits(8, 8) and not Tokens(8, 1).fits(8, 8) and not Tokens(1, 2, as_square=True).fits(8, 8)


def test_side_information_is_the_logarithm_of_all_that_can_happen():
    sources, destinations, gone = 6, 2, 3
    ways = len(list(itertools.combinations(range(sources), gone))) * destinations**gone
    assert side_information_bits(8, 3 / 8) == math.ceil(math.log2(ways))
    assert side_information_bits(64, 0.5) == 170 and side_information_bits(64, 0) == 0


# --- models ---


def test_gradients_flow_through_channel_and_merge_as_differences_say():
    x = torch.randn(2, 16, 3, generator=seeded(0), dtype=torch.float64, requires_grad=True)

    def sent(tokens: torch.Tensor) -> torch.Tensor:
        merge, unmerge = matching(tokens, (4, 4), 0.5)
        return unmerge(Channel("rayleigh")(merge(tokens), 3.0, seeded(1)).mmse())

    assert torch.autograd.gradcheck(sent, (x,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("estimate", [0, 8])
@pytest.mark.parametrize("share", [None, 0.5])
def test_every_layer_of_a_model_is_used(estimate, share):
    split = SplitModel(small_decoder(), 4, LatentFormat(), estimate=estimate)
    model = split if share is None else MergingModel(split, 4, Tokens(), share)
    if estimate:  # its last layer starts at zero, which stops the gradients behind it
        torch.nn.init.normal_(split.estimate.conv_out.weight)
    model.through(torch.randn(2, 4, 8, 8, generator=seeded(0)), Channel(), 0.0, seeded(1)).square().mean().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert [name for name in unused if not name.endswith("attn_1.k.bias")] == []  # which softmax does not see


@pytest.mark.parametrize("post", [None, torch.nn.Conv2d(4, 4, 1)])
def test_untrained_models_are_the_generators_decoder(post):
    decoder, latents = small_decoder(), LatentFormat(1.7, 0.3)
    latent = torch.randn(2, 4, 8, 8, generator=seeded(0))
    raw = latents.raw(latent)
    wanted = (decoder(raw if post is None else post(raw)) + 1) / 2
    split = SplitModel(decoder, 4, latents, post)
    clean = Received(latent, torch.full((2,), 200.0))
    assert torch.allclose(split(clean), wanted, atol=1e-5)
    for estimate, share in ((0, 0.0), (8, 0.0)):
        told = SplitModel(decoder, 4, latents, post, estimate)
        model = MergingModel(told, 4, Tokens(), share)
        assert torch.allclose(model.through(latent, Channel(), 200.0, seeded(0)), wanted, atol=1e-5)


def test_symbols_are_those_of_the_paper():
    size = torch.Size((4, 128, 128))
    split = SplitModel(small_decoder(), 4, LatentFormat())
    assert split.symbols(size) == 65_536
    assert MergingModel(split, 4, Tokens(1, 4, as_square=True), 0.5).symbols(size) == 32_768


# --- precoder ---


def correlated(count: int, seed: int) -> torch.Tensor:
    """Latents [count, 4, 8, 8] of correlated channels with very unequal variances and a mean."""
    mixing = torch.randn(4, 4, generator=seeded(99)) * torch.tensor([2.0, 0.7, 0.4, 0.1])
    noise = torch.randn(count, 8, 8, 4, generator=seeded(seed))
    return (noise @ mixing.T + torch.tensor([1.0, 0, -0.5, 0])).movedim(-1, 1)


@pytest.mark.parametrize("snr_db", [-20.0, -5.0, 5.0, 20.0])
def test_no_other_sharing_of_the_power_has_a_smaller_error(snr_db):
    precoder = Precoder(4)
    variance = torch.tensor([0.2, 3.0, 0.05, 1.0])
    precoder.log_variance.data = variance.log()
    powers = (precoder.gains(torch.tensor([snr_db])).square() * variance)[0].detach().double().numpy()
    noise = float(variance.mean()) / 10 ** (snr_db / 10)
    assert powers.sum() == pytest.approx(float(variance.sum()), rel=1e-4)
    v = variance.double().numpy()

    def error(share: np.ndarray) -> float:
        return float((v * noise / (share + noise)).sum())  # of the linear estimate of v behind a gain of share / v

    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.full(4, 0.5), 20_000) * powers.sum()
    near = np.clip(powers + rng.normal(size=(20_000, 4)) * powers.sum() * 0.01, 0, None)
    near *= powers.sum() / near.sum(1, keepdims=True)
    assert error(powers) <= min(map(error, np.concatenate([others, near]))) + 1e-9
    assert (powers < 1e-9).sum() == {-20.0: 3, -5.0: 2, 5.0: 0, 20.0: 0}[snr_db]


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 15.0])
def test_precoding_beats_the_linear_estimate_of_the_latent_itself(snr_db):
    model = MergingModel(SplitModel(small_decoder(), 4, LatentFormat(), estimate=8), 4, Tokens(), 0.0)
    model.fit(correlated(500, 0))
    latent = correlated(200, 1)
    found = []
    model.split.images = lambda estimate, snr: found.append(estimate)
    with torch.no_grad():
        model.through(latent, Channel(), snr_db, seeded(2))
    plain = Channel()(latent, snr_db, seeded(2)).mmse()
    assert float((found[0] - latent).square().mean()) < 0.95 * float((plain - latent).square().mean())


# --- schedule ---


def test_phases_follow_each_other_with_a_warm_up_and_half_a_cosine():
    assert [sum(p.steps for p in phases) for phases in (PUBLISHED_SPLIT, PUBLISHED_MERGING)] == [800 * 20, 1800 * 20]
    phases = [Phase(100, 1.0), Phase(40, 0.1)]
    rates = [rate_at(phases, number) for number in range(141)]
    assert rates[0] == pytest.approx(0.2) and rates[50] == pytest.approx(0.5) and rates[99] < 0.001
    assert rates[120] == pytest.approx(0.05) and rates[140] == 0 and max(rates[100:]) <= 0.1
    assert dataclasses.astuple(PUBLISHED_SPLIT[1]) == (2000, 5e-5)

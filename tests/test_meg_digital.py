"""MEG's digital rivals: rates against their formulas, files against the bits they become, loss, and the command."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import refusal, run_here
from PIL import Image
from scipy.stats import norm
from test_meg_parts import seeded

from common.tables import read_csv
from meg import fit_statistics, test_MEG
from meg.channel import Channel
from meg.codecs import Album, all_settings, best_under, body, joined, read, write
from meg.competitors import counted, operations
from meg.dataset import save_part
from meg.digital import Files, Prompts, Sending, digital_scheme
from meg.rates import GAPS, RATES, open_rate
from meg.schemes import Scheme

SIZE = (64, 64)
SYMBOLS = (64, 512, 1024, 12_288)
GREY = torch.full((3, 64, 64), 0.5)


def pictures(count: int) -> torch.Tensor:
    """Smooth coloured images with an edge [count, 3, 64, 64] in 0..1, of whole bytes."""
    rough = torch.rand(count, 3, 5, 5, generator=seeded(0))
    images = torch.nn.functional.interpolate(rough, (64, 64), mode="bilinear")
    images[:, :, 20:40, 30:] = rough[:, :, :1, :1]
    return (images * 255).round() / 255


def as_bytes(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte().movedim(1, -1).numpy()


@pytest.fixture(scope="module")
def album() -> Album:
    return Album(SIZE)


# --- rates ---


def test_capacity_and_the_normal_approximation_are_those_by_hand():
    rate = open_rate("capacity")
    assert [rate.bits(k, 3.0, 0.01) for k in (2, 512, 1024)] == [2, 512, 1024]  # log2(4) / 2 is one bit a symbol
    assert rate.bits(12_288, 1.0, 0.01) == 6144
    assert rate.error(512, 512, np.array([2.999, 3.0])).tolist() == [1, 0]
    for k, snr, error in ((1024, 1.0, 0.01), (512, 10.0, 1e-3), (12_288, 0.1, 0.1)):
        v = snr * (snr + 2) * math.log2(math.e) ** 2 / (2 * (snr + 1) ** 2)
        wanted = k / 2 * math.log2(1 + snr) - math.sqrt(k * v) * norm.isf(error) + math.log2(k) / 2
        assert open_rate("normal").bits(k, snr, error) == math.floor(wanted)
        assert open_rate("normal").error(wanted, k, snr) == pytest.approx(error)


def table_of_gaps(symbols: int) -> dict[str, list[tuple[float, float]]]:
    """Bits a symbol and gap in dB, ascending, by modulation."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in read_csv(GAPS):
        if int(row["symbols"]) == symbols:
            found.setdefault(row["modulation"], []).append((float(row["bits_a_symbol"]), float(row["gap_db"])))
    return {name: sorted(points) for name, points in found.items()}


@pytest.mark.parametrize("symbols", [512, 1024, 12_288])
def test_a_real_code_carries_what_the_best_of_its_modulations_does(symbols):
    """Every number of bits is tried, with the gap on a straight line between those that were measured."""
    normal, code = open_rate("normal"), open_rate("ldpc")

    def gap_between(points: list[tuple[float, float]], place: float) -> float:
        for (low, first), (high, last) in itertools.pairwise(points):
            if low <= place <= high:
                return first + (last - first) * (place - low) / (high - low)
        return points[0][1] if place < points[0][0] else points[-1][1]

    for snr_db in (-25.0, -10.0, 0.0, 7.0, 13.0, 40.0):
        best = 0
        for points in table_of_gaps(symbols).values():
            for bits in range(best + 1, math.floor(points[-1][0] * symbols) + 1, max(1, symbols // 2000)):
                snr = 10 ** ((snr_db - gap_between(points, bits / symbols)) / 10)
                best = bits if bits <= normal.bits(symbols, snr, 0.01) else best
        found = code.bits(symbols, 10 ** (snr_db / 10), 0.01)
        assert best <= found <= best + max(0, symbols // 2000 - 1)
    assert found == math.floor(table_of_gaps(symbols)["64-QAM"][-1][0] * symbols)


def test_between_measured_lengths_a_gap_lies_between():
    (code,) = (one for one in open_rate("ldpc").modulations if one.curves[0][0][0] < 0.1)
    gaps = [code.normal(bits, bits * 2).gap_db for bits in (100, 256, 362, 512, 2000, 6144, 50_000)]
    assert gaps[0] == gaps[1] and gaps[5] == gaps[6] and gaps[2] == pytest.approx((gaps[1] + gaps[3]) / 2, abs=0.01)
    assert min(gaps[3], gaps[5]) <= gaps[4] <= max(gaps[3], gaps[5])


@pytest.mark.parametrize("name", RATES)
def test_more_power_and_more_symbols_carry_more_bits_with_no_more_errors_than_wanted(name):
    rate, snrs = open_rate(name), 10.0 ** np.arange(-3, 3, 0.25)
    bits = np.array([[rate.bits(k, snr, 0.01) for snr in snrs] for k in SYMBOLS])
    assert (np.diff(bits, axis=0) >= 0).all() and (np.diff(bits, axis=1) >= 0).all() and bits[0, 0] == 0
    assert (bits <= [[open_rate("capacity").bits(k, snr, 0.01) for snr in snrs] for k in SYMBOLS]).all()
    for row, k in zip(bits, SYMBOLS, strict=True):
        for b, snr in zip(row, snrs, strict=True):
            assert b == 0 or (rate.error(b, k, snr) <= 0.01 and rate.error(10 * b + 99, k, snr) > 0.01)


# --- files and bits ---


@pytest.mark.parametrize("size", [SIZE, (48, 80)])
def test_files_come_back_from_what_is_sent_of_them_to_the_last_byte(size):
    image = Image.fromarray(as_bytes(pictures(1))[0]).resize(size)
    shorter = {"jpeg": 600, "webp": 26, "webp_lossless": 24, "avif": 285}
    for setting in all_settings()[::5] + all_settings()[-1:]:
        file = write(image, setting, smallest=False)
        content = body(file, setting)
        assert joined(content, setting, size) == file
        assert len(file) - len(content) >= shorter[setting.codec]


@pytest.mark.parametrize("whole_files", [False, True])
def test_the_picture_that_is_scored_is_read_from_the_bits_alone(album, whole_files):
    picture = as_bytes(pictures(1))[0]
    entries, found = album.entries(picture, whole_files), []
    for bits in (60, 400, 1500, 6000, 30_000):
        entry = best_under(entries, bits)
        block = album.block(entry, bits, whole_files)
        if entry is None:
            assert bits < 1000 and (block is None or Album(SIZE).picture(block, whole_files) is None)
            continue
        assert block.shape == (bits,) and set(block) <= {0, 1}
        seen = Album(SIZE).picture(block, whole_files)  # a receiver that has seen nothing
        setting = all_settings()[entry.number]
        image = Image.fromarray(picture)
        assert np.array_equal(seen, read(write(image, setting, smallest=whole_files), SIZE))
        error = np.square(seen.astype(float) - picture).mean()
        assert entry.psnr_db == pytest.approx(min(60, 10 * math.log10(255**2 / error)) if error else 60)
        found.append(entry.psnr_db)
        used = 8 if not whole_files else 0
        file = write(image, setting, smallest=whole_files)
        assert entry.bits == used + 8 * len(file if whole_files else body(file, setting)) + 1 <= bits
    assert found == sorted(found) and len(found) >= 3


# --- schemes ---


def test_images_arrive_or_are_the_mean_image_and_better_with_snr_and_symbols(album):
    images = pictures(4)
    mean = images.mean(0)
    psnr = {}
    for symbols in (64, 1024, 4096):
        scheme = digital_scheme(Files(album, False, mean), Sending(symbols, open_rate("capacity")), mean, Channel())
        assert (scheme.symbols, scheme.side_bits, scheme.sender_knows) == (symbols, 0, "mean")
        for snr_db in (-40.0, -10.0, 5.0, 20.0):
            found = scheme.send(None, images, Channel(), snr_db, seeded(0))
            psnr[symbols, snr_db] = float(-10 * (found - images).square().mean((1, 2, 3)).log10().mean())
            bits = math.floor(symbols / 2 * math.log2(1 + 10 ** (snr_db / 10)))
            if bits < 9:
                assert torch.allclose(found, mean.expand_as(found))
            for image, seen in zip(as_bytes(images), as_bytes(found), strict=True):
                entry = best_under(album.entries(image, False), bits)
                least = np.square(as_bytes(mean[None])[0] - image.astype(float)).mean()
                error = np.square(seen.astype(float) - image).mean()
                assert error == pytest.approx(
                    min(least, 255**2 / 10 ** (entry.psnr_db / 10)) if entry else least, rel=0.01, abs=0.1
                )
    values = np.array(list(psnr.values())).reshape(3, 4)
    assert (np.diff(values, axis=0) >= 0).all() and (np.diff(values, axis=1) >= 0).all()
    assert values[2, 3] > values[2, 0] + 15


class Coin:
    """A source whose blocks always fit, and whose images are white."""

    name, label, device_flop = "coin", "coin", 0.0

    def psnr_db(self, latents, images, bits):
        return np.tile([5.0 * math.log2(1 + b) for b in bits], (len(images), 1))

    def encode(self, latents, images, bits):
        self.bits = list(bits)
        return [np.ones(b, np.uint8) for b in bits]

    def decode(self, blocks):
        return [torch.ones(3, 2, 2) for _ in blocks]


@pytest.mark.parametrize("name", ["normal", "ldpc"])
def test_blocks_are_lost_as_often_as_the_rate_says(name):
    source, images = Coin(), torch.rand(4000, 3, 2, 2, generator=seeded(1))
    scheme = digital_scheme(source, Sending(1024, open_rate(name), 0.2), torch.zeros(3, 2, 2), Channel())
    shown = scheme.send(None, images, Channel(), 3.0, seeded(0))
    assert float(1 - shown[:, 0, 0, 0].mean()) == pytest.approx(0.2, abs=0.025)
    assert set(source.bits) == {open_rate(name).bits(1024, 10**0.3, 0.2)}


def test_under_fading_the_sender_picks_the_rate_of_the_best_mean_or_knows_the_gain():
    source, images, fading = Coin(), torch.full((4000, 3, 2, 2), 0.5), Channel("rayleigh")
    scheme = digital_scheme(source, Sending(512, open_rate("capacity")), torch.zeros(3, 2, 2), fading)
    assert scheme.side_bits == 5
    shown = scheme.send(None, images, fading, 10.0, seeded(0))
    (bits,) = set(source.bits)
    outage = 1 - math.exp(-(2 ** (2 * bits / 512) - 1) / 10)
    assert float(1 - shown[:, 0, 0, 0].mean()) == pytest.approx(outage, abs=0.025)
    dark = -20 * math.log10(128 / 255)  # PSNR of the mean image, black here

    def mean_psnr(b: float) -> float:
        lost = 1 - math.exp(-(2 ** (2 * b / 512) - 1) / 10)
        return (1 - lost) * 5 * math.log2(1 + b) + lost * dark

    assert mean_psnr(bits) > max(map(mean_psnr, range(1, 3000))) - 0.5  # up to the steps of the rates to pick from
    knowing = digital_scheme(source, Sending(512, open_rate("capacity"), 0.01, "gain"), torch.zeros(3, 2, 2), fading)
    assert knowing.side_bits == 0 and bool(knowing.send(None, images, fading, 10.0, seeded(0)).all())
    snrs = 10 * fading.gains(4000, seeded(0)).numpy()
    assert source.bits == [math.floor(256 * math.log2(1 + snr)) for snr in snrs]


def test_a_prompt_crosses_as_seed_and_text_and_the_device_makes_the_image_once():
    images = pictures(3)
    requests = [("crème brûlée", 7), ("dog", 2**31 - 1), ("dog", 8)]
    asked = []

    def generate(texts, seeds):
        asked.extend(zip(texts, seeds, strict=True))
        return images[[requests.index(r) for r in zip(texts, seeds, strict=True)]]

    source = Prompts(images, requests, generate, 5.0)
    needed = 8 * (4 + len("crème brûlée".encode())) + 1
    blocks = source.encode(None, images, [needed - 1, 57, 57])
    assert blocks[0] is None and len(blocks[1]) == 57
    scheme = digital_scheme(source, Sending(2 * needed, open_rate("capacity")), GREY, Channel())
    assert scheme.device_flop == 5.0
    for snr_db in (10 * math.log10(3), 20.0):
        assert torch.equal(scheme.send(None, images.flip(0), Channel(), snr_db, seeded(0)), images.flip(0))
    assert sorted(asked) == sorted(requests)
    assert torch.equal(scheme.send(None, images, Channel(), -30.0, seeded(0)), GREY.expand_as(images))


def test_operations_are_two_for_each_multiplication_that_the_device_does():
    assert operations(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4
    matrix = torch.ones(12, 5)
    scheme = Scheme("own_mmse", 12, 0, lambda latents, *_: latents.flatten(1) @ matrix)
    assert counted(scheme, torch.ones(7, 3, 2, 2), torch.ones(7, 3, 16, 16)).device_flop == 2 * 12 * 5  # of one image


# --- the command ---


def test_digital_schemes_are_named_on_the_command_line(tmp_path, capsys):
    flags = ["--device=cpu", "--steps=1", "--images=2", "--resamples=0", "--threads=1", "--snr_db=-20,20"]
    chosen = ["--schemes=cg,cg_digital,cg_digital_files,prompt", "--symbols=1024", "--rates=capacity,ldpc"]
    run_here(test_MEG, *flags, *chosen, "--out", tmp_path / "out")
    assert "digital CG, whole files, 1024 symbols, 5G LDPC" in capsys.readouterr().out
    rows = [row for row in read_csv(tmp_path / "out/quality.csv") if row["measure"] == "psnr_db"]
    sources = ("cg_digital", "cg_digital_files", "prompt")
    names = [f"{source}_1024_{rate}" for source in sources for rate in ("capacity", "ldpc")]
    assert list(dict.fromkeys(row["scheme"] for row in rows)) == ["cg", *names]
    found = {(r["budget"], r["scheme"], r["snr_db"]): r for r in rows}
    for row in rows:  # the same energy for every scheme
        if row["budget"] == "energy":
            energy = int(row["symbols"]) * 10 ** (float(row["symbol_snr_db"]) / 10)
            assert energy == pytest.approx(12_288 * 10 ** (float(row["snr_db"]) / 10))
    assert float(found["symbol", "prompt_1024_capacity", "20.0"]["value"]) > 45
    digital = float(found["symbol", "cg_digital_1024_capacity", "20.0"]["value"])
    assert digital > float(found["symbol", "cg_digital_1024_capacity", "-20.0"]["value"]) + 10
    assert digital >= float(found["symbol", "cg_digital_files_1024_capacity", "20.0"]["value"])
    fading = ["--schemes=prompt", "--symbols=512", "--budget=energy", "--channel=rayleigh", "--sender_knows=mean,gain"]
    run_here(test_MEG, *flags, *fading, "--out", tmp_path / "two")
    rows = read_csv(tmp_path / "two/quality.csv")
    picked, known = "prompt_512_capacity", "prompt_512_capacity_gain"
    assert {(row["scheme"], row["side_bits"]) for row in rows} == {(picked, "5"), (known, "0")}


@pytest.mark.parametrize(
    "flag",
    "schemes=cg,jpeg schemes=, rates=shannon symbols=0 symbols=511 symbols=1e3 symbols=-2 symbols=512, "
    f"symbols={'9' * 5000} block_error=0 block_error=nan sender_knows=all".split(),
)
def test_mistakes_are_told_in_one_line(flag, tmp_path, capsys):
    words = refusal(capsys, test_MEG, f"--{flag}", "--out", tmp_path / "out")
    assert words.startswith(f"error: --{flag.split('=')[0]}=") and not (tmp_path / "out").exists()


def test_pictures_of_ones_own_have_no_prompt_to_send(tmp_path, capsys):
    words = refusal(capsys, test_MEG, "--schemes=cg,prompt", "--pictures", tmp_path, "--out", tmp_path / "out")
    assert words.startswith("error: --schemes=cg,prompt: must not hold prompt with --pictures")


def test_the_mean_image_is_that_of_the_training_images(tmp_path, capsys):
    images = pictures(6)
    save_part(tmp_path, 0, torch.zeros(6, 16, 8, 8), images)
    run_here(fit_statistics, "--data", tmp_path, "--validation=2", "--probes=0", "--out", tmp_path / "fit")
    mean = np.asarray(Image.open(tmp_path / "fit/mean.png"))
    assert np.abs(mean - as_bytes(images[:4]).astype(float).mean(0)).max() <= 0.51
    assert "--validation=6: must be less" in refusal(capsys, fit_statistics, "--data", tmp_path, "--validation=6")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "mean.png").write_bytes(b"damaged")
    few = ["--device=cpu", "--steps=1", "--images=2", "--inception=off", "--schemes=prompt"]
    words = refusal(capsys, test_MEG, *few, "--decoders", broken, "--out", tmp_path / "out")
    assert "mean.png must be a picture" in words
    assert "must hold models for meg_dt" in refusal(
        capsys, test_MEG, *few[:-1], "--schemes=meg_dt", "--decoders", tmp_path / "fit"
    )

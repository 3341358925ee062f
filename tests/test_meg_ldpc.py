"""Measuring 5G LDPC: the crossing that is found, and, where Sionna is, that its codes arrive."""

import math
import sys

import numpy as np
import pytest
from helpers import make, refusal, run_here
from scipy.stats import norm

from common.parameters import ParameterError
from common.tables import read_csv
from meg import measure_ldpc
from meg.measure_ldpc import CODE_RATES, LOST, MODULATIONS, LDPCParameters, measure_gap, normal_snr_db
from meg.rates import GAPS, open_rate


@pytest.mark.parametrize("crossing", [-1.3, 0.0, 1.17, 4.0])
@pytest.mark.parametrize("slope", [1.5, 4.0, 25.0])
def test_the_gap_is_found_where_a_known_code_loses_one_block_in_a_hundred(crossing, slope):
    generator, outside = np.random.default_rng(0), 0

    def lost(gap: float, blocks: int) -> int:
        return generator.binomial(blocks, norm.cdf(norm.ppf(LOST) - slope * (gap - crossing)))

    for _ in range(20):
        gap, half = measure_gap(lost, 1000)
        assert abs(gap - crossing) < 0.6 / slope + 0.005 and 0 < half < 0.6 / slope + 0.005
        outside += abs(gap - crossing) > half
    assert outside <= 5  # of 20, one on average


def test_the_table_has_every_code_rate_and_never_less_power_than_the_approximation():
    rows = {(row["modulation"], int(row["symbols"]), float(row["bits_a_symbol"])): row for row in read_csv(GAPS)}
    for symbols in (512, 1024, 12_288):
        for name, rates in CODE_RATES.items():
            for bits in [round(rate * MODULATIONS[name] / 2 * symbols) for rate in rates]:
                if bits >= measure_ldpc.LEAST_BITS:
                    row = rows.pop((name, symbols, round(bits / symbols, 4)))
                    assert 0.3 < float(row["gap_db"]) < 5 and 0 < float(row["half_width_db"]) < 0.5
    assert not rows


@pytest.mark.parametrize(("bits", "symbols"), [(20, 1024), (512, 1024), (2826, 1024), (6144, 12_288)])
def test_the_reference_is_the_normal_approximation(bits, symbols):
    snr = 10 ** (normal_snr_db(bits, symbols) / 10)
    assert open_rate("normal").error(bits, symbols, snr) == pytest.approx(LOST, rel=1e-4)


def test_without_sionna_one_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure_ldpc, "find_spec", lambda name: None)
    line = refusal(capsys, measure_ldpc, "--out", tmp_path / "run")
    assert line == "error: needs Sionna: pip install -r requirements-ldpc.txt" and not list(tmp_path.glob("run/*.csv"))


@pytest.mark.parametrize("symbols", ["", "1023", "62", "512,", "a", "1e3"])
def test_odd_lengths_are_refused(symbols):
    with pytest.raises(ParameterError, match=r"--symbols"):
        make(LDPCParameters, symbols=symbols)


@pytest.mark.parametrize(
    ("modulation", "symbols", "bits"), [("QPSK", 1024, 20), ("16-QAM", 256, 200), ("64-QAM", 5000, 9000)]
)
def test_blocks_arrive_with_power_and_are_lost_without(modulation, symbols, bits):
    """Of repeated bits, of one code block and of two."""
    pytest.importorskip("sionna")
    import torch

    code, base = measure_ldpc.Code(modulation, symbols, bits), normal_snr_db(bits, symbols)
    assert code.parts == math.ceil(bits / 8448) and code.bits * code.parts - bits < code.parts
    assert len(code.place) * code.parts <= MODULATIONS[modulation] * symbols // 2 < len(code.place) * code.parts + 12
    assert code.lost(base + 4, 20, torch.Generator().manual_seed(0)) == 0
    assert code.lost(base - 3, 20, torch.Generator().manual_seed(0)) > 10


def test_a_table_is_written_from_the_command_line(tmp_path):
    pytest.importorskip("sionna")
    run_here(measure_ldpc, "--symbols", 128, "--blocks", 50, "--out", tmp_path / "run")
    rows = read_csv(tmp_path / "run/ldpc_5g.csv")
    assert len(rows) > 10 and all(-1 < float(row["gap_db"]) < 6 for row in rows) and "sionna" in sys.modules

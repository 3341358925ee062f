"""The benchmark of weights of few bits: its forms against known errors, and its tables."""

import csv

import gguf
import numpy as np
import pytest
import torch
from helpers import run_here
from PIL import Image
from scripts_by_path import load

bench = load("bench_precision")


def test_forms_have_the_errors_that_their_bits_allow():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))

    def error(name: str) -> float:
        form = bench.FORMS[name](weight)
        return bench.rms((form if isinstance(form, torch.Tensor) else form.floats()) - weight)

    errors = {name: error(name) for name in bench.FORMS}
    assert list(bench.BITS) == list(errors)
    assert errors.pop("float32") == 0
    order = ["float16", "bfloat16", "Q8_0", "int8", "fp8, scaled", "fp8, plain", "Q4_K", "Q4_0"]
    assert sorted(errors, key=lambda name: errors[name]) == order
    assert errors["Q4_K"] < 0.09


def test_q4_k_is_packed_as_gguf_reads_it():
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(1)) + 0.5
    packed = bench.q4_k(weight)
    theirs = gguf.quants.dequantize(packed.data.numpy(), gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(packed.floats().numpy(), theirs)
    assert np.abs(theirs - weight.numpy()).max() < 0.35  # a fifteenth of a group's range, and rounded scales


@pytest.mark.slow
def test_the_tables_and_the_pictures_have_every_form(tmp_path, capsys):
    run_here(bench, "--width=128", "--rows=16", "--captions=1", "--out", tmp_path)
    with (tmp_path / "precision.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["form"] for row in rows] == list(bench.FORMS)
    assert float(rows[0]["latent_error"]) == float(rows[0]["block_error"]) == 0
    found = {row["form"]: float(row["latent_error"]) for row in rows}
    assert found["Q8_0"] < found["fp8, scaled"] < found["Q4_0"] < 0.5
    assert Image.open(tmp_path / "pictures.png").height > 100
    assert capsys.readouterr().out.count("| Q4_K |") == 2

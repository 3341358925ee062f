"""Matrices at few bits against the gguf package, torch's own casts, and plain linear layers."""

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from resd3_medium import packed
from resd3_medium.ggml import BLOCKS, floats_by_gguf, ggml_kind
from resd3_medium.packed import DTYPES, Packed, PackedLinear, from_ggml, quantised, row_halves_swapped, stacked

KINDS = [*DTYPES, *BLOCKS]
FP8 = ["F8_E4M3", "F8_E5M2"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def seams(monkeypatch) -> None:
    """Rows are brought up 7 at a time, as large matrices are in larger parts."""
    monkeypatch.setattr(
        packed, "spans", lambda shape, device: [slice(i, min(i + 7, shape[0])) for i in range(0, shape[0], 7)]
    )


def random_blocks(kind: str, rows: int, columns: int, finite: bool = True) -> torch.Tensor:
    """Random bytes of a GGUF kind, uint8 [rows, bytes of a row]; when finite, the scales are below 1/8."""
    block = BLOCKS[kind]
    raw = torch.randint(0, 256, (rows * columns // block.size, block.bytes), dtype=torch.uint8)
    if finite:  # the upper bytes of float16 numbers, at the start, or in Q6_K at the end
        raw[:, [1, 3, -1]] &= 0x2F
    return raw.view(rows, -1)


def random_matrix(kind: str, rows: int, columns: int) -> Packed:
    weight = torch.randn(rows, columns) / 16
    if kind in BLOCKS:
        return from_ggml(kind, random_blocks(kind, rows, columns), (rows, columns))
    if kind == "F8_E5M2":
        return Packed(kind, weight.to(DTYPES[kind]), None, (rows, columns))
    return quantised(weight, "int8" if kind == "INT8" else "fp8")


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Both are NaN in the same places, and equal in every bit elsewhere."""
    assert found.dtype == wanted.dtype == torch.float32
    numbers = ~wanted.isnan()
    assert torch.equal(found.isnan(), ~numbers)
    assert torch.equal(found[numbers].view(torch.int32), wanted[numbers].view(torch.int32))


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_what_the_gguf_package_reads(kind, seams):
    ggml_type = gguf.GGMLQuantizationType[kind]
    assert (BLOCKS[kind].size, BLOCKS[kind].bytes) == gguf.GGML_QUANT_SIZES[ggml_type]
    assert ggml_kind(ggml_type) == kind
    raw = random_blocks(kind, 40, 512, finite=False)
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(raw.numpy(), ggml_type))
    matrix = from_ggml(kind, raw, (40, 512))
    assert_same_bits(matrix.floats(), wanted)
    assert matrix.bytes() == raw.numel()
    with pytest.raises(ValueError, match=kind):
        from_ggml(kind, raw[:, :-1], (40, 512))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q2_K", "IQ4_XS"])
def test_other_types_are_read_through_the_package(name):
    ggml_type = gguf.GGMLQuantizationType[name]
    assert ggml_kind(ggml_type) is None
    size, length = gguf.GGML_QUANT_SIZES[ggml_type]
    raw = torch.randint(0, 128, (3, 512 // size * length), dtype=torch.uint8)
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(raw.numpy(), ggml_type).astype(np.float32))
        assert_same_bits(floats_by_gguf(raw, ggml_type, (3, 512)), wanted)
        with pytest.raises(ValueError, match="shape"):
            floats_by_gguf(raw, ggml_type, (3, 511))
    with pytest.raises(ValueError, match="F64"):
        floats_by_gguf(raw, gguf.GGMLQuantizationType.F64, (3, 512))


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("scale", [None, [[0.37]], [[1e-3], [2.0], [3e-41]]])
def test_every_code_of_fp8_is_what_torch_reads(kind, scale):
    codes = torch.arange(256, dtype=torch.uint8).expand(3, 256).contiguous().view(DTYPES[kind])
    scale = None if scale is None else torch.tensor(scale)
    wanted = codes.float() if scale is None else codes.float() * scale
    assert_same_bits(Packed(kind, codes, scale, (3, 256)).floats(), wanted)
    one_sign = codes[:, :128].contiguous()  # a NaN of either sign is found without the other
    assert Packed(kind, one_sign, None, (3, 128)).floats().isnan().any()
    assert Packed(kind, codes[:, 128:], None, (3, 128)).floats().isnan().any()


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantised_matrices_lose_what_8_bits_lose(dtype, seams):
    weight = (torch.randn(64, 1536) * torch.rand(64, 1)).to(dtype)
    weight[3] = 0
    exact = weight.float()
    whole, floating = quantised(weight, "int8"), quantised(weight, "fp8")

    assert whole.data.dtype == torch.int8 and whole.bytes() == weight.numel() + 4 * 64
    scale = exact.abs().amax(1, keepdim=True) / 127
    assert torch.equal(whole.scale, scale)
    assert ((whole.floats() - exact).abs() <= 0.5001 * scale).all() and not whole.floats()[3].any()
    assert rms(whole.floats() - exact) / rms(exact) == pytest.approx(0.008, abs=0.001)

    assert floating.bytes() == weight.numel() + 4
    assert torch.equal(floating.scale, exact.abs().amax().view(1, 1) / 448)
    assert_same_bits(floating.floats(), (exact / floating.scale).to(torch.float8_e4m3fn).float() * floating.scale)
    assert rms(floating.floats() - exact) / rms(exact) == pytest.approx(0.026, abs=0.002)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_what_is_no_number_is_not_hidden_and_zeros_stay(kind):
    weight = torch.randn(4, 8)
    weight[1, 2], weight[2, 5] = torch.nan, -torch.inf
    found = quantised(weight, kind).floats()
    assert found[1:3].isnan().all()
    assert found[[0, 3]].isnan().any() == (kind == "fp8")
    assert not quantised(torch.zeros(4, 8), kind).floats().any()
    tiny = torch.full((4, 8), 1e-44)
    assert (quantised(tiny, kind).floats() - tiny).abs().max() <= 1e-43


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_layer_is_a_plain_one_with_the_weights_rounded(kind, dtype):
    matrix = random_matrix(kind, 48, 256)
    weight = matrix.floats().to(dtype)
    for x, bias in ((torch.randn(2, 5, 256), torch.randn(48)), (torch.randn(3, 256), None), (torch.randn(256), None)):
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        assert torch.equal(PackedLinear.of(matrix, bias)(x), linear(x, weight, bias))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_is_added_to_its_rows_before_rounding(kind, dtype, seams):
    matrix, bias, x = random_matrix(kind, 48, 256), torch.randn(48).to(dtype), torch.randn(4, 256).to(dtype)
    layer = PackedLinear.of(matrix, bias)
    layer.lora = [
        (0, torch.randn(48, 3), torch.randn(3, 256), 0.02),
        (16, torch.randn(16, 2), torch.randn(2, 256), -0.1),
    ]
    weight = matrix.floats()
    for first, up, down, factor in layer.lora:
        weight[first : first + len(up)] += factor * (up @ down)
    wanted = linear(x, weight.to(dtype), bias)
    error = (layer(x) - wanted).abs().max() / wanted.abs().max()
    assert error < (1e-6 if dtype == torch.float32 else 1e-2)
    found = torch.cat([weights.clone() for _, weights in layer.pieces(torch.float32)])
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_stacked_and_swapped_as_those_of_floats(kind):
    parts = [random_matrix(kind, rows, 256) for rows in (4, 6, 2)]
    for matrix in (stacked(parts), row_halves_swapped(stacked(parts))):
        assert matrix.shape == (12, 256) and len(matrix.data) == 12
    floats = torch.cat([part.floats() for part in parts])
    assert torch.equal(stacked(parts).floats(), floats)
    assert torch.equal(row_halves_swapped(stacked(parts)).floats(), torch.cat([floats[6:], floats[:6]]))
    assert torch.equal(row_halves_swapped(parts[0]).floats(), parts[0].floats().roll(2, 0))


def test_matrices_with_and_without_a_scale_are_stacked_and_other_kinds_are_not():
    scaled, plain = (
        quantised(torch.randn(4, 8), "fp8"),
        Packed("F8_E4M3", torch.randn(2, 8).to(DTYPES["F8_E4M3"]), None, (2, 8)),
    )
    assert torch.equal(stacked([scaled, plain]).floats(), torch.cat([scaled.floats(), plain.floats()]))
    for other in (quantised(torch.randn(4, 8), "int8"), quantised(torch.randn(4, 16), "fp8")):
        with pytest.raises(ValueError, match="kinds or widths"):
            stacked([scaled, other])


def test_a_layer_is_made_from_sizes_and_filled_again_and_again():
    with torch.device("meta"):
        layer = PackedLinear("INT8", (6, 8), (6, 8), (6, 1), bias=True).requires_grad_(False)
    assert {name: (tuple(t.shape), t.dtype) for name, t in layer.state_dict().items()} == {
        "packed": ((6, 8), torch.int8),
        "scale": ((6, 1), torch.float32),
        "bias": ((6,), torch.float32),
    }
    x = torch.randn(3, 8)
    for _ in range(2):
        matrix, bias = quantised(torch.randn(6, 8), "int8"), torch.randn(6)
        layer.load_state_dict({"packed": matrix.data, "scale": matrix.scale, "bias": bias}, assign=True)
        assert layer.packed.data_ptr() == matrix.data.data_ptr()  # not copied
        assert torch.equal(layer(x), linear(x, matrix.floats(), bias))
    assert PackedLinear("Q4_0", (6, 64), (6, 36), bias=False).state_dict().keys() == {"packed"}


class Sizes(TorchDispatchMode):
    """Notes the largest piece of memory behind any tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        found = function(*arguments, **(more or {}))
        if isinstance(found, torch.Tensor):
            self.largest = max(self.largest, found.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_matrix_at_more_bits_is_made(dtype):
    layer = PackedLinear.of(quantised(torch.randn(4096, 4096), "int8"))
    assert sum(t.nbytes for t in layer.state_dict().values()) < 1.01 * 4096**2
    x = torch.randn(2, 4096, dtype=dtype)
    with torch.inference_mode(), Sizes() as sizes:
        layer(x)
    assert sizes.largest == 4096**2  # the packed matrix itself


def test_layers_may_be_brought_up_in_threads_at_once():
    layers = [PackedLinear.of(random_matrix(kind, 700, 1536)) for kind in ("F8_E4M3", "Q4_K", "Q5_0", "INT8")]
    x = torch.randn(2, 1536)
    wanted = [layer(x) for layer in layers]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            found = list(threads.map(lambda layer: layer(x), layers))
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))

"""The faster attention and dense layers for bfloat16 on the CPU, against float64 and against PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from resd3_medium import cpu_kernels
from resd3_medium.cpu_kernels import attention, dense

needed = pytest.mark.skipif(not cpu_kernels.fused_layers(), reason="this processor has no bfloat16 layers")


def rows(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def any_width(monkeypatch) -> None:
    """Small models count as large ones."""
    monkeypatch.setattr(cpu_kernels, "LARGE", 0)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@needed
@pytest.mark.parametrize("length", [1, 97, 300])
@torch.inference_mode()
def test_attention_is_as_exact_as_bfloat16_allows(any_width, monkeypatch, length):
    """Queries in several parts; keys with a common offset, as trained ones have, must not cost precision."""
    monkeypatch.setattr(cpu_kernels, "QUERIES", 128)
    q, k, v = (rows((2, 3, length, 64), seed) for seed in range(3))
    for keys in (k, k + 8 * rows((1, 3, 1, 64), 3)):
        exact = scaled_dot_product_attention(q.double(), keys.double(), v.double())
        found = attention(q, keys, v)
        assert error(found, exact) < 0.02
        assert length == 1 or not torch.equal(found, scaled_dot_product_attention(q, keys, v))


@needed
@torch.inference_mode()
def test_dense_layers_are_at_least_as_exact_as_their_parts(any_width):
    layer, x = nn.Linear(96, 160).bfloat16(), rows((2, 50, 96), 0)
    exact = layer.double()(x.double())
    layer.bfloat16()
    assert error(dense(layer, x), exact) <= error(layer(x), exact) * 1.01
    smooth = gelu(exact, approximate="tanh")
    assert error(dense(layer, x, gelu=True), smooth) <= error(gelu(layer(x), approximate="tanh"), smooth) * 1.01


def test_everything_else_is_pytorchs_own_bit_for_bit(monkeypatch):
    """Small models, float32, gradients, and layers that are no plain ones."""
    small = cpu_kernels.LARGE
    assert small == 1024  # the pocket model has a width of 384
    cases = (
        (torch.bfloat16, False, small),
        (torch.float32, False, 0),
        (torch.float16, False, 0),
        (torch.bfloat16, True, 0),
    )
    for dtype, grad, width in cases:
        monkeypatch.setattr(cpu_kernels, "LARGE", width)
        with torch.set_grad_enabled(grad):
            q, k, v = (rows((1, 2, 9, 64), seed, dtype) for seed in range(3))
            layer, x = nn.Linear(64, 32).to(dtype), q[0]
            assert torch.equal(attention(q, k, v), scaled_dot_product_attention(q, k, v))
            assert torch.equal(dense(layer, x), layer(x))
            assert torch.equal(dense(layer, x, gelu=True), gelu(layer(x), approximate="tanh"))

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with torch.inference_mode():
        layer, x = Doubled(64, 32).bfloat16(), rows((3, 64), 0)
        assert torch.equal(dense(layer, x), layer(x))

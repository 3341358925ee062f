"""Faster forms of the transformer's attention and dense layers, for bfloat16 on the CPU.

PyTorch's fused attention multiplies bfloat16 there at half the speed of plain products, and its dense layers copy the
bias and round before the activation. Everywhere else, in small models, and where gradients are asked for, PyTorch's
own are taken, bit for bit. Start reading at `attention`.
"""

import functools

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 1024  # that are compared with all keys at a time
LARGE = 1024  # width of the rows from which the faster forms are taken; smaller models gain little


@functools.cache
def fused_layers() -> bool:
    """Whether this PyTorch, on this processor, has dense layers with bias and activation in one for bfloat16."""
    mkldnn = torch.ops.mkldnn
    return hasattr(mkldnn, "_linear_pointwise") and bool(mkldnn._is_mkldnn_bf16_supported())


def suits(x: torch.Tensor, width: int) -> bool:
    """Whether the faster forms are for x, whose rows have that width."""
    fits = x.device.type == "cpu" and x.dtype == torch.bfloat16 and width >= LARGE
    return fits and not torch.is_grad_enabled() and fused_layers()


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(width)) v for q, k, v [B, heads, L, width]; as many heads at a time as there are threads.

    Scores are rounded to bfloat16. They are those of the keys less their mean, which moves all scores of a query alike
    and so leaves the softmax as it is, but makes them smaller, and their rounding finer.
    """
    if not suits(queries, queries.shape[1] * queries.shape[3]):
        return scaled_dot_product_attention(queries, keys, values)
    q = (queries * queries.shape[-1] ** -0.5).flatten(0, 1)
    k, v = (keys - keys.mean(2, keepdim=True)).flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    found = torch.empty_like(v)
    heads = torch.get_num_threads()
    for h in range(0, len(q), heads):
        for i in range(0, q.shape[1], QUERIES):
            scores = torch.bmm(q[h : h + heads, i : i + QUERIES], k[h : h + heads])
            torch.bmm(scores.softmax(2), v[h : h + heads], out=found[h : h + heads, i : i + QUERIES])
    return found.view_as(queries)


def dense(layer: nn.Module, x: torch.Tensor, gelu: bool = False) -> torch.Tensor:
    """A dense layer of x [.., in], with `gelu` followed by a GELU in its tanh form."""
    if type(layer) is nn.Linear and suits(x, x.shape[-1]):
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, name, [], form)
    # in place, which spares a copy of the widest rows; autograd keeps what it needs
    return torch.ops.aten.gelu_(layer(x), approximate="tanh") if gelu else layer(x)

"""Matrix products and attention: accumulated in float32, rounded once at the end."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from pulse_edge.export.milrun.registry import Tensor, Tensors, op


@op()
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*, in] · weight [out, in]ᵀ + bias [out]."""
    return functional.linear(x, weight, bias)


@op()
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Product of matrices, broadcast over the leading dimensions; a vector is not transposed."""
    if transpose_x and x.ndim > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.ndim > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@op()
def einsum(values: Tensors, equation: str) -> Tensor:
    """Einstein's sum of two tensors."""
    return torch.einsum(equation, *values)


@op()
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query · keyᵀ / √E + mask) · value.

    query [B, *, L, E], key [B, *, S, E], value [B, *, S, EV]; a mask [*, L, S] is added, or, of booleans,
    says which elements take part. Scores and weights stay in float32.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)

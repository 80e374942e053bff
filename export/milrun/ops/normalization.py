"""Normalisations: mean and variance in float32, rounded once at the end."""

from __future__ import annotations

import torch
from torch.nn import functional

from pulse_edge.export.milrun.registry import Ints, Tensor, op


@op()
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma · (x - mean) / √(variance + epsilon) + beta, all [C], for x [n, C, …]."""
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@op()
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """The same with the mean and variance of each channel of each element of the batch."""
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@op()
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """The same over ``axes``; gamma and beta have the lengths of those axes."""
    over = sorted(axis % x.ndim for axis in axes) if axes else list(range(x.ndim))
    shape = [length if axis in over else 1 for axis, length in enumerate(x.shape)]
    variance, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@op()
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / √(Σ x² + epsilon) over the last three dimensions."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@op()
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size · Σ x²)^beta over ``size`` neighbouring channels."""
    return functional.local_response_norm(x, size, alpha, beta, k)

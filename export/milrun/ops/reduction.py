"""Reductions: in float32, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from pulse_edge.export.milrun.registry import Ints, Tensor, op, register

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Mean; of integers, an integer."""
    if x.is_floating_point():
        return x.mean(axes, keep)
    return x.double().mean(axes, keep).to(x.dtype)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype)


REDUCE: Final[dict[str, Reduce]] = {
    "reduce_l1_norm": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": _mean,
    "reduce_min": torch.amin,
    "reduce_prod": _prod,
    "reduce_sum": _sum,
    "reduce_sum_square": lambda x, axes, keep: _sum(x.square(), axes, keep),
}


def _register(name: str, compute: Reduce) -> None:
    def apply(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        over = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
        return compute(x, over, keep_dims)

    register(name, apply)


for _name, _reduce in REDUCE.items():
    _register(_name, _reduce)


@op()
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the largest value; the first of equals."""
    return torch.argmax(x, axis, keep_dims).to(torch.int32)


@op()
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Index of the smallest value; the first of equals."""
    return torch.argmin(x, axis, keep_dims).to(torch.int32)

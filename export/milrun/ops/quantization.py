"""Quantisation of activations (iOS 17): a scale and a zero point for all or for each index of an axis."""

from __future__ import annotations

import torch

from pulse_edge.export.milrun.registry import Tensor, op

_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


@op()
def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero point), halves to the even neighbour."""
    values = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        values = values + _along(zero_point, input, axis)
    return values.clamp(*_RANGE[output_dtype]).to(torch.int32)


@op()
def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """scale · (input - zero point)."""
    values = input.to(scale.dtype)
    if zero_point is not None:
        values = values - _along(zero_point, input, axis)
    return values * _along(scale, input, axis)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)

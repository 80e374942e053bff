"""Shapes, and tensors made from shapes."""

from __future__ import annotations

import math

import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Ints, Tensor, Tensors, op


@op(moves=True)
def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


@op(moves=True)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """Another shape: 0 keeps a length where the rank stays, -1 is worked out."""
    if len(shape) == x.ndim:
        shape = [x.shape[i] if length == 0 else length for i, length in enumerate(shape)]
    return x.reshape(shape)


@op(moves=True)
def reshape_like(
    x: Tensor, ref_tensors: Tensors, begins: Tensors, ends: Tensors, end_masks: Tensors
) -> Tensor:
    """The shape put together from parts of other tensors' shapes."""
    shape: list[int] = []
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += ref.shape[int(begin) : None if bool(to_end) else int(end)]
    return x.reshape(shape)


@op(moves=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Two dimensions: those before an axis, and the others."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


@op(moves=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Dimensions in another order."""
    return x.permute(perm)


@op(moves=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Dimensions of length 1 at ``axes`` of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op(moves=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Without the dimensions ``axes``, or all, of length 1."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@op(moves=True)
def shape(x: Tensor) -> Tensor:
    """Lengths of the dimensions, int32 [rank]."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op(moves=True)
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    """A tensor of one value, 0 by default."""
    value = torch.zeros(()) if value is None else value
    return value.reshape(()).expand(shape)


@op(moves=True)
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """The same in the shape of another tensor."""
    return fill(list(ref_tensor.shape), value)


@op()
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, … before end."""
    first, last, by = (value.reshape(()).item() for value in (start, end, step))
    if by == 0:
        raise BundleError("a range with a step of 0 has no end")
    count = max(0, math.ceil((last - first) / by))
    return first + by * torch.arange(count, dtype=start.dtype)


@op(moves=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """x repeated along each dimension."""
    return x.repeat(reps)


@op(moves=True)
def non_zero(x: Tensor) -> Tensor:
    """Points where x is not 0, int32 [n, rank]."""
    return torch.nonzero(x).to(torch.int32)


@op(moves=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """Vectors along a new axis: ``on_value``, 1 by default, at the index, ``off_value``, 0, elsewhere."""
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value
    at = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    return torch.where(at, on, off).movedim(-1, axis)


@op(moves=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Matrices with zeros beyond ``lower`` diagonals below the main one and ``upper`` above; -1 keeps all."""
    below = torch.arange(x.shape[-2]).unsqueeze(1) - torch.arange(x.shape[-1])
    keep = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))

"""Gathering and scattering.

MIL leaves indices outside the tensor undefined, and since iOS 17 negative ones too. A program that uses them
cannot be verified, so indices beyond either end are an error here; -n to -1 count from the end, as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Tensor, op


@op(moves=True)
def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of x at ``indices`` of an axis: D[:axis] + N[batch_dims:] + D[axis + 1:]."""
    axis %= x.ndim
    index = _within(indices, x.shape[axis])
    if batch_dims == 0:
        flat = x.index_select(axis, index.reshape(-1))
        return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
    batch = x.shape[:batch_dims]
    rows = x.reshape(-1, *x.shape[batch_dims:])
    picks = index.reshape(rows.shape[0], *index.shape[batch_dims:])
    parts = [gather(row, pick, axis - batch_dims) for row, pick in zip(rows, picks, strict=True)]
    stacked = torch.stack(parts)
    return stacked.reshape(*batch, *stacked.shape[1:])


@op(moves=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """Single values of x along an axis: as many as there are indices, whose other lengths are those of x."""
    return torch.take_along_dim(x, _within(indices, x.shape[axis]), axis)


@op(moves=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x at the points that the last dimension of ``indices`` holds."""
    if batch_dims == 0:
        points = indices.unbind(-1)
        return x[tuple(_within(point, x.shape[i]) for i, point in enumerate(points))]
    rows = x.reshape(-1, *x.shape[batch_dims:])
    picks = indices.reshape(rows.shape[0], *indices.shape[batch_dims:])
    stacked = torch.stack([gather_nd(row, pick) for row, pick in zip(rows, picks, strict=True)])
    return stacked.reshape(*x.shape[:batch_dims], *stacked.shape[1:])


@op()
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Combine slices into data at ``indices`` [n] of an axis."""
    axis %= data.ndim
    shape = [1] * updates.ndim
    shape[axis] = -1
    return _scatter(
        data, _within(indices, data.shape[axis]).reshape(shape).expand_as(updates), updates, axis, mode
    )


@op()
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Combine single values into data along an axis."""
    return _scatter(data, _within(indices, data.shape[axis]), updates, axis % data.ndim, mode)


@op()
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Combine slices into data at the points that the last dimension of ``indices`` holds."""
    depth = indices.shape[-1]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for i, point in enumerate(indices.unbind(-1)):
        flat = flat * data.shape[i] + _within(point, data.shape[i])
    rows = data.reshape(data.shape[:depth].numel(), -1)
    values = updates.reshape(flat.numel(), -1)
    index = flat.reshape(-1, 1).expand_as(values)
    return _scatter(rows, index, values, 0, mode).reshape(data.shape)


Combine = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _reduced(how: str) -> Combine:
    return lambda data, index, updates, axis: data.scatter_reduce(axis, index, updates, how)


def _divided(data: Tensor, index: Tensor, updates: Tensor, axis: int) -> Tensor:
    by = torch.ones_like(data).scatter_reduce(axis, index, updates, "prod")
    return data / by if data.is_floating_point() else torch.div(data, by, rounding_mode="trunc")


MODES: Final[dict[str, Combine]] = {
    "update": lambda data, index, updates, axis: data.scatter(axis, index, updates),
    "add": lambda data, index, updates, axis: data.scatter_add(axis, index, updates),
    "sub": lambda data, index, updates, axis: data.scatter_add(axis, index, -updates),
    "mul": _reduced("prod"),
    "div": _divided,
    "max": _reduced("amax"),
    "min": _reduced("amin"),
}


def _scatter(data: Tensor, index: Tensor, updates: Tensor, axis: int, mode: str) -> Tensor:
    if mode not in MODES:
        raise BundleError(f"there is no mode {mode!r} of scatter")
    return MODES[mode](data, index, updates, axis)


def _within(indices: Tensor, length: int) -> Tensor:
    """Return indices as int64 [0, length); those from the end made positive."""
    index = indices.to(torch.int64)
    if index.numel():
        low, high = torch.aminmax(index)
        if low < -length or high >= length:
            worst = int(high if high >= length else low)
            raise BundleError(f"the index {worst} lies outside a dimension of {length}")
        if low < 0:
            index = torch.where(index < 0, index + length, index)
    return index

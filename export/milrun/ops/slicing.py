"""Slices read and written, padding, splitting and joining."""

from __future__ import annotations

import torch
from torch.nn import functional

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Bools, Ints, Tensor, Tensors, op


@op(moves=True)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x[begin:end:stride, …]; masks stand for an open begin, an open end, and a single index."""
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, picked in enumerate(ranges):
        if picked.step == 1:
            x = x.narrow(axis, picked.start, len(picked))
        else:
            x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64))
    return x.squeeze([i for i, gone in enumerate(squeeze_mask) if gone]) if squeeze_mask else x


@op(moves=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """``size`` elements from ``begin`` on, all that are left where it is -1."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        first = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@op(moves=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x with the slice that ``slice_by_index`` would read replaced by ``update``."""
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    y = x.clone()
    lengths = [len(picked) for picked in ranges]
    if all(picked.step == 1 for picked in ranges):
        target = y[tuple(slice(picked.start, picked.start + len(picked)) for picked in ranges)]
        target.copy_(update.reshape(lengths))
    else:
        points = torch.meshgrid(*(torch.tensor(p, dtype=torch.int64) for p in ranges), indexing="ij")
        y[points] = update.reshape(lengths)
    return y


@op(moves=True)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """Add to both ends of the last dimensions: a constant, the edge, or a reflection without the edge."""
    sides = list(zip(pad[::2], pad[1::2], strict=True))
    first = x.ndim - len(sides)
    if mode == "constant":
        value = 0 if constant_val is None else constant_val.item()
        return functional.pad(x, [n for side in reversed(sides) for n in side], value=value)
    if mode not in ("reflect", "replicate"):
        raise BundleError(f"there is no mode {mode!r} of pad")
    for axis, (before, after) in enumerate(sides, first):
        if before or after:
            index = torch.arange(-before, x.shape[axis] + after)
            last = x.shape[axis] - 1
            if mode == "replicate":
                index = index.clamp(0, last)
            else:
                if max(before, after) > last:
                    raise BundleError(
                        f"a dimension of {last + 1} cannot be reflected over {before} and {after}"
                    )
                index = last - (last - index.abs()).abs()
            x = x.index_select(axis, index)
    return x


@op(moves=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Without some rows at the top and bottom and some columns at the left and right."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@op(moves=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Tensors joined along an axis, one after the other or element by element; scalars make a vector."""
    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if interleave:
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@op(moves=True)
def stack(values: Tensors, axis: int) -> Tensor:
    """Tensors joined along a new axis."""
    return torch.stack(values, axis)


@op(moves=True)
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    """Parts of x along an axis, of the sizes given or equal ones."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise BundleError(f"a dimension of {x.shape[axis]} cannot be split into {num_splits} equal parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, axis)


def _ranges(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> list[range]:
    """Return the indices of each dimension that a slice covers, as Python's own slices would."""
    no = [False] * x.ndim
    rows = (begin, end, stride or [1] * x.ndim, begin_mask or no, end_mask or no, squeeze_mask or no)
    if any(len(row) != x.ndim for row in rows):
        raise BundleError(f"a slice of {len(begin)} dimensions does not fit a tensor of {x.ndim}")
    ranges = []
    for length, first, last, step, open_begin, open_end, single in zip(x.shape, *rows, strict=True):
        if single:
            at = 0 if open_begin else first + length if first < 0 else first
            if not 0 <= at < length:
                raise BundleError(f"the index {first} lies outside a dimension of {length}")
            ranges.append(range(at, at + 1))
        else:
            cut = slice(None if open_begin else first, None if open_end else last, step)
            ranges.append(range(*cut.indices(length)))
    return ranges

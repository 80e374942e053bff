"""Order: sorting, reversing, running sums, and space traded for channels or batch."""

from __future__ import annotations

import torch
from torch.nn import functional

from pulse_edge.export.milrun.registry import Ints, Tensor, op


@op(moves=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Indices that sort x; equals stay in order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(torch.int32)


@op(moves=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The k largest, or smallest, values and where they stand. They are sorted in any case."""
    values, indices = torch.sort(x, stable=True, dim=axis, descending=not ascending)
    kept = values.narrow(axis, 0, k)
    return (kept, indices.narrow(axis, 0, k).to(torch.int32)) if return_indices else (kept,)


@op()
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along an axis, from either end, with or without the element itself."""
    y = x.flip(axis) if reverse else x
    total = y.cumsum(axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat(
            [torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis
        )
    return total.flip(axis) if reverse else total


@op(moves=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """x backwards along ``axes``, or all."""
    return x.flip(list(range(x.ndim)) if axes is None else axes)


@op(moves=True)
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` elements of each of the batch backwards, the others as they are."""
    parts = []
    for row, length in zip(x.unbind(batch_axis), lengths, strict=True):
        axis = seq_axis % x.ndim
        axis -= axis > batch_axis % x.ndim
        head, tail = row.narrow(axis, 0, length), row.narrow(axis, length, row.shape[axis] - length)
        parts.append(torch.cat([head.flip(axis), tail], axis))
    return torch.stack(parts, batch_axis)


@op(moves=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows along an axis: D[:axis] + [windows, size] + D[axis + 1:]."""
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


@op(moves=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Channels [C · f²] to space; the channel is the slowest of the three, as in PyTorch."""
    return functional.pixel_shuffle(x, upscale_factor)


@op(moves=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Space to channels [C · f²], as in PyTorch."""
    return functional.pixel_unshuffle(x, downscale_factor)


@op(moves=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels [f² · C] to space; the place in the block is the slowest, as in TensorFlow."""
    n, channels, height, width = x.shape
    f = block_size
    y = x.reshape(n, f, f, channels // f**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, channels // f**2, height * f, width * f)


@op(moves=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Space to channels [f² · C], as in TensorFlow."""
    n, channels, height, width = x.shape
    f = block_size
    y = x.reshape(n, channels, height // f, f, width // f, f).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, channels * f**2, height // f, width // f)


@op(moves=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """Space to batch, the place in the block being the slowest, after padding with zeros."""
    top, bottom, left, right = paddings
    x = functional.pad(x, [left, right, top, bottom])
    n, channels, height, width = x.shape
    down, across = block_shape
    y = x.reshape(n, channels, height // down, down, width // across, across).permute(3, 5, 0, 1, 2, 4)
    return y.reshape(-1, channels, height // down, width // across)


@op(moves=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """Batch to space, then a crop: the inverse of ``space_to_batch``."""
    many, channels, height, width = x.shape
    down, across = block_shape
    y = x.reshape(down, across, many // (down * across), channels, height, width).permute(2, 3, 4, 0, 5, 1)
    y = y.reshape(-1, channels, height * down, width * across)
    top, bottom, left, right = crops
    return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]

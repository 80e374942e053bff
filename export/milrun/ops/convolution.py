"""Convolution and pooling in one, two and three dimensions, with MIL's four kinds of padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Ints, Tensor, op

Sizes = list[int]
_CONV: Final = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: Final = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_AVERAGE: Final = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_MAXIMUM: Final = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


@op()
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve x [n, C, *D] with weight [out, C / groups, *K]."""
    n = x.ndim - 2
    steps, holes = strides or [1] * n, dilations or [1] * n
    reach = _reach(list(weight.shape[2:]), holes)
    sides = _padding(pad_type, pad, list(x.shape[2:]), reach, steps)
    if all(before == after for before, after in sides):
        return _CONV[n - 1](x, weight, bias, steps, [before for before, _ in sides], holes, groups)
    return _CONV[n - 1](_padded(x, sides, 0.0), weight, bias, steps, 0, holes, groups)


@op()
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution: the whole result, of which ``pad`` is cut off, or ``output_shape`` is kept."""
    n = x.ndim - 2
    steps, holes = strides or [1] * n, dilations or [1] * n
    whole = _TRANSPOSED[n - 1](x, weight, None, steps, 0, 0, groups, holes)
    lengths = list(whole.shape[2:])
    if pad_type == "custom":
        sides = _pairs(pad, n)
        wanted = [length - before - after for length, (before, after) in zip(lengths, sides, strict=True)]
    elif pad_type.startswith("same"):
        wanted = [length * step for length, step in zip(x.shape[2:], steps, strict=True)]
        spare = [max(0, length - want) for length, want in zip(lengths, wanted, strict=True)]
        sides = [(cut - cut // 2 if pad_type == "same_lower" else cut // 2, 0) for cut in spare]
    else:
        wanted, sides = lengths, [(0, 0)] * n
    if output_shape is not None:
        wanted = output_shape[2:]
    # from ``before`` on, as long as wanted; what lies beyond the whole result is empty
    cut = [
        (-before, before + want - length)
        for (before, _), want, length in zip(sides, wanted, lengths, strict=True)
    ]
    y = _padded(whole, cut, 0.0)
    return y if bias is None else y + bias.reshape(-1, *[1] * n)


@op()
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value in each window."""
    steps = strides or [1] * len(kernel_sizes)
    sides, more = _pool_padding(x, kernel_sizes, steps, pad_type, pad, ceil_mode)
    whole = [(before, after + extra) for (before, after), extra in zip(sides, more, strict=True)]
    return _MAXIMUM[x.ndim - 3](_padded(x, whole, -math.inf), kernel_sizes, steps)


@op()
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window; padding counts as zeros, or not at all.

    What ``ceil_mode`` adds behind the padding never counts.
    """
    steps = strides or [1] * len(kernel_sizes)
    sides, more = _pool_padding(x, kernel_sizes, steps, pad_type, pad, ceil_mode)
    beyond = [(0, extra) for extra in more]
    counted = _padded(torch.ones_like(x[:1, :1]), sides, 0.0 if exclude_padding_from_average else 1.0)
    pool: Callable[..., Tensor] = _AVERAGE[x.ndim - 3]
    total = pool(_padded(_padded(x, sides, 0.0), beyond, 0.0), kernel_sizes, steps)
    return total / pool(_padded(counted, beyond, 0.0), kernel_sizes, steps)


@op()
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Root of the sum of squares in each window."""
    steps = strides or [1] * len(kernel_sizes)
    sides, more = _pool_padding(x, kernel_sizes, steps, pad_type, pad, ceil_mode)
    whole = [(before, after + extra) for (before, after), extra in zip(sides, more, strict=True)]
    mean = _AVERAGE[x.ndim - 3](_padded(x.square(), whole, 0.0), kernel_sizes, steps)
    return (mean * math.prod(kernel_sizes)).sqrt()


def _reach(kernel: Sizes, dilations: Sizes) -> Sizes:
    return [(size - 1) * hole + 1 for size, hole in zip(kernel, dilations, strict=True)]


def _pairs(pad: list[int] | None, n: int) -> list[tuple[int, int]]:
    if pad is None or len(pad) != 2 * n:
        raise BundleError(f"the padding {pad} is not a pair for each of {n} dimensions")
    return list(zip(pad[::2], pad[1::2], strict=True))


def _padding(
    pad_type: str, pad: list[int] | None, lengths: Sizes, reach: Sizes, steps: Sizes
) -> list[tuple[int, int]]:
    """Return what is added before and after each spatial dimension."""
    if pad_type == "valid":
        return [(0, 0)] * len(lengths)
    if pad_type == "custom":
        return _pairs(pad, len(lengths))
    if pad_type not in ("same", "same_lower"):
        raise BundleError(f"there is no padding {pad_type!r}")
    sides = []
    for length, size, step in zip(lengths, reach, steps, strict=True):
        both = max(0, (-(-length // step) - 1) * step + size - length)
        fewer, more = both // 2, both - both // 2
        sides.append((more, fewer) if pad_type == "same_lower" else (fewer, more))
    return sides


def _pool_padding(
    x: Tensor, kernel: Sizes, steps: Sizes, pad_type: str, pad: list[int] | None, ceil_mode: bool
) -> tuple[list[tuple[int, int]], Sizes]:
    """Return the padding, and how much further the last window of ``ceil_mode`` reaches."""
    sides = _padding(pad_type, pad, list(x.shape[2:]), kernel, steps)
    more = [0] * len(kernel)
    if ceil_mode:
        for i, (length, (before, after)) in enumerate(zip(x.shape[2:], sides, strict=True)):
            whole = length + before + after
            count = -(-(whole - kernel[i]) // steps[i]) + 1
            if (count - 1) * steps[i] >= length + before:  # no window begins behind the input
                count -= 1
            more[i] = max(0, (count - 1) * steps[i] + kernel[i] - whole)
    return sides, more


def _padded(x: Tensor, sides: list[tuple[int, int]], value: float) -> Tensor:
    """Add to, or with negative numbers take from, both ends of the last dimensions."""
    if not any(before or after for before, after in sides):
        return x
    return functional.pad(x, [amount for side in reversed(sides) for amount in side], value=value)

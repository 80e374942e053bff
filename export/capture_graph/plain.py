"""Small numerical tools in operators that every target has: no LAPACK, no loops, no sorting of pictures.

Tensors are float32; masks are float32 too, 0 or 1, since Core ML and TensorRT know few operators on bools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

FAR: Final = 1e9  # further than any value that is compared


def array(values: object) -> Tensor:
    """Turn numbers into a float32 tensor."""
    return torch.tensor(np.asarray(values, np.float32))


def length(values: Tensor, axis: int = -1) -> int:
    """Length of an axis, as a number: a trace would otherwise compute with shapes."""
    return int(values.shape[axis])


def count(n: int) -> Tensor:
    """0, 1, … as float32 [n]."""
    return torch.arange(n, dtype=torch.float32)


def true(condition: Tensor) -> Tensor:
    """A condition as 0 or 1, float32."""
    return condition.to(torch.float32)


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` where a mask is 1, else ``no``."""
    return torch.where(mask > 0.5, yes, no)


def sane(values: Tensor, most: float) -> Tensor:
    """0 for what is no number or beyond ``most``: of flat pictures nothing may index a table."""
    return choose(true(torch.abs(values) < most), values, torch.zeros_like(values))


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve small symmetric positive systems by Gauss and Jordan's elimination; they need no pivoting.

    Args:
        matrix: [..., n, n].
        right: [..., n, k].

    Returns:
        [..., n, k].
    """
    n = length(matrix)
    rows, eye = torch.cat([matrix, right], -1), torch.eye(n)
    for k in range(n):
        row, column = rows.select(-2, k), rows.select(-1, k)
        column = (column - eye[k]) / row.select(-1, k).unsqueeze(-1)
        rows = rows - column.unsqueeze(-1) * row.unsqueeze(-2)
    return rows[..., n:]


def median(values: Tensor, mask: Tensor) -> Tensor:
    """Median of the values [..., m] that a mask of the same shape keeps; [..., 1], -FAR if it keeps none.

    The larger half is sorted, which for up to 7678 values stays below TensorRT's limit of 3840.
    """
    m = length(values)
    top = torch.topk(choose(mask, values, values * 0 - FAR), m // 2 + 1, dim=-1).values
    kept = mask.sum(-1, keepdim=True)
    places = [torch.clamp(torch.floor(part), 0, m // 2) for part in ((kept - 1) / 2, kept / 2)]
    low, high = (torch.gather(top, -1, place.to(torch.int64)) for place in places)
    return (low + high) / 2


def quantile(values: Tensor, total: Tensor | int, share: float, most: Tensor, steps: int = 22) -> Tensor:
    """Value below which a share of ``total`` values lies, by bisection between 0 and ``most``.

    For as many values as a picture has. Exact to ``most / 2 ** steps``.

    Args:
        values: [..., m]; those that do not count are larger than ``most``.
        total: how many count.
        share: of them.
        most: [..., 1].
        steps: of bisection.

    Returns:
        [..., 1].
    """
    wanted = total * share
    low, width = most * 0, most
    for _ in range(steps):
        width = width / 2
        below = true(values <= low + width).sum(-1, keepdim=True)
        low = low + width * true(below < wanted)
    return low + width


def between(index: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mask of the indices from ``low`` to below ``high``."""
    return true(index > low - 0.5) * true(index < high - 0.5)


def pick(table: Tensor, at: Tensor) -> Tensor:
    """Entries of a table [n, ...] at whole places, float32 [k]: [k, ...]."""
    return torch.index_select(table, 0, at.to(torch.int64))


def area(side: Tensor, cells: Tensor, most: int, room: int) -> Tensor:
    """Matrix [most, room] of means over ``cells`` parts of the first ``side`` pixels (cv2.INTER_AREA)."""
    step = side / cells
    begin = count(most)[:, None] * step
    pixel = count(room)[None]
    shared = torch.minimum(pixel + 1, begin + step) - torch.maximum(pixel, begin)
    real = true(count(most)[:, None] < cells - 0.5) * true(pixel < side - 0.5)
    return torch.clamp(shared, min=0) / step * real


def linear(side: Tensor, cells: Tensor, most: int, room: int) -> Tensor:
    """Matrix [room, most] that enlarges ``cells`` values to ``side`` pixels (cv2.INTER_LINEAR)."""
    at = (count(room)[:, None] + 0.5) * cells / side - 0.5
    at = torch.minimum(torch.clamp(at, min=0), cells - 1)
    hat = torch.clamp(1 - torch.abs(at - count(most)[None]), min=0)
    return hat * true(count(room)[:, None] < side - 0.5)


def folded(kernel: Callable[[Tensor], Tensor], side: Tensor, most: int) -> Tensor:
    """Matrix [most, most] of a symmetric filter on ``side`` values mirrored at their ends (reflect 101).

    Args:
        kernel: of the distance; far out it is 0.
        side: how many values there are.
        most: at most.
    """
    i, j = count(most)[:, None], count(most)[None]
    end = side - 1
    inner = true(j > 0.5) * true(j < end - 0.5)  # the ends themselves are met once
    weight = kernel(i - j) + kernel(i + j) * true(j > 0.5)
    weight = weight + kernel(2 * end - i - j) * true(j < end - 0.5)
    # A second fold, for sides that are shorter than the filter.
    weight = weight + (kernel(2 * end + i - j) + kernel(2 * end - i + j)) * inner
    weight = weight * true(j < side - 0.5)
    return weight / torch.clamp(weight.sum(1, keepdim=True), min=1e-9) * true(i < side - 0.5)


def gaussian(sigma: Tensor, radius: Tensor) -> Callable[[Tensor], Tensor]:
    """Filter for :func:`folded`: a Gaussian cut off at a radius."""
    return lambda away: torch.exp(-0.5 * (away / sigma) ** 2) * true(torch.abs(away) < radius + 0.5)

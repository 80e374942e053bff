"""Each window's frequency near an expected one, and the grid followed from window to window.

Where the reference goes on from the clearest window first, here all windows beside those that are known are
looked at in one sweep, as many sweeps as the longest way takes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.plain import FAR, array, choose, count, length, median, pick, sane, true
from pulse_edge.export.capture_graph.reference import FOLLOWED, SURE, WINDOW
from pulse_edge.export.capture_graph.seed import Seed
from pulse_edge.export.capture_graph.spectra import HALF, Spectra

_SIDE: Final = 13  # entries around the expected one that are cut out; frequencies of 2.15 px/mm reach 12
_WIDE: Final = 2 * _SIDE + 1


def follow(found: Spectra, seed: Seed) -> Tensor:
    """Follow the grid through the picture; frequencies as :func:`peaks`."""
    n = found.side
    total = n * n
    row, column = count(total) // n, count(total) % n
    apart = torch.maximum(torch.abs(row[:, None] - row), torch.abs(column[:, None] - column))
    beside = true(apart < 1.5) * found.filled
    done = true(torch.abs(count(total) - seed.window) < 0.5)
    expected = seed.frequency[None] + torch.zeros(total, 2, 2)
    where, weight = torch.zeros(total, 2, 2), torch.zeros(total, 2)
    for sweep in range(n):
        if sweep:
            say = done * (weight.amin(1) + 0.1)
            sums = beside @ torch.cat([say[:, None], (where * say[:, None, None]).reshape(total, 4)], 1)
            near = sums[:, 1:] / torch.clamp(sums[:, :1], min=1e-6)
            expected, reached = near.reshape(total, 2, 2), true(sums[:, 0] > 1e-6)
        else:
            reached = done
        new = reached if not sweep else reached * (1 - done)
        place, sure = peaks(found, expected, FOLLOWED)
        where = choose(new[:, None, None], place, where)
        weight = choose(new[:, None], sure, weight)
        done = torch.maximum(done, new)
    return where


def peaks(found: Spectra, around: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Find each window's frequency near an expected one.

    Args:
        found: the spectra.
        around: float32 [n, 2, 2], where to look.
        reach: how far from there, relative to the frequency.

    Returns:
        Frequencies, float32 [n, 2, 2], and how far each stands above the median around it, float32 [n, 2],
        in natural logarithms.
    """
    n = length(around, 0)
    expected = sane(around.reshape(2 * n, 2), 1.0)
    flip = 1 - 2 * true(expected[:, :1] < 0)
    centre = expected * flip * WINDOW
    side = torch.round(torch.sqrt((centre**2).sum(1, keepdim=True)) * reach)
    side = torch.clamp(side, 2, _SIDE - 1)
    middle = torch.round(centre)
    patch, dx, dy = _patch(found.power, middle)
    highest = torch.maximum(torch.abs(middle[:, 1:] - side - 1), torch.abs(middle[:, 1:] + side + 1))
    valid = true(middle[:, :1] + side + 1 < WINDOW // 2 + 0.5) * true(highest < WINDOW // 2 - 0.5)
    away = torch.maximum(torch.abs(dx), torch.abs(dy))[None]
    level = median(patch, true(away < side + 1.5))
    at = choose(true(away < side + 0.5), patch, patch * 0 - FAR).argmax(1).to(torch.float32)
    # Where the peak and its neighbours stand in the patch.
    steps = array([0, -1, 1, -_WIDE, _WIDE])
    five = torch.log(torch.gather(patch, 1, (at[:, None] + steps).to(torch.int64)) + 1e-6)
    here, left, right, above, below = five.split(1, 1)
    place = middle + torch.stack([pick(dx, at), pick(dy, at)], 1)
    place = place + torch.cat([_vertex(left, here, right), _vertex(above, here, below)], 1)
    weight = torch.clamp(here - torch.log(level + 2e-6), min=0) * valid
    sure = true(weight > SURE)
    where = choose(sure, place * flip / WINDOW, expected)
    return where.reshape(n, 2, 2), weight.reshape(n, 2)


def _patch(power: Tensor, middle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut squares out of half spectra, which go on to the left of frequency 0 as their mirror image.

    Args:
        power: float32 [n, WINDOW * HALF].
        middle: float32 [2 n, 2], whole columns and rows.

    Returns:
        The squares, float32 [2 n, _WIDE ** 2], and the offset of each entry along x and y, [_WIDE ** 2].
    """
    n = length(power, 0)
    along = np.arange(_WIDE) - _SIDE
    dx, dy = array(np.tile(along, _WIDE)), array(np.repeat(along, _WIDE))
    column, row = middle[:, :1] + dx, middle[:, 1:] + dy
    row = row * (1 - 2 * true(column < -0.5))
    row = torch.clamp(row + WINDOW * true(row < -0.5), 0, WINDOW - 1)
    column = torch.clamp(torch.abs(column), 0, HALF - 1)
    index = (row * HALF + column).reshape(n, -1).to(torch.int64)
    return torch.gather(power, 1, index).reshape(2 * n, -1), dx, dy


def _vertex(before: Tensor, here: Tensor, after: Tensor) -> Tensor:
    """Where the parabola through values at -1, 0, 1 peaks."""
    bend = before - 2 * here + after
    at = (before - after) / torch.clamp(2 * bend, max=-1e-9)
    return torch.clamp(at, -0.5, 0.5) * true(bend < 0)

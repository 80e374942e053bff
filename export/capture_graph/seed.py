"""The search for two combs in the spectra, as `runtimes/capture/frequency.py` does it, at fixed places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.plain import (
    FAR,
    array,
    between,
    choose,
    count,
    length,
    pick,
    quantile,
    true,
)
from pulse_edge.export.capture_graph.reference import (
    ANGLES,
    CAP,
    COMB,
    PERIODS,
    RATIO,
    SKEW,
    STEPS,
    TRIED,
    WINDOW,
)
from pulse_edge.export.capture_graph.spectra import HALF, Spectra

_LOW: Final = 1 / PERIODS[1]
# Radii: from a tenth of the lowest 1 mm frequency to a little more than twice the highest.
_FIRST: Final = int(np.log2(10) * STEPS) + 1
_COUNT: Final = int(np.log2(PERIODS[1] / PERIODS[0]) * STEPS) + 1
_LAST: Final = int(np.log2(10.5 / 5) * STEPS) + 1
_RADIUS: Final = _LOW * 2.0 ** (np.arange(-_FIRST, _COUNT + _LAST) / STEPS)
_ANGLE: Final = np.pi * np.arange(ANGLES) / ANGLES
_NEAR: Final = int(np.log2(RATIO) * STEPS)


@dataclass(frozen=True)
class Seed:
    """Where the grid may be followed from.

    Attributes:
        frequency: float32 [2, 2], by family, cycles per pixel along x and y.
        window: float32 [], index into the square of windows.
        score: float32 [].
    """

    frequency: Tensor
    window: Tensor
    score: Tensor


def find_seeds(found: Spectra, wanted: int) -> list[Seed]:
    """The best ``wanted`` candidates, of different places or spacings, the best first."""
    groups, centre = _groups(found)
    mean = groups @ found.power
    level = torch.sqrt(torch.sqrt(mean))
    middle = quantile(level, WINDOW * HALF, 0.5, level.amax(1, keepdim=True))
    score = _comb_score(level / torch.clamp(middle, min=1e-6))
    score = choose(true(groups.sum(1) > 0)[:, None, None], score, score * 0 - FAR)
    best = torch.topk(score.amax((1, 2)), min(TRIED, length(score, 0))).indices
    score, centre = torch.index_select(score, 0, best), torch.index_select(centre, 0, best)
    return _pairs(score, centre, wanted)


def _groups(found: Spectra) -> tuple[Tensor, Tensor]:
    """Weights [g, windows] of the means over groups of nine windows, and the middle window of each, [g]."""
    n = found.side
    places = list(range(1, n - 1, 3)) or [n // 2]
    member, middle = [], []
    for axis in range(2):
        have = found.counts[axis]
        few = true(have < 2.5)
        place = few * torch.floor(have / 2) + (1 - few) * array(places)
        real = few * true(count(len(places)) < 0.5) + (1 - few) * true(place < have - 1.5)
        inside = true(torch.abs(count(n)[None] - place[:, None]) < 1.5) * true(count(n) < have - 0.5)
        member.append(inside * real[:, None])
        middle.append(place)
    both = (member[0][:, None, :, None] * member[1][None, :, None, :]).reshape(-1, n * n)
    centre = (middle[0][:, None] * n + middle[1][None]).reshape(-1)
    return both / torch.clamp(both.sum(1, keepdim=True), min=1), centre


def _comb_score(level: Tensor) -> Tensor:
    """How far the teeth of a comb stand above its gaps: [g, WINDOW * HALF] -> [g, angles, spacings]."""
    corner, across, down, inside = _polar()
    level = torch.cat([level, level[:, :HALF]], 1)  # row -1 is followed by row 0
    a, b, c, d = (torch.index_select(level, 1, corner + step) for step in (0, 1, HALF, HALF + 1))
    across, down = across[None], down[None]
    polar = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
    polar = polar.reshape(-1, ANGLES, len(_RADIUS))
    total = polar[..., :_COUNT] * 0
    for fifths, weight in COMB.items():
        at = [_FIRST + round(np.log2(part / 5) * STEPS) for part in (fifths, fifths - 0.5, fifths + 0.5)]
        tooth, left, right = (polar[..., k : k + _COUNT] for k in at)
        known = np.prod([inside[:, k : k + _COUNT] for k in at], axis=0)
        above = torch.clamp(tooth - (left + right) / 2, -CAP, CAP)
        total = total + above * array(weight * known)
    return total


def _polar() -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Where each direction and radius lies in a half spectrum.

    Returns:
        Index of the upper left of four entries, int64 [k]; how far right of and below it, float32 [k] each;
        and 0 for what is beyond Nyquist, [angles, radii].
    """
    x, y = _RADIUS * np.cos(_ANGLE)[:, None], _RADIUS * np.sin(_ANGLE)[:, None]
    flip = np.where(x < 0, -1.0, 1.0)
    column, row = x * flip * WINDOW, y * flip * WINDOW
    inside = (column < WINDOW / 2 - 1) & (np.abs(row) < WINDOW / 2 - 1)
    column, row = np.where(inside, column, 0.0), np.where(inside, row, 0.0)
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    corner = torch.tensor((top % WINDOW * HALF + left).ravel())
    return corner, array((column - left).ravel()), array((row - top).ravel()), inside


def _pairs(score: Tensor, centre: Tensor, wanted: int) -> list[Seed]:
    """Join two directions at about a right angle and of about the same spacing."""
    groups = length(score, 0)
    widest = torch.nn.functional.max_pool2d(score[:, None], (1, 2 * _NEAR + 1), 1, (0, _NEAR))[:, 0]
    twice = torch.cat([widest, widest], 1)
    skews = [skew + ANGLES // 2 for skew in range(-SKEW, SKEW + 1)]
    total = torch.stack([score + twice[:, skew : skew + ANGLES] for skew in skews], 1)
    spacing = count(_COUNT)
    seeds = []
    for _ in range(wanted):
        place = total.reshape(-1).argmax().to(torch.float32)
        size = len(skews) * ANGLES * _COUNT
        group = torch.floor((place + 0.5) / size)
        rest = place - group * size
        turn = torch.floor((rest + 0.5) / (ANGLES * _COUNT))
        rest = rest - turn * (ANGLES * _COUNT)
        first = torch.floor((rest + 0.5) / _COUNT)
        near = rest - first * _COUNT
        second = first + turn + skews[0]
        second = second - ANGLES * true(second > ANGLES - 0.5)
        line = pick(score.reshape(-1, _COUNT), (group * ANGLES + second)[None])[0]
        close = true(torch.abs(spacing - near) < _NEAR + 0.5)
        partner = choose(close, line, line * 0 - FAR).argmax().to(torch.float32)
        pair = torch.stack([_vector(first, near), _vector(second, partner)])
        seeds.append(Seed(arrange(pair), pick(centre, group[None])[0], total.max()))
        same = between(count(groups), group, group + 1)[:, None, None, None] * close
        total = total - 2 * FAR * same
    return seeds


def _vector(angle: Tensor, spacing: Tensor) -> Tensor:
    radius = pick(array(_RADIUS[_FIRST : _FIRST + _COUNT]), spacing[None])
    direction = pick(array(np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], 1)), angle[None])
    return (radius[:, None] * direction)[0]


def arrange(pair: Tensor) -> Tensor:
    """Order two frequencies, [2, 2]: the first points to the right, the second down."""
    size = torch.sqrt((pair**2).sum(1))
    keep = true(torch.abs(pair[0, 0]) * size[1] >= torch.abs(pair[1, 0]) * size[0])
    first = keep * pair[0] + (1 - keep) * pair[1]
    second = keep * pair[1] + (1 - keep) * pair[0]
    right = 1 - 2 * true(first[0] < 0)
    down = 1 - 2 * true(second[1] < 0)
    return torch.stack([first * right, second * down])

"""A smooth map from pixels to millimetres, and the first mesh: polynomials by least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.follow import follow, peaks
from pulse_edge.export.capture_graph.mesh import NODES, Span
from pulse_edge.export.capture_graph.plain import FAR, array, choose, count, length, median, sane, solve, true
from pulse_edge.export.capture_graph.reference import STIFF, SURE
from pulse_edge.export.capture_graph.seed import Seed
from pulse_edge.export.capture_graph.spectra import Spectra

# Degree, reach, rounds of reweighting: the first two steps only say where the next one looks.
_STEPS: Final = ((3, 0.08, 2), (4, 0.06, 2), (5, 0.06, 6))


@dataclass(frozen=True)
class Phase:
    """Paper millimetres as polynomials of degree 5 of the pixel.

    Attributes:
        weights: float32 [terms, 2], of monomials from degree 1 on.
        middle: float32 [2], pixel of the origin.
        scale: float32 [], pixels that are the unit.
        trust: float32 [windows, 2], how sure each window is of each family; 0 where it does not fit.
    """

    weights: Tensor
    middle: Tensor
    scale: Tensor
    trust: Tensor

    def at(self, points: Tensor) -> Tensor:
        """Millimetres, float32 [n, 2], of pixels [n, 2]; the origin is arbitrary."""
        return monomials((points - self.middle) / self.scale, _terms(5)) @ self.weights


def fit_phase(found: Spectra, seed: Seed) -> Phase:
    """Follow the grid's frequency through a picture and integrate it."""
    around = follow(found, seed)
    centre, filled = found.centre, found.filled[:, None]
    middle = (centre * filled).sum(0) / filled.sum()
    scale = torch.clamp((torch.abs(centre - middle) * filled).max(), min=1.0)
    unit = (centre - middle) / scale
    weights, trust = torch.zeros(1, 2), torch.zeros(1, 2)
    for degree, reach, rounds in _STEPS:
        frequency, weight = peaks(found, around, reach)
        weight = choose(true(weight > SURE), weight, 0.02 * weight) * filled
        slopes = torch.stack([monomials(unit, _terms(degree), axis) for axis in range(2)], 1)
        weights, trust = _fit(slopes, frequency * scale, weight, scale, degree, rounds)
        around = torch.stack([slopes[:, axis] @ weights for axis in range(2)], -1) / scale
    return Phase(weights, middle, scale, trust)


def _fit(
    slopes: Tensor, wanted: Tensor, weight: Tensor, scale: Tensor, degree: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """Fit polynomials to gradients, with weights that outliers lose; both families at once.

    Args:
        slopes: float32 [n, 2, terms].
        wanted: float32 [n, family, 2], per unit of the polynomials.
        weight: float32 [n, family].
        scale: pixels per unit.
        degree: of the polynomials.
        rounds: of reweighting.

    Returns:
        Weights of the terms, [terms, family], and trust, [n, family].
    """
    terms = length(slopes)
    powers = _terms(degree)
    ridge = array(np.diag(np.where(powers.sum(1) > 1, STIFF, 0.0) + 1e-9))
    flat = slopes.reshape(-1, terms)
    target = wanted.permute(1, 0, 2).reshape(2, -1, 1)
    base = weight.T  # [family, n]
    strong = true(base > SURE)
    kept, found, trust = base, torch.zeros(2, terms, 1), base
    for _ in range(rounds):
        rows = flat[None] * torch.stack([kept, kept], -1).reshape(2, -1, 1)
        normal = rows.transpose(1, 2) @ flat + ridge * kept.sum(1)[:, None, None] + 1e-9 * torch.eye(terms)
        found = solve(normal, rows.transpose(1, 2) @ target)
        off = (flat @ found - target).reshape(2, -1, 2) / scale
        error = torch.sqrt((off**2).sum(-1))
        typical = torch.clamp(median(error, strong), min=1e-4)
        kept = base / (1 + (error / (2.5 * typical)) ** 2) ** 2
        trust = kept * true(error < 8 * typical)
    return found[..., 0].T, trust.T


def _terms(degree: int) -> np.ndarray:
    return np.array([(a, total - a) for total in range(1, degree + 1) for a in range(total, -1, -1)])


def monomials(unit: Tensor, powers: np.ndarray, derivative: int | None = None) -> Tensor:
    """Monomials, or their derivative along one axis, at points [n, 2]: [n, terms]."""
    exponents, factor = powers.copy(), np.ones(len(powers))
    if derivative is not None:
        factor = powers[:, derivative].astype(np.float64)
        exponents[:, derivative] = np.maximum(exponents[:, derivative] - 1, 0)
    parts = []
    for axis in range(2):
        x = unit[:, axis : axis + 1]
        table = [torch.ones_like(x), x]
        for _ in range(2, int(exponents.max()) + 1):
            table.append(table[-1] * x)
        parts.append(torch.cat([table[k] for k in exponents[:, axis]], 1))
    return parts[0] * parts[1] * array(factor)


def first_mesh(phase: Phase, found: Spectra, size: Tensor) -> tuple[Tensor, Span]:
    """Make a mesh of the part of the picture where the grid was seen.

    Args:
        phase: the smooth map.
        found: the spectra, for the places of the windows.
        size: float32 [2], height and width.

    Returns:
        The mesh, float32 [2, N, N] (x and y), right within the span only, and the span.
    """
    points, shown = _samples(phase, found, size)
    mm = phase.at(points)
    far = (1 - shown[:, None]) * FAR
    low = torch.floor((mm + far).amin(0) / 5) - 1
    high = sane(torch.ceil((mm - far).amax(0) / 5) + 1, 1e6)
    low = sane(low, 1e6)
    extent = torch.clamp(high - low + 1, 2, max=NODES - 2 * MARGIN)
    low = low + torch.floor(torch.clamp(high - low + 1 - extent, min=0) / 2)
    kept = shown[:, None]
    middle = (mm * kept).sum(0) / torch.clamp(kept.sum(), min=1)
    reach = torch.clamp((torch.abs(mm - middle) * kept).amax(0), min=5.0)
    centre = size.flip(0) / 2
    known = chebyshev((mm - middle) / reach) * kept
    normal = known.T @ known
    ridge = torch.eye(length(normal)) * (1e-6 * kept.sum() + 1e-6)
    weights = solve(normal + ridge, known.T @ (points - centre))
    index = (count(NODES)[None] - MARGIN + low[:, None]) * 5  # [x or y, node]
    x, y = index[0][None] + 0 * index[1][:, None], index[1][:, None] + 0 * index[0][None]
    at = torch.stack([x.reshape(-1), y.reshape(-1)], 1)
    mesh = chebyshev((at - middle) / reach) @ weights + centre
    begin = extent * 0 + MARGIN  # not a constant: Core ML's converter cannot take entries out of one
    return sane(mesh, 1e6).T.reshape(2, NODES, NODES), Span(begin, begin + extent.flip(0))


MARGIN: Final = (
    7  # nodes before the first mesh: five by which it may be widened, two that interpolation reads
)
_SAMPLES: Final = 40


def _samples(phase: Phase, found: Spectra, size: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [n, 2] spread over the picture, and 1 for those in windows where both families were seen."""
    n = found.side
    step = size.max() / _SAMPLES
    along = count(_SAMPLES + 1) * step - 0.5
    seen = (true(phase.trust.amin(1) > 0) * found.filled).reshape(n, n)
    beside = [true(torch.abs(along[:, None] - middle) <= 128) for middle in (found.across, found.down)]
    inside = true(along < size[0])[:, None] * true(along < size[1])[None]
    shown = true(beside[1] @ seen @ beside[0].T > 0.5) * inside
    x, y = along[None] + 0 * along[:, None], along[:, None] + 0 * along[None]
    return torch.stack([x.reshape(-1), y.reshape(-1)], 1), shown.reshape(-1)


def chebyshev(unit: Tensor, degree: int = 5) -> Tensor:
    """Products of Chebyshev polynomials up to a total degree at points [n, 2]: [n, terms].

    Monomials would do in float64; in float32 their normal equations do not.
    """
    tables = []
    for axis in range(2):
        x = unit[:, axis : axis + 1]
        table = [torch.ones_like(x), x]
        for _ in range(2, degree + 1):
            table.append(2 * x * table[-1] - table[-2])
        tables.append(table)
    return torch.cat([tables[0][a] * tables[1][t - a] for t in range(degree + 1) for a in range(t + 1)], 1)

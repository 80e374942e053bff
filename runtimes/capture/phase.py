"""A smooth map from pixels to millimetres whose gradient is the grid's frequency field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.frequency import SURE, Seed, Spectra, follow, peaks

Floats = NDArray[np.float64]

# Degree of the map and how far from its prediction a peak is looked for: each step knows more.
_STEPS: Final = ((3, 0.08), (4, 0.06), (5, 0.06))
_ROUNDS: Final = 6  # of reweighting
_STIFF: Final = 3e-3  # ridge on terms above the first degree


@dataclass(frozen=True)
class PhaseMap:
    """Paper millimetres as two polynomials of the pixel.

    Attributes:
        powers: [terms, 2], exponents of x and y.
        weights: float64 [terms, 2], for (u, v) in millimetres.
        centre: float64 [2], the pixel of the polynomials' origin.
        scale: pixels that are their unit.
    """

    powers: NDArray[np.intp]
    weights: Floats
    centre: Floats
    scale: float

    def at(self, points: Floats) -> Floats:
        """Map pixels, float64 [n, 2], to millimetres, float64 [n, 2]; the origin is arbitrary."""
        return _basis((points - self.centre) / self.scale, self.powers) @ self.weights

    def gradient(self, points: Floats) -> Floats:
        """Return d(mm)/d(px) at pixels [n, 2]: float64 [n, 2, 2], [:, family, (x, y)]."""
        unit = (points - self.centre) / self.scale
        parts = [_basis(unit, self.powers, axis) @ self.weights / self.scale for axis in range(2)]
        return np.stack(parts, axis=-1)


def fit_phase(found: Spectra, seed: Seed) -> tuple[PhaseMap, Floats]:
    """Follow the grid's frequency through a picture and integrate it.

    Args:
        found: spectra of the picture's windows.
        seed: where to begin.

    Returns:
        The map, and how sure each window is of each family: float64 [n, 2], 0 for windows that do not fit it.
    """
    around, _ = follow(found, seed.frequency, seed.window)
    middle = found.centre.mean(0)
    scale = max(1.0, float(np.abs(found.centre - middle).max()))
    trust = np.ones((len(found.centre), 2))
    phase: PhaseMap | None = None
    for degree, reach in _STEPS:
        frequency, weight = peaks(found, around, reach)
        weight = np.where(weight > SURE, weight, 0.02 * weight)
        phase, trust = _fit(found.centre, frequency, weight, degree, middle, scale)
        around = phase.gradient(found.centre)
    if phase is None:
        raise ValueError("no step of the fit is configured")
    return phase, trust


def _fit(
    points: Floats, frequency: Floats, weight: Floats, degree: int, middle: Floats, scale: float
) -> tuple[PhaseMap, Floats]:
    """Fit polynomials of a degree to gradients, with weights that outliers lose."""
    terms = [(a, total - a) for total in range(1, degree + 1) for a in range(total, -1, -1)]
    powers = np.array(terms, np.intp)
    unit = (points - middle) / scale
    slopes = np.stack([_basis(unit, powers, axis) / scale for axis in range(2)], axis=1)  # [n, 2, terms]
    ridge = np.diag(np.where(powers.sum(1) > 1, _STIFF, 0.0)) / scale**2
    weights = np.zeros((len(powers), 2))
    trust = np.zeros((len(points), 2))
    for family in range(2):
        kept = weight[:, family].copy()
        for _ in range(_ROUNDS):
            rows = slopes * kept[:, None, None]
            normal = np.einsum("nat,nas->ts", rows, slopes) + ridge * kept.sum() + 1e-12 * np.eye(len(powers))
            right = np.einsum("nat,na->t", rows, frequency[:, family])
            weights[:, family] = np.linalg.solve(normal, right)
            away = slopes @ weights[:, family] - frequency[:, family]
            error = np.hypot(away[:, 0], away[:, 1])
            strong = error[weight[:, family] > SURE]
            typical = max(float(np.median(strong)) if len(strong) else 0.0, 1e-4)
            kept = weight[:, family] / (1 + (error / (2.5 * typical)) ** 2) ** 2
        trust[:, family] = np.where(error < 8 * typical, kept, 0.0)
    return PhaseMap(powers, weights, middle, scale), trust


def _basis(unit: Floats, powers: NDArray[np.intp], derivative: int | None = None) -> Floats:
    """Monomials, or their derivative along one axis, at points [n, 2]: float64 [n, terms]."""
    exponents = powers.copy()
    factor = np.ones(len(powers))
    if derivative is not None:
        factor = powers[:, derivative].astype(np.float64)
        exponents[:, derivative] = np.maximum(exponents[:, derivative] - 1, 0)
    return np.asarray(factor * unit[:, :1] ** exponents[:, 0] * unit[:, 1:] ** exponents[:, 1])

"""One heartbeat as a moving dipole, projected to the twelve leads.

The heart is a dipole whose three components are sums of short bumps, one for each part of the
activation (Sameni, Clifford, Jutten, Shamsollahi: Multichannel ECG and noise modeling, EURASIP J.
Advances in Signal Processing 2007, after McSharry, Clifford, Tarassenko, Smith, IEEE Trans. Biomed.
Eng. 2003). They use Gaussians, which never end; here a bump is a raised cosine, so that a wave has an
exact beginning and end and the intervals are known to the sample. Leads follow by Dower's
coefficients (Dower, Machado, Osborne: On deriving the electrocardiogram from vectorcardiographic
leads, Clin. Cardiol. 1980).

Axes: x to the patient's left, y downwards, z to the back; millivolt throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.leads import complete

DOWER: Final = {
    "I": (0.632, -0.235, 0.059),
    "II": (0.235, 1.066, -0.132),
    "V1": (-0.515, 0.157, -0.917),
    "V2": (0.044, 0.164, -1.387),
    "V3": (0.882, 0.098, -1.277),
    "V4": (1.213, 0.127, -0.601),
    "V5": (1.125, 0.127, -0.086),
    "V6": (0.831, 0.076, 0.230),
}
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Bump:
    """A raised cosine of the dipole.

    Attributes:
        start_s: where it begins, seconds.
        end_s: where it ends.
        vector: the dipole at its top, mV.
        peak: where between start and end the top lies, 0 to 1.
    """

    start_s: float
    end_s: float
    vector: Vector
    peak: float = 0.5


@dataclass(frozen=True)
class Plateau:
    """A dipole that stands still between two instants, with cosine flanks: a displaced ST segment.

    Attributes:
        start_s: where the rising flank begins, seconds.
        end_s: where the falling flank ends.
        vector: the dipole between the flanks, mV.
        flank_s: length of each flank.
    """

    start_s: float
    end_s: float
    vector: Vector
    flank_s: float


def dipole(parts: Sequence[Bump | Plateau], samples: int, fs: float) -> NDArray[np.float64]:
    """Return the sum of the parts, float64 [3, samples] in mV; what lies outside is cut off."""
    out = np.zeros((3, samples))
    for part in parts:
        first = max(0, int(np.ceil(part.start_s * fs)))
        last = min(samples, int(np.floor(part.end_s * fs)) + 1)
        if first >= last:
            continue
        t = np.arange(first, last) / fs
        shape = _bump(t, part) if isinstance(part, Bump) else _plateau(t, part)
        out[:, first:last] += np.outer(part.vector, shape)
    return out


def project(moment: NDArray[np.float64]) -> NDArray[np.float32]:
    """Dipole float64 [3, n] -> the twelve leads float32 [12, n], mV."""
    return complete({lead: np.asarray(row) @ moment for lead, row in DOWER.items()})


def frontal_axis(moment: NDArray[np.float64]) -> float:
    """Return the electrical axis in degrees, -180 to 180, from the net areas of leads I and aVF."""
    leads = project(moment).astype(np.float64)
    across, down = leads[0].sum(), leads[5].sum() * 2 / np.sqrt(3)  # aVF is augmented less than I
    return float(np.degrees(np.arctan2(down, across)))


def _bump(t: NDArray[np.float64], part: Bump) -> NDArray[np.float64]:
    top = part.start_s + part.peak * (part.end_s - part.start_s)
    flank = np.where(t < top, top - part.start_s, part.end_s - top)
    return np.asarray(0.5 * (1 + np.cos(np.pi * np.clip((t - top) / flank, -1, 1))))


def _plateau(t: NDArray[np.float64], part: Plateau) -> NDArray[np.float64]:
    edge = np.minimum(t - part.start_s, part.end_s - t) / part.flank_s
    return np.asarray(0.5 * (1 - np.cos(np.pi * np.clip(edge, 0, 1))))

"""Which parts of the dipole a simulated heartbeat is made of.

Directions and durations follow the textbook definitions of the AHA/ACCF/HRS recommendations, parts III
(conduction), V (hypertrophy) and VI (ischaemia), J. Am. Coll. Cardiol. 53, 2009.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.dipole import Bump, Plateau, Vector, dipole, frontal_axis
from pulse_edge.ecg.heart import TERRITORIES, Heart
from pulse_edge.ecg.rhythm import Beat

P_S: Final = 0.10  # duration of a P wave
SPREADING_S: Final = 0.16  # of a complex that no bundle carries


def usual_qrs(heart: Heart) -> list[Bump]:
    """Return the QRS complex of a conducted, escape or paced beat, from 0 s, turned to the axis asked for."""
    if heart.rhythm == "paced":
        return wide_qrs(SPREADING_S, towards=(0.5, -1.0, 0.5))
    end = heart.qrs_ms / 1e3
    size, back = {"none": (1.3, 0.35), "lvh": (2.3, 0.9), "rvh": (1.0, -0.75)}[heart.chamber]
    if heart.bundle == "lbbb":
        shape = [
            (0.0, 0.60, (0.55 * size, 0.3 * size, 0.75 * size)),
            (0.3, 1.0, (0.75 * size, 0.3 * size, 0.8)),
        ]
    elif heart.bundle == "rbbb":
        shape = [
            (0.0, 0.26, (-0.2, 0.05, -0.35)), (0.08, 0.62, (0.85 * size, 0.6 * size, back)),
            (0.48, 1.0, (-0.55, 0.1, -0.65)),
        ]  # fmt: skip
    elif heart.bundle == "lafb":
        shape = [(0.0, 0.4, (-0.15, 0.45, -0.2)), (0.25, 1.0, (0.8 * size, -0.9 * size, back))]
    else:
        shape = [
            (0.0, 0.42, (-0.14, -0.10, -0.30)), (0.16, 0.84, (0.8 * size, 0.7 * size, back)),
            (0.58, 1.0, (-0.12, -0.16, 0.30)),
        ]  # fmt: skip
    bumps = [Bump(a * end, b * end, vector) for a, b, vector in shape]
    return _turned(bumps, heart.axis_deg)


def wide_qrs(duration: float, towards: Vector) -> list[Bump]:
    """Return a complex of ``duration`` seconds that spreads from muscle to muscle."""
    x, y, z = towards
    return [
        Bump(0.0, 0.75 * duration, (1.2 * x, 1.2 * y, 1.2 * z), 0.6),
        Bump(0.35 * duration, duration, (0.5 * x, 0.7 * y, 0.4 * z)),
    ]


def _turned(bumps: list[Bump], axis_deg: float) -> list[Bump]:
    """Turn a complex about the sagittal axis until its frontal axis is the one asked for.

    Dower's leads are not quite orthogonal, so the angle is found by a few corrections.
    """
    for _ in range(14):
        gap = (axis_deg - frontal_axis(dipole(bumps, 400, 1000.0)) + 180) % 360 - 180
        c, s = np.cos(0.6 * np.radians(gap)), np.sin(0.6 * np.radians(gap))
        bumps = [
            Bump(b.start_s, b.end_s, (c * b.vector[0] - s * b.vector[1], s * b.vector[0] + c * b.vector[1],
                 b.vector[2]), b.peak)
            for b in bumps
        ]  # fmt: skip
    return bumps


def moved(bump: Bump, by_s: float) -> Bump:
    """Return the bump ``by_s`` seconds later."""
    return Bump(bump.start_s + by_s, bump.end_s + by_s, bump.vector, bump.peak)


def p_wave(onset: float, premature: bool) -> Bump:
    """Return the P wave that begins at ``onset`` seconds; a premature one comes from another place."""
    return Bump(onset, onset + P_S, (0.10, -0.08, 0.05) if premature else (0.09, 0.13, -0.02))


def qt_s(heart: Heart, rr_s: float) -> float:
    """Return Bazett's QT in seconds, longer by what a wide QRS complex adds, and never into the next beat."""
    wide = max(0.0, heart.qrs_ms / 1e3 - 0.1)
    return min(heart.qtc_ms / 1e3 * float(np.sqrt(min(rr_s, 1.5))) + wide, 0.9 * rr_s)


def repolarisation(heart: Heart, beat: Beat, qrs: list[Bump]) -> list[Bump | Plateau]:
    """Return ST segment and T wave of a beat; both point away from a complex that is wide or too large."""
    j = beat.qrs_s + max(bump.end_s for bump in qrs)
    net = np.sum([np.asarray(b.vector) * (b.end_s - b.start_s) for b in qrs], axis=0)
    net /= np.linalg.norm(net) + 1e-9
    rr = 0.6 if beat.origin == "ventricular" else beat.rr_s
    end = max(beat.qrs_s + qt_s(heart, rr), j + 0.12)
    st = np.zeros(3)
    tall = np.array([0.28, 0.22, -0.12])
    if beat.origin in ("ventricular", "paced") or heart.bundle == "lbbb":
        tall, st = -0.4 * net, -0.10 * net
    elif heart.chamber == "lvh":
        tall, st = -0.22 * net, -0.08 * net
    elif heart.bundle == "rbbb":
        tall = np.array([0.25, 0.2, 0.25])
    for territory, size in heart.st_mv.items():
        wall = np.asarray(TERRITORIES[territory])
        st, tall = st + size * wall, tall + 0.6 * size * wall
    onset = j + 0.25 * (end - j)
    parts: list[Bump | Plateau] = [Bump(onset, end, _vector(tall), 0.6)]
    if np.any(st):
        parts.append(Plateau(j - 0.02, onset + 0.6 * (end - onset), _vector(st), 0.04))
    return parts


def _vector(array: NDArray[np.float64]) -> Vector:
    x, y, z = (float(v) for v in array)
    return x, y, z

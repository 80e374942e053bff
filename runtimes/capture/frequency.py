"""How fast the grid's two families of lines follow each other, everywhere in a picture.

Windows of the picture are Fourier transformed. Their mean spectrum shows the grid as two combs: peaks at
every fifth of the 1 mm frequency, along two directions at about a right angle. The pair of directions and
spacings whose combs hold the most energy is the seed. Each window's own peak near the seed, followed from
a linear to a cubic change over the picture, is the frequency field.

Frequencies are float64 [..., 2, 2]: for each family (of lines across x, across y) cycles per pixel along x
and y, of the 1 mm period. A gradient of the paper's coordinate in millimetres is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WINDOW: Final = 256  # pixels
_HOP: Final = 96
_ANGLES: Final = 180  # steps of 1 degree
_PERIODS: Final = (2.15, 22.0)  # pixels per millimetre that are searched
_STEPS: Final = 96  # per octave of spacing
# Weight of each fifth of the 1 mm frequency in a comb, by how far it stands above the gaps beside it.
_COMB: Final = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 2.0, 6: 0.3, 7: 0.3, 8: 0.3, 9: 0.3, 10: 0.7}
_CAP: Final = 4.0  # natural logarithms: one strong tooth is no comb
_SKEW: Final = 25  # degrees that the families may be off a right angle (perspective)
_RATIO: Final = 1.3  # of their spacings


@dataclass(frozen=True)
class Spectra:
    """Windowed spectra of a picture.

    Attributes:
        power: float32 [n, WINDOW, WINDOW // 2 + 1], row 0 is frequency 0.
        centre: float64 [n, 2], pixel (x, y) in the middle of each window.
    """

    power: NDArray[np.float32]
    centre: Floats


def spectra(signal: NDArray[np.float32]) -> Spectra:
    """Fourier transform overlapping Hann windows of a signal, float32 [H, W]."""
    height, width = signal.shape
    padded = np.pad(signal, ((0, max(0, WINDOW - height)), (0, max(0, WINDOW - width))))
    rows, columns = _starts(height), _starts(width)
    hann = np.hanning(WINDOW).astype(np.float32)
    taper = hann[:, None] * hann
    windows = np.stack([padded[r : r + WINDOW, c : c + WINDOW] for r in rows for c in columns])
    transformed = scipy.fft.rfft2(windows * taper, overwrite_x=True)
    power = transformed.real**2 + transformed.imag**2
    middle = (WINDOW - 1) / 2
    centre = [(c + middle, r + middle) for r in rows for c in columns]
    return Spectra(np.asarray(power, np.float32), np.array(centre, np.float64))


def _starts(side: int) -> NDArray[np.intp]:
    room = max(0, side - WINDOW)
    return np.linspace(0, room, -(-room // _HOP) + 1).round().astype(np.intp)


def find_seed(found: Spectra) -> tuple[Floats, float]:
    """Find the grid's mean frequency.

    Returns:
        The seed, float64 [2, 2], and its score: how far the two combs stand above their gaps, in natural
        logarithms, weighted; higher is surer.
    """
    mean = np.log(found.power.mean(0) + 1e-3).astype(np.float64)
    low, high = 1 / _PERIODS[1], 1 / _PERIODS[0]
    # From a tenth of the lowest 1 mm frequency to a little more than twice the highest.
    first, count = 4 * _STEPS, int(np.log2(high / low) * _STEPS) + 1
    radius = low * 2.0 ** (np.arange(-first, count + 2 * _STEPS) / _STEPS)
    angle = np.radians(np.arange(_ANGLES) * 180.0 / _ANGLES)
    polar = _look_up(mean, radius * np.cos(angle)[:, None], radius * np.sin(angle)[:, None])

    def tooth(fifths: float) -> Floats:
        at = first + round(np.log2(fifths / 5) * _STEPS)
        return polar[:, at : at + count]

    score = np.zeros((_ANGLES, count))
    for fifths, weight in _COMB.items():
        above = tooth(fifths) - (tooth(fifths - 0.5) + tooth(fifths + 0.5)) / 2
        score += weight * np.nan_to_num(np.clip(above, -_CAP, _CAP))  # nan: beyond Nyquist
    return _best_pair(score, radius[first : first + count], angle)


def _look_up(values: Floats, fx: Floats, fy: Floats) -> Floats:
    """Bilinear value of a half spectrum at frequencies in cycles per pixel; nan beyond Nyquist."""
    flip = np.where(fx < 0, -1.0, 1.0)
    column, row = fx * flip * WINDOW, fy * flip * WINDOW
    inside = (column < WINDOW / 2 - 1) & (np.abs(row) < WINDOW / 2 - 1)
    column, row = np.where(inside, column, 0.0), np.where(inside, row, 0.0)
    c, r = np.floor(column).astype(np.intp), np.floor(row).astype(np.intp)
    across, down = column - c, row - r
    out = (
        values[r, c] * (1 - across) * (1 - down)
        + values[r, c + 1] * across * (1 - down)
        + values[r + 1, c] * (1 - across) * down
        + values[r + 1, c + 1] * across * down
    )
    return np.asarray(np.where(inside, out, np.nan))


def _best_pair(score: Floats, radius: Floats, angle: Floats) -> tuple[Floats, float]:
    """Join two directions at about a right angle and of about the same spacing."""
    near = int(np.log2(_RATIO) * _STEPS)
    padded = np.pad(score, ((0, 0), (near, near)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1, axis=1)
    widest, where = windows.max(-1), windows.argmax(-1)  # the best partner in each direction
    best, pair = -np.inf, (0, 0, 0, 0)
    for skew in range(-_SKEW, _SKEW + 1):
        partner = np.roll(widest, -(90 + skew), axis=0)
        total = score + partner
        a, s = np.unravel_index(int(total.argmax()), total.shape)
        if total[a, s] > best:
            b = (int(a) + 90 + skew) % _ANGLES
            best, pair = float(total[a, s]), (int(a), int(s), b, int(s) + int(where[b, s]) - near)
    vectors = [
        radius[step] * np.array([np.cos(angle[turn]), np.sin(angle[turn])])
        for turn, step in (pair[:2], pair[2:])
    ]
    return arrange(np.array(vectors)), best


def arrange(pair: Floats) -> Floats:
    """Order two frequency vectors, [2, 2]: the first points to the right, the second down, never mirrored."""
    first, second = (
        pair if abs(pair[0, 0]) * np.hypot(*pair[1]) >= abs(pair[1, 0]) * np.hypot(*pair[0]) else pair[::-1]
    )
    return np.array([first * np.sign(first[0] or 1.0), second * np.sign(second[1] or 1.0)])


def peaks(found: Spectra, around: Floats, reach: float) -> tuple[Floats, Floats]:
    """Find each window's frequency near an expected one.

    Args:
        found: the spectra.
        around: float64 [n, 2, 2], where to look.
        reach: how far from there, relative to the frequency; below a fifth, where the next tooth stands.

    Returns:
        Frequencies, float64 [n, 2, 2], and the weight of each, float64 [n, 2]: how far the peak stands above
        the median of what lies around it, in natural logarithms; 0 for none.
    """
    where, weight = np.array(around), np.zeros(around.shape[:2])
    for k in range(len(around)):
        for family in range(2):
            where[k, family], weight[k, family] = _peak(found.power[k], around[k, family], reach)
    return where, weight


def _peak(power: NDArray[np.float32], expected: Floats, reach: float) -> tuple[Floats, float]:
    flip = -1.0 if expected[0] < 0 else 1.0
    centre = expected * flip * WINDOW
    side = max(2, round(float(np.hypot(*centre)) * reach))
    columns = np.arange(round(centre[0]) - side - 1, round(centre[0]) + side + 2)
    rows = np.arange(round(centre[1]) - side - 1, round(centre[1]) + side + 2)
    half = WINDOW // 2
    if columns[-1] > half or max(abs(rows[0]), abs(rows[-1])) >= half:
        return expected, 0.0
    # Left of frequency 0 the half spectrum goes on as its mirror image.
    mirrored = columns < 0
    patch = power[np.where(mirrored, -rows[:, None], rows[:, None]) % WINDOW, np.abs(columns)]
    inner = patch[1:-1, 1:-1]
    r, c = np.unravel_index(int(inner.argmax()), inner.shape)
    r, c = r + 1, c + 1
    level = float(np.median(patch)) + 1e-6
    weight = float(np.log(patch[r, c] / level + 1e-6))
    near = np.log(patch[r - 1 : r + 2, c - 1 : c + 2] + 1e-6).astype(np.float64)
    found = np.array([columns[c] + _vertex(near[1]), rows[r] + _vertex(near[:, 1])])
    return found * flip / WINDOW, max(0.0, weight)


def _vertex(three: Floats) -> float:
    """Where the parabola through three values at -1, 0, 1 peaks."""
    bend = three[0] - 2 * three[1] + three[2]
    return float(np.clip((three[0] - three[2]) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0

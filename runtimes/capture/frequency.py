"""How fast the grid's two families of lines follow each other, everywhere in a picture.

Windows of the picture are Fourier transformed. Their mean spectrum shows the grid as two combs: peaks at
every fifth of the 1 mm frequency, along two directions at about a right angle. The pair of directions and
spacings whose combs hold the most energy is the seed. Each window's own peak near the seed, followed from
a linear to a cubic change over the picture, is the frequency field.

Frequencies are float64 [..., 2, 2]: for each family (of lines across x, across y) cycles per pixel along x
and y, of the 1 mm period. A gradient of the paper's coordinate in millimetres is the same number.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import product
from typing import Final

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WINDOW: Final = 256  # pixels
_HOP: Final = 128
_ANGLES: Final = 144  # in half a turn
_PERIODS: Final = (2.15, 22.0)  # pixels per millimetre that are searched
_STEPS: Final = 64  # per octave of spacing
# Weight of each fifth of the 1 mm frequency in a comb, by how far it stands above the gaps beside it.
_COMB: Final = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 1.2, 6: 0.3, 7: 0.3, 8: 0.3, 9: 0.3, 10: 0.7}
_CAP: Final = 12.0
_SKEW: Final = 10  # angles, 12.5 degrees, that the families may be off a right angle (perspective)
_RATIO: Final = 1.25  # of their spacings
_REACH: Final = 0.1  # of the frequency: how much it may change to the next window
SURE: Final = 2.3  # natural logarithms above its surroundings from which a peak counts
_TRIED: Final = 4  # places in which pairs are looked for


@dataclass(frozen=True)
class Spectra:
    """Windowed spectra of a picture.

    Attributes:
        power: float32 [n, WINDOW, WINDOW // 2 + 1], row 0 is frequency 0.
        centre: float64 [n, 2], pixel (x, y) in the middle of each window.
        shape: rows and columns of windows; n of them, row by row.
    """

    power: NDArray[np.float32]
    centre: Floats
    shape: tuple[int, int]


def spectra(signal: NDArray[np.float32]) -> Spectra:
    """Fourier transform overlapping Hann windows of a signal, float32 [H, W]."""
    height, width = signal.shape
    padded = np.pad(signal, ((0, max(0, WINDOW - height)), (0, max(0, WINDOW - width))))
    rows, columns = _starts(height), _starts(width)
    hann = np.hanning(WINDOW).astype(np.float32)
    taper = hann[:, None] * hann
    power = np.empty((len(rows) * len(columns), WINDOW, WINDOW // 2 + 1), np.float32)
    # One window at a time stays in the processor's cache: half the time of all at once.
    for k, (r, c) in enumerate(product(rows, columns)):
        found = scipy.fft.rfft2(padded[r : r + WINDOW, c : c + WINDOW] * taper, overwrite_x=True)
        np.multiply(found.real, found.real, out=power[k])
        power[k] += found.imag * found.imag
    middle = (WINDOW - 1) / 2
    centre = [(c + middle, r + middle) for r in rows for c in columns]
    return Spectra(power, np.array(centre, np.float64), (len(rows), len(columns)))


def _starts(side: int) -> NDArray[np.intp]:
    room = max(0, side - WINDOW)
    return np.linspace(0, room, -(-room // _HOP) + 1).round().astype(np.intp)


@dataclass(frozen=True)
class Seed:
    """A frequency from which the grid may be followed.

    Attributes:
        frequency: float64 [2, 2].
        window: in which it was found.
        score: how far its two combs stand above their gaps, weighted; higher is surer.
    """

    frequency: Floats
    window: int
    score: float


def find_seeds(found: Spectra) -> list[Seed]:
    """Find the grid where it is clearest: candidates of different places or spacings.

    The best comes first, then the best of each other spacing, since a screen's pixels or a weave are grids
    in many places at once; then the rest.
    """
    rows, columns = found.shape
    power = found.power.reshape(rows, columns, *found.power.shape[1:])
    groups = [(r, c) for r in _middles(rows) for c in _middles(columns)]
    mean = np.stack([power[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean((0, 1)) for r, c in groups])
    low, high = 1 / _PERIODS[1], 1 / _PERIODS[0]
    # From a tenth of the lowest 1 mm frequency to a little more than twice the highest.
    first, count = int(np.log2(10) * _STEPS) + 1, int(np.log2(high / low) * _STEPS) + 1
    last = int(np.log2(10.5 / 5) * _STEPS) + 1
    radius = low * 2.0 ** (np.arange(-first, count + last) / _STEPS)
    angle = np.pi * np.arange(_ANGLES) / _ANGLES
    x, y = radius * np.cos(angle)[:, None], radius * np.sin(angle)[:, None]
    level = np.sqrt(np.sqrt(mean))  # the fourth root: strong teeth count more, but no single one is a comb
    flat = level.reshape(len(groups), -1)
    middle = flat.shape[1] // 2
    level /= np.maximum(np.partition(flat, middle, axis=1)[:, middle], 1e-6)[:, None, None]
    polar = _look_up(np.moveaxis(level, 0, -1).copy(), x, y)

    def tooth(fifths: float) -> NDArray[np.float32]:
        at = first + round(np.log2(fifths / 5) * _STEPS)
        return polar[:, at : at + count]

    score = np.zeros((_ANGLES, count, len(groups)), np.float32)
    for fifths, weight in _COMB.items():
        above = tooth(fifths) - (tooth(fifths - 0.5) + tooth(fifths + 0.5)) / 2
        above[np.isnan(above)] = 0  # beyond Nyquist
        score += np.float32(weight) * np.clip(above, -_CAP, _CAP, out=above)
    clear = np.argsort(-score.max((0, 1)))[:_TRIED].tolist()
    # And the picture's middle, where the page is, whatever cloth it lies on.
    middle = min(
        range(len(groups)), key=lambda k: np.hypot(*np.subtract(groups[k], (np.array(found.shape) - 1) / 2))
    )
    clear += [middle] if middle not in clear else []
    seeds = [
        Seed(frequency, groups[k][0] * columns + groups[k][1], best)
        for k in clear
        for frequency, best in _best_pairs(score[..., k], radius[first : first + count], angle)
    ]
    seeds.sort(key=lambda seed: -seed.score)
    others: list[Seed] = []
    for seed in seeds:
        if all(_differs(seed.frequency, other.frequency) for other in others):
            others.append(seed)
    return others + [seed for seed in seeds if not any(seed is other for other in others)]


def _differs(one: Floats, other: Floats) -> bool:
    """Whether two candidates' spacings differ by more than a page seen from the side differs in itself."""
    apart = np.log(np.hypot(one[:, 0], one[:, 1]) / np.hypot(other[:, 0], other[:, 1]))
    return bool(np.abs(apart).max() > np.log(_RATIO))


def _middles(n: int) -> list[int]:
    """Every third window, as middles of groups of three."""
    return list(range(1, n - 1, 3)) or [n // 2]


def _look_up(values: NDArray[np.float32], fx: Floats, fy: Floats) -> NDArray[np.float32]:
    """Bilinear values of half spectra [., ., G] at frequencies in cycles per pixel; nan beyond Nyquist."""
    flip = np.where(fx < 0, -1.0, 1.0)
    column, row = fx * flip * WINDOW, fy * flip * WINDOW
    inside = (column < WINDOW / 2 - 1) & (np.abs(row) < WINDOW / 2 - 1)
    column, row = np.where(inside, column, 0.0), np.where(inside, row, 0.0)
    c, r = np.floor(column).astype(np.intp), np.floor(row).astype(np.intp)
    across, down = (part[..., None].astype(np.float32) for part in (column - c, row - r))
    top = values[r, c] * (1 - across) + values[r, c + 1] * across
    bottom = values[r + 1, c] * (1 - across) + values[r + 1, c + 1] * across
    return np.asarray(np.where(inside[..., None], top * (1 - down) + bottom * down, np.float32(np.nan)))


def _best_pairs(score: NDArray[np.float32], radius: Floats, angle: Floats) -> list[tuple[Floats, float]]:
    """Join two directions at about a right angle and of about the same spacing: the best two spacings."""
    near = int(np.log2(_RATIO) * _STEPS)
    widest = cv2.dilate(score, np.ones((1, 2 * near + 1), np.uint8))  # the best partner in each direction
    skews = np.arange(-_SKEW, _SKEW + 1) + _ANGLES // 2
    totals = np.stack([score + np.roll(widest, -skew, axis=0) for skew in skews])
    pairs = []
    for _ in range(2):
        skew, a, s = (int(k) for k in np.unravel_index(int(totals.argmax()), totals.shape))
        b = (a + skews[skew]) % _ANGLES
        first = max(0, s - near)
        steps = ((a, s), (b, first + int(score[b, first : s + near + 1].argmax())))
        vectors = [radius[k] * np.array([np.cos(angle[turn]), np.sin(angle[turn])]) for turn, k in steps]
        pairs.append((arrange(np.array(vectors)), float(totals[skew, a, s])))
        totals[:, :, max(0, s - near) : s + near + 1] = -np.inf
    return pairs


def arrange(pair: Floats) -> Floats:
    """Order two frequency vectors, [2, 2]: the first points to the right, the second down, never mirrored."""
    first, second = (
        pair if abs(pair[0, 0]) * np.hypot(*pair[1]) >= abs(pair[1, 0]) * np.hypot(*pair[0]) else pair[::-1]
    )
    return np.array([first * np.sign(first[0] or 1.0), second * np.sign(second[1] or 1.0)])


def follow(found: Spectra, seed: Floats, start: int) -> tuple[Floats, Floats]:
    """Follow the grid from window to window, the clearest first.

    Args:
        found: the spectra.
        seed: float64 [2, 2], the frequency in the first window.
        start: the first window.

    Returns:
        As :func:`peaks`. A window in which nothing is found hands on what its neighbours have.
    """
    rows, columns = found.shape
    where, weight = np.zeros((rows * columns, 2, 2)), np.zeros((rows * columns, 2))
    done = np.zeros(rows * columns, bool)
    queue: list[tuple[float, int]] = [(0.0, start)]
    queued = {start}
    while queue:
        _, window = heapq.heappop(queue)
        r, c = divmod(window, columns)
        beside = [
            y * columns + x
            for y in range(max(0, r - 1), min(rows, r + 2))
            for x in range(max(0, c - 1), min(columns, c + 2))
            if (y, x) != (r, c)
        ]
        known = [k for k in beside if done[k]]
        expected = np.average(where[known], 0, weight[known].min(1) + 0.1) if known else seed
        where[window], weight[window] = _peaks(found.power[window : window + 1], expected[None], _REACH)
        done[window] = True
        for k in beside:
            if k not in queued:
                queued.add(k)
                heapq.heappush(queue, (-float(weight[window].min()), k))
    return where, weight


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
    return _peaks(found.power, around, reach)


def _peaks(power: NDArray[np.float32], around: Floats, reach: float) -> tuple[Floats, Floats]:
    """Do so for any windows, float32 [n, WINDOW, WINDOW // 2 + 1]."""
    expected = around.reshape(-1, 2)  # both families of a window, one after the other
    flip = np.where(expected[:, 0] < 0, -1.0, 1.0)[:, None]
    centre = expected * flip * WINDOW
    sides = np.maximum(2, np.round(np.hypot(centre[:, 0], centre[:, 1]) * reach)).astype(np.intp)
    found, weight = expected.copy(), np.zeros(len(expected))
    middle = np.round(centre).astype(np.intp)
    # Patches of one size at a time: there are few sizes, and many windows.
    for side in np.unique(sides):
        offset = np.arange(-side - 1, side + 2)
        at = np.flatnonzero(
            (sides == side)
            & (middle[:, 0] + side + 1 <= WINDOW // 2)
            & (np.abs(middle[:, 1]) + side + 1 < WINDOW // 2)
        )
        if not len(at):  # all beyond what the window resolves
            continue
        columns, rows = middle[at, :1] + offset, middle[at, 1:] + offset
        # Left of frequency 0 the half spectrum goes on as its mirror image.
        mirrored = np.where(columns[:, None, :] < 0, -rows[:, :, None], rows[:, :, None]) % WINDOW
        patch = power[at[:, None, None] // 2, mirrored, np.abs(columns)[:, None, :]]
        peak, height = _peak(patch)
        level = np.partition(patch.reshape(len(at), -1), offset.size**2 // 2)[:, offset.size**2 // 2]
        weight[at] = np.log(height / (level + np.float32(1e-6)) + np.float32(1e-6)).clip(0, None)
        found[at] = np.where(weight[at, None] > SURE, (middle[at] + peak) * flip[at] / WINDOW, expected[at])
    return found.reshape(-1, 2, 2), weight.reshape(-1, 2)


def _peak(patch: NDArray[np.float32]) -> tuple[Floats, NDArray[np.float32]]:
    """Where the inner part of each patch, [m, k, k], peaks: from its middle (x, y), [m, 2]; also how high."""
    count, k = patch.shape[:2]
    inner = patch[:, 1:-1, 1:-1].reshape(count, -1).argmax(1)
    r, c = inner // (k - 2) + 1, inner % (k - 2) + 1
    n, three = np.arange(count)[:, None], np.arange(-1, 2)
    beside = patch[n, r[:, None], c[:, None] + three], patch[n, r[:, None] + three, c[:, None]]
    vertex = [_vertex(np.log(values + np.float32(1e-6)).astype(np.float64)) for values in beside]
    where = np.stack([c + vertex[0], r + vertex[1]], axis=1) - k // 2
    return where, beside[0][:, 1]


def _vertex(three: Floats) -> Floats:
    """Where the parabola through three values at -1, 0, 1 peaks: [m, 3] to [m]."""
    bend = three[:, 0] - 2 * three[:, 1] + three[:, 2]
    peak = (three[:, 0] - three[:, 2]) / (2 * np.where(bend < 0, bend, 1.0))
    return np.where(bend < 0, peak.clip(-0.5, 0.5), 0.0)

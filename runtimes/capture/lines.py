"""Where the printed lines are around each node of a mesh, against what a grid looks like.

The lines of one 5 mm period are measured as Fourier coefficients; the 1 mm lines are the fifth and tenth.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.mesh import STEP_MM, unroll

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

PX_PER_MM: Final = 4.8  # of the unrolled picture
_HARMONICS: Final = 12
# What a grid is before it has been seen: 5 mm lines a little darker than the 1 mm lines.
GRID: Final = np.array([0.4, 0.4, 0.4, 0.4, 1.0, 0.2, 0.2, 0.2, 0.2, 0.5, 0.1, 0.1])
SHIFTS: Final = np.arange(-25, 25) * 0.1  # millimetres
_PER_MM: Final = 10  # shifts
MINOR: Final = np.arange(1, _HARMONICS + 1) % 5 == 0  # the harmonics of the 1 mm lines alone
_WAVE: Final = np.exp(2j * np.pi / STEP_MM * np.arange(1, _HARMONICS + 1)[:, None] * SHIFTS)


def measure(signal: NDArray[np.float32], mesh: Floats, window_mm: float) -> list[Complexes]:
    """Fourier coefficients of the lines around each node, for both families: complex [rows, columns, K]."""
    flat = np.asarray(unroll(signal, mesh, PX_PER_MM), np.float32)
    rows, columns = mesh.shape[:2]
    step = round(STEP_MM * PX_PER_MM)
    half = round(window_mm * PX_PER_MM / 2)
    at = np.arange(-half, half) + 0.5
    hann = np.cos(np.pi * at / (2 * half)) ** 2
    turn = np.exp(-2j * np.pi / step * at[:, None] * np.arange(1, _HARMONICS + 1))
    kernel = (hann[:, None] * turn).astype(np.complex64)
    padded = np.pad(flat, half)
    out = []
    for picture, along, beside in ((padded, columns, rows), (padded.T, rows, columns)):
        across = np.stack(
            [hann.astype(np.float32) @ picture[k * step : k * step + 2 * half] for k in range(beside)]
        )
        windows = np.lib.stride_tricks.sliding_window_view(across, 2 * half, axis=1)[:, ::step][:, :along]
        found = windows @ kernel.real + 1j * (windows @ kernel.imag)
        out.append(found.astype(np.complex128))
    return [out[0], out[1].transpose(1, 0, 2)]


def correlate(coefficients: Complexes, template: Floats) -> Floats:
    """Correlation of each node's lines with the template at every shift: float64 [rows, columns, S]."""
    size = np.sqrt((np.abs(coefficients) ** 2).sum(-1, keepdims=True)) + 1e-9
    size = np.maximum(size, 0.3 * np.median(size))
    weighted = coefficients * (template / np.linalg.norm(template)) / size
    return np.asarray(weighted.real @ _WAVE.real - weighted.imag @ _WAVE.imag)


def repeats(score: Floats) -> float:
    """How high a node's score still is 1 mm beside its best: near 1 where all lines are alike."""
    best = score.max(-1)
    at = score.argmax(-1)[..., None] + np.array([-_PER_MM, _PER_MM])
    beside = np.take_along_axis(score, at % score.shape[-1], -1).max(-1)
    weight = best.clip(0, None) ** 2
    return float((weight * beside / np.maximum(best, 1e-9)).sum() / max(float(weight.sum()), 1e-9))


def global_shift(coefficients: Complexes, template: Floats) -> float:
    """The shift of the whole mesh that puts its nodes on 5 mm lines."""
    return float(SHIFTS[correlate(coefficients, template).sum((0, 1)).argmax()])


def vote(score: Floats, sigma: float) -> Floats:
    """Average scores over neighbouring nodes."""
    for axis in range(2):
        at = np.arange(score.shape[axis])
        weight = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        weight /= weight.sum(1, keepdims=True)
        score = np.moveaxis(np.tensordot(weight, score, axes=(1, axis)), 0, axis)
    return score


def best_shift(score: Floats, reach: float) -> tuple[Floats, Floats]:
    """The shift of the highest score within reach, interpolated, and that score: [rows, columns] each."""
    allowed = np.flatnonzero(np.abs(SHIFTS) <= reach)
    inner = score[..., allowed]
    k = inner.argmax(-1)
    edge = (k == 0) | (k == len(allowed) - 1)
    k = np.clip(k, 1, len(allowed) - 2)
    before, here, after = (np.take_along_axis(inner, (k + d)[..., None], -1)[..., 0] for d in (-1, 0, 1))
    bend = before - 2 * here + after
    vertex = np.where(bend < 0, (before - after) / (2 * np.where(bend < 0, bend, 1)), 0).clip(-0.5, 0.5)
    shift = SHIFTS[allowed][k] + vertex * (SHIFTS[1] - SHIFTS[0])
    return shift, np.where(edge, 0, here.clip(0, 1))


def learn(coefficients: Complexes, shift: Floats, sure: Floats) -> Floats:
    """What this grid looks like: mean coefficients of the sure nodes, moved into place."""
    order = np.arange(1, _HARMONICS + 1)
    placed = coefficients * np.exp(2j * np.pi / STEP_MM * shift[..., None] * order)
    size = np.sqrt((np.abs(placed) ** 2).sum(-1, keepdims=True)) + 1e-9
    mean = ((placed / size).real * sure[..., None] ** 2).sum((0, 1)).clip(0, None)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9) + 0.02)

"""Where the printed lines are around each node, as `runtimes/capture/lines.py` measures it.

Families come first, [2, ...]: lines across x, then across y.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.mesh import NODES, Span, look, spread
from pulse_edge.export.capture_graph.plain import FAR, array, choose, count, length, median, pick, true
from pulse_edge.export.capture_graph.reference import HARMONICS, PER_MM, PX_PER_MM, SHIFTS, WAVE

PX_PER_NODE: Final = round(5 * PX_PER_MM)
_MOST: Final = len(SHIFTS)


class Ruler:
    """Measures the lines around nodes in a line signal, float32 [1, 1, S, S]."""

    def __init__(self, signal: Tensor) -> None:
        self.signal = signal
        self._pixels = spread(PX_PER_NODE)
        self._windows: dict[float, Tensor] = {}
        self._at = (count((NODES - 1) * PX_PER_NODE) + 0.5) / PX_PER_NODE

    def measure(self, mesh: Tensor, span: Span, window_mm: float) -> Tensor:
        """Fourier coefficients of the lines around each node.

        Args:
            mesh: float32 [2, N, N].
            span: of the mesh.
            window_mm: length of the Hann window.

        Returns:
            float32 [2, 2, HARMONICS, N, N]: family, real and imaginary part.
        """
        # In grid_sample's coordinates from the start: fewer operations on whole pictures.
        unit = mesh * (2 / (length(self.signal) - 1)) - 1
        x, y = (self._pixels @ unit[k] @ self._pixels.T for k in range(2))
        flat = look(self.signal, x, y)[0, 0]
        half, waves = _waves(window_mm)
        window = self._window(window_mm, half)
        down, across = (
            true(self._at > span.first[axis]) * true(self._at < span.end[axis] - 1) for axis in range(2)
        )
        # Families: the window of the neighbouring lines runs down, or across.
        first = torch.stack([((window * down) @ flat) * across, ((window * across) @ flat.T) * down])
        found = functional.conv2d(first[:, None], waves, stride=[1, PX_PER_NODE], padding=[0, half])
        found = torch.stack([found[0], found[1].transpose(1, 2)])
        return found.reshape(2, 2, HARMONICS, NODES, NODES)

    def _window(self, window_mm: float, half: int) -> Tensor:
        """Hann window around each node, [N, pixels]."""
        if window_mm not in self._windows:
            away = (self._at[None] - count(NODES)[:, None]) * PX_PER_NODE
            window = torch.cos(np.pi / (2 * half) * away) ** 2 * true(torch.abs(away) < half)
            self._windows[window_mm] = window
        return self._windows[window_mm]


def _waves(window_mm: float) -> tuple[int, Tensor]:
    """Half a window's pixels, and its filters, [2 HARMONICS, 1, 1, pixels]."""
    half = round(window_mm * PX_PER_MM / 2)
    place = np.arange(-half, half) + 0.5
    hann = np.cos(np.pi * place / (2 * half)) ** 2
    turn = 2 * np.pi / PX_PER_NODE * np.outer(np.arange(1, HARMONICS + 1), place)
    return half, array(np.concatenate([np.cos(turn), -np.sin(turn)]) * hann)[:, None, None]


def correlate(coefficients: Tensor, template: Tensor, span: Span) -> Tensor:
    """Correlation of each node's lines with templates [2, K] at every shift: [2, shifts, N, N]."""
    size = torch.sqrt((coefficients**2).sum((1, 2))) + 1e-9
    shown = torch.cat([span.real.reshape(1, -1)] * 2)
    floor = 0.3 * median(size.reshape(2, -1), shown)
    size = torch.maximum(size.reshape(2, -1), floor)
    unit = template / torch.sqrt((template**2).sum(1, keepdim=True))
    weighted = coefficients * unit[:, None, :, None, None]
    weighted = weighted.reshape(2, 2 * HARMONICS, -1) / size[:, None]
    wave = array(np.concatenate([WAVE.real, -WAVE.imag]).T)
    return (wave @ weighted).reshape(2, _MOST, NODES, NODES)


def repeats(score: Tensor, span: Span) -> Tensor:
    """How high a node's score still is 1 mm beside its best, [2]: near 1 where all lines are alike."""
    best, at = score.amax(1), score.argmax(1, keepdim=True).to(torch.float32)
    beside = []
    for step in (-PER_MM, PER_MM):
        place = at + step
        place = place + _MOST * true(place < -0.5) - _MOST * true(place > _MOST - 0.5)
        beside.append(torch.gather(score, 1, place.to(torch.int64))[:, 0])
    other = torch.maximum(*beside)
    weight = torch.clamp(best, min=0) ** 2 * span.real
    share = (weight * other / torch.clamp(best, min=1e-9)).sum((1, 2))
    return share / torch.clamp(weight.sum((1, 2)), min=1e-9)


def global_shift(score: Tensor, span: Span) -> Tensor:
    """The shift in millimetres of the whole mesh that puts its nodes on 5 mm lines, float32 [2]."""
    total = (score * span.real).sum((2, 3))
    return pick(array(SHIFTS), total.argmax(1).to(torch.float32))


def voters(sigma: float, span: Span) -> tuple[Tensor, Tensor]:
    """Matrices [N, N] that average over neighbouring rows and columns of the span."""
    apart = count(NODES)[:, None] - count(NODES)[None]
    matrices = []
    for real in span.along:
        weight = torch.exp(-0.5 * (apart / sigma) ** 2) * real
        matrices.append(weight / torch.clamp(weight.sum(1, keepdim=True), min=1e-9))
    return matrices[0], matrices[1]


def best_shift(score: Tensor, reach: float, tight: Tensor) -> tuple[Tensor, Tensor]:
    """The shift of the highest score within reach, interpolated, and that score: [2, N, N] each.

    Args:
        score: float32 [2, shifts, N, N].
        reach: in millimetres.
        tight: float32 [2], 1 for families whose reach is at most half a millimetre.
    """
    wide, close = (np.flatnonzero(np.abs(SHIFTS) <= limit)[[0, -1]] for limit in (reach, min(reach, 0.5)))
    first, last = (int(wide[k]) + tight[:, None, None, None] * int(close[k] - wide[k]) for k in range(2))
    index = count(_MOST)[None, :, None, None]
    allowed = true(index > first - 0.5) * true(index < last + 0.5)
    k = choose(allowed, score, score * 0 - FAR).argmax(1, keepdim=True).to(torch.float32)
    edge = true(k < first + 0.5) + true(k > last - 0.5)
    k = torch.minimum(torch.maximum(k, first + 1), last - 1)
    near = torch.gather(score, 1, torch.cat([k - 1, k, k + 1], 1).to(torch.int64))
    before, here, after = near[:, 0], near[:, 1], near[:, 2]
    bend = before - 2 * here + after
    vertex = torch.clamp((before - after) / torch.clamp(2 * bend, max=-1e-9), -0.5, 0.5) * true(bend < 0)
    step = float(SHIFTS[1] - SHIFTS[0])
    shift = float(SHIFTS[0]) + step * (k[:, 0] + vertex)
    return shift, torch.clamp(here, 0, 1) * (1 - edge[:, 0])


def learn(coefficients: Tensor, shift: Tensor, sure: Tensor) -> Tensor:
    """What this grid looks like: mean coefficients of the sure nodes, moved into place; [2, K]."""
    order = (count(HARMONICS) + 1)[None, :, None, None]
    turn = (2 * np.pi / 5) * shift[:, None] * order
    real = coefficients[:, 0] * torch.cos(turn) - coefficients[:, 1] * torch.sin(turn)
    size = torch.sqrt((coefficients**2).sum((1, 2)))[:, None] + 1e-9
    mean = torch.clamp((real / size * sure[:, None] ** 2).sum((2, 3)), min=0)
    return mean / torch.clamp(torch.sqrt((mean**2).sum(1, keepdim=True)), min=1e-9) + 0.02

"""Windowed spectra as matrix products; the windows are those of `runtimes/capture/frequency.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.plain import array, count, length, pick, true
from pulse_edge.export.capture_graph.reference import HOP, WINDOW

HALF: Final = WINDOW // 2 + 1  # columns of a half spectrum


@dataclass(frozen=True)
class Spectra:
    """Spectra of a square of windows, of which a picture may fill less.

    Attributes:
        power: float32 [n * n, WINDOW * HALF].
        across: float32 [n], x of the middle of each column of windows.
        down: float32 [n], y of each row.
        counts: float32 [2], rows and columns that the picture fills.
        filled: float32 [n * n], 1 for windows of the picture.
        side: n.
    """

    power: Tensor
    across: Tensor
    down: Tensor
    counts: Tensor
    filled: Tensor
    side: int

    @property
    def centre(self) -> Tensor:
        """float32 [n * n, 2], pixel (x, y) in the middle of each window."""
        x, y = self.across[None] + 0 * self.down[:, None], self.down[:, None] + 0 * self.across[None]
        return torch.stack([x.reshape(-1), y.reshape(-1)], 1)


def windows_along(room: int) -> int:
    """How many windows the longest side takes."""
    return -(-max(0, room - WINDOW) // HOP) + 1


def spectra(signal: Tensor, size: Tensor) -> Spectra:
    """Fourier transform Hann windows of a line signal, float32 [S, S], of a picture of ``size``."""
    most = windows_along(length(signal))
    spare = torch.clamp(size - WINDOW, min=0)
    counts = torch.ceil(spare / HOP) + 1
    index = count(most)[None]
    starts = torch.round(index * spare[:, None] / torch.clamp(counts[:, None] - 1, min=1))
    real = true(index < counts[:, None] - 0.5)
    starts = starts * real
    places = [(starts[axis][:, None] + count(WINDOW)).reshape(-1) for axis in range(2)]
    cut = pick(signal, places[0])
    cut = pick(cut.T, places[1]).T
    cut = cut.reshape(most, WINDOW, most, WINDOW).permute(0, 2, 1, 3).reshape(-1, WINDOW, WINDOW)
    along, across = _matrices()
    wave = along @ (cut @ across)  # [n, cosine and sine of rows, cosine and -sine of columns]
    (cc, cs), (sc, ss) = (part.split(HALF, -1) for part in wave.split(WINDOW, 1))
    power = (cc + ss) ** 2 + (cs - sc) ** 2
    middle = (WINDOW - 1) / 2
    filled = (real[0][:, None] * real[1][None]).reshape(-1)
    flat = power.reshape(most * most, WINDOW * HALF)
    return Spectra(flat, starts[1] + middle, starts[0] + middle, counts, filled, most)


def _matrices() -> tuple[Tensor, Tensor]:
    """Tapered transforms along rows, [2 * WINDOW, WINDOW], and columns, [WINDOW, 2 * HALF]."""
    hann = np.hanning(WINDOW)
    turn = 2 * np.pi / WINDOW * np.outer(np.arange(WINDOW), np.arange(WINDOW))
    along = np.concatenate([np.cos(turn), np.sin(turn)]) * hann
    across = np.concatenate([np.cos(turn[:, :HALF]), -np.sin(turn[:, :HALF])], 1) * hann[:, None]
    return array(along), array(across)

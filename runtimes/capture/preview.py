"""What a preview frame shows, in a few milliseconds: motion, sharpness, light, and now and then the grid."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.contrast import LONG_SIDE, line_signal
from pulse_edge.runtimes.capture.frequency import find_seeds, spectra
from pulse_edge.runtimes.capture.shutter import Glimpse

# Pixels of the copy in which motion is measured: the grid is too fine there to mislead it, and OpenCV's
# correlation is off by half a pixel at sizes that its Fourier transform has to pad.
_COARSE: Final = (160, 120)
_SURE: Final = 0.08  # response of the correlation below which two frames show different things
_FINE: Final = 1920  # pixels of the long side at which sharpness is measured: beyond, lenses are soft anyway
_PATCH: Final = 192  # pixels of the windows for it
_PATCHES: Final = 3  # along each side
_GRID_SIDE: Final = 352  # pixels of the middle, at the scale of the full search, in which the grid is sought
_GRID_EVERY: Final = 4  # frames
# Of 22 annotated pictures none scores below 16; of 30 of the world all but bricks and checkerboards below 9.
_LEAST_SEED: Final = 12.0
_SILENCE: Final = 4.0  # grey levels of detail: less is an empty wall

Picture = NDArray[np.uint8]
_HANN: Final = np.asarray(cv2.createHanningWindow(_COARSE, cv2.CV_32F), np.float32)


class Preview:
    """Turns frames into glimpses; keeps a small copy of the frame before."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._time_s = 0.0
        self._count = 0

    def look(self, frame: Picture, time_s: float) -> Glimpse:
        """Look at one frame.

        Args:
            frame: uint8 [H, W, 3], RGB, sides of 64 pixels or more.
            time_s: when it was taken, on any clock that does not run backwards.
        """
        # Green is nearly the luminance, and a view of it costs nothing.
        grey = frame[..., 1]
        skip = max(1, min(grey.shape[0] // 540, grey.shape[1] // 720))  # enough pixels are left to average
        thinned = np.ascontiguousarray(grey[::skip, ::skip])
        coarse = cv2.resize(thinned, _COARSE, interpolation=cv2.INTER_AREA).astype(np.float32)
        motion = self._motion(coarse, time_s, grey.shape[0] / grey.shape[1])
        looked = self._count % _GRID_EVERY == 0
        self._count += 1
        self._before, self._time_s = coarse, time_s
        return Glimpse(
            time_s=time_s,
            motion=motion,
            sharpness=fine_detail(grey),
            brightness=float(coarse.mean()),
            px_per_mm=grid_scale(frame) if looked else None,
        )

    def _motion(self, coarse: NDArray[np.float32], time_s: float, aspect: float) -> float:
        if self._before is None or time_s <= self._time_s:
            return float("inf")
        (x, y), response = cv2.phaseCorrelate(
            self._before - self._before.mean(), coarse - coarse.mean(), _HANN
        )
        if response < _SURE:
            return float("inf")
        return float(np.hypot(x / _COARSE[0], y / _COARSE[1] * aspect)) / (time_s - self._time_s)


def fine_detail(grey: Picture) -> float:
    """Return the energy of detail of 1 to 2 pixels over that of 2 to 6, in the patches with most of it.

    Args:
        grey: uint8 [H, W]; of more than 1920 pixels, patches are reduced as if it had 1920.
    """
    height, width = grey.shape
    factor = max(1.0, max(height, width) / _FINE)
    side = min(round(_PATCH * factor), height, width)
    small = (max(1, round(side / factor)),) * 2
    found = []
    for row in np.linspace(0, height - side, _PATCHES).astype(int):
        for column in np.linspace(0, width - side, _PATCHES).astype(int):
            patch = cv2.resize(
                grey[row : row + side, column : column + side], small, interpolation=cv2.INTER_AREA
            ).astype(np.float32)
            near = cv2.GaussianBlur(patch, (0, 0), 1.0)
            far = cv2.GaussianBlur(near, (0, 0), 3.0)
            found.append((float(np.var(near - far)), float(np.var(patch - near))))
    coarse, fine = np.array(found).T
    noise = fine.min()  # a patch without print holds nothing but noise
    most = coarse >= np.median(coarse)
    if not coarse[most].mean() > _SILENCE:
        return 0.0
    return float(max(0.0, (fine[most] - noise).mean()) / coarse[most].mean())


def grid_scale(frame: Picture) -> float:
    """Return the grid's pixels per millimetre in the middle of a frame, uint8 [H, W, 3]; 0 without a grid."""
    factor = max(1.0, max(frame.shape[:2]) / LONG_SIDE)
    half = round(_GRID_SIDE * factor / 2)
    y, x = frame.shape[0] // 2, frame.shape[1] // 2
    middle = frame[max(0, y - half) : y + half, max(0, x - half) : x + half]
    size = (max(16, round(middle.shape[1] / factor)), max(16, round(middle.shape[0] / factor)))
    small = np.asarray(cv2.resize(middle, size, interpolation=cv2.INTER_AREA), np.uint8)
    seeds = find_seeds(spectra(line_signal(small)))
    if not seeds or seeds[0].score < _LEAST_SEED:
        return 0.0
    frequency = seeds[0].frequency
    return float(factor / np.hypot(frequency[:, 0], frequency[:, 1]).max())

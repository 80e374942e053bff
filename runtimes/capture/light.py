"""Even out the light on a flat page."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_CELL_MM: Final = 4.0  # paper shows within so much of every trace
_SMOOTH_MM: Final = 8.0
_WHITE: Final = 250.0  # what paper becomes


def even_light(page: NDArray[np.uint8], px_per_mm: float) -> NDArray[np.uint8]:
    """Divide a page by the light that falls on it.

    The light is what paper sends back: the brightest in each cell, smoothed. Each colour is divided by its
    own, which takes out the light's tint and the paper's with it; the grid's colour stays.

    Args:
        page: uint8 [h, w, 3], RGB.
        px_per_mm: its scale.

    Returns:
        uint8 [h, w, 3], paper near white everywhere.
    """
    height, width = page.shape[:2]
    cells = (max(1, round(width / (_CELL_MM * px_per_mm))), max(1, round(height / (_CELL_MM * px_per_mm))))
    fine = cv2.resize(page, (cells[0] * 4, cells[1] * 4), interpolation=cv2.INTER_AREA)
    bright = cv2.dilate(fine, np.ones((5, 5), np.uint8)).astype(np.float32)
    coarse = cv2.GaussianBlur(bright, (0, 0), 4 * _SMOOTH_MM / _CELL_MM / 2).clip(8, 255).astype(np.uint8)
    light = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.divide(page, light, scale=_WHITE), np.uint8)

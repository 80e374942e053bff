"""What the grid search looks at: how much darker than its surroundings each pixel is."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

LONG_SIDE: Final = 1600  # pixels of the copy that is searched; a page across it has 5 to 6 px/mm
_REACH: Final = 1 / 120  # of the long side: what counts as surroundings
_CLIP: Final = 1.5  # local standard deviations; a trace then weighs no more than a grid line
_FLOOR: Final = 1.5  # grey levels: flat paper is not amplified into noise


def reduce(image: NDArray[np.uint8], long_side: int = LONG_SIDE) -> tuple[NDArray[np.uint8], float]:
    """Reduce a picture by area until its long side fits.

    Args:
        image: uint8 [H, W, 3] or [H, W].
        long_side: in pixels.

    Returns:
        The picture (the same if it is small enough), and how many original pixels one pixel of it is.
    """
    factor = max(image.shape[:2]) / long_side
    if factor <= 1:
        return image, 1.0
    height, width = (max(1, round(side / factor)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), factor


def line_signal(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the contrast of thin dark lines, free of light and of the ink's strength.

    Args:
        image: uint8 [H, W, 3], RGB, or [H, W].

    Returns:
        float32 [H, W], positive on lines, in local standard deviations, within +-1.5.
    """
    grey = (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).astype(np.float32)
    reach = max(1.5, max(grey.shape) * _REACH)
    dark = _around(grey, reach)
    dark -= grey
    bound = dark
    # Twice, so that beside a trace the scale is that of the grid.
    for _ in range(2):
        spread = _around(bound * bound, reach)
        np.sqrt(np.maximum(spread, 0, out=spread), out=spread)
        spread += np.float32(_FLOOR)
        bound = np.minimum(dark, spread)
        np.maximum(bound, -spread, out=bound)
    np.divide(dark, spread, out=spread)
    return np.asarray(np.clip(spread, -_CLIP, _CLIP, out=spread), np.float32)


def _around(values: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """Gaussian mean of float32 [H, W], taken on a reduced copy where that is as good."""
    step = max(1, int(reach / 3))
    height, width = values.shape
    size = (max(1, round(width / step)), max(1, round(height / step)))
    small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), reach / step)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)

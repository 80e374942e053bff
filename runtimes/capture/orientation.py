"""Which way up a flat page is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quarter_turns(page: NDArray[np.uint8], px_per_mm: float) -> tuple[int, float]:
    """Say how the page has to be turned to stand upright.

    Args:
        page: uint8 [h, w, 3], RGB, flat, its lines along the axes.
        px_per_mm: its scale.

    Returns:
        Quarter turns counter-clockwise (as ``np.rot90``) that put it upright, and how sure that is, 0 to 1.
    """
    return 0, 0.25

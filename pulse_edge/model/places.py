"""What the choice of visual tokens (:mod:`.ink`) is made by, for torch and for graphs written without it."""

from __future__ import annotations

from typing import Final

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD

NEAR: Final = 7  # pixels around one, wider than a trace
DARKER: Final = 40.5 / 255 / IMAGE_STD[0]  # grey levels, in CLIP's units
BLACK: Final = (10.5 / 255 - IMAGE_MEAN[0]) / IMAGE_STD[0]
CLOSING: Final = 5  # pixels; no trace is as wide, padding is


def uniform(count: int, keep: int) -> list[int]:
    """Return ``keep`` of ``count`` places at even distances, the first and the last among them."""
    if keep == 1:
        return [0]
    return [(2 * k * (count - 1) + keep - 1) // (2 * (keep - 1)) for k in range(keep)]

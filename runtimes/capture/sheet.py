"""The photographed paper laid flat at one scale, so that every check looks at millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.mesh import STEP_MM, pixel_maps

SCALE: Final = 4.0  # px/mm: the least that a photo needs, so that a good photo is never enlarged
_MOST_NODES: Final = 140  # a mesh that claims to be larger than 70 cm is not of a page

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Sheet:
    """A page at 4 px/mm. The centre of pixel ``i`` lies at ``i``.

    Attributes:
        image: uint8 [h, w, 3], RGB; where the photo does not reach, its nearest pixels.
        seen: bool [h, w], where it does.
        origin_mm: paper millimetres (x, y) at the centre of pixel (0, 0).
        to_photo: float32 [h, w, 2], the photo's pixel (x, y) that each pixel shows.
        size: width and height of the photo.
    """

    image: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    origin_mm: tuple[float, float]
    to_photo: Singles
    size: tuple[int, int]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Return rows and columns of the sheet between paper millimetres, clipped to it."""
        height, width = self.seen.shape
        ends = []
        for low, high, start, side in (
            (y0, y1, self.origin_mm[1], height),
            (x0, x1, self.origin_mm[0], width),
        ):
            a, b = (int(np.clip(round((mm - start) * SCALE), 0, side)) for mm in (low, high))
            ends.append(slice(a, b))
        return ends[0], ends[1]


def flatten(image: NDArray[np.uint8], mesh: Floats) -> Sheet:
    """Lay a photo flat.

    Args:
        image: uint8 [H, W, 3], RGB.
        mesh: float64 [rows, columns, 4], nodes ``x_px, y_px, x_mm, y_mm`` at every 5 mm, x along the columns.

    Returns:
        The sheet. Where a photo has more than 4 px/mm it is reduced by area first, so that its noise and
        sharpness are those of the same photo taken from farther away.
    """
    mesh = mesh[:_MOST_NODES, :_MOST_NODES]
    reduced, factor = _reduce(image, mesh)
    x, y = pixel_maps(mesh[..., :2], SCALE)
    height, width = image.shape[:2]
    seen = (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
    half = np.float32(0.5)
    at = [((part + half) / np.float32(factor) - half).astype(np.float32) for part in (x, y)]
    flat = cv2.remap(reduced, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The first pixel's centre lies half a pixel behind the first node.
    origin = (float(mesh[0, 0, 2]) + 0.5 / SCALE, float(mesh[0, 0, 3]) + 0.5 / SCALE)
    return Sheet(
        np.asarray(flat, np.uint8), np.asarray(seen), origin, np.stack([x, y], axis=-1), (width, height)
    )


def _reduce(image: NDArray[np.uint8], mesh: Floats) -> tuple[NDArray[np.uint8], float]:
    """Reduce a photo by area to about 4 px/mm; also by how much."""
    gap = np.hypot(np.diff(mesh[..., 0], axis=1), np.diff(mesh[..., 1], axis=1))
    factor = float(np.median(gap)) / STEP_MM / SCALE
    if not factor > 1.25:
        return image, 1.0
    height, width = (max(1, round(side / factor)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8), factor

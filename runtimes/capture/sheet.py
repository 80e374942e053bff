"""The photographed paper laid flat at one scale, so that every check looks at millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

SCALE: Final = 4.0  # px/mm: the least that a photo needs, so that a good photo is never enlarged
_LONGEST_MM: Final = 700.0  # a mesh that claims more is not of a page

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Sheet:
    """A page at 4 px/mm. The centre of pixel ``i`` lies at ``i``.

    Attributes:
        image: uint8 [h, w, 3], RGB; where the photo does not reach, its nearest pixels.
        seen: bool [h, w], where it does.
        origin_mm: paper millimetres (x, y) at pixel (0, 0), multiples of 5 mm.
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
        mesh: float64 [rows, columns, 4], nodes ``x_px, y_px, x_mm, y_mm`` at even steps of paper
            millimetres, x along the columns.

    Returns:
        The sheet. Where a photo has more than 4 px/mm it is reduced by area first, so that its noise and
        sharpness are those of the same photo taken from farther away.
    """
    across, down = mesh[0, :, 2], mesh[:, 0, 3]
    first = (float(across[0]), float(down[0]))
    # Begin on a line of the 5 mm grid: then windows of 5 and 10 mm begin on one too.
    start = tuple(5.0 * np.ceil((value - 1e-6) / 5.0) for value in first)
    span = [
        min(float(axis[-1]) - begin, _LONGEST_MM) for axis, begin in zip((across, down), start, strict=True)
    ]
    width, height = (max(1, int(np.floor(length * SCALE)) + 1) for length in span)
    reduced, factor = _reduce(image, mesh)
    column = (start[0] + np.arange(width) / SCALE - first[0]) / _step(across)
    row = (start[1] + np.arange(height) / SCALE - first[1]) / _step(down)
    at = np.stack(np.meshgrid(column, row), axis=-1).astype(np.float32)
    nodes = np.ascontiguousarray(mesh[..., :2], np.float32)
    to_photo = _look_up(nodes, at)
    limit = np.array(image.shape[1::-1], np.float32) - 0.5
    seen = np.all((to_photo > -0.5) & (to_photo < limit), axis=-1)
    small = ((to_photo + 0.5) / np.float32(factor) - 0.5).astype(np.float32)
    flat = _look_up(reduced, small)
    size = (image.shape[1], image.shape[0])
    return Sheet(
        np.asarray(flat, np.uint8), np.asarray(seen), (float(start[0]), float(start[1])), to_photo, size
    )


def _look_up(values: NDArray[Any], at: Singles) -> NDArray[Any]:
    """Interpolate values [H, W, k] at places float32 [h, w, 2]: [h, w, k]; beyond the rim the nearest."""
    x, y = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    return np.asarray(cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _step(axis: Floats) -> float:
    return float(axis[-1] - axis[0]) / (len(axis) - 1)


def _reduce(image: NDArray[np.uint8], mesh: Floats) -> tuple[NDArray[np.uint8], float]:
    """Reduce a photo by area to about 4 px/mm; also by how much."""
    gap = np.hypot(np.diff(mesh[..., 0], axis=1), np.diff(mesh[..., 1], axis=1))
    factor = float(np.median(gap)) / _step(mesh[0, :, 2]) / SCALE
    if not factor > 1.25:
        return image, 1.0
    height, width = (max(1, round(side / factor)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8), factor

"""The page as a bright quadrilateral: what is left for an ECG without a grid."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.mesh import STEP_MM

Floats = NDArray[np.float64]

_LONG_SIDE: Final = 640  # pixels of the copy in which the page is looked for
_LEAST_AREA: Final = 0.2  # of the picture
_PAGE_MM: Final = 280.0  # long side that is assumed: US letter and A4 are 279 and 297


def page_corners(image: NDArray[np.uint8]) -> Floats | None:
    """Find the corners of the brightest sheet.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        float64 [4, 2], pixels (x, y) from the top left corner clockwise, or None where no sheet with four
        corners stands out.
    """
    factor = max(1.0, max(image.shape[:2]) / _LONG_SIDE)
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    grey = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))  # over lines and traces
    _, bright = cv2.threshold(cv2.GaussianBlur(grey, (5, 5), 0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    outline = cv2.convexHull(max(contours, key=cv2.contourArea))
    corners = cv2.approxPolyDP(outline, 0.03 * cv2.arcLength(outline, True), True)[:, 0].astype(np.float64)
    if len(corners) != 4 or cv2.contourArea(corners.astype(np.float32)) < _LEAST_AREA * size[0] * size[1]:
        return None
    around = np.arctan2(*(corners - corners.mean(0)).T[::-1])
    corners = corners[np.argsort(around)]
    corners = np.roll(corners, -int(corners.sum(1).argmin()), axis=0)
    return np.asarray((corners + 0.5) * factor - 0.5)


def quad_mesh(image: NDArray[np.uint8]) -> Floats:
    """Spread a mesh over the page's quadrilateral, or over the whole picture where there is none.

    The long side is taken for 280 mm, since nothing in the picture says how large the page is.

    Returns:
        float64 [rows, columns, 2], pixels of the picture.
    """
    height, width = image.shape[:2]
    corners = page_corners(image)
    if corners is None:
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    across, down = max(sides[0], sides[2]), max(sides[1], sides[3])
    columns, rows = (
        max(2, round(_PAGE_MM / STEP_MM * side / max(across, down)) + 1) for side in (across, down)
    )
    square = np.array([[0, 0], [columns - 1, 0], [columns - 1, rows - 1], [0, rows - 1]], np.float32)
    matrix = cv2.getPerspectiveTransform(square, corners.astype(np.float32))
    nodes = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(np.float64)
    return np.asarray(cv2.perspectiveTransform(nodes, matrix), np.float64)

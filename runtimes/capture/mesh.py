"""A mesh of paper points every 5 mm and the pixels that show them; resampling through it.

A mesh is float64 [rows, columns, 2]: the pixel (x, y) of each node; node ``[r, c]`` is the paper point
``(5 c, 5 r)`` mm. Between nodes it is cubic (Catmull-Rom), so that a page's bending has no facets.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEP_MM: Final = 5.0


def cubic(positions: Floats, nodes: int) -> Floats:
    """Return the matrix of Catmull-Rom interpolation.

    Args:
        positions: float64 [n], in node indices; beyond the ends the last piece goes on straight.
        nodes: how many there are, 2 or more.

    Returns:
        float64 [n, nodes], to be multiplied by values at the nodes.
    """
    inside = np.clip(positions, 0, nodes - 1)
    beyond = positions - inside
    left = np.clip(np.floor(inside), 0, nodes - 2).astype(np.intp)
    t = inside - left
    pieces = np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    matrix = np.zeros((len(positions), nodes + 2))
    matrix[np.arange(len(positions))[:, None], left[:, None] + np.arange(4)] = pieces / 2
    ends = matrix[:, 1:-1]
    # A node before the first and after the last continue the line through the outer two.
    ends[:, 0] += 2 * matrix[:, 0]
    ends[:, 1] -= matrix[:, 0]
    ends[:, -1] += 2 * matrix[:, -1]
    ends[:, -2] -= matrix[:, -1]
    slope = np.where(beyond < 0, -beyond, beyond)
    low, high = np.minimum(beyond, 0), np.maximum(beyond, 0)
    ends[:, 0] -= low
    ends[:, 1] += low
    ends[:, -1] += high
    ends[:, -2] -= high
    return np.asarray(ends + 0 * slope[:, None])


def pixel_maps(mesh: Floats, px_per_mm: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Spread a mesh over the pixels of the page that it spans.

    Returns:
        x and y, float32 [h, w]: where each pixel of the page lies in the picture. Its pixel ``i`` is centred
        ``(i + 0.5) / px_per_mm`` mm from the first node.
    """
    rows, columns = mesh.shape[:2]
    height, width = (round((n - 1) * STEP_MM * px_per_mm) for n in (rows, columns))
    down = cubic((np.arange(height) + 0.5) / (px_per_mm * STEP_MM), rows).astype(np.float32)
    across = cubic((np.arange(width) + 0.5) / (px_per_mm * STEP_MM), columns).astype(np.float32)
    x, y = (down @ (mesh[..., k].astype(np.float32) @ across.T) for k in range(2))
    return x, y


def unroll(
    image: NDArray[Any], mesh: Floats, px_per_mm: float, smooth: bool = False, border: int = 0
) -> NDArray[Any]:
    """Resample a picture to the flat page that a mesh spans.

    Args:
        image: [H, W] or [H, W, 3], uint8 or float32.
        mesh: the mesh.
        px_per_mm: scale of the page.
        smooth: cubic interpolation instead of linear.
        border: the value outside of the picture.

    Returns:
        The page, of the picture's type.
    """
    x, y = pixel_maps(mesh, px_per_mm)
    how = cv2.INTER_CUBIC if smooth else cv2.INTER_LINEAR
    return cv2.remap(image, x, y, how, borderMode=cv2.BORDER_CONSTANT, borderValue=(border,) * 3)


def sample(mesh: Floats, columns: Floats, rows: Floats) -> Floats:
    """Interpolate a mesh (or other values [rows, columns, k]) at fractional nodes, any shape: [..., k]."""
    down = cubic(rows.ravel(), mesh.shape[0])
    across = cubic(columns.ravel(), mesh.shape[1])
    out = np.einsum("nr,rck,nc->nk", down, mesh, across, optimize=True)
    return np.asarray(out.reshape(*rows.shape, mesh.shape[2]))

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
    weights, left = _pieces(positions, nodes)
    matrix = np.zeros((len(positions), nodes + 2))
    matrix[np.arange(len(positions))[:, None], left[:, None] + np.arange(4)] = weights
    return matrix @ _continued(np.eye(nodes), 0)


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
    down, top = _pieces(rows, mesh.shape[0])
    across, left = _pieces(columns, mesh.shape[1])
    padded = _continued(_continued(mesh, 0), 1)
    out = np.zeros((*rows.shape, mesh.shape[2]))
    for i in range(4):
        for j in range(4):
            out += (down[..., i] * across[..., j])[..., None] * padded[top + i, left + j]
    return out


def _pieces(positions: Floats, nodes: int) -> tuple[Floats, NDArray[np.intp]]:
    """Catmull-Rom weights of four neighbours, [..., 4], and the first of them among nodes padded by one.

    Beyond the ends the position stays linear in the outer two nodes.
    """
    left = np.clip(np.floor(positions), 0, nodes - 2).astype(np.intp)
    t = positions - left
    inside = np.clip(t, 0, 1)
    beyond = t - inside
    weights = [
        -inside + 2 * inside**2 - inside**3,
        2 - 5 * inside**2 + 3 * inside**3,
        inside + 4 * inside**2 - 3 * inside**3,
        inside**3 - inside**2,
    ]
    weights[1] = weights[1] - 2 * beyond
    weights[2] = weights[2] + 2 * beyond
    return np.stack(weights, axis=-1) / 2, left


def _continued(values: Floats, axis: int) -> Floats:
    """Add a node at both ends of an axis, in line with the outer two."""
    values = np.moveaxis(values, axis, 0)
    longer = np.concatenate([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    return np.moveaxis(longer, 0, axis)

"""Smooth fields over the nodes of a mesh: through values of which some are wrong, and beyond those known."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DECAY: Final = 2.0  # nodes over which a neighbour's say falls by a factor e


def continued(mesh: Floats, held: NDArray[np.bool_]) -> Floats:
    """Continue a mesh beyond the nodes that are held.

    What the best homography leaves is continued as a plane through the nearest held nodes of each.

    Args:
        mesh: float64 [rows, columns, 2].
        held: bool [rows, columns], at least three that are not in line.

    Returns:
        float64 [rows, columns, 2].
    """
    rows, columns = held.shape
    r, c = np.indices((rows, columns), dtype=np.float64)
    index = np.stack([c, r], axis=-1)
    homography = np.asarray(cv2.findHomography(index[held], mesh[held], 0)[0], np.float64)
    # cv2 gives no matrix for nodes in line.
    flat = cv2.perspectiveTransform(index, homography) if homography.ndim == 2 else np.zeros_like(mesh)
    mesh = mesh - flat
    near = [np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / _DECAY) for n in (rows, columns)]
    basis = np.stack([np.ones_like(r), r, c])
    moments = np.stack(
        [held * a * b for a in basis for b in basis]
        + [held * a * mesh[..., k] for a in basis for k in range(2)]
    )
    total = near[0] @ moments @ near[1].T
    normal = np.moveaxis(total[:9].reshape(3, 3, rows, columns), (0, 1), (2, 3))
    right = np.moveaxis(total[9:].reshape(3, 2, rows, columns), (0, 1), (2, 3))
    # In coordinates around each node the numbers are tame and its value is the first unknown.
    shift = np.zeros((rows, columns, 3, 3))
    shift[..., range(3), range(3)] = 1
    shift[..., 1, 0], shift[..., 2, 0] = -r, -c
    normal = shift @ normal @ np.swapaxes(shift, -1, -2)
    right = shift @ right
    scale = normal[..., 0, 0][..., None, None]
    solved = np.linalg.solve(normal / scale + np.diag([0, 1e-6, 1e-6]), right / scale)
    return np.asarray(flat + solved[..., 0, :])


def smooth_field(values: Floats, weight: Floats, stiffness: float) -> tuple[Floats, Floats]:
    """Fit a smooth field to values of which some are wrong.

    Penalised least squares on a grid, solved by cosine transforms and reweighted by how far each value is off
    (Garcia, Computational Statistics & Data Analysis 2010).

    Args:
        values: float64 [rows, columns].
        weight: float64 [rows, columns], 0 or more.
        stiffness: factor on the squared Laplacian.

    Returns:
        The field and the residual of each value, float64 [rows, columns] each.
    """
    rows, columns = values.shape
    bend = (2 - 2 * np.cos(np.pi * np.arange(rows) / rows))[:, None] + (
        2 - 2 * np.cos(np.pi * np.arange(columns) / columns)
    )
    filtering = 1 / (1 + stiffness * bend**2)
    base = (weight / max(float(weight.max()), 1e-9)) ** 2
    down, across = (scipy.fft.dct(np.eye(n), axis=0, norm="ortho") for n in (rows, columns))
    field = np.full_like(values, float(np.median(values[weight >= np.median(weight)])))
    kept = base
    for turn in range(4):
        for _ in range(6 if turn else 12):
            mixed = kept * (values - field) + field
            field = down.T @ (filtering * (down @ mixed @ across.T)) @ across  # at this size faster than FFTs
        off = values - field
        typical = 1.4826 * float(np.median(np.abs(off[base > 0.1]))) if bool((base > 0.1).any()) else 0.1
        limit = 4.685 * max(typical, 0.02)
        kept = base * np.clip(1 - (off / limit) ** 2, 0, None) ** 2
    return field, off

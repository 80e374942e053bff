"""The first mesh: a smooth map from pixels to millimetres, turned round."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.frequency import WINDOW
from pulse_edge.runtimes.capture.mesh import STEP_MM
from pulse_edge.runtimes.capture.phase import PhaseMap

Floats = NDArray[np.float64]

_DEGREE: Final = 5
_SAMPLES: Final = 40  # along the long side
_MARGIN: Final = 1  # nodes around what was seen
_MOST: Final = 200  # nodes along a side


def first_mesh(phase: PhaseMap, centre: Floats, trust: Floats, shape: tuple[int, ...]) -> Floats | None:
    """Make a mesh of the part of a picture where the grid was seen.

    Args:
        phase: the smooth map.
        centre: float64 [n, 2], middle of each window.
        trust: float64 [n, 2], how sure each window is of each family.
        shape: height and width of the picture.

    Returns:
        float64 [rows, columns, 2], pixels; None if the map spans less than a cell.
    """
    height, width = shape[:2]
    step = max(height, width) / _SAMPLES
    x, y = np.meshgrid(np.arange(-0.5, width, step), np.arange(-0.5, height, step))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    seen = (trust > 0).all(1)
    # Half a window around each window's middle, at least; whole windows at the picture's rim.
    away = np.abs(points[:, None] - centre[seen]).max(-1)
    reach = np.full(len(points), WINDOW / 2)
    points = points[(away <= reach[:, None]).any(1)]
    mm = phase.at(points)
    low = np.floor(mm.min(0) / STEP_MM) - _MARGIN
    high = np.ceil(mm.max(0) / STEP_MM) + _MARGIN
    count = np.minimum(high - low + 1, _MOST).astype(int)
    nodes = np.stack(np.meshgrid(*(low[k] + np.arange(count[k]) for k in range(2))), axis=-1) * STEP_MM
    middle = mm.mean(0)
    scale = np.abs(mm - middle).max()
    if not scale > STEP_MM:  # of a picture without contrast, every pixel has the same place
        return None
    powers = [(a, total - a) for total in range(_DEGREE + 1) for a in range(total + 1)]

    def basis(at: Floats) -> Floats:
        unit = (at - middle) / scale
        return np.stack([unit[..., 0] ** a * unit[..., 1] ** b for a, b in powers], axis=-1)

    known = basis(mm)
    ridge = np.diag([1e-6 * max(0, a + b - 1) for a, b in powers]) * len(mm)
    weights = np.linalg.solve(known.T @ known + ridge, known.T @ points)
    return np.asarray(basis(nodes) @ weights)

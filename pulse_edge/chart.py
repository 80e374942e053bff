"""Plain charts as PNG files, drawn with OpenCV, which every installation has: lines with axes, and counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 460, 340  # of a panel
_BOX: Final = (62, 40, 440, 290)  # left, top, right, bottom of the axes in it
_TEXT: Final = (60, 60, 60)
_GRID: Final = (225, 225, 225)
INKS: Final = ((180, 110, 40), (40, 90, 220), (60, 150, 60), (150, 60, 150), (20, 150, 200))  # BGR
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lines:
    """A panel of lines.

    Attributes:
        title: above it.
        axes: what x and y are.
        lines: (x, y) points by name; values that are not finite are left out.
        x: from, to; None as the points say.
        y: from, to; None from 0 to the largest.
        dots: mark every point.
        diagonal: draw x = y.
    """

    title: str
    axes: tuple[str, str]
    lines: Mapping[str, Points]
    x: tuple[float, float] | None = None
    y: tuple[float, float] | None = None
    dots: bool = False
    diagonal: bool = False


@dataclass(frozen=True)
class Counts:
    """A panel of counts, each cell the darker the larger its share of the row.

    Attributes:
        title: above it.
        columns: their names.
        rows: counts by name.
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[int]]


def draw(panels: Sequence[Lines | Counts], across: int = 2) -> bytes:
    """Draw panels in rows of ``across``; return a PNG file."""
    down = math.ceil(len(panels) / across)
    image = np.full((max(down, 1) * _HEIGHT, across * _WIDTH, 3), 255, np.uint8)
    for k, panel in enumerate(panels):
        top, left = k // across * _HEIGHT, k % across * _WIDTH
        part = np.ascontiguousarray(image[top : top + _HEIGHT, left : left + _WIDTH])
        _say(part, panel.title, (12, 18), 0.46)
        if isinstance(panel, Lines):
            _lines(part, panel)
        else:
            _counts(part, panel)
        image[top : top + _HEIGHT, left : left + _WIDTH] = part
    return bytes(cv2.imencode(".png", image)[1])


def _lines(image: NDArray[np.uint8], panel: Lines) -> None:
    left, top, right, bottom = _BOX
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in panel.lines.items()}
    every = [p for points in lines.values() for p in points] or [(0.0, 0.0)]
    x0, x1 = panel.x or (min(p[0] for p in every), max(p[0] for p in every))
    y0, y1 = panel.y or (0.0, 1.1 * max(p[1] for p in every))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def place(point: tuple[float, float]) -> tuple[int, int]:
        across, up = (point[0] - x0) / (x1 - x0), (point[1] - y0) / (y1 - y0)
        return round(left + across * (right - left)), round(bottom - up * (bottom - top))

    for k in range(6):
        x, y = x0 + k / 5 * (x1 - x0), y0 + k / 5 * (y1 - y0)
        cv2.line(image, place((x0, y)), place((x1, y)), _GRID, 1)
        _say(image, f"{y:.4g}", (8, place((x0, y))[1] + 4))
        _say(image, f"{x:.4g}", (place((x, y0))[0] - 10, bottom + 16))
    if panel.diagonal:
        cv2.line(image, place((max(x0, y0),) * 2), place((min(x1, y1),) * 2), (170, 170, 170), 1, cv2.LINE_AA)
    _say(image, panel.axes[0], ((left + right) // 2 - 40, bottom + 36))
    _say(image, panel.axes[1], (left, top - 6))
    for k, (name, points) in enumerate(lines.items()):
        ink = INKS[k % len(INKS)]
        corners = np.array([place(point) for point in points], np.int32).reshape(-1, 1, 2)
        cv2.polylines(image, [corners], False, ink, 1, cv2.LINE_AA)
        for corner in corners if panel.dots or len(points) == 1 else corners[:0]:
            cv2.circle(image, (int(corner[0, 0]), int(corner[0, 1])), 3, ink, -1, cv2.LINE_AA)
        _say(image, name, (left + 8, top + 16 + 15 * k), ink=ink)


def _counts(image: NDArray[np.uint8], panel: Counts) -> None:
    left, top, width, height = 130, 62, 84, 22
    for k, name in enumerate(panel.columns):
        _say(image, name, (left + k * width + 8, top - 8))
    for row, (name, counts) in enumerate(panel.rows.items()):
        y = top + row * height
        _say(image, name, (12, y + 15))
        for k, count in enumerate(counts):
            share = count / max(sum(counts), 1)
            ink = tuple(round(255 - share * (255 - c)) for c in (220, 170, 110))
            x = left + k * width
            cv2.rectangle(image, (x, y), (x + width - 2, y + height - 2), ink, -1)
            _say(image, str(count), (x + 8, y + 15))


def _say(
    image: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    size: float = 0.38,
    ink: tuple[int, int, int] = _TEXT,
) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)

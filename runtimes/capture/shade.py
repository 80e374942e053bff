"""Light on the page: shadows, highlights, and what lies on the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.ink import Ink
from pulse_edge.runtimes.capture.layout import Layout
from pulse_edge.runtimes.capture.sheet import SCALE, Sheet

NODE_MM: Final = 5.0
_LOST: Final = 0.5  # of the page's median strength of the grid: below, the grid is not seen
_BRIGHT: Final = 1.03  # times the paper's usual level: a highlight
_WHITE: Final = 248.0  # brighter than that is bright, however white the paper
_LARGEST_GAP_MM: Final = 20.0  # from a row of traces to what belongs to it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shade:
    """Light and cover, at the nodes of the mesh among the traces.

    Attributes:
        level: grey level of bare paper, the median, 0 to 255.
        evenness: the darkest twentieth's level over the brightest twentieth's, 0 to 1.
        glare_mm2: area whose grid is lost and whose paper is brighter than usual.
        covered_mm2: area whose grid is lost and whose paper is not.
        glare_at: (x, y) mm of the nodes in the highlight.
        covered_at: likewise.
        dark_at: likewise of the nodes in shadow.
    """

    level: float
    evenness: float
    glare_mm2: float
    covered_mm2: float
    glare_at: tuple[tuple[float, float], ...]
    covered_at: tuple[tuple[float, float], ...]
    dark_at: tuple[tuple[float, float], ...]


def find_shade(sheet: Sheet, ink: Ink, mesh: Floats, strength: NDArray[np.float32], layout: Layout) -> Shade:
    """Look for shadows, highlights and things on the paper.

    Args:
        sheet: the sheet.
        ink: of the sheet.
        mesh: float64 [rows, columns, 4], ``x_px, y_px, x_mm, y_mm``.
        strength: float32 [rows, columns], how well the grid is seen at each node; zeros without a grid.
        layout: says where traces are expected.
    """
    inside = _inside(sheet, mesh)
    level = _at_nodes(sheet, ink.paper, mesh)
    typical = float(np.median(strength[inside])) if inside.any() else 0.0
    among = inside & _among_traces(mesh, layout)
    # A few weak nodes are thick strokes or a lead's name; a highlight or a finger is wider.
    weak = ((strength < _LOST * typical) | ~inside).astype(np.uint8)
    lost = cv2.morphologyEx(weak, cv2.MORPH_OPEN, np.ones((3, 3))) > 0
    paper = among & ~lost if typical else among
    if not paper.any():
        return Shade(float(np.median(ink.paper)), 1.0, 0.0, 0.0, (), (), ())
    usual = float(np.median(level[paper]))
    darkest, brightest = np.percentile(level[paper], (5, 95))
    bright = level > min(_BRIGHT * usual, _WHITE)
    glare, covered = among & lost & bright, among & lost & ~bright
    dark = among & (level < 0.75 * float(brightest))
    return Shade(
        level=usual,
        evenness=float(darkest / max(brightest, 1.0)),
        glare_mm2=float(glare.sum()) * NODE_MM**2,
        covered_mm2=float(covered.sum()) * NODE_MM**2,
        glare_at=_places(mesh, glare),
        covered_at=_places(mesh, covered),
        dark_at=_places(mesh, dark),
    )


def _inside(sheet: Sheet, mesh: Floats) -> NDArray[np.bool_]:
    width, height = sheet.size
    x, y = mesh[..., 0], mesh[..., 1]
    return np.asarray((x > 0) & (y > 0) & (x < width - 1) & (y < height - 1))


def _at_nodes(sheet: Sheet, values: NDArray[np.float32], mesh: Floats) -> Floats:
    """Look values of the sheet up at the nodes."""
    column = np.round((mesh[..., 2] - sheet.origin_mm[0]) * SCALE).astype(np.intp)
    row = np.round((mesh[..., 3] - sheet.origin_mm[1]) * SCALE).astype(np.intp)
    height, width = values.shape
    return np.asarray(values[row.clip(0, height - 1), column.clip(0, width - 1)], np.float64)


def _among_traces(mesh: Floats, layout: Layout) -> NDArray[np.bool_]:
    if not layout.rows_mm:
        return np.ones(mesh.shape[:2], np.bool_)
    gaps = np.diff(layout.rows_mm)
    reach = min(float(np.median(gaps)) / 2 if len(gaps) else _LARGEST_GAP_MM, _LARGEST_GAP_MM)
    x, y = mesh[..., 2], mesh[..., 3]
    tall = (y > layout.rows_mm[0] - reach) & (y < layout.rows_mm[-1] + reach)
    return np.asarray(tall & (x > layout.x_mm[0]) & (x < layout.x_mm[1]))


def _places(mesh: Floats, where: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in mesh[where][:, 2:])

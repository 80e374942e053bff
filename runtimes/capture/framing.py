"""Whether every lead is in the picture: traces that run into the frame are cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.ink import Ink, Row
from pulse_edge.runtimes.capture.layout import FULL_MM
from pulse_edge.runtimes.capture.sheet import SCALE, Sheet

_TOUCH_MM: Final = 2.0  # a trace that ends so near to the frame runs into it
_PEAK_MM: Final = 1.0  # likewise the top of a wave
_WHOLE: Final = 0.96  # of 10 s: a row of that length is complete even where it touches the frame
_PEAKS: Final = 2  # waves that leave by the upper or lower edge; one may be a stroke of the machine
_STROKE_MM: Final = 22.0  # longer vertical strokes stand between leads


@dataclass(frozen=True)
class Cut:
    """A row of traces, or some of its waves, that the frame cuts off.

    Attributes:
        edge: left, right, top or bottom, on the upright page.
        at_mm: (x, y) of the cut on the page.
        lost_mm: how much of 10 s is missing at least; 0 for upper and lower edges.
    """

    edge: str
    at_mm: tuple[float, float]
    lost_mm: float


def find_cuts(sheet: Sheet, ink: Ink) -> list[Cut]:
    """Find where traces run into the frame of the photo."""
    away = _to_frame(sheet)
    cuts = []
    for row in ink.rows:
        cuts += _sides(sheet, away < _TOUCH_MM, row)
    if ink.rows:
        cuts += _ends(sheet, ink, away < _PEAK_MM, ink.rows[0], "top")
        cuts += _ends(sheet, ink, away < _PEAK_MM, ink.rows[-1], "bottom")
    return cuts


def _to_frame(sheet: Sheet) -> NDArray[np.float32]:
    """Millimetres along the paper from each pixel of the sheet to the photo's frame, 0 outside."""
    outside = np.pad((~sheet.seen).astype(np.uint8), 1, constant_values=0)
    away = cv2.distanceTransform(1 - outside, cv2.DIST_L2, 3)[1:-1, 1:-1] / SCALE
    return np.asarray(np.minimum(away, _to_frame_in_photo(sheet)), np.float32)


def _to_frame_in_photo(sheet: Sheet) -> NDArray[np.float32]:
    """The same where the sheet itself ends at the frame, from the photo's pixels."""
    x, y = sheet.to_photo[..., 0], sheet.to_photo[..., 1]
    width, height = sheet.size
    pixels = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    step = np.hypot(*cv2.split(np.diff(sheet.to_photo[::4], axis=1)))
    per_mm = max(float(np.median(step)) * SCALE, 1e-6)
    return np.asarray(pixels / per_mm, np.float32)


def _sides(sheet: Sheet, near: NDArray[np.bool_], row: Row) -> list[Cut]:
    length = row.x_mm[1] - row.x_mm[0]
    if length >= _WHOLE * FULL_MM:
        return []
    found = []
    for edge, x in zip(("left", "right"), row.x_mm, strict=True):
        where = sheet.box(x - 1, row.y_mm - 4, x + 1, row.y_mm + 4)
        if near[where].any():
            found.append(Cut(edge, (x, row.y_mm), FULL_MM - length))
    return found


def _ends(sheet: Sheet, ink: Ink, near: NDArray[np.bool_], row: Row, edge: str) -> list[Cut]:
    """Waves of the first or last row that leave the photo."""
    begin, end = row.x_mm
    ys = (row.y_mm - 60, row.y_mm) if edge == "top" else (row.y_mm, row.y_mm + 60)
    where = sheet.box(begin + _TOUCH_MM, ys[0], end - _TOUCH_MM, ys[1])
    trace = ink.trace[where].astype(np.uint8)
    if not trace.size:
        return []
    strokes = cv2.erode(trace, np.ones((round(_STROKE_MM * SCALE), 1))).any(axis=0)
    strokes = np.convolve(strokes, np.ones(5), mode="same") > 0
    # Only what hangs together with the row: the edge of the sheet may lie along the frame.
    _, label = cv2.connectedComponents(trace, connectivity=8)
    band = sheet.box(begin + _TOUCH_MM, row.y_mm - 3, end - _TOUCH_MM, row.y_mm + 3)
    own = np.unique(label[_within(band[0], where[0])])
    hits = np.isin(label, own[own > 0]) & near[where] & ~strokes
    columns = np.flatnonzero(hits.any(axis=0))
    if not len(columns):
        return []
    starts = columns[np.concatenate(([True], np.diff(columns) > 3 * SCALE))]
    if len(starts) < _PEAKS:
        return []
    height = row.y_mm
    return [Cut(edge, (begin + _TOUCH_MM + float(c) / SCALE, height), 0.0) for c in starts]


def _within(rows: slice, outer: slice) -> slice:
    """Express rows of the sheet as rows of a piece of it."""
    length = outer.stop - outer.start
    return slice(max(0, rows.start - outer.start), min(length, rows.stop - outer.start))

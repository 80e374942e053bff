"""Which lead stands where on a page, as far as its rows of traces tell.

Three rows, or three and one rhythm strip, are four columns of 2.5 s; six and one, or twelve, are as
unambiguous. Six rows may be two columns, or four with three rhythm strips: then places are named by region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pulse_edge.ecg.leads import LEADS
from pulse_edge.runtimes.capture.ink import Row

RHYTHM: Final = "the rhythm strip"
FULL_MM: Final = 250.0  # 10 s at 25 mm/s
_COLUMNS: Final = {3: 4, 4: 4, 7: 2, 12: 1}  # of leads, by rows of traces
_RHYTHM: Final = {4: 1, 7: 1}  # rows at the bottom that are one lead throughout


@dataclass(frozen=True)
class Layout:
    """Where leads stand; millimetres of the page.

    Attributes:
        rows_mm: height of each row, from top to bottom.
        x_mm: where the traces begin and end, or would if nothing were cut off.
        columns: of leads; 0 if it is not known.
        rhythm: rows at the bottom that are rhythm strips.
    """

    rows_mm: tuple[float, ...]
    x_mm: tuple[float, float]
    columns: int
    rhythm: int

    def lead_at(self, x_mm: float, y_mm: float) -> str:
        """Name the lead at a place, a rhythm strip, or the region."""
        if not self.columns or not self.rows_mm:
            return self.region(x_mm, y_mm)
        row = min(range(len(self.rows_mm)), key=lambda k: abs(self.rows_mm[k] - y_mm))
        if row >= len(self.rows_mm) - self.rhythm:
            return RHYTHM
        begin, end = self.x_mm
        column = int((x_mm - begin) / max(end - begin, 1.0) * self.columns)
        per_column = len(self.rows_mm) - self.rhythm
        return LEADS[min(max(column, 0), self.columns - 1) * per_column + row]

    def region(self, x_mm: float, y_mm: float) -> str:
        """Name a part of the page, e.g. ``the upper right``."""
        low, high = (self.rows_mm[0], self.rows_mm[-1]) if self.rows_mm else (0.0, 1.0)
        down = (y_mm - low) / max(high - low, 1.0)
        across = (x_mm - self.x_mm[0]) / max(self.x_mm[1] - self.x_mm[0], 1.0)
        height = "upper " if down < 1 / 3 else "lower " if down > 2 / 3 else ""
        side = "left" if across < 1 / 3 else "right" if across > 2 / 3 else "middle"
        return f"the {height}{side}"


def find_layout(rows: Sequence[Row], cut_left: bool, cut_right: bool) -> Layout:
    """Guess the layout from the rows of traces.

    Args:
        rows: from top to bottom.
        cut_left: the photo ends there before the traces do.
        cut_right: likewise.
    """
    if not rows:
        return Layout((), (0.0, 1.0), 0, 0)
    begin = sorted(row.x_mm[0] for row in rows)[len(rows) // 2]
    end = sorted(row.x_mm[1] for row in rows)[len(rows) // 2]
    if end - begin < 0.97 * FULL_MM:
        if cut_right and not cut_left:
            end = begin + FULL_MM
        elif cut_left and not cut_right:
            begin = end - FULL_MM
    count = len(rows)
    known = 0.9 * FULL_MM < end - begin < 1.15 * FULL_MM
    columns = _COLUMNS.get(count, 0) if known else 0
    return Layout(tuple(row.y_mm for row in rows), (begin, end), columns, _RHYTHM.get(count, 0))


def spoken(names: Iterable[str]) -> str:
    """Join names as in a sentence, each once: ``V4, V5 and V6``; leads in their standard order."""
    once = list(dict.fromkeys(names))
    once.sort(key=lambda name: LEADS.index(name) if name in LEADS else len(LEADS))
    return once[0] if len(once) == 1 else f"{', '.join(once[:-1])} and {once[-1]}"

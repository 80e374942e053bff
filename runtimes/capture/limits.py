"""The limits of the quality gate. `benchmarks/capture_gate.py` measures what each of them lets through."""

from __future__ import annotations

from typing import Final

# Pixels per millimetre.
LEAST_PX_PER_MM: Final = 4.0
REFUSED_PX_PER_MM: Final = 2.4
# Sharpness of traces (focus.py).
LEAST_SHARPNESS: Final = 0.33
REFUSED_SHARPNESS: Final = 0.22
# Evenness of the light (shade.py).
LEAST_EVENNESS: Final = 0.76
LEAST_LEVEL: Final = 60.0  # grey level of paper; darker photos are noise
# Highlights and covered places among the traces, mm².
MOST_GLARE_MM2: Final = 300.0
REFUSED_GLARE_MM2: Final = 4000.0
MOST_COVERED_MM2: Final = 600.0
REFUSED_COVERED_MM2: Final = 8000.0
# Share of nodes within the photo at which the grid is seen.
LEAST_SEEN: Final = 0.6
REFUSED_SEEN: Final = 0.5
# Millimetres that single nodes are off the smooth mesh: lines that do not hang together are no grid.
MOST_RESIDUAL_MM: Final = 0.08
REFUSED_RESIDUAL_MM: Final = 0.13
# How sure it is which way up the page is, 0.25 to 1.
LEAST_UPRIGHT: Final = 0.5
# Missing from 10 s of a row.
REFUSED_LOST_MM: Final = 125.0
# An ECG: connected traces across the page that go up and down, with no other ink beside them; where there is
# no grid, more of that, and bare paper.
LEAST_TRACE_MM: Final = 60.0
LEAST_SWING_MM: Final = 1.0
LEAST_ALONE_ON_GRID: Final = 0.5
LEAST_ALONE_UPRIGHT: Final = 0.9  # a page on its side looks like short rows with much beside them
LONGEST_SIDEWAYS_MM: Final = 200.0
LEAST_ALONE: Final = 0.93
LEAST_PAPER: Final = 0.93
LEAST_ROWS_WITHOUT_GRID: Final = 2

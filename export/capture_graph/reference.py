"""The numbers of the numpy path, runtimes/capture, that the graph shares.

Stages never import each other, so they stand here again; a test holds each against the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

import pulse_edge

LONG_SIDE: Final = 1600  # pixels of the canvas
STEP_MM: Final = 5.0  # between nodes

# contrast.py
REACH: Final = 1 / 120
CLIP: Final = 1.5
FLOOR: Final = 1.5

# frequency.py and phase.py
WINDOW: Final = 256
HOP: Final = 128
ANGLES: Final = 144
PERIODS: Final = (2.15, 22.0)
STEPS: Final = 64
COMB: Final = {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 1.2, 6: 0.3, 7: 0.3, 8: 0.3, 9: 0.3, 10: 0.7}
CAP: Final = 12.0
SKEW: Final = 10
RATIO: Final = 1.25
FOLLOWED: Final = 0.1
SURE: Final = 2.3
TRIED: Final = 4
STIFF: Final = 3e-3

# lines.py and field.py
PX_PER_MM: Final = 4.8
HARMONICS: Final = 12
GRID: Final = np.array([0.4, 0.4, 0.4, 0.4, 1.0, 0.2, 0.2, 0.2, 0.2, 0.5, 0.1, 0.1])
SHIFTS: Final = np.arange(-25, 25) * 0.1
PER_MM: Final = 10
MINOR: Final = np.arange(1, HARMONICS + 1) % 5 == 0
WAVE: Final = np.exp(2j * np.pi / STEP_MM * np.arange(1, HARMONICS + 1)[:, None] * SHIFTS)
DECAY: Final = 2.0


@dataclass(frozen=True)
class Pass:
    """One round of refinement; see the class of this name in lattice.py."""

    window: float
    vote: float
    reach: float
    stiffness: float


# lattice.py
FIRST: Final = (Pass(25.0, 2.5, 2.3, 300.0), Pass(20.0, 1.5, 1.5, 30.0))
GROWING: Final = Pass(12.0, 0.7, 1.4, 3.0)
LAST: Final = (Pass(12.0, 0.8, 0.8, 2.0), Pass(10.0, 0.6, 0.5, 0.5))
NO_MAJOR: Final = 0.9
WIDER: Final = 5
TRIES: Final = 5
STRONG: Final = 0.55
COMING: Final = 0.45
DOUBT: Final = 0.15
IRREGULAR: Final = 1 / 6
SEEN: Final = 0.5

# light.py and orientation.py
PAGE_PX_PER_MM: Final = 6.0
CELL_MM: Final = 4.0
SMOOTH_MM: Final = 8.0
WHITE: Final = 250.0
STRIDES: Final = (2, 2, 2, 2, 1, 1)
INK: Final = 98.5
FAINTEST: Final = 24.0
WEIGHTS: Final = Path(pulse_edge.__file__).parent / "runtimes" / "capture" / "orientation.npz"

"""The real ECGs that are shipped: pages, WFDB records and their labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

SAMPLES: Final = Path(__file__).parent / "assets" / "samples"


def samples() -> list[dict[str, str]]:
    """Return the rows of the shipped sample ECGs: labels.csv's columns, and ``image``."""
    with (SAMPLES / "samples.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))

"""Which patients a model may learn from.

The split is a function of the patient's identifier and nothing else: it is the same on every
machine, it never needs a file, and a patient's records never fall on both sides.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
TEST_PERCENT: Final = 18
VALIDATION_PERCENT: Final = 7


def split(patient_id: str) -> Split:
    """Return the side on which a patient's records stand.

    Args:
        patient_id: as labels.csv has it, e.g. ``"18792"``; a trailing ``.0`` is not removed.
    """
    bucket = int.from_bytes(hashlib.sha256(f"pulse-edge/{patient_id}".encode()).digest()[:8], "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "validation" if bucket < TEST_PERCENT + VALIDATION_PERCENT else "train"

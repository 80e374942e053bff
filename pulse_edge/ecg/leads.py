"""The 12 leads: their order, the ways they are spelled, and how some follow from others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEADS: Final = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LIMB, CHEST = LEADS[:6], LEADS[6:]
_SPELLINGS: Final = (
    {lead.lower(): lead for lead in LEADS}
    | {f"{word}{k}": f"V{k}" for word in ("c", "chest", "precordial") for k in range(1, 7)}
    | {f"d{lead.lower()}": lead for lead in LEADS[:3]}
    | {f"{word}{k}": LEADS[k - 1] for word in ("d", "l", "lead") for k in (1, 2, 3)}
)
# Every limb lead as a sum of I and II (Einthoven 1913, Goldberger 1942).
_FROM_I_II: Final = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}


def lead_name(name: str) -> str | None:
    """Return the standard name of a lead in any common spelling, or None.

    Known are, for instance, ``"avr"``, ``"Lead V-1"`` and ``"MDC_ECG_LEAD_II"``. A modified lead such
    as ``"MLII"`` is another lead.
    """
    name = name.strip().lower()
    if name.startswith("-") or name.endswith("-"):
        return None  # "-aVR" of the Cabrera sequence is the inverted lead
    if re.search(r"i[\s_\-+.:]+i", name):
        return None  # "I-II" is a difference of two leads, not lead III
    plain = re.sub(r"[\s_\-+.:]", "", name)
    return _SPELLINGS.get(plain) or _SPELLINGS.get(re.sub(r"^(mdc|ecg|ekg|lead)+", "", plain))


def underivable(found: Mapping[str, object]) -> list[str]:
    """Return the leads that are neither there nor follow from those that are, in standard order."""
    limbs = [lead for lead in LIMB if lead in found]
    return [lead for lead in LEADS if lead not in found and (lead in CHEST or len(limbs) < 2)]


def complete(found: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """Return all leads as float32 [12, n]; those that are there stay as they are, the others are derived.

    Args:
        found: float64 [n] per lead, in one unit; nothing in it may be :func:`underivable`.
    """
    limbs = [lead for lead in LIMB if lead in found][:2]
    # Any two limb leads determine I and II, since all six lie in one plane.
    solve = np.linalg.inv(np.array([_FROM_I_II[lead] for lead in limbs]))
    rows = []
    for lead in LEADS:
        if lead in found:
            rows.append(found[lead])
        else:
            a, b = np.asarray(_FROM_I_II[lead]) @ solve
            rows.append(a * found[limbs[0]] + b * found[limbs[1]])
    return np.stack(rows).astype(np.float32)

"""Calibrated probabilities: what a label's score is worth, learnt from patients that no training saw.

A model's probability p becomes ``sigmoid(scale * logit(p) + bias)``. One scale for all labels without a bias
is temperature scaling (Guo et al., ICML 2017), a scale and a bias for each is Platt's (1999); both have this
form, and neither changes the order of a label's scores, so AUROC stays what it was. An answer whose
probability lies inside the band is ``uncertain``. This is what devices read and apply; fitting is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Answer = Literal["yes", "no", "uncertain"]
SCHEMA: Final = 1
EDGE: Final = 1e-7  # scores nearer to 0 or 1 count as this near: their logits are rounding
_STEEPEST: Final = 100.0


@dataclass(frozen=True)
class Calibration:
    """A model's calibration, as its card and its bundles' manifests carry it.

    Attributes:
        scale: by label, what the score's logit is multiplied with; positive.
        bias: by label, what is added to that.
        band: (low, high): a probability between them is uncertain; at most ``low`` is no, at least ``high``
            is yes.
    """

    scale: Mapping[str, float]
    bias: Mapping[str, float]
    band: tuple[float, float]

    def probability(self, name: str, score: float) -> float:
        """Return the calibrated probability of a label, 0 to 1, for the model's own."""
        score = min(max(score, EDGE), 1 - EDGE)
        margin = self.scale[name] * math.log(score / (1 - score)) + self.bias[name]
        # Written so that exp never overflows.
        return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))

    def answer(self, probability: float) -> Answer:
        """Return what a calibrated probability amounts to."""
        low, high = self.band
        if probability >= high:
            return "yes"
        return "no" if probability <= low else "uncertain"


def uncalibrated(names: Collection[str]) -> Calibration:
    """Return the calibration of a model without one: its own probabilities, decided at 0.5."""
    return Calibration(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0), (0.5, 0.5))


def read_calibration(document: Any, names: Collection[str]) -> Calibration | None:
    """Read the field ``calibration`` of a card or manifest.

    Args:
        document: ``{"schema", "labels": {NAME: {"scale", "bias"}}, "band": [low, high], …}``, or None.
        names: the labels that it has to have.

    Returns:
        None where there is none: models of before have no such field.

    Raises:
        ValueError: it is not of this form; the message says what is wrong.
    """
    if document is None:
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"calibration is not of schema {SCHEMA}")
    labels, band = document.get("labels"), document.get("band")
    if not isinstance(labels, dict) or set(labels) != set(names):
        raise ValueError("calibration does not have the model's labels")
    for name, entry in labels.items():
        if not isinstance(entry, dict) or not all(_number(entry.get(key)) for key in ("scale", "bias")):
            raise ValueError(f"calibration of {name} lacks a scale or a bias")
        if not 0 < entry["scale"] <= _STEEPEST or abs(entry["bias"]) > _STEEPEST:
            raise ValueError(f"calibration of {name} is out of bounds")
    if not isinstance(band, list) or len(band) != 2 or not all(map(_number, band)):
        raise ValueError("calibration has no band of two numbers")
    if not 0 <= band[0] <= 0.5 <= band[1] <= 1:
        raise ValueError("calibration's band does not enclose 0.5")
    return Calibration(
        {name: float(entry["scale"]) for name, entry in labels.items()},
        {name: float(entry["bias"]) for name, entry in labels.items()},
        (float(band[0]), float(band[1])),
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

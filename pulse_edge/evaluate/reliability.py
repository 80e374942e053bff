"""How far probabilities can be trusted: Brier score, calibration error, confusion, selective risk.

Brier 1950; expected calibration error as of Naeini et al. (AAAI 2015), with bins of equal count: with bins of
equal width most would be all but empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.evaluate.calibration import Calibration
from pulse_edge.evaluate.calibration_fit import nll
from pulse_edge.evaluate.score import Scored, Truth

Numbers = NDArray[np.float64]
BINS: Final = 10
_RESAMPLES: Final = 1000


def calibrate_scores(scored: Scored, calibration: Calibration) -> Numbers:
    """Return the calibrated probabilities, float64 [records, labels], of a model's own."""
    return np.array(
        [
            [
                calibration.probability(name, float(score))
                for name, score in zip(scored.names, row, strict=True)
            ]
            for row in scored.score
        ]
    )


def report_calibration(scored: Scored, calibration: Calibration) -> dict[str, Any]:
    """Compare probabilities before and after calibration, on patients that it was not fitted to.

    Returns:
        ``before`` and ``after``: each ``{"ece", "brier", "nll"}`` of all labels together, ``labels`` with ECE
        and Brier score by label; ``change``: the 95 % interval of after less before, over patients, of each;
        ``selective``: share of answers that are not uncertain, and of wrong ones among them, with their share
        at 0.5; ``confusion`` by label: counts of truth by answer.
    """
    after = calibrate_scores(scored, calibration)
    return {
        "before": _measure(scored.score, scored.truth, scored.names),
        "after": _measure(after, scored.truth, scored.names),
        "change": _change(scored, after),
        "selective": selective(after, scored.truth, calibration),
        "confusion": confusion(after, scored.truth, scored.names, calibration),
    }


def ece(probability: Numbers, truth: Truth, bins: int = BINS) -> float:
    """Return the expected calibration error over all values: mean |share true - mean probability|."""
    rows = reliability(probability, truth, bins)
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * abs(row["true"] - row["probability"]) for row in rows) / total)


def brier(probability: Numbers, truth: Truth) -> float:
    """Return the mean squared difference of probability and truth."""
    return float(((probability - truth) ** 2).mean())


def reliability(probability: Numbers, truth: Truth, bins: int = BINS) -> list[dict[str, Any]]:
    """Return ``{"n", "probability", "true"}`` of bins of equal count, in order of probability.

    Equal probabilities may fall into two bins; no bin is empty.
    """
    p, y = probability.ravel(), truth.ravel()
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    return [
        {"n": len(part), "probability": float(p[part].mean()), "true": float(y[part].mean())}
        for part in parts
    ]


def selective(probability: Numbers, truth: Truth, calibration: Calibration) -> dict[str, float | None]:
    """Return how many answers are given at all, how many of those are wrong, and how many without a band."""
    low, high = calibration.band
    given = (probability >= high) | (probability <= low)
    wrong = (probability >= 0.5) != truth
    return {
        "coverage": float(given.mean()),
        "risk": float(wrong[given].mean()) if given.any() else None,
        "risk_at_half": float(wrong.mean()),
    }


def confusion(
    probability: Numbers, truth: Truth, names: Sequence[str], calibration: Calibration
) -> dict[str, dict[str, dict[str, int]]]:
    """Return ``{NAME: {"present": {"yes", "uncertain", "no"}, "absent": {…}}}``, counts of records."""
    table = {}
    for k, name in enumerate(names):
        answers = np.array([calibration.answer(float(p)) for p in probability[:, k]])
        table[name] = {
            side: {answer: int((answers[rows] == answer).sum()) for answer in ("yes", "uncertain", "no")}
            for side, rows in (("present", truth[:, k]), ("absent", ~truth[:, k]))
        }
    return table


def _measure(probability: Numbers, truth: Truth, names: Sequence[str]) -> dict[str, Any]:
    return {
        "ece": ece(probability, truth),
        "brier": brier(probability, truth),
        "nll": float(nll(probability, truth).mean()),
        "labels": {
            name: {"ece": ece(probability[:, k], truth[:, k]), "brier": brier(probability[:, k], truth[:, k])}
            for k, name in enumerate(names)
        },
    }


def _change(scored: Scored, after: Numbers) -> dict[str, list[float]] | None:
    """Return the 95 % intervals of after less before, patients resampled with replacement; None for few."""
    groups = np.unique(scored.patients, return_inverse=True)[1]
    members = [np.flatnonzero(groups == k) for k in range(int(groups.max()) + 1)]
    if len(members) < 20:
        return None
    draw = np.random.default_rng(0)
    changes: dict[str, list[float]] = {"ece": [], "brier": [], "nll": []}
    for _ in range(_RESAMPLES):
        rows = np.concatenate([members[k] for k in draw.integers(0, len(members), len(members))])
        old, new, true = scored.score[rows], after[rows], scored.truth[rows]
        changes["ece"].append(ece(new, true) - ece(old, true))
        changes["brier"].append(brier(new, true) - brier(old, true))
        changes["nll"].append(float((nll(new, true) - nll(old, true)).mean()))
    return {name: [float(q) for q in np.percentile(values, [2.5, 97.5])] for name, values in changes.items()}

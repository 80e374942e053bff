"""Fit a model's calibration on patients that no training saw, with as few parameters as they support.

Four methods, from none to a scale and a bias for each label, are compared by the likelihood of patients that
their fit did not see (ten folds by patient). The simplest within one standard error of the best is taken
(Breiman et al., Classification and Regression Trees, 1984), and a unit Gaussian prior on log scale and bias
keeps rare labels from running away. The band of uncertain answers is the narrowest with which the share of
wrong answers stays below a target (selective risk: Geifman and El-Yaniv, NeurIPS 2017), by its upper bound
over patients and on probabilities that were fitted without the patient at hand.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from pulse_edge.errors import UserError
from pulse_edge.evaluate.calibration import EDGE, SCHEMA
from pulse_edge.evaluate.score import Scored, Truth

Numbers = NDArray[np.float64]

# Name: (scale for each label, bias). From the simplest.
METHODS: Final = {
    "none": None,
    "temperature": (False, False),
    "temperature and biases": (False, True),
    "scales and biases": (True, True),
}
FOLDS: Final = 10
MIN_PATIENTS: Final = 50
TARGET_RISK: Final = 0.1
_RESAMPLES: Final = 1000
_CONFIDENCES: Final = np.arange(50, 100) / 100


def fit_calibration(scored: Scored, risk: float = TARGET_RISK) -> dict[str, Any]:
    """Return the field ``calibration`` of a card.

    Args:
        scored: the model's own probabilities on validation patients, with the truth.
        risk: largest share of wrong answers among those that are not uncertain.

    Returns:
        As ``calibration.read_calibration`` reads it, and how it came: ``method``, ``fit`` (set sizes, mean
        negative log-likelihood of each method on unseen patients, with the standard error of its distance
        from the best, and the fitted temperature, taken or not) and ``uncertain`` (the target, what the band
        reaches, how many answers remain).

    Raises:
        UserError: too few patients.
    """
    patients = len(set(scored.patients))
    if patients < MIN_PATIENTS:
        raise UserError(
            f"A calibration needs at least {MIN_PATIENTS} patients; here are {patients}. Name a labels.csv "
            "with more validation patients."
        )
    margins, truth = logits(scored.score), scored.truth
    groups = np.unique(scored.patients, return_inverse=True)[1]
    unseen = {name: _cross_fitted(margins, truth, groups, name) for name in METHODS}
    losses = {name: _by_patient(nll(p, truth), groups) for name, p in unseen.items()}
    best = min(losses, key=lambda name: float(losses[name].mean()))
    behind = {name: (losses[name] - losses[best]) for name in METHODS}
    errors = {name: float(gap.std(ddof=1) / np.sqrt(patients)) for name, gap in behind.items()}
    method = next(name for name in METHODS if behind[name].mean() <= errors[name])
    scale, bias = _fit(margins, truth, method)
    band, reached = choose_band(unseen[method], truth, groups, risk)
    return {
        "schema": SCHEMA,
        "method": method,
        "labels": {
            name: {"scale": float(scale[k]), "bias": float(bias[k])} for k, name in enumerate(scored.names)
        },
        "band": band,
        "fit": {
            "n": len(truth),
            "patients": patients,
            "positives": {name: int(truth[:, k].sum()) for k, name in enumerate(scored.names)},
            "nll": {name: float(losses[name].mean()) for name in METHODS},
            "nll_behind_best_se": errors,
            "temperature": float(1 / _fit(margins, truth, "temperature")[0][0]),
        },
        "uncertain": reached,
    }


def logits(score: Numbers) -> Numbers:
    """Return the logits of probabilities, as ``Calibration.probability`` takes them."""
    bounded = np.clip(score, EDGE, 1 - EDGE)
    margins: Numbers = np.log(bounded / (1 - bounded))
    return margins


def nll(probability: Numbers, truth: Truth) -> Numbers:
    """Return the negative log-likelihood of each record, the mean over its labels: float64 [records]."""
    bounded = np.clip(probability, EDGE, 1 - EDGE)
    each: Numbers = -np.where(truth, np.log(bounded), np.log1p(-bounded))
    mean: Numbers = each.mean(axis=1)
    return mean


def choose_band(
    probability: Numbers, truth: Truth, groups: NDArray[np.intp], risk: float
) -> tuple[list[float], dict[str, Any]]:
    """Return the narrowest band around 0.5 that keeps the share of wrong answers below ``risk``.

    Args:
        probability: calibrated, float64 [records, labels].
        truth: bool [records, labels].
        groups: of the records' patients, 0 to n - 1.
        risk: the target; the upper end of the one-sided 95 % interval over patients has to keep it.

    Returns:
        The band, and ``{"target_risk", "risk", "risk_bound", "coverage", "reached"}``. Where no band reaches
        the target, the widest is taken.
    """
    sure = np.maximum(probability, 1 - probability)
    wrong = (probability >= 0.5) != truth
    answered = sure[None] >= _CONFIDENCES[:, None, None]  # [confidences, records, labels]
    said = np.stack([_by_patient(part.sum(axis=1), groups, total=True) for part in answered], axis=1)
    false = np.stack(
        [_by_patient((part & wrong).sum(axis=1), groups, total=True) for part in answered], axis=1
    )
    draw = np.random.default_rng(0)
    weights = draw.multinomial(len(said), np.full(len(said), 1 / len(said)), size=_RESAMPLES)
    bound = np.percentile((weights @ false) / np.maximum(weights @ said, 1), 95, axis=0)
    kept = np.flatnonzero((bound <= risk) & (said.sum(axis=0) > 0))
    at = int(kept[0]) if len(kept) else len(_CONFIDENCES) - 1
    high = float(_CONFIDENCES[at])
    count = float(said[:, at].sum())
    return [round(1 - high, 2), high], {
        "target_risk": risk,
        "risk": float(false[:, at].sum()) / max(count, 1.0),
        "risk_bound": float(bound[at]),
        "coverage": count / truth.size,
        "reached": bool(len(kept)),
    }


def _cross_fitted(margins: Numbers, truth: Truth, groups: NDArray[np.intp], method: str) -> Numbers:
    """Probabilities of every record by a fit that did not see its patient."""
    order = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    fold = (order % FOLDS)[groups]
    out = np.empty_like(margins)
    for k in range(FOLDS):
        scale, bias = _fit(margins[fold != k], truth[fold != k], method)
        out[fold == k] = _sigmoid(scale * margins[fold == k] + bias)
    return out


def _fit(margins: Numbers, truth: Truth, method: str) -> tuple[Numbers, Numbers]:
    """Return scale and bias by label, float64 [labels]: the most probable ones under the unit prior."""
    labels = margins.shape[1]
    form = METHODS[method]
    if form is None:
        return np.ones(labels), np.zeros(labels)
    scales, biases = (labels if form[0] else 1), (labels if form[1] else 0)

    def unpack(theta: Numbers) -> tuple[Numbers, Numbers]:
        bias = theta[scales:] if biases else np.zeros(labels)
        return np.broadcast_to(np.exp(theta[:scales]), labels), bias

    def loss(theta: Numbers) -> tuple[float, Numbers]:
        scale, bias = unpack(theta)
        z = scale * margins + bias
        value = np.logaddexp(0.0, np.where(truth, -z, z)).sum() + 0.5 * (theta**2).sum()
        slope = _sigmoid(z) - truth
        by_scale = (slope * margins * scale).sum(axis=0)
        parts = [by_scale if scales > 1 else by_scale.sum(keepdims=True)]
        parts += [slope.sum(axis=0)] if biases else []
        return float(value), np.concatenate(parts) + theta

    found = minimize(loss, np.zeros(scales + biases), jac=True, method="L-BFGS-B")
    return unpack(found.x)


def _by_patient(values: NDArray[Any], groups: NDArray[np.intp], total: bool = False) -> Numbers:
    """Return the mean, or the sum, of records' values by patient."""
    sums = np.bincount(groups, weights=values).astype(np.float64)
    return sums if total else sums / np.bincount(groups)


def _sigmoid(z: Numbers) -> Numbers:
    probability: Numbers = np.exp(-np.logaddexp(0.0, -z))
    return probability

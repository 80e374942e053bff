"""The accuracy gate: what a step of compression costs on real ECGs, and whether that is within its budget.

Both models read the same pages. The difference is judged pairwise: its interval comes from resampling
patients, with the two models' scores kept together (paired bootstrap, Efron and Tibshirani, 1993).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pulse_edge.errors import BudgetError
from pulse_edge.evaluate.score import THRESHOLD, Scored, auroc

RESAMPLES: Final = 1000
REMEDY: Final = "Use more bits, a smaller group or another method"


@dataclass(frozen=True)
class Budget:
    """What a step may cost.

    Attributes:
        auroc: macro AUROC.
        flips: share of labels that change sides at 0.5.
    """

    auroc: float
    flips: float


BUDGETS: Final = {8: Budget(0.002, 0.005), 4: Budget(0.005, 0.015)}  # by bits of the weights


def compare(before: Scored, after: Scored, intervals: bool = True) -> dict[str, Any]:
    """Compare two models on the same records.

    Args:
        before: scores of the model that a step began with.
        after: scores of its result, on the same records in the same order.
        intervals: resample the patients, which takes seconds.

    Returns:
        ``n``, ``patients``, ``auroc`` and ``auroc_before`` (macro and by label), ``loss`` (of macro AUROC,
        positive is worse), ``loss_interval`` (95 %, None for fewer than 20 patients), ``flips`` by label
        (``to_yes``, ``to_no``), ``flip_share``, ``probability_max_abs``.

    Raises:
        ValueError: the records differ.
    """
    if before.records != after.records or before.names != after.names:
        raise ValueError("the two models were not scored on the same records")
    names, true = before.names, before.truth
    old, new = before.score >= THRESHOLD, after.score >= THRESHOLD
    then, now = auroc(true, before.score, names), auroc(true, after.score, names)
    flips = {
        name: {
            "to_yes": int((~old[:, k] & new[:, k]).sum()),
            "to_no": int((old[:, k] & ~new[:, k]).sum()),
        }
        for k, name in enumerate(names)
    }
    macro_then, macro_now = then["macro"], now["macro"]
    return {
        "n": len(true),
        "patients": len(set(before.patients)),
        "auroc": now,
        "auroc_before": then,
        "loss": None if macro_then is None or macro_now is None else macro_then - macro_now,
        "loss_interval": _interval(before, after) if intervals else None,
        "flips": flips,
        "flip_share": float((old != new).mean()),
        "probability_max_abs": float(np.abs(before.score - after.score).max()),
    }


def above_chance(before: float | None, kept: float, flips: float) -> Budget:
    """Return the budget of a step that keeps a share of what macro AUROC has above chance, 0.5.

    Args:
        before: macro AUROC of the model that the step begins with; None if the records do not tell.
        kept: share, e.g. 0.99.
        flips: share of labels that may change sides.
    """
    return Budget((1 - kept) * max(0.0, (before or 0.5) - 0.5), flips)


def keeping(kept: float, flips: float) -> Callable[[float | None], Budget]:
    """Return :func:`above_chance` of a share, for a macro AUROC that is not known yet."""
    return lambda before: above_chance(before, kept, flips)


def judge(
    result: Mapping[str, Any],
    budget: Budget,
    accept_loss: bool,
    remedy: str = REMEDY,
) -> dict[str, Any]:
    """Return ``result`` with its budget and the verdict.

    Args:
        result: of :func:`compare`.
        budget: that holds.
        accept_loss: keep what breaks it.
        remedy: what else could be done about it, the beginning of a sentence.

    Raises:
        BudgetError: the step costs more, and ``accept_loss`` is not set.
    """
    problems = []
    if result["loss"] is None:
        problems.append("the records do not tell: every label needs ECGs with and without it")
    elif result["loss"] > budget.auroc:
        problems.append(f"macro AUROC fell by {result['loss']:.4f}, {budget.auroc:.4g} is allowed")
    if result["flip_share"] > budget.flips:
        problems.append(f"{result['flip_share']:.2%} of the labels flipped, {budget.flips:.2%} is allowed")
    if problems and not accept_loss:
        raise BudgetError(
            f"The accuracy gate was not passed on {result['n']} ECGs: {'; '.join(problems)}. "
            f"Nothing was kept. {remedy}, or add --accept-loss, which is recorded."
        )
    return {
        **result,
        "budget": {"auroc": budget.auroc, "flips": budget.flips},
        "passed": not problems,
        **({"accepted": problems} if problems else {}),
    }


def _interval(before: Scored, after: Scored) -> list[float] | None:
    members: dict[str, list[int]] = collections.defaultdict(list)
    for k, patient in enumerate(before.patients):
        members[patient].append(k)
    groups: Sequence[list[int]] = list(members.values())
    if len(groups) < 20:
        return None
    draw = np.random.default_rng(0)
    losses = []
    for _ in range(RESAMPLES):
        picked = np.concatenate([groups[k] for k in draw.integers(0, len(groups), len(groups))])
        pair = [auroc(before.truth[picked], s.score[picked], before.names)["macro"] for s in (before, after)]
        if pair[0] is not None and pair[1] is not None:
            losses.append(pair[0] - pair[1])
    return [float(q) for q in np.percentile(losses, [2.5, 97.5])] if losses else None

"""The figures of ECGBench's multi-label sets, exact and small.

What the benchmark calls AUC is the ROC area of answers that are 0 or 1: the mean of sensitivity and
specificity, also known as balanced accuracy. It is not comparable with an AUROC of probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import UserError

Binary = NDArray[np.bool_]


def indicators(rows: Sequence[Collection[str]], classes: Sequence[str]) -> Binary:
    """Return bool [rows, classes]: is the label in the row? Labels outside the classes are left out."""
    return np.array([[name in row for name in classes] for row in rows], dtype=bool).reshape(-1, len(classes))


def f1_of(true: Binary, said: Binary) -> float:
    """Return F1 of one class, bool [n] each; 0 where neither truth nor answer holds the class."""
    both, either = int((true & said).sum()), int(true.sum()) + int(said.sum())
    return 2 * both / either if either else 0.0


def balanced_accuracy(true: Binary, said: Binary) -> float | None:
    """Return the mean of sensitivity and specificity, bool [n] each; None where the truth is constant."""
    if true.all() or not true.any():
        return None
    return (float(said[true].mean()) + float((~said[~true]).mean())) / 2


def published_scores(said: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> dict[str, Any]:
    """Return the figures as the published evaluator computes them, with scikit-learn 1.2 or 1.9.

    Classes are those that occur in the truth; other labels that were said cost nothing. One class whose
    truth is constant makes AUC undefined (None here, nan there).

    Returns:
        ``f1`` and ``auc`` (means over classes), ``hl`` (Hamming loss), ``classes``, ``per_class``.

    Raises:
        UserError: no truth holds any label.
    """
    classes = sorted(_union(true))
    if not classes:
        raise UserError("No reference holds a label of this set. Name the set as it is published.")
    t, s = indicators(true, classes), indicators(said, classes)
    f1 = [f1_of(t[:, k], s[:, k]) for k in range(len(classes))]
    if len(classes) == 1 and not (t.all() and s.all()):
        f1 = [f1_of(~t[:, 0], ~s[:, 0])]  # a single column is taken for a binary task, whose class 0 is first
    auc = [balanced_accuracy(t[:, k], s[:, k]) for k in range(len(classes))]
    known = [value for value in auc if value is not None]
    return {
        "f1": float(np.mean(f1)),
        "auc": float(np.mean(known)) if len(known) == len(auc) else None,
        "hl": float((t != s).mean()),
        "classes": classes,
        "per_class": {name: {"f1": f1[k], "auc": auc[k]} for k, name in enumerate(classes)},
    }


def strict_scores(
    said: Sequence[Collection[str]], true: Sequence[Collection[str]], labels: Sequence[str]
) -> dict[str, Any]:
    """Return the figures over the whole label space.

    A label that no reference holds has no F1 and no balanced accuracy, and is named in ``undefined``; the
    means are over the others. Saying such a label still costs in ``hl``, which counts every label.

    Returns:
        ``f1``, ``balanced_accuracy``, ``hl``, ``classes``, ``undefined``, ``per_class``.
    """
    t, s = indicators(true, labels), indicators(said, labels)
    f1 = [f1_of(t[:, k], s[:, k]) if t[:, k].any() else None for k in range(len(labels))]
    balanced = [balanced_accuracy(t[:, k], s[:, k]) for k in range(len(labels))]
    return {
        "f1": _mean(f1),
        "balanced_accuracy": _mean(balanced),
        "hl": float((t != s).mean()),
        "classes": list(labels),
        "undefined": [name for k, name in enumerate(labels) if f1[k] is None or balanced[k] is None],
        "per_class": {name: {"f1": f1[k], "balanced_accuracy": balanced[k]} for k, name in enumerate(labels)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _union(rows: Iterable[Collection[str]]) -> set[str]:
    return {name for row in rows for name in row}

"""Score a model on real records: AUROC and F1 of its labels, with the controls that keep it honest."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score

from pulse_edge.ecg.paper import PaperStyle, blank, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.errors import RecordError, UserError
from pulse_edge.evaluate.calibration import Calibration
from pulse_edge.evaluate.labels import read_labels

THRESHOLD: Final = 0.5
RESAMPLES: Final = 1000
Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Labeller(Protocol):
    """Anything that gives a probability for each of its labels."""

    labels: Any

    def label(self, image: Any) -> dict[str, float]:
        """Probabilities by label."""


@dataclass(frozen=True)
class Scored:
    """A model's scores on records.

    Attributes:
        names: of the labels.
        records: as the table names them.
        patients: of the records; a record without one stands for itself.
        score: float64 [records, labels], probabilities.
        truth: bool [records, labels].
        skipped: rows that were not scored, by reason.
        seconds_per_record: drawing and scoring.
    """

    names: list[str]
    records: list[str]
    patients: list[str]
    score: Scores
    truth: Truth
    skipped: dict[str, int]
    seconds_per_record: float


def evaluate(
    model: Labeller,
    labels_csv: Path,
    side: str | None = None,
    limit: int | None = None,
    style: PaperStyle | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Render every labelled record and compare the model's labels with the truth.

    Args:
        model: scores pages.
        labels_csv: see ``labels.read_labels``.
        side: only patients of this side of the split ("test": never trained on); needs patient_id.
        limit: at most so many records, the first of the file.
        style: of the pages.
        tick: called with records done and in all.
        calibration: of the model, if it has one.

    Returns:
        ``n``, ``auroc`` and ``f1`` (macro and by label; a label whose truth is constant gets None),
        ``auroc_interval`` (95 %, bootstrap over patients), ``blank_image`` (the same on a page without
        a trace), ``shuffled`` (the same scores, dealt out to the records by lot), ``skipped`` by reason,
        ``seconds_per_record``; with a calibration also ``calibration``, see
        ``reliability.report_calibration``, and ``held_out``: whether these are none of the patients it was
        fitted to. AUROC and F1 are of the model's own probabilities.

    Raises:
        UserError: the file is not usable, or nothing is left to score.
    """
    scored = score_records(model, labels_csv, side, limit, style, tick)
    names, score, true, patients = scored.names, scored.score, scored.truth, scored.patients
    empty = model.label(blank(style))
    on_blank = np.tile([empty[name] for name in names], (len(score), 1))
    shuffled = score[np.random.default_rng(0).permutation(len(score))]
    calibrated: dict[str, Any] = {}
    if calibration is not None:
        from pulse_edge.evaluate.reliability import report_calibration

        calibrated = {
            "calibration": {**report_calibration(scored, calibration), "held_out": side in ("train", "test")}
        }
    return {
        "n": len(score),
        "patients": len(set(patients)),
        "auroc": auroc(true, score, names),
        "auroc_interval": interval(true, score, patients),
        "f1": f1(true, score, names),
        "blank_image": {
            "auroc": auroc(true, on_blank, names),
            "f1": f1(true, on_blank, names),
            "probabilities": empty,
        },
        "shuffled": {"auroc": auroc(true, shuffled, names), "f1": f1(true, shuffled, names)},
        "skipped": scored.skipped,
        "seconds_per_record": scored.seconds_per_record,
        **calibrated,
    }


def score_records(
    model: Labeller,
    labels_csv: Path,
    side: str | None = None,
    limit: int | None = None,
    style: PaperStyle | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Scored:
    """Render every labelled record and score it; arguments and errors as of :func:`evaluate`."""
    names = list(model.labels)
    rows, skipped = _choose(read_labels(labels_csv), side, names)
    rows = rows[:limit] if limit else rows
    scores, truth, patients, records = [], [], [], []
    start = time.perf_counter()
    for done, row in enumerate(rows):
        tick(done, len(rows))
        try:
            record = read_record(labels_csv.parent / row["record"])
        except RecordError:
            skipped["record cannot be read"] += 1
            continue
        answer = model.label(render(record, style).image)
        scores.append([answer[name] for name in names])
        truth.append([name in _superclasses(row) for name in names])
        patients.append(row.get("patient_id") or row["record"])
        records.append(row["record"])
    tick(len(rows), len(rows))
    if not scores:
        raise UserError(
            f"No record of {labels_csv} could be scored: {dict(skipped)}. Check paths and labels."
        )
    seconds = (time.perf_counter() - start) / len(scores)
    return Scored(names, records, patients, np.array(scores), np.array(truth), dict(skipped), seconds)


def _choose(
    rows: list[dict[str, str]], side: str | None, names: Sequence[str]
) -> tuple[list[dict[str, str]], collections.Counter[str]]:
    chosen = []
    skipped: collections.Counter[str] = collections.Counter()
    for row in rows:
        if side is not None and not row.get("patient_id"):
            skipped["no patient_id, so no side of the split"] += 1
        elif side is not None and split(row["patient_id"]) != side:
            skipped["patient of another side of the split"] += 1
        elif not _superclasses(row) & set(names):
            skipped["no superclass"] += 1
        else:
            chosen.append(row)
    return chosen, skipped


def _superclasses(row: dict[str, str]) -> set[str]:
    return {name.strip() for name in row["superclass"].split(";")}


def auroc(true: Truth, score: Scores, names: Sequence[str]) -> dict[str, float | None]:
    """Return the area under the ROC curve by label, and the mean of those that are defined as ``macro``."""
    each = {
        name: float(roc_auc_score(true[:, k], score[:, k])) if 0 < true[:, k].sum() < len(true) else None
        for k, name in enumerate(names)
    }
    return {"macro": _mean(each), **each}


def f1(true: Truth, score: Scores, names: Sequence[str]) -> dict[str, float | None]:
    """Return F1 at a probability of 0.5 by label, and the mean of those that are defined as ``macro``."""
    each = {
        name: float(f1_score(true[:, k], score[:, k] >= THRESHOLD, zero_division=0))
        if true[:, k].any()
        else None
        for k, name in enumerate(names)
    }
    return {"macro": _mean(each), **each}


def interval(true: Truth, score: Scores, patients: Sequence[str]) -> list[float] | None:
    """Return the 95 % interval of the macro AUROC, resampling patients with replacement; None for few."""
    groups = collections.defaultdict(list)
    for k, patient in enumerate(patients):
        groups[patient].append(k)
    members = list(groups.values())
    if len(members) < 20:
        return None
    draw = np.random.default_rng(0)
    names = [str(k) for k in range(true.shape[1])]
    means = []
    for _ in range(RESAMPLES):
        picked = np.concatenate([members[k] for k in draw.integers(0, len(members), len(members))])
        macro = auroc(true[picked], score[picked], names)["macro"]
        means += [macro] if macro is not None else []
    return [float(q) for q in np.percentile(means, [2.5, 97.5])] if means else None


def _mean(each: dict[str, float | None]) -> float | None:
    known = [value for value in each.values() if value is not None]
    return float(np.mean(known)) if known else None

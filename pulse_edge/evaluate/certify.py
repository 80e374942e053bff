"""One step of compression on trial: both models on the same ECGs, the verdict, and the certificate.

``quantize``, ``search``, ``prune`` and ``distill`` all end here, so that no compressed model is without its
figures. What is shown in ``report.html`` is what the returned row says; the row goes into the checkpoint's
card and from there into every bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.ecg.paper import blank, render
from pulse_edge.ecg.record import read_record
from pulse_edge.evaluate.gate import REMEDY, Budget, compare, judge
from pulse_edge.evaluate.report import write_report
from pulse_edge.evaluate.score import THRESHOLD, Scored, label_intervals, score_records

BINS: Final = 10  # of a calibration curve
WORST: Final = 4  # pages that are shown
ANSWER: Final = 96  # tokens of an answer that is shown
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """A step to be judged.

    Attributes:
        stage: its name in the chain, e.g. ``int4``.
        before: checkpoint that it began with.
        after: its result, complete but for the card's last row and the report.
        records: labels.csv.
        side: of the split; None for all patients.
        limit: at most so many records.
        budget: what the step may cost, given the macro AUROC that it began with (None if not known).
        accept_loss: keep it whatever it costs.
        remedy: what else could be done about a loss, the beginning of a sentence.
    """

    stage: str
    before: Path
    after: Path
    records: Path
    side: str | None
    limit: int | None
    budget: Callable[[float | None], Budget]
    accept_loss: bool
    remedy: str = REMEDY


def certify(
    trial: Trial, open_model: Callable[[Path], Any], tick: Tick = lambda what, done, total: None
) -> dict[str, Any]:
    """Score both models, judge the step, and write ``report.html`` into the folder of the result.

    Args:
        trial: the step.
        open_model: opens a checkpoint's folder as a session with ``labels``, ``label`` and ``ask``.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        The card's row: ``stage``, ``set``, the fields of ``gate.judge``, and ``intervals`` (95 %, by label,
        ``before`` and ``after``), ``matrix`` (by label: how many answers stayed or changed), ``calibration``,
        ``blank_image`` and ``worst``.

    Raises:
        BudgetError: the step costs more than it may; nothing is written.
    """
    before, empty_before = _score(trial, trial.before, "scoring before", open_model, tick)
    session = open_model(trial.after)
    after, empty_after = _score(trial, trial.after, "scoring after", lambda _: session, tick)
    found = compare(before, after)
    budget = trial.budget(found["auroc_before"]["macro"])
    found = judge(found, budget, trial.accept_loss, trial.remedy)
    side = "all" if trial.side is None else trial.side
    pages = _worst(before, after, trial.records)
    answers_after = [_ask(session, page["image"]) for page in pages]
    del session
    session = open_model(trial.before)
    answers_before = [_ask(session, page["image"]) for page in pages]
    row = {
        "stage": trial.stage,
        "set": f"{side} patients of {trial.records.name}",
        **found,
        "intervals": {name: _intervals(s) for name, s in (("before", before), ("after", after))},
        "matrix": matrix(before, after),
        "calibration": {name: calibration(s) for name, s in (("before", before), ("after", after))},
        "blank_image": {"before": empty_before, "after": empty_after},
        "worst": [
            {**{k: v for k, v in page.items() if k != "image"}, "answers": [first, second]}
            for page, first, second in zip(pages, answers_before, answers_after, strict=True)
        ],
    }
    write_report(trial.after, trial.before, row, [page["image"] for page in pages])
    return row


def _score(
    trial: Trial, folder: Path, what: str, open_model: Callable[[Path], Any], tick: Tick
) -> tuple[Scored, dict[str, float]]:
    session = open_model(folder)
    scored = score_records(
        session, trial.records, trial.side, trial.limit, None, lambda done, total: tick(what, done, total)
    )
    return scored, session.label(blank())


def _intervals(scored: Scored) -> dict[str, list[float] | None]:
    return label_intervals(scored.truth, scored.score, scored.patients, scored.names)


def matrix(before: Scored, after: Scored) -> dict[str, dict[str, int]]:
    """Count by label how answers moved: ``yes_yes``, ``yes_no``, ``no_yes``, ``no_no`` (before, after)."""
    old, new = before.score >= THRESHOLD, after.score >= THRESHOLD
    return {
        name: {
            "yes_yes": int((old[:, k] & new[:, k]).sum()),
            "yes_no": int((old[:, k] & ~new[:, k]).sum()),
            "no_yes": int((~old[:, k] & new[:, k]).sum()),
            "no_no": int((~old[:, k] & ~new[:, k]).sum()),
        }
        for k, name in enumerate(before.names)
    }


def calibration(scored: Scored) -> dict[str, Any]:
    """Return how often what is called likely is true, all labels together.

    Returns:
        ``bins``: for each of :data:`BINS` equal bins that holds any, mean probability, share that is true and
        count; ``ece``: the expected calibration error (Guo et al., 2017).
    """
    chance, true = scored.score.ravel(), scored.truth.ravel()
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    bins = [
        [float(chance[place == k].mean()), float(true[place == k].mean()), int((place == k).sum())]
        for k in range(BINS)
        if (place == k).any()
    ]
    return {"bins": bins, "ece": sum(abs(p - rate) * n for p, rate, n in bins) / len(chance)}


def _worst(before: Scored, after: Scored, table: Path) -> list[dict[str, Any]]:
    """Return the records whose labels moved most, the largest change first, with their pages."""
    moved = np.abs(after.score - before.score).max(1)
    return [
        {
            "record": before.records[k],
            "moved": float(moved[k]),
            "truth": [name for name, true in zip(before.names, before.truth[k], strict=True) if true],
            "before": _labels(before.names, before.score[k]),
            "after": _labels(before.names, after.score[k]),
            "image": render(read_record(table.parent / before.records[k])).image,
        }
        for k in np.argsort(-moved, kind="stable")[:WORST]
    ]


def _labels(names: Sequence[str], chances: Any) -> dict[str, float]:
    return {name: float(chance) for name, chance in zip(names, chances, strict=True)}


def _ask(session: Any, image: Any) -> str:
    return str(session.ask(image, REPORT_QUESTION, ANSWER)).strip()

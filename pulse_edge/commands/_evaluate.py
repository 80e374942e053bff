"""`eval`: a model on real records, or its answers to ECGBench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


def evaluate(
    model: str | None = None,
    records: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    layout: str = "3x4+1",
    ecgbench: str | None = None,
    answers: Path | None = None,
    references: Path | None = None,
    protocol: str = "published",
    judge_prompts: Path | None = None,
    judge: Path | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a model's labels on real records, or a file of answers to ECGBench.

    Args:
        model: checkpoint, bundle or shipped name; not with ``ecgbench``.
        records: labels.csv; record paths are relative to its folder.
        split: only the patients of this side: train, validation or test.
        limit: at most so many records.
        layout: of the rendered pages.
        ecgbench: a set of ECGBench, or ``all``; it and what follows: ``evaluate.ecgbench.verb``.
        answers: a model's answers to it.
        references: the references of the set.
        protocol: ``published`` or ``strict``.
        judge_prompts: file for the judge's prompts.
        judge: the judge's answers.
        tick: called with records done and in all.

    Returns:
        See ``evaluate.score.evaluate``; ``model`` and ``split`` are added. For ECGBench see
        ``evaluate.ecgbench.verb.evaluate_answers``.

    Raises:
        UserError: options that do not go together, or a file that cannot be used.
    """
    of_records, of_bench = (model, records, split, limit), (answers, references, judge_prompts, judge)
    if ecgbench is not None:
        from pulse_edge.evaluate.ecgbench.verb import evaluate_answers

        if any(value is not None for value in of_records):
            raise UserError(
                "--ecgbench scores a file of answers. Leave MODEL, --records, --split and --limit out."
            )
        return evaluate_answers(ecgbench, answers, references, protocol, judge_prompts, judge)
    if any(value is not None for value in of_bench) or protocol != "published":
        raise UserError("No set is named for these options. Name it with --ecgbench DATASET.")
    if model is None or records is None:
        raise UserError(
            "Name MODEL and --records DIR/labels.csv; or, to score answers, --ecgbench DATASET and --answers."
        )
    records = Path(records)
    from pulse_edge.commands._open import open_model
    from pulse_edge.ecg.paper import PaperStyle
    from pulse_edge.ecg.split import SPLITS
    from pulse_edge.errors import UnknownNameError
    from pulse_edge.evaluate.labels import read_labels
    from pulse_edge.evaluate.score import evaluate as score

    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1.")
    read_labels(records)  # complain about the file before a model is loaded
    session = open_model(model)
    result = score(session, records, split, limit, PaperStyle(layout=layout), tick, session.calibration)
    return {**result, "model": str(model), "split": split}

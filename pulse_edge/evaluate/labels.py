"""The label set that a model is scored on, and reading labels.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.contract import CHECKPOINT_CARD
from pulse_edge.ecg.instruct import CLOSED_QUESTIONS, SUPERCLASS_PHRASES
from pulse_edge.errors import CheckpointError, UserError
from pulse_edge.evaluate.answers import Answers, read_answers
from pulse_edge.evaluate.calibration import Calibration, read_calibration

COLUMNS: Final = ("record", "superclass")
DEFAULT_LABELS: Final = {name: {"phrase": phrase} for name, phrase in SUPERCLASS_PHRASES.items()}
DEFAULT_SCORING: Final = {"question": CLOSED_QUESTIONS[0], "positive": "Yes", "negative": "No"}


def label_set(card: Mapping[str, Any]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the labels and the scoring of a checkpoint's card; the five superclasses if it names none."""
    return dict(card.get("labels") or DEFAULT_LABELS), dict(card.get("scoring") or DEFAULT_SCORING)


def card_asking(card: Mapping[str, Any], folder: Path) -> tuple[Calibration | None, Answers]:
    """Return the calibration of a checkpoint's card, None if it has none, and how it asks for answers.

    Args:
        card: its ``pulse.json``.
        folder: of the checkpoint, for the message.

    Raises:
        CheckpointError: one of them is not of its form, or not of this label set.
    """
    try:
        calibration = read_calibration(card.get("calibration"), label_set(card)[0])
        return calibration, read_answers(card.get("answers"))
    except ValueError as error:
        raise CheckpointError(
            f"{folder / CHECKPOINT_CARD} cannot be used: {error}. Correct that field, or delete it."
        ) from error


def read_labels(path: Path) -> list[dict[str, str]]:
    """Read a labels.csv.

    Args:
        path: a CSV file with at least the columns ``record`` (relative to its folder, without
            extension) and ``superclass`` (names separated by ``;``).

    Raises:
        UserError: missing, not CSV, without rows, or without one of the columns.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no {path}. Name a labels.csv with the columns {', '.join(COLUMNS)}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [{k: v or "" for k, v in row.items() if isinstance(k, str)} for row in reader]
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}. Save it as UTF-8 CSV.") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {', '.join(missing)}. Its columns are {', '.join(columns)}."
        )
    if not rows:
        raise UserError(f"{path} has no rows. Name the labels.csv of the records to evaluate.")
    return rows

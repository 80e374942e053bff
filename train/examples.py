"""Labelled records in memory: signals, labels, measurements and the basis of their median beats."""

from __future__ import annotations

import collections
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.instruct import Facts
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.record import Record, read_record
from pulse_edge.ecg.split import Split, split
from pulse_edge.errors import RecordError, UserError


@dataclass(frozen=True)
class Example:
    """One record to learn from.

    Attributes:
        record: the signals.
        patient: the patient's identifier.
        facts: labels and measured rate.
    """

    record: Record
    patient: str
    facts: Facts


def read_examples(
    labels_csv: Path, sides: tuple[Split, ...], tick: Callable[[], None] = lambda: None
) -> tuple[list[Example], dict[str, int]]:
    """Read the PTB-XL records of a labels.csv that belong to some sides of the patient split.

    Only rows coded with SCP statements are taken: other schemes do not carry superclasses, and
    their licences are not all settled (see NOTICE).

    Args:
        labels_csv: a file with the columns of shared/ecg/labels.csv, records relative to its folder.
        sides: which sides to read.
        tick: called once a row, for a progress bar.

    Returns:
        The examples and how many rows were left out, by reason.

    Raises:
        UserError: the file is missing or nothing usable is in it.
    """
    if not labels_csv.is_file():
        raise UserError(f"There is no {labels_csv}. Name the labels.csv of the training records.")
    with labels_csv.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    examples: list[Example] = []
    left_out: collections.Counter[str] = collections.Counter()
    for row in rows:
        tick()
        if row.get("scheme") != "scp" or not row.get("patient_id"):
            left_out["not coded with SCP statements, or no patient"] += 1
            continue
        if split(row["patient_id"]) not in sides:
            left_out["patient of another side of the split"] += 1
            continue
        try:
            record = read_record(labels_csv.parent / row["record"])
        except RecordError:
            left_out["unreadable record"] += 1
            continue
        if record.problems:
            left_out["record with a missing, flat or broken lead"] += 1
            continue
        facts = Facts(
            frozenset(filter(None, row["codes"].split(";"))),
            frozenset(filter(None, row["superclass"].split(";"))),
            measure(record).rate_bpm,
        )
        examples.append(Example(record, row["patient_id"], facts))
    if not examples:
        raise UserError(f"No usable training record in {labels_csv}: {dict(left_out)}.")
    return examples, dict(left_out)


@dataclass(frozen=True)
class BeatBasis:
    """Principal components of the median beats, all leads pooled.

    Attributes:
        mean: float32 [39], mV.
        components: float32 [k, 39], divided by each component's standard deviation, so that
            projected training beats have unit variance.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def project(self, beats: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [leads, k] for beats float32 [leads, 39]; NaN stays NaN."""
        return ((beats - self.mean) @ self.components.T).astype(np.float32)


def fit_beat_basis(examples: list[Example], k: int = 12) -> BeatBasis:
    """Fit the basis on the training records."""
    beats = np.concatenate([measure(example.record).beats for example in examples])
    beats = beats[np.isfinite(beats).all(axis=1)]
    mean = beats.mean(axis=0)
    _, scale, components = np.linalg.svd(beats - mean, full_matrices=False)
    deviation = scale[:k, None] / np.sqrt(len(beats))
    return BeatBasis(mean.astype(np.float32), (components[:k] / deviation).astype(np.float32))

"""Labelled records in memory: reading them, writing down their split, the basis of their median beats."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle import write_atomic
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.split import Split
from pulse_edge.errors import UserError
from pulse_edge.train.sources import INSTRUCT, SOURCES, detect
from pulse_edge.train.sources.example import Example as Example  # named here too, beside their reader
from pulse_edge.train.sources.example import load


def read_examples(
    data: Path, sides: tuple[Split, ...], tick: Callable[[], None] = lambda: None
) -> tuple[list[Example], dict[str, int]]:
    """Read the records of any layout (``train.sources``) that belong to some sides of the patient split.

    Args:
        data: the folder or table of the records.
        sides: which sides to read.
        tick: called once a row, for a progress bar.

    Returns:
        The examples and how many rows were left out, by reason.

    Raises:
        UserError: the data are missing, damaged, of no known layout or no records, or nothing is usable.
    """
    layout = detect(data)
    if layout == INSTRUCT:
        raise UserError(
            f"{data} is ECGInstruct: pictures and conversations, no records. Train a recipe on it that "
            "learns from pictures, or name a table or folder of records."
        )
    left_out: collections.Counter[str] = collections.Counter()
    examples = load(SOURCES[layout].rows(data, left_out), sides, left_out, tick)
    if not examples:
        raise UserError(
            f"No usable record for {' and '.join(sides)} in {data}, left out: {dict(left_out) or 'none'}. "
            "Check that the signal files lie where the labels say."
        )
    return examples, dict(left_out)


def write_split(path: Path, sides: Mapping[Split, Sequence[Example]]) -> str:
    """Write down which patients stand on which side, and return the file's sha256.

    Args:
        path: of the JSON file, ``{"patients": {side: [identifier, …]}, "records": {side: count}}``.
        sides: the examples of every side.

    Raises:
        UserError: a patient stands on two sides, or the file is there and says something else, as when
            a training is resumed on other data.
    """
    patients = {side: sorted({example.patient for example in examples}) for side, examples in sides.items()}
    count = collections.Counter(patient for names in patients.values() for patient in names)
    twice = sorted(patient for patient, times in count.items() if times > 1)
    if twice:
        raise UserError(
            f"Patients on two sides of the split: {', '.join(twice[:5])} ({len(twice)} in all). "
            "Correct the patients of the data; nothing was trained."
        )
    records = {side: len(examples) for side, examples in sides.items()}
    text = (json.dumps({"patients": patients, "records": records}, indent=1, sort_keys=True) + "\n").encode()
    if path.exists() and path.read_bytes() != text:
        raise UserError(
            f"{path} is of a training with other patients or records. Name the data that it began with, or "
            f"delete {path.parent} and start anew."
        )
    write_atomic(path, text)
    return hashlib.sha256(text).hexdigest()


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

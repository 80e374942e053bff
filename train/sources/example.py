"""From labelled rows of any layout to examples: duplicates, signals and amplitudes are checked here.

A layout's own file says which records there are, whose they are and what their labels mean
(:class:`Row`); everything that concerns the signal is the same for all of them. What cannot be
learned from is left out and counted by its reason.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pulse_edge.ecg.instruct import Facts
from pulse_edge.ecg.measure import Measurements, measure
from pulse_edge.ecg.record import FLAT_MV, Record, read_record
from pulse_edge.ecg.split import Split
from pulse_edge.errors import RecordError

# Median over the leads of the median beat's peak-to-peak amplitude in mV. Every second record of shared/ecg
# was measured, 1,178 in all: 0.29 to 2.48, the middle one 0.93. So a gain that is wrong by a factor of ten
# shows in most records, one by a thousand (µV taken for mV) in all.
AMPLITUDE_MV: Final = (0.1, 8.0)
# A page shows ten seconds; what a label of a longer record speaks of may lie outside them.
SECONDS: Final = (5.0, 11.5)
_START: Final = 4096  # bytes that tell nearly all signal files apart


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


@dataclass(frozen=True)
class Row:
    """One labelled record of a layout, its signal not yet read.

    Attributes:
        base: path of the record without ending.
        patient: the patient's identifier.
        side: of the split; the same for all rows of a patient.
        codes: SCP codes that the label states.
        superclasses: PTB-XL's, empty if the layout does not determine them.
        assignable: see :class:`pulse_edge.ecg.instruct.Facts`.
    """

    base: Path
    patient: str
    side: Split
    codes: frozenset[str]
    superclasses: frozenset[str]
    assignable: frozenset[str] | None = None


def load(
    rows: Iterable[Row],
    sides: tuple[Split, ...],
    left_out: collections.Counter[str],
    tick: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Read the signals of the rows that belong to some sides of the split.

    Args:
        rows: of all sides, so that duplicates across them are seen.
        sides: which to read.
        left_out: counts what is left out, by reason; added to.
        tick: called once a row, for a progress bar.
    """
    examples = []
    for row in unique(list(rows), left_out):
        tick()
        if row.side not in sides:
            left_out["patient of another side of the split"] += 1
            continue
        example = _read(row)
        if isinstance(example, str):
            left_out[example] += 1
        else:
            examples.append(example)
    return examples


def unique(rows: list[Row], left_out: collections.Counter[str]) -> list[Row]:
    """Return the rows whose signals occur once, in order, and the first of rows that are alike.

    A signal under two patients may stand on both sides of the split, so none of its rows is kept;
    nor is a signal that is labelled in two ways. Signals are compared by the bytes of their files.
    """
    alike: dict[object, list[Row]] = collections.defaultdict(list)
    for row in rows:
        alike[_signal(row.base, _START)].append(row)
    kept: set[int] = set()
    for group in alike.values():
        exact: dict[object, list[Row]] = collections.defaultdict(list)
        for row in group:
            exact[_signal(row.base) if len(group) > 1 else None].append(row)
        for same in exact.values():
            if len({row.patient for row in same}) > 1:
                left_out["same signal under two patients"] += len(same)
            elif len({(row.codes, row.superclasses) for row in same}) > 1:
                left_out["same signal with different labels"] += len(same)
            else:
                kept.add(id(same[0]))
                left_out["record listed twice"] += len(same) - 1
    left_out += collections.Counter()  # drops the zeros
    return [row for row in rows if id(row) in kept]


def _signal(base: Path, count: int | None = None) -> object:
    """What identifies a record's signal: its file's size and content, or its path if it has no file."""
    for ending in (".dat", ".mat"):
        path = base.parent / f"{base.name}{ending}"
        try:
            with path.open("rb") as stream:
                head = stream.read() if count is None else stream.read(count)
                return os.fstat(stream.fileno()).st_size, hashlib.sha256(head).digest()
        except (OSError, ValueError):
            continue
    return str(base)


def _read(row: Row) -> Example | str:
    """Return the example, or why it cannot be learned from."""
    try:
        record = read_record(row.base)
    except RecordError as error:
        return "record that lacks a lead" if "lacks lead" in str(error) else "unreadable record"
    if not SECONDS[0] <= record.duration <= SECONDS[1]:
        return f"record shorter than {SECONDS[0]:g} s or longer than {SECONDS[1]:g} s"
    if np.isnan(record.signal).any():
        return "record with missing samples (NaN)"
    measured = measure(record)
    if not AMPLITUDE_MV[0] <= amplitude(record, measured) <= AMPLITUDE_MV[1]:
        return "record with impossible amplitudes (wrong gain, or no signal)"
    if float(np.ptp(record.signal, axis=1).min()) < FLAT_MV:
        return "record with a flat lead"
    if record.problems:  # a channel that is no lead, a rate or unit that the header does not state, …
        return "record with a doubtful header"
    return Example(record, row.patient, Facts(row.codes, row.superclasses, measured.rate_bpm, row.assignable))


def amplitude(record: Record, measured: Measurements) -> float:
    """Return the median over the leads of the peak-to-peak amplitude in mV.

    It is taken from the median beats, which wander and single artefacts do not change; where no beat
    was found, from the whole signal.
    """
    beats = measured.beats
    return float(np.median(np.ptp(beats if np.isfinite(beats).all() else record.signal, axis=1)))

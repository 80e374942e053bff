"""The split is a fixed function of the patient, in the promised proportions."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pulse_edge
from pulse_edge.ecg.split import SPLITS, split

ASSETS = Path(pulse_edge.__file__).parent / "assets" / "samples"
# Never to change: a patient who moves from one side to another invalidates every figure.
FIXED = {
    "1": "train",
    "7": "test",
    "10000": "test",
    "12345": "train",
    "18792": "train",
    "16063": "test",
    "8": "validation",
}


@pytest.mark.parametrize(("patient", "side"), FIXED.items())
def test_the_split_never_moves(patient, side):
    assert split(patient) == side


def test_the_sample_records_are_of_patients_that_no_training_saw():
    with (ASSETS / "samples.csv").open(newline="", encoding="utf-8") as stream:
        assert {split(row["patient_id"]) for row in csv.DictReader(stream)} == {"test"}


def test_proportions():
    counts = Counter(split(str(k)) for k in range(20_000))
    assert counts["test"] / 20_000 == pytest.approx(0.18, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.07, abs=0.01)
    assert set(counts) == set(SPLITS)


def test_proportions_within_ranges_of_identifiers():
    """Neighbouring identifiers, often of one hospital and year, are on all sides."""
    for start in range(0, 20_000, 2_000):
        counts = Counter(split(str(k)) for k in range(start, start + 2_000))
        assert 0.14 < counts["test"] / 2_000 < 0.22


@given(st.text())
def test_every_identifier_has_a_side(patient):
    assert split(patient) in SPLITS
    assert split(patient) == split(patient)


def test_another_process_agrees():
    names = [str(k) for k in range(200)]
    code = "from pulse_edge.ecg.split import split; print(' '.join(split(str(k)) for k in range(200)))"
    root = Path(pulse_edge.__file__).parents[1]
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [split(name) for name in names]


def test_no_patient_stands_on_two_sides(shared):
    with (shared / "ecg" / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["database"] == "ptbxl"]
    sides = defaultdict(set)
    for row in rows:
        sides[row["patient_id"]].add(split(row["patient_id"]))
    assert all(len(found) == 1 for found in sides.values())
    assert not any(re.search(r"\.0$", patient) for patient in sides)

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pulse_edge import load
from pulse_edge.commands import evaluate
from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.model.checkpoint import read_card, resolve_model
from pulse_edge.runtimes.session import Session
from pulse_edge.samples import SAMPLES, samples

NANO = resolve_model("pulse-nano")


@pytest.fixture(scope="module")
def nano() -> Session:
    return load("pulse-nano")


def test_the_model_is_whole_and_small() -> None:
    listed = dict(reversed(line.split()) for line in (NANO / "SHA256SUMS").read_text().splitlines())
    files = {path.name for path in NANO.iterdir()} - {"SHA256SUMS"}
    assert set(listed) == files
    for name, digest in listed.items():
        assert hashlib.sha256((NANO / name).read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in NANO.parent.rglob("*")) <= 10e6


def test_the_card_says_what_it_was_trained_and_measured_on() -> None:
    card = read_card(NANO)
    assert [row["set"].split()[0] for row in card["metrics"]] == ["validation", "test"]
    assert card["metrics"][1]["auroc"]["macro"] >= 0.86  # the goal of the first release
    assert "CC BY 4.0" in str(card["licences"])
    assert "not a medical device" in card["intended_use"].lower()
    text = (NANO / "README.md").read_text()
    assert f"{card['metrics'][1]['auroc']['macro']:.3f}" in text


def test_six_real_ecgs_of_patients_never_trained_on() -> None:
    rows = samples()
    assert len(rows) == 6
    for row in rows:
        assert split(row["patient_id"]) == "test"
        record = read_record(SAMPLES / row["record"])
        assert record.signal.shape == (12, 2000)
        assert not record.problems
        shipped = np.asarray(Image.open(SAMPLES / row["image"]).convert("RGB")).astype(int)
        drawn = render(record, PaperStyle(header=(f"PTB-XL {row['record']}",))).image
        assert np.abs(shipped - drawn).mean() < 3  # 64 colours


def test_the_model_reads_the_samples(nano: Session) -> None:
    """Each page's label that the model is surest of is true for most; the rate is read on most."""
    right = close = 0
    for row in samples():
        scores = nano.label(SAMPLES / row["image"])
        right += max(scores, key=scores.__getitem__) in row["superclass"].split(";")
        text = nano.ask(SAMPLES / row["image"], REPORT_QUESTION)
        found = re.search(r"Rate: (\d+) bpm", text)
        rate = measure(read_record(SAMPLES / row["record"])).rate_bpm
        close += found is not None and rate is not None and abs(int(found[1]) - rate) <= 10
    assert right >= 4
    assert close >= 4


def test_held_out_accuracy_is_what_the_card_says(shared: Path) -> None:
    result = evaluate("pulse-nano", shared / "ecg" / "labels.csv", split="test", limit=150)
    assert result["n"] == 150
    # 150 records have a wide interval: this catches a broken path, the card has the figure.
    assert result["auroc"]["macro"] >= 0.80
    assert result["blank_image"]["auroc"]["macro"] == pytest.approx(0.5)
    assert abs(result["shuffled"]["auroc"]["macro"] - 0.5) < 0.12

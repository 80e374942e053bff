"""Scores against computations by definition, and controls that a cheating model would not pass."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest

from pulse_edge.ecg.paper import PaperStyle, blank, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import SPLITS, split
from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.evaluate.score import auroc, evaluate, f1, interval
from pulse_edge.samples import SAMPLES, samples

NAMES = ("NORM", "MI", "STTC", "CD", "HYP")


def ranks(true, score) -> float | None:
    """AUROC as the probability that a positive outranks a negative, ties counting half."""
    yes, no = score[true], score[~true]
    if not len(yes) or not len(no):
        return None
    return sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(yes, no)) / (len(yes) * len(no))


def harmonic(true, score) -> float | None:
    said = score >= 0.5
    hits, wrong, missed = (said & true).sum(), (said & ~true).sum(), (~said & true).sum()
    return None if not true.any() else 2 * hits / (2 * hits + wrong + missed)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_f1_follow_their_definitions(seed) -> None:
    rng = np.random.default_rng(seed)
    true = rng.random((40, 5)) < 0.3
    true[:, 3], true[:, 4] = False, True  # constant
    score = np.round(rng.random((40, 5)) * 0.7 + 0.2 * true, 1)  # with ties, and 0.5 itself
    for compute, define in ((auroc, ranks), (f1, harmonic)):
        result = compute(true, score, NAMES)
        each = {name: define(true[:, k], score[:, k]) for k, name in enumerate(NAMES)}
        assert {name: result[name] for name in NAMES} == pytest.approx(each)
        known = [value for value in each.values() if value is not None]
        assert result["macro"] == pytest.approx(sum(known) / len(known))
    assert auroc(true, score, NAMES)["CD"] is None
    assert auroc(true, score, NAMES)["HYP"] is None
    assert f1(true, score, NAMES)["HYP"] is not None


def test_without_any_defined_label_there_is_no_mean() -> None:
    true = np.zeros((4, 5), bool)
    assert auroc(true, np.ones((4, 5)), NAMES) == dict.fromkeys(("macro", *NAMES))
    assert f1(true, np.ones((4, 5)), NAMES)["macro"] is None


def test_the_interval_covers_the_spread_over_fresh_patients() -> None:
    """Its width against what drawing new patients from the same population shows."""

    def draw(rng, n=150):
        true = rng.random((n, 1)) < 0.4
        return true, rng.normal(true * 1.0, 1.0)

    rng = np.random.default_rng(0)
    fresh = [ranks(t[:, 0], s[:, 0]) for t, s in (draw(rng) for _ in range(120))]
    true, score = draw(rng)
    low, high = interval(true, score, [str(k) for k in range(len(true))])
    assert low < ranks(true[:, 0], score[:, 0]) < high
    assert (high - low) == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.35)


def test_the_interval_draws_patients_not_records(monkeypatch) -> None:
    """Ten copies of every record are no new evidence; taken for patients they would narrow it."""
    monkeypatch.setattr("pulse_edge.evaluate.score.RESAMPLES", 200)
    rng = np.random.default_rng(1)
    true = rng.random((60, 1)) < 0.5
    score = rng.normal(true * 0.8, 1.0)
    once = interval(true, score, [str(k) for k in range(60)])
    ten = interval(
        np.repeat(true, 10, 0), np.repeat(score, 10, 0), [str(k) for k in range(60) for _ in range(10)]
    )
    assert ten == pytest.approx(once)
    narrow = interval(np.repeat(true, 10, 0), np.repeat(score, 10, 0), [str(k) for k in range(600)])
    assert narrow[1] - narrow[0] < 0.6 * (once[1] - once[0])


def test_few_patients_give_no_interval(monkeypatch) -> None:
    monkeypatch.setattr("pulse_edge.evaluate.score.RESAMPLES", 50)
    true = np.arange(40)[:, None] % 2 == 0
    score = true.astype(float)
    assert interval(true, score, [str(k % 19) for k in range(40)]) is None
    assert interval(true, score, [str(k) for k in range(40)]) == [1.0, 1.0]
    assert interval(np.ones_like(true), score, [str(k) for k in range(40)]) is None


class Expert:
    """Knows every page by heart; of a page that it does not know it says what it is told to."""

    labels = dict.fromkeys(NAMES)

    def __init__(self, folder, style=None, unknown=0.5) -> None:
        self.known, self.unknown, self.seen = {}, unknown, []
        for row in samples():
            image = render(read_record(folder / row["record"]), style).image
            self.known[image.tobytes()] = set(row["superclass"].split(";"))

    def label(self, image) -> dict[str, float]:
        self.seen.append(image)
        true = self.known.get(image.tobytes())
        return {n: self.unknown if true is None else 0.9 if n in true else 0.1 for n in NAMES}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The six shipped ECGs, each under several made-up patients of every side of the split."""
    monkeypatch.setattr("pulse_edge.evaluate.score.RESAMPLES", 20)
    shutil.copytree(SAMPLES, tmp_path / "data", ignore=shutil.ignore_patterns("*.png", "*.csv"))
    lines = ["record,superclass,patient_id"]
    for side in SPLITS:
        patients = (str(p) for p in itertools.count() if split(str(p)) == side)
        lines += [f"data/{row['record']},{row['superclass']},{next(patients)}" for row in samples() * 4]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_expert_is_perfect_and_its_controls_are_not(table) -> None:
    expert = Expert(SAMPLES)
    ticks = []
    result = evaluate(expert, table, "test", tick=lambda done, total: ticks.append((done, total)))
    assert result["n"] == result["patients"] == 24
    assert result["auroc"]["macro"] == result["f1"]["macro"] == 1.0
    assert result["auroc_interval"] == [1.0, 1.0]
    assert result["shuffled"]["auroc"]["macro"] < 0.8
    assert {v for v in result["blank_image"]["auroc"].values() if v is not None} == {0.5}
    assert result["blank_image"]["probabilities"] == dict.fromkeys(NAMES, 0.5)
    assert np.array_equal(expert.seen[-1], blank())
    assert len(expert.seen) == 25
    assert result["skipped"] == {"patient of another side of the split": 48}
    assert result["seconds_per_record"] > 0
    assert ticks == [(k, 24) for k in range(25)]


def test_the_shuffled_control_keeps_the_scores_and_breaks_their_tie_to_the_truth(table) -> None:
    """A model that always says the same keeps its F1 when shuffled; one that knows loses it."""

    class Parrot(Expert):
        def label(self, image) -> dict[str, float]:
            return dict.fromkeys(NAMES, 0.8)

    parrot = evaluate(Parrot(SAMPLES), table, "test")
    assert parrot["shuffled"] == {"auroc": parrot["auroc"], "f1": parrot["f1"]}
    assert parrot["blank_image"]["f1"] == parrot["f1"]
    assert parrot["auroc"]["macro"] == 0.5
    expert = evaluate(Expert(SAMPLES), table, "test")
    assert expert["shuffled"]["f1"]["macro"] < expert["f1"]["macro"]


def test_only_the_asked_side_is_scored_and_all_sides_without(table) -> None:
    sides = {side: evaluate(Expert(SAMPLES), table, side)["n"] for side in SPLITS}
    assert sides == dict.fromkeys(SPLITS, 24)
    assert evaluate(Expert(SAMPLES), table)["n"] == 72
    assert evaluate(Expert(SAMPLES), table, limit=7)["n"] == 7


def test_what_is_not_scored_is_counted(table) -> None:
    table.write_text(
        "record,superclass,patient_id\n"
        "data/00057,NORM,1\n"
        "data/gone,NORM,2\n"
        ",NORM,3\n"
        "data/00057,,4\n"
        "data/00057,OTHER,5\n"
        "data/00057, NORM ; OTHER,6\n"
    )
    result = evaluate(Expert(SAMPLES), table)
    assert result["n"] == 2
    assert result["f1"]["NORM"] == 1.0
    assert result["skipped"] == {"record cannot be read": 2, "no superclass": 2}
    table.write_text("record,superclass\ndata/00057,NORM\n")
    with pytest.raises(UserError, match="no patient_id"):
        evaluate(Expert(SAMPLES), table, "test")


def test_the_layout_reaches_pages_and_blank(table) -> None:
    style = PaperStyle(layout="6x2")
    expert = Expert(SAMPLES, style)
    assert evaluate(expert, table, "test", 6, style)["auroc"]["macro"] == 1.0
    assert evaluate(expert, table, "test", 6)["auroc"]["macro"] == 0.5
    with pytest.raises(UnknownNameError, match="layout"):
        evaluate(expert, table, "test", 6, PaperStyle(layout="7x2"))

"""Calibration: the form that devices read, the fit and its guard against too much of it, and the figures."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from pulse_edge import commands
from pulse_edge.commands._calibrate import calibrate_trained
from pulse_edge.ecg.split import split
from pulse_edge.errors import BundleError, CheckpointError, UserError
from pulse_edge.evaluate import calibration_fit
from pulse_edge.evaluate.calibration import Calibration, read_calibration, uncalibrated
from pulse_edge.evaluate.calibration_fit import choose_band, fit_calibration
from pulse_edge.evaluate.reliability import confusion, ece, reliability, report_calibration, selective
from pulse_edge.evaluate.score import Scored
from pulse_edge.model.checkpoint import read_card, write_card_field
from pulse_edge.runtimes.load import load
from pulse_edge.samples import SAMPLES

NAMES = ["A", "B", "C"]
DOCUMENT = {
    "schema": 1,
    "labels": {name: {"scale": 0.5, "bias": -1.0} for name in NAMES},
    "band": [0.3, 0.8],
}


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _scored(seed: int, n: int, scale=1.0, bias=0.0, spread: float = 2.0, per_patient: int = 1) -> Scored:
    """A model whose true log odds are ``scale * logit(score) + bias``."""
    draw = np.random.default_rng(seed)
    margins = draw.normal(-0.5, spread, (n, len(NAMES)))
    truth = draw.random(margins.shape) < _sigmoid(np.asarray(scale) * margins + np.asarray(bias))
    patients = [str(k // per_patient) for k in range(n)]
    return Scored(NAMES, [str(k) for k in range(n)], patients, _sigmoid(margins), truth, {}, 0.0)


@given(st.floats(0, 1), st.floats(0.01, 10), st.floats(-5, 5))
def test_a_probability_stays_one_and_keeps_its_order(score, scale, bias) -> None:
    found = Calibration({"A": scale}, {"A": bias}, (0.5, 0.5)).probability("A", score)
    assert 0 < found < 1 or score in (0, 1) or scale > 1
    assert 0 <= found <= 1
    inside = min(max(score, 1e-7), 1 - 1e-7)
    assert found == pytest.approx(_sigmoid(scale * math.log(inside / (1 - inside)) + bias), rel=1e-9)
    higher = Calibration({"A": scale}, {"A": bias}, (0.5, 0.5)).probability("A", min(1.0, score + 0.1))
    assert higher >= found


def test_without_a_calibration_the_model_s_own_probabilities_decide_at_half() -> None:
    plain = uncalibrated(NAMES)
    assert plain.probability("A", 0.3) == pytest.approx(0.3)
    assert [plain.answer(p) for p in (0.4999, 0.5, 0.9)] == ["no", "yes", "yes"]
    band = Calibration({"A": 1.0}, {"A": 0.0}, (0.3, 0.7))
    assert [band.answer(p) for p in (0.3, 0.31, 0.69, 0.7)] == ["no", "uncertain", "uncertain", "yes"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=2),
        lambda d: d.pop("band"),
        lambda d: d.update(band=[0.6, 0.8]),
        lambda d: d.update(band=[0.3]),
        lambda d: d.update(band=[0.3, float("nan")]),
        lambda d: d["labels"].pop("A"),
        lambda d: d["labels"].update(D={"scale": 1.0, "bias": 0.0}),
        lambda d: d["labels"]["A"].update(scale=-1.0),
        lambda d: d["labels"]["A"].update(scale=True),
        lambda d: d["labels"]["A"].update(bias=float("inf")),
        lambda d: d["labels"]["A"].pop("bias"),
        lambda d: d.update(labels=[]),
    ],
)
def test_a_calibration_of_another_form_is_refused(change) -> None:
    document = copy.deepcopy(DOCUMENT)
    assert read_calibration(document, NAMES) is not None
    change(document)
    with pytest.raises(ValueError, match="calibration"):
        read_calibration(document, NAMES)


def test_what_is_known_to_be_wrong_is_found_again() -> None:
    """Against the parameters that the data were drawn with."""
    hot = fit_calibration(_scored(1, 3000, scale=0.4))
    assert hot["method"] == "temperature"
    assert [row["scale"] for row in hot["labels"].values()] == pytest.approx([0.4] * 3, abs=0.05)
    assert {row["bias"] for row in hot["labels"].values()} == {0.0}
    assert hot["fit"]["temperature"] == pytest.approx(1 / 0.4, rel=0.1)
    shifted = fit_calibration(_scored(2, 3000, scale=0.6, bias=[1.5, 0.0, -1.0]))
    assert shifted["method"] == "temperature and biases"
    assert [row["bias"] for row in shifted["labels"].values()] == pytest.approx([1.5, 0, -1], abs=0.2)
    bent = fit_calibration(_scored(3, 3000, scale=[0.3, 1.0, 2.0], bias=[1.0, 0.0, -1.0]))
    assert bent["method"] == "scales and biases"
    assert [row["scale"] for row in bent["labels"].values()] == pytest.approx([0.3, 1, 2], rel=0.2)
    assert read_calibration(bent, NAMES) is not None


def test_few_patients_of_a_calibrated_model_teach_nothing() -> None:
    """The guard: ten parameters would always fit these patients better, and others worse."""
    methods = [fit_calibration(_scored(seed, 80))["method"] for seed in range(12)]
    assert methods.count("none") >= 9
    assert "scales and biases" not in methods


def test_a_calibration_makes_other_patients_better_calibrated() -> None:
    document = fit_calibration(_scored(4, 400, scale=0.4, bias=0.5))
    calibration = read_calibration(document, NAMES)
    other = _scored(5, 2000, scale=0.4, bias=0.5, per_patient=2)
    found = report_calibration(other, calibration)
    for key in ("ece", "brier", "nll"):
        assert found["after"][key] < found["before"][key]
        assert found["change"][key][1] < 0  # the whole interval


def test_records_of_one_patient_are_not_parted_by_the_folds(monkeypatch) -> None:
    seen = []
    real = calibration_fit._fit
    monkeypatch.setattr(
        calibration_fit, "_fit", lambda m, t, how: seen.append(set(m[:, 0])) or real(m, t, how)
    )
    scored = _scored(6, 300, per_patient=3)
    for k in range(0, 300, 3):
        scored.score[k : k + 3] = scored.score[k]  # a patient's records have one score
    fit_calibration(scored)
    every = set(calibration_fit.logits(scored.score)[:, 0])
    folds = [part for part in seen if part != every][: calibration_fit.FOLDS]
    assert all(len(every - part) + len(part) == len(every) for part in folds)
    assert sum(len(every - part) for part in folds) == len(every) == 100  # each left out once, whole


def test_too_few_patients_are_named() -> None:
    with pytest.raises(UserError, match="at least 50 patients; here are 20"):
        fit_calibration(_scored(7, 200, per_patient=10))


def test_the_band_keeps_the_risk_on_other_patients_and_is_no_wider_than_it_has_to_be() -> None:
    groups = np.arange(2000)
    for seed in range(5):
        here, there = _scored(seed, 2000), _scored(seed + 50, 2000)
        (low, high), reached = choose_band(here.score, here.truth, groups, 0.1)
        assert low == pytest.approx(1 - high)
        band = Calibration({}, {}, (low, high))
        chosen = selective(there.score, there.truth, band)
        assert chosen["risk"] < 0.11
        assert 0.3 < chosen["coverage"] < 1
        assert reached["reached"]
        narrower = Calibration({}, {}, (low + 0.03, high - 0.03))
        assert selective(here.score, here.truth, narrower)["risk"] > 0.09
    (low, high), reached = choose_band(here.score, ~here.truth, groups, 0.1)
    assert (low, high, reached["reached"]) == (0.01, 0.99, False)


def test_figures_are_those_of_their_definitions() -> None:
    p = np.array([[0.1], [0.2], [0.8], [0.9]])
    y = np.array([[False], [True], [True], [True]])
    rows = reliability(p, y, bins=2)
    assert [row["n"] for row in rows] == [2, 2]
    assert [row["probability"] for row in rows] == pytest.approx([0.15, 0.85])
    assert [row["true"] for row in rows] == [0.5, 1.0]
    assert ece(p, y, bins=2) == pytest.approx((0.35 + 0.15) / 2)
    scored = _scored(8, 400)
    found = report_calibration(scored, uncalibrated(NAMES))
    for k, name in enumerate(NAMES):
        expected = brier_score_loss(scored.truth[:, k], scored.score[:, k])
        assert found["before"]["labels"][name]["brier"] == pytest.approx(expected)
    assert found["change"]["brier"] == pytest.approx([0, 0], abs=1e-9)
    table = confusion(scored.score, scored.truth, NAMES, Calibration({}, {}, (0.3, 0.7)))
    for k, name in enumerate(NAMES):
        assert sum(table[name]["present"].values()) == scored.truth[:, k].sum()
        assert table[name]["absent"]["yes"] == (~scored.truth[:, k] & (scored.score[:, k] >= 0.7)).sum()
        assert table[name]["absent"]["uncertain"] > 0


# --- on its way: card, export, bundle, session -------------------------------------------------------


def _five(bias: float = -1.0) -> dict:
    names = ("NORM", "MI", "STTC", "CD", "HYP")
    return {
        "schema": 1,
        "labels": {name: {"scale": 0.5, "bias": bias} for name in names},
        "band": [0.2, 0.8],
    }


def test_a_calibration_goes_from_the_card_to_the_bundle_and_into_answers(small_checkpoint, tmp_path) -> None:
    own = shutil.copytree(small_checkpoint, tmp_path / "own")
    write_card_field(own, "calibration", _five())
    commands.export(target="onnx", precision="fp32", model=str(own), output=tmp_path / "bundle")
    bundle, checkpoint = load(tmp_path / "bundle", threads=1), load(own)
    assert bundle.calibration == checkpoint.calibration == read_calibration(_five(), _five()["labels"])
    page = np.zeros((300, 300, 3), np.uint8)
    raw, found = bundle.label(page), bundle.findings(page)
    for name, score in raw.items():
        assert found[name]["probability"] == pytest.approx(_sigmoid(0.5 * np.log(score / (1 - score)) - 1))


def test_bundles_of_before_load_and_a_spoilt_calibration_is_named(
    own_bundle, small_checkpoint, tmp_path
) -> None:
    from pulse_edge.bundle.manifest import manifest_digest, write_json

    manifest = json.loads((own_bundle / "manifest.json").read_text())
    assert manifest["calibration"] is None
    for change, problem in (
        (lambda m: (m.pop("calibration"), m.pop("answers")), None),
        (lambda m: m.update(calibration=_five() | {"band": [1, 0]}), "band"),
        (lambda m: m.update(calibration=None, answers={"mode": "guess"}), "mode"),
    ):
        change(manifest)
        manifest["digest"] = manifest_digest(manifest)
        write_json(own_bundle / "manifest.json", manifest)
        if problem is None:
            assert load(own_bundle).calibration is None
        else:
            with pytest.raises(BundleError, match=problem):
                load(own_bundle)
    own = shutil.copytree(small_checkpoint, tmp_path / "own")
    write_card_field(own, "calibration", {"schema": 1})
    with pytest.raises(CheckpointError, match="calibration"):
        load(own)


def test_a_field_of_the_card_is_written_with_its_hash_and_nothing_else(tmp_path) -> None:
    (tmp_path / "pulse.json").write_text('{"schema": 1, "name": "mine", "extra": 3}')
    (tmp_path / "other").write_text("x")
    (tmp_path / "SHA256SUMS").write_text("aa  other\nbb  pulse.json\n")
    write_card_field(tmp_path, "calibration", _five())
    card = json.loads((tmp_path / "pulse.json").read_text())
    assert card == {"schema": 1, "name": "mine", "extra": 3, "calibration": _five()}
    digest = hashlib.sha256((tmp_path / "pulse.json").read_bytes()).hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text() == f"aa  other\n{digest}  pulse.json\n"


@pytest.fixture
def table(tmp_path) -> dict[str, int]:
    """A labels.csv over the shipped records, under invented patients of every side."""
    names = sorted(path.stem for path in SAMPLES.glob("*.hea"))
    sides = {
        side: [str(k) for k in range(200) if split(str(k)) == side]
        for side in ("train", "validation", "test")
    }
    rows = []
    for side, count in (("train", 2), ("validation", 8), ("test", 3)):
        for k in range(count):
            record = SAMPLES / names[k % len(names)]
            group, code = (("NORM", "NORM"), ("MI", "IMI"))[k % 2]
            rows.append([record, sides[side][k], "scp", code, group])
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["record", "patient_id", "scheme", "codes", "superclass"], *rows])
    return {"validation": 8, "all": len(rows)}


def test_calibrate_reads_validation_patients_and_no_others(
    small_checkpoint, table, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(calibration_fit, "MIN_PATIENTS", 6)
    own = shutil.copytree(small_checkpoint, tmp_path / "own")
    weights = (own / "model.safetensors").read_bytes()
    result = commands.calibrate(str(own), tmp_path / "labels.csv", risk=0.4)
    assert result["calibration"]["fit"]["n"] == table["validation"]
    assert "validation" in result["calibration"]["fit"]["set"]
    assert read_card(own)["calibration"] == json.loads(json.dumps(result["calibration"]))
    assert load(own).calibration is not None
    assert (own / "model.safetensors").read_bytes() == weights
    found = commands.evaluate(str(own), tmp_path / "labels.csv", split="test")["calibration"]
    assert found["held_out"] is True
    assert commands.evaluate(str(own), tmp_path / "labels.csv")["calibration"]["held_out"] is False


def test_a_training_ends_with_a_calibration_where_there_are_patients_for_one(
    small_checkpoint, table, tmp_path, monkeypatch
) -> None:
    own = shutil.copytree(small_checkpoint, tmp_path / "own")
    assert calibrate_trained(own, tmp_path / "labels.csv") is None
    assert read_card(own)["calibration"] is None
    monkeypatch.setattr(calibration_fit, "MIN_PATIENTS", 3)
    found = calibrate_trained(own, tmp_path / "labels.csv")
    # Trainings leave out a signal that stands under two patients: three of the six records do not.
    assert (found["fit"]["n"], found["fit"]["patients"]) == (3, 3)
    assert read_card(own)["calibration"] == json.loads(json.dumps(found))
    assert load(own).calibration is not None


def test_calibrate_refuses_what_it_cannot_do(own_bundle, small_checkpoint, table, tmp_path) -> None:
    with pytest.raises(UserError, match="is a bundle"):
        commands.calibrate(str(own_bundle), tmp_path / "labels.csv")
    with pytest.raises(UserError, match="--risk"):
        commands.calibrate(str(small_checkpoint), tmp_path / "labels.csv", risk=0.7)
    with pytest.raises(UserError, match="at least 50 patients; here are 8"):
        commands.calibrate(str(small_checkpoint), tmp_path / "labels.csv")
    assert read_card(small_checkpoint)["calibration"] is None

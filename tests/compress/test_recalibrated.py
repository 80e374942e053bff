"""A calibration belongs to the weights that it was fitted to: what a smaller model does with its parent's."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pulse_edge import commands
from pulse_edge.cli import main
from pulse_edge.ecg.split import split
from pulse_edge.model.checkpoint import read_card, write_card_field
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.serve.model import Model
from pulse_edge.samples import SAMPLES, samples

PAGE = SAMPLES / samples()[0]["image"]
Step = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate's answers are not looked at here."""
    monkeypatch.setattr("pulse_edge.evaluate.certify.ANSWER", 2)


@pytest.fixture(scope="module")
def calibrated(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with a calibration under which everything is uncertain."""
    folder = tmp_path_factory.mktemp("calibrated") / "checkpoint"
    shutil.copytree(small_checkpoint, folder)
    names = list(load(folder).labels)
    labels = {name: {"scale": 0.25, "bias": 1.5} for name in names}
    fit = {"set": "validation patients of some table", "n": 60, "patients": 60}
    document = {"schema": 1, "labels": labels, "band": [0.01, 0.99], "fit": fit}
    write_card_field(folder, "calibration", document)
    return folder


def table(folder: Path, side: str) -> Path:
    """The shipped samples as if their patients were of one side of the split."""
    path = folder / f"{side}.csv"
    patients = (name for k in range(1000) if split(name := f"q{k}") == side)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(samples()[0]))
        writer.writeheader()
        for row in samples():
            record = str(SAMPLES / row["record"])
            writer.writerow({**row, "record": record, "patient_id": next(patients)})
    return path


@pytest.fixture(params=["quantize", "prune", "distill"])
def step(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Step]:
    """What makes the calibrated checkpoint smaller, given where to and options of the gate."""
    if request.param == "quantize":
        yield lambda source, output, **gate: commands.quantize(str(source), output, 8, method="rtn", **gate)
    elif request.param == "prune":
        yield lambda source, output, **gate: commands.prune(str(source), output, tokens=120, **gate)
    else:
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "max_position_embeddings": 512, "model_type": "llama"}  # fmt: skip
        vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32,
                  "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336,
                  "patch_size": 48}  # fmt: skip
        student = {"start": "fresh", "vision": vision, "text": text}
        recipe = {"student": student, "lessons": {"pages": 4}, "course": {"steps": 1, "batch": 2}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
        learnt = table(tmp_path, "train")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pulse_edge.compress.lessons.SHARD", 4)
            yield lambda source, output, **gate: commands.distill(
                str(source), output, str(tmp_path / "own.yaml"), learnt, **gate
            )


def test_the_parent_s_is_not_carried_over(calibrated, step, tmp_path) -> None:
    made = step(calibrated, tmp_path / "small", accept_loss=True)
    assert made["calibration"] == {"parent": True, "fit": None}
    assert read_card(tmp_path / "small")["calibration"] is None
    before, after = load(calibrated), load(tmp_path / "small")
    assert {found["answer"] for found in before.findings(PAGE).values()} == {"uncertain"}
    findings = after.findings(PAGE)
    assert {name: found["probability"] for name, found in findings.items()} == after.label(PAGE)
    assert all((found["answer"] == "yes") == (found["probability"] >= 0.5) for found in findings.values())
    assert after.calibration is None


def test_one_of_its_own_is_fitted_where_the_patients_suffice(calibrated, step, tmp_path, monkeypatch) -> None:
    """The same that `calibrate` fits to the finished checkpoint, and not the parent's."""
    monkeypatch.setattr("pulse_edge.evaluate.calibration_fit.MIN_PATIENTS", 3)
    records = table(tmp_path, "validation")
    made = step(
        calibrated, tmp_path / "small", records=records, split="validation", limit=3, accept_loss=True
    )
    card = read_card(tmp_path / "small")
    assert card["metrics"][-1]["set"] == "validation patients of validation.csv"
    assert (tmp_path / "small" / "report.html").is_file()
    assert made["calibration"]["parent"]
    assert made["calibration"]["fit"] == card["calibration"]["fit"]
    assert card["calibration"]["fit"]["n"] == 3
    assert card["calibration"]["labels"] != read_card(calibrated)["calibration"]["labels"]
    assert load(tmp_path / "small").calibration is not None
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:4]), "utf-8")
    assert commands.calibrate(str(tmp_path / "small"), records)["calibration"] == card["calibration"]


def test_too_few_patients_leave_it_without_and_the_command_says_so(
    calibrated, tmp_path, monkeypatch, capsys
) -> None:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["pulse-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
        return capsys.readouterr().out

    output = tmp_path / "small"
    said = call(
        "quantize", calibrated, "--bits", 8, "--method", "rtn", "--output", output, "--accept-loss",
        "--records", table(tmp_path, "validation"), "--split", "validation",
        "--limit", 2,
    )  # fmt: skip
    assert "calibration  none" in said
    assert f"pulse-edge calibrate {output}" in said
    assert f"certificate  {output / 'report.html'}" in said
    assert read_card(output)["calibration"] is None
    run = json.loads(call("run", output, "--image", PAGE, "--labels", "--json"))
    assert {found["answer"] for found in run["findings"].values()} <= {"yes", "no"}
    call("export", "--target", "onnx", "--model", output, "--output", tmp_path / "bundle")
    assert Model(tmp_path / "bundle").about["calibrated"] is False  # what `serve` tells of its answers


def test_a_parent_without_one_has_a_child_without_one(small_checkpoint, tmp_path) -> None:
    made = commands.prune(str(small_checkpoint), tmp_path / "p", tokens=60, accept_loss=True)
    assert made["calibration"] == {"parent": False, "fit": None}
    assert read_card(tmp_path / "p")["calibration"] is None

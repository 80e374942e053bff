"""What the verbs print, and their exit codes."""

from __future__ import annotations

import re

import jsonschema
import pytest

import pulse_edge
from pulse_edge.bundle import read_manifest
from pulse_edge.bundle.manifest import manifest_digest, write_json
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.structured import answer_schema
from pulse_edge.samples import SAMPLES, samples

LABELS = ["NORM", "MI", "STTC", "CD", "HYP"]
TIMES = {"preprocess", "vision", "prefill", "decode_per_token"}
RATE = "What is the heart rate?"


def test_run_as_json_has_the_promised_keys_and_the_session_s_answers(pulse, small_bundle, page) -> None:
    done = pulse(
        "run", small_bundle, "--image", page, "--ask", RATE, "--labels", "--max-new-tokens", 9, "--json"
    )
    assert (done.code, done.err) == (0, "")
    result, session = done.json, load(small_bundle)
    assert set(result) == {"text", "labels", "findings", "finish_reason", "timing_ms"}
    assert result["finish_reason"] == "length"
    assert result["findings"] == session.findings(page)
    assert set(result["timing_ms"]) == TIMES
    assert all(value > 0 for value in result["timing_ms"].values())
    assert result["text"] == session.ask(page, RATE, 9).strip()
    assert result["labels"] == session.label(page)
    assert list(result["labels"]) == LABELS


def test_run_gives_only_what_was_asked_for(pulse, small_bundle, page) -> None:
    text = pulse("run", small_bundle, "--image", page, "--ask", RATE, "--max-new-tokens", 3, "--json").json
    assert text["text"]
    assert text["labels"] == {}
    labels = pulse("run", small_bundle, "--image", page, "--labels", "--json").json
    assert labels["text"] == ""
    assert list(labels["labels"]) == LABELS
    assert labels["timing_ms"]["decode_per_token"] is None
    assert labels["timing_ms"]["prefill"] > 0
    both = pulse("run", small_bundle, "--image", page, "--max-new-tokens", 3, "--json").json
    assert both["text"]
    assert both["labels"] == labels["labels"]


def test_run_writes_one_object_of_the_schema_and_nothing_else(pulse, small_bundle, page) -> None:
    done = pulse("run", small_bundle, "--image", page, "--format", "json", "--max-new-tokens", 5)
    assert (done.code, done.err) == (0, "")
    jsonschema.Draft202012Validator(answer_schema()).validate(done.json)
    both = pulse(
        "run", small_bundle, "--image", page, "--format", "json", "--max-new-tokens", 5, "--json"
    ).json
    assert both["structured"] == done.json
    assert both["text"] == done.json["report"]
    for wrong in (["--format", "jsn"], ["--format", "json", "--labels"], ["--time-limit", 0]):
        refused = pulse("run", small_bundle, "--image", page, *wrong)
        assert refused.code == 2
        assert refused.out == ""


def test_run_marks_what_is_uncertain(pulse, own_bundle, page) -> None:
    manifest = read_manifest(own_bundle)
    labels = {name: {"scale": 1.0, "bias": 0.0} for name in LABELS}
    manifest["calibration"] = {"schema": 1, "labels": labels, "band": [0.0, 1.0]}
    manifest["digest"] = manifest_digest(manifest)
    write_json(own_bundle / "manifest.json", manifest)
    done = pulse("run", own_bundle, "--image", page, "--labels")
    assert done.code == 0
    assert [line.split()[-1] for line in done.out.splitlines()] == ["uncertain"] * 5


def test_run_for_people_streams_the_text_and_lists_the_labels(pulse, small_bundle, page) -> None:
    done = pulse("run", small_bundle, "--image", page, "--ask", RATE, "--labels", "--max-new-tokens", 9)
    assert (done.code, done.err) == (0, "")
    session = load(small_bundle)
    expected = [f"{name:6s} {value:6.1%}" for name, value in session.label(page).items()]
    assert done.out == session.ask(page, RATE, 9) + "\n" + "\n".join(expected) + "\n"


def test_a_record_is_rendered_and_a_checkpoint_runs_as_a_bundle_does(
    pulse, small_bundle, small_checkpoint
) -> None:
    record = SAMPLES / "00057"
    bundle = pulse("run", small_bundle, "--record", record, "--labels", "--json").json
    expected = load(small_bundle).label(render(read_record(record)).image)
    assert bundle["labels"] == expected
    checkpoint = pulse("run", small_checkpoint, "--record", f"{record}.hea", "--labels", "--json").json
    assert checkpoint["labels"] == pytest.approx(expected, abs=1e-4)


def test_verify_says_yes_to_a_sound_bundle(pulse, small_bundle) -> None:
    done = pulse("verify", small_bundle, "--json")
    assert (done.code, done.json) == (0, {"ok": True, "problems": []})
    assert pulse("verify", small_bundle).out == "The bundle is sound.\n"


def test_verify_executes_a_bundle(pulse, small_bundle) -> None:
    assert pulse("verify", small_bundle, "--execute", "--json").json == {"ok": True, "problems": []}


def test_verify_names_every_problem_of_a_damaged_bundle(pulse, own_bundle) -> None:
    data = bytearray((own_bundle / "embed.onnx").read_bytes())
    data[-1] ^= 1
    (own_bundle / "embed.onnx").write_bytes(data)
    (own_bundle / "tokenizer.model").unlink()
    done = pulse("verify", own_bundle, "--json")
    assert (done.code, done.err) == (1, "")
    assert set(done.json) == {"ok", "problems"}
    assert done.json["ok"] is False
    assert [problem.split()[0] for problem in done.json["problems"]] == ["embed.onnx", "tokenizer.model"]
    for_people = pulse("verify", own_bundle)
    assert for_people.code == 1
    assert for_people.out.splitlines() == done.json["problems"]


def test_eval_scores_the_records_of_a_labels_csv(pulse, small_bundle, records) -> None:
    done = pulse("eval", small_bundle, "--records", records, "--json")
    assert (done.code, done.err) == (0, "")
    result = done.json
    assert {"n", "auroc", "f1", "blank_image"} <= set(result)
    assert result["n"] == len(samples()) == 6
    assert result["skipped"] == {}
    for part in (result["auroc"], result["f1"], result["blank_image"]["auroc"], result["shuffled"]["auroc"]):
        assert list(part) == ["macro", *LABELS]
        assert all(value is None or 0 <= value <= 1 for value in part.values())
    session = load(small_bundle)
    scores = {
        row["record"]: session.label(render(read_record(SAMPLES / row["record"])).image) for row in samples()
    }
    for name in LABELS:
        yes = [scores[r["record"]][name] for r in samples() if name in r["superclass"].split(";")]
        no = [scores[r["record"]][name] for r in samples() if name not in r["superclass"].split(";")]
        pairs = [(a > b) + (a == b) / 2 for a in yes for b in no]
        assert result["auroc"][name] == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
    assert {v for v in result["blank_image"]["auroc"].values() if v is not None} == {0.5}


def test_eval_for_people(pulse, small_bundle, records) -> None:
    done = pulse("eval", small_bundle, "--records", records, "--limit", 2)
    assert done.code == 0
    assert done.out.startswith("2 records of 2 patients; skipped: none\n")
    assert "nan" not in done.out
    assert re.search(r"^HYP +(-|0\.\d+|1\.000)", done.out, re.MULTILINE)


def test_eval_of_a_single_class_gives_null_and_unreadable_records_are_counted(
    pulse, small_bundle, records
) -> None:
    header, *rows = records.read_text().splitlines()
    normal = next(row for row in rows if ",NORM," in row)
    records.write_text("\n".join([header, normal, normal.replace("ptbxl/", "gone/", 1)]) + "\n")
    result = pulse("eval", small_bundle, "--records", records, "--json").json
    assert result["n"] == 1
    assert result["skipped"] == {"record cannot be read": 1}
    assert set(result["auroc"].values()) == {None}
    assert result["auroc_interval"] is None
    assert result["f1"]["MI"] is None


def test_doctor_as_json(pulse) -> None:
    done = pulse("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["pulse_edge"] == pulse_edge.__version__
    assert done.json["ok"] is True
    for package in done.json["packages"]:
        assert set(package) == {"name", "version", "extra", "install"}
        assert (package["version"] is None) == (package["install"] is not None)
    assert pulse("doctor").out.startswith(f"pulse-edge {pulse_edge.__version__}, Python 3.")


def test_version_and_help(pulse) -> None:
    assert pulse("--version").out == f"pulse-edge {pulse_edge.__version__}\n"
    done = pulse("--help")
    assert done.code == 0
    for verb in ("export", "run", "eval", "verify", "doctor", "train"):
        assert re.search(rf"^\s*{verb} ", done.out, re.MULTILINE)
        assert pulse(verb, "--help").code == 0

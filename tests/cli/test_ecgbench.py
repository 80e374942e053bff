"""``pulse-edge eval --ecgbench``: no model, one sentence for every mistake, strict JSON."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def answers(tmp_path):
    """Answers to PTB-XL Super and the references beside them, in a folder of their own."""
    known = tmp_path / "references"
    known.mkdir()
    (tmp_path / "answers" / "ptb-test").mkdir(parents=True)
    gold = {"1": "NORM", "2": "MI", "3": "CD, MI"}
    rows = [{"id": k, "conversations": [{"value": "Which?"}, {"value": v}]} for k, v in gold.items()]
    (known / "ptb-test.json").write_text(json.dumps(rows))
    (known / "ptb-test-report.json").write_text(json.dumps(rows))
    said = {"1": "NORM", "2": "ABNORMAL: MI", "3": "CD"}
    file = tmp_path / "answers" / "ptb-test" / "step-final.jsonl"
    file.write_text("\n".join(json.dumps({"question_id": k, "text": v}) for k, v in said.items()))
    return file


@pytest.fixture
def references(tmp_path):
    return tmp_path / "references"


def test_both_protocols(pulse, answers, references) -> None:
    common = ("eval", "--ecgbench", "ptb-test", "--answers", answers, "--references", references)
    loose = pulse(*common, "--json").json
    assert (loose["protocol"], loose["n"], loose["classes"]) == ("published", 3, ["CD", "MI", "NORM"])
    assert loose["hl"] == pytest.approx(2 / 9)
    strict = pulse(*common, "--protocol", "strict", "--json").json
    assert strict["hl"] == pytest.approx(1 / 15)
    assert strict["undefined"] == ["STTC", "HYP"]
    assert "auc" not in strict
    text = pulse(*common, "--protocol", "strict").out
    assert text.startswith("ptb-test         strict, n 3: f1 0.8889, balanced_accuracy ")


def test_all_sets_of_a_folder(pulse, answers, references) -> None:
    common = ("eval", "--ecgbench", "all", "--answers", answers.parents[1], "--references", references)
    result = pulse(*common, "--json").json
    assert list(result["sets"]) == ["ptb-test"]
    assert len(result["not_scored"]) == 8
    out = pulse(*common).out
    assert out.startswith("ptb-test         published, n 3: f1 ")
    assert "arena            not scored: no answers\n" in out


def test_a_judged_set_there_and_back(pulse, answers, references, tmp_path) -> None:
    common = ("eval", "--ecgbench", "ptb-test-report", "--answers", answers, "--references", references)
    assert "--judge-prompts FILE" in pulse(*common).refused()
    prompts, judge = tmp_path / "prompts.jsonl", tmp_path / "judge.jsonl"
    done = pulse(*common, "--judge-prompts", prompts, "--json")
    assert done.json == {"prompts": 3, "judge_prompts": str(prompts)}
    marks = {"Diagnosis": {"Score": 6}, "Waveform": {"Score": 5}, "Rhythm": {"Score": 10}}
    asked = [json.loads(line)["id"] for line in prompts.read_text().splitlines()]
    judge.write_text("\n".join(json.dumps({"id": key, "response": marks}) for key in asked))
    for protocol in ("published", "strict"):
        result = pulse(*common, "--judge", judge, "--protocol", protocol, "--json").json
        assert (result["n"], result["score"]) == (3, pytest.approx(70))
    assert "score 70.0000" in pulse(*common, "--judge", judge).out
    assert "3 prompts for the judge in" in pulse(*common, "--judge-prompts", tmp_path / "again").out
    assert "exists already" in pulse(*common, "--judge-prompts", answers).refused()
    assert "Name one" in pulse(*common, "--judge", judge, "--judge-prompts", prompts).refused()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Name MODEL and --records"),
        (("pulse-nano",), "Name MODEL and --records"),
        (("--answers", "x"), "--ecgbench DATASET"),
        (("--protocol", "strict"), "--ecgbench DATASET"),
        (("pulse-nano", "--ecgbench", "ptb-test", "--answers", "x"), "Leave MODEL"),
        (("--ecgbench", "ptb-test", "--answers", "x", "--limit", "3"), "Leave MODEL"),
        (("--ecgbench", "ptb-test"), "with --answers FILE"),
        (("--ecgbench", "ptb", "--answers", "x"), "Did you mean 'ptb-test'?"),
        (("--ecgbench", "ptb-test", "--answers", "x", "--protocol", "strictly"), "Did you mean 'strict'?"),
        (("--ecgbench", "ptb-test", "--answers", "no-file"), "There is no file no-file"),
        (("--ecgbench", "ptb-test", "--answers", "x", "--judge", "y"), "without a judge"),
        (("--ecgbench", "all", "--answers", "x", "--judge", "y"), "Name one set"),
        (("--ecgbench", "all", "--answers", "no-folder"), "is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(options, sentence, pulse, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in pulse("eval", *options).refused()
    assert list(tmp_path.iterdir()) == []

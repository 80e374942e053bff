"""Every figure and every parse that PULSE's own evaluator gave (shared/golden/ecgbench), to 1e-9."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench import SETS, score_all, score_ecgbench
from pulse_edge.evaluate.ecgbench import published as reader
from pulse_edge.evaluate.ecgbench.files import read_answers, read_references
from pulse_edge.evaluate.ecgbench.metrics import published_scores

SCORED = [name for name, bench in SETS.items() if not bench.aspects]


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden" / "ecgbench"


@pytest.fixture(scope="module")
def scores(golden) -> dict:
    return json.loads((golden / "scores.json").read_text())


def same(result: dict, gold: dict) -> None:
    checked = 0
    for name in ("accuracy", "f1", "auc", "hl"):
        if name in gold:
            expected = None if gold[name] == "nan" else pytest.approx(gold[name], abs=1e-9)
            assert result[name] == expected, name
            checked += 1
    assert checked == {"ml": 3, "mcq": 1, "ecgqa": 1}[gold["kind"]]
    for ours, theirs in (("n", "n"), ("classes", "classes")):
        if theirs in gold:
            assert result[ours] == gold[theirs]


def one(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_the_sets_come_in_the_order_of_the_script(scores) -> None:
    assert scores["order"] == SCORED


def test_all_sets_in_one_run_share_one_generator(golden, scores) -> None:
    result = score_all(golden / "predictions", "published", golden / "gold")
    assert set(result["not_scored"]) == {"ptb-test-report", "arena"}
    assert set(result["sets"]) == set(scores["pipeline_order_one_seed"]) == set(SCORED)
    for name, gold in scores["pipeline_order_one_seed"].items():
        same(result["sets"][name], gold["files"][0])


@pytest.mark.parametrize("name", SCORED)
def test_each_set_alone_starts_from_the_seed(name, golden, scores) -> None:
    result = score_ecgbench(one(golden / "predictions" / name), name, references=golden / "gold")
    same(result, scores["fresh_seed_each_set"][name]["files"][0])


@pytest.mark.parametrize("name", ["mmmu-ecg", "ptb-test", "ecgqa-test", "code15-test"])
@pytest.mark.parametrize("named", [True, False], ids=["references", "in the answers"])
def test_the_baselines_format(name, named, golden, scores) -> None:
    file = one(golden / "predictions_baseline_format" / name)
    result = score_ecgbench(file, name, references=golden / "gold" if named else None)
    same(result, scores["baseline_format_fresh_seed"][name]["files"][0])


@pytest.mark.parametrize("name", ["ptb-test/step-250", "ptb-test/step-300", "ecgqa-test/step-5"])
def test_quirky_files(name, golden, scores) -> None:
    dataset = name.split("/")[0]
    file = golden / "predictions_quirks" / f"{name}.jsonl"
    gold = scores["quirk_files_fresh_seed"][f"{name}.jsonl"]
    same(score_ecgbench(file, dataset, references=golden / "gold"), gold["files"][0])
    if gold["parsed_pred"]:
        rows = read_answers(file)
        known = read_references(golden / "gold", dataset, rows)
        said, _, odd = reader.read(rows, SETS[dataset], known, random.Random(42))
        assert said == gold["parsed_pred"][0]
        if name.endswith("250"):
            assert odd == {reader.NO_TEXT: 3, reader.TWICE: 1}


def test_a_wrong_number_of_answers_gives_no_figure(golden, scores) -> None:
    assert "files" not in scores["quirk_files_fresh_seed"]["mmmu-ecg/step-7.jsonl"]
    file = golden / "predictions_quirks" / "mmmu-ecg" / "step-7.jsonl"
    with pytest.raises(UserError, match=r"199 answers.*exactly 200.*strict"):
        score_ecgbench(file, "mmmu-ecg", references=golden / "gold")
    strict = score_ecgbench(file, "mmmu-ecg", "strict", golden / "gold")
    assert strict["n"] == 200
    assert strict["problems"]["question without an answer: counted as no answer"] == 1


def test_every_parse(golden) -> None:
    """In the script's order for the guesses after one seed, and each set after a fresh one."""
    parsed = json.loads((golden / "parsed.json").read_text())
    pipeline = random.Random(42)
    for name in SCORED:
        rows = read_answers(one(golden / "predictions" / name))
        known = read_references(golden / "gold", name, rows)
        said, true, _ = reader.read(rows, SETS[name], known, pipeline)
        gold = parsed[name]
        if "passed" in gold:
            assert [int(a == b) for a, b in zip(said, true, strict=True)] == gold["passed"]
            continue
        assert said == gold["pred"]
        assert true == gold["true"]
        if "pred_fresh_seed" in gold:
            assert reader.read(rows, SETS[name], known, random.Random(42))[0] == gold["pred_fresh_seed"]


def test_letters(golden) -> None:
    cases = json.loads((golden / "unit_extract.json").read_text())
    assert len(cases) > 60
    for case in cases:
        if "exception" in case:
            with pytest.raises(ValueError, match="crashes"):
                reader.letter(case["text"])
        else:
            assert reader.letter(case["text"]) == case["result"], case


def test_f1_and_auc(golden) -> None:
    cases = json.loads((golden / "unit_f1_auc.json").read_text())
    assert len(cases) == 40
    for case in cases:
        same({"n": 0, **published_scores(case["y_pred"], case["y_true"])}, {"kind": "ml", **case})

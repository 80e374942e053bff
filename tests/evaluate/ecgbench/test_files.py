"""Files that are not as they should be: refused with their line, or counted; never silently wrong."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.evaluate.ecgbench import judge_prompts, score_all, score_ecgbench
from pulse_edge.evaluate.ecgbench.files import read_answers, read_references


def reference(key, gold, question="<image>\nWhich of NORM, MI, STTC, CD, HYP?") -> dict:
    return {
        "id": key,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": gold}],
    }


def answer(key, text, **more) -> dict:
    return {"question_id": key, "prompt": "Which?", "text": text, **more}


@pytest.fixture
def bench(tmp_path):
    """Write answers (dicts or raw lines) and references, and score them."""

    def run(answers, references=(("1", "NORM"), ("2", "MI")), dataset="ptb-test", protocol="strict"):
        lines = [line if isinstance(line, str) else json.dumps(line) for line in answers]
        (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
        entries = [item if isinstance(item, dict) else reference(*item) for item in references]
        (tmp_path / "ptb-test.json").write_text(json.dumps(entries))
        return score_ecgbench(tmp_path / "a.jsonl", dataset, protocol, tmp_path / "ptb-test.json")

    return run


BOTH = pytest.mark.parametrize("protocol", ["published", "strict"])


@BOTH
@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([answer("1", "NORM"), '{"question_id": "2", "te'], "line 2: not JSON"),
        ([answer("1", "NORM"), "[" * 100_000], "line 2: not JSON"),
        ([answer("1", "NORM"), "", '"NORM"'], "line 3: not a JSON object"),
        ([{"text": "NORM"}], "line 1: no question_id"),
        ([{"question_id": None, "text": "NORM"}], "line 1: no question_id"),
        ([answer("1", ["NORM"])], "line 1: the answer is a list"),
        ([answer("1", "NORM"), answer("7", "MI")], "line 2: no reference has the id '7'"),
        ([], "is empty"),
        (["", "  "], "is empty"),
    ],
    ids=["cut", "deep", "string", "no id", "null id", "list", "unknown", "empty", "blank"],
)
def test_answers_that_cannot_be_used(lines, what, protocol, bench) -> None:
    with pytest.raises(UserError, match=what):
        bench(lines, protocol=protocol)


def test_two_answers_to_one_question(bench) -> None:
    lines = [answer("1", "NORM"), answer("2", "CD"), answer("1", "MI")]
    with pytest.raises(UserError, match=r"line 3: the question '1' was answered before, in .*line 1"):
        bench(lines)
    result = bench(lines, protocol="published")
    assert result["n"] == 3
    assert result["problems"] == {"question answered twice: both answers were counted": 1}


def test_an_answer_without_text(bench) -> None:
    """Published counts the answer above once more, here the right one; strict counts silence."""
    lines = [answer("1", "NORM"), {"question_id": "2"}]
    both = (("1", "NORM"), ("2", "NORM"))
    loose = bench(lines, both, protocol="published")
    assert loose["f1"] == 1.0
    assert list(loose["problems"].values()) == [1]
    strict = bench(lines, both)
    assert strict["f1"] == pytest.approx(2 / 3)
    assert strict["problems"] == {"answer without text: counted as no answer": 1}
    with pytest.raises(UserError, match="line 1: the first answer has no text"):
        bench(lines[::-1], both, protocol="published")


def test_a_question_without_an_answer(bench) -> None:
    """Leaving out the hard questions must not raise a figure."""
    loose, strict = (bench([answer("1", "NORM")], protocol=name) for name in ("published", "strict"))
    assert (loose["n"], loose["hl"]) == (1, 0.0)
    assert (strict["n"], strict["hl"]) == (2, 0.1)
    assert loose["problems"] == {"question without an answer: left out": 1}
    assert strict["problems"] == {"question without an answer: counted as no answer": 1}


def test_a_reference_without_a_label_is_counted(bench) -> None:
    result = bench([answer("1", "NORM"), answer("2", "")], (("1", "NORM"), ("2", "unclear")))
    assert result["problems"] == {"reference without a label of the set": 1}


@BOTH
@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"id": "2"}, "entry 2: no question and answer"),
        ({"conversations": reference("2", "MI")["conversations"]}, "entry 2: no id"),
        (("1", "MI"), "entry 2: the id '1' is there twice"),
        (("2", ["MI"]), "entry 2: the answer"),
        (("2", ""), "entry 2: the answer"),
        (("2", 5), "entry 2: the answer"),
    ],
    ids=["bare", "no id", "twice", "list", "empty", "number"],
)
def test_references_that_cannot_be_used(entry, what, protocol, bench) -> None:
    with pytest.raises(UserError, match=what):
        bench([answer("1", "NORM")], (("1", "NORM"), entry), protocol=protocol)


def test_a_letter_that_is_none(bench) -> None:
    with pytest.raises(UserError, match="not of this set"):
        bench([answer("1", "C")], (("1", "sinus rhythm"),), "csn-test-no-cot")


def test_the_published_crash_is_one_sentence(tmp_path) -> None:
    rows = [reference(str(k), "A", "A. x B. y C. z D. v") for k in range(200)]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    lines = [answer(str(k), "The correct option is " if k == 9 else "A") for k in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"line 10: .*crashes"):
        score_ecgbench(tmp_path / "a.jsonl", "mmmu-ecg", "published", tmp_path / "r.json")
    result = score_ecgbench(tmp_path / "a.jsonl", "mmmu-ecg", "strict", tmp_path / "r.json")
    assert result["accuracy"] == 199 / 200
    assert result["problems"] == {"no single option can be read: counted as wrong": 1}


def test_options_of_the_line_above(bench) -> None:
    question = "Q? Options: yes, no Only answer based on the given Options without any explanation."
    known = [reference(k, ["yes"], question) for k in "12"]
    lines = [answer("1", "yes", prompt=question), {"question_id": "2", "text": "yes"}]
    loose = bench(lines, known, "ecgqa-test", "published")
    assert (loose["accuracy"], list(loose["problems"].values())) == (1.0, [1])
    assert bench(lines, known, "ecgqa-test")["problems"] == {}
    with pytest.raises(UserError, match="line 1: the first answer has no prompt"):
        bench(lines[::-1], known, "ecgqa-test", "published")


def test_compressed_files_folders_and_missing_ones(tmp_path) -> None:
    rows = [reference("1", "NORM")]
    (tmp_path / "ptb-test.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(answer("1", "NORM")).encode()))
    assert score_ecgbench(file, "ptb-test", references=tmp_path)["f1"] == 1.0
    with pytest.raises(UserError, match="no reference in this line"):
        score_ecgbench(file, "ptb-test")
    with pytest.raises(UserError, match=r"no cpsc-test\.json in"):
        score_ecgbench(file, "cpsc-test", references=tmp_path)
    with pytest.raises(UserError, match="There is no file"):
        score_ecgbench(tmp_path / "none", "ptb-test", references=tmp_path)
    file.write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        score_ecgbench(file, "ptb-test", references=tmp_path)
    file.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="cannot be read"):
        score_ecgbench(file, "ptb-test", references=tmp_path)
    (tmp_path / "l.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="cannot be read"):
        score_ecgbench(tmp_path / "l.jsonl", "ptb-test", references=tmp_path)


def test_mmmu_is_looked_up_by_its_own_number(tmp_path) -> None:
    rows = [{**reference("x", "A", "A. a B. b"), "No": 7}, reference("8", "B", "A. a B. b")]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    assert list(read_references(tmp_path / "r.json", "mmmu-ecg", [])) == ["7", "8"]


def test_unknown_names_and_a_judge_too_many(bench, tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ptb-test'"):
        score_ecgbench(tmp_path, "ptb_test")
    with pytest.raises(UnknownNameError, match="Did you mean 'strict'"):
        score_ecgbench(tmp_path, "ptb-test", "strickt")
    with pytest.raises(UserError, match="without a judge"):
        score_ecgbench(tmp_path, "ptb-test", judge=tmp_path)
    with pytest.raises(UserError, match="--judge-prompts"):
        score_ecgbench(tmp_path, "arena")


def test_all_wants_one_file_a_set(tmp_path) -> None:
    with pytest.raises(UserError, match="no folder"):
        score_all(tmp_path / "none")
    with pytest.raises(UserError, match="no answers to score"):
        score_all(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "cpsc-test").mkdir(exist_ok=True)
        (tmp_path / "cpsc-test" / f"{name}.jsonl").touch()
    with pytest.raises(UserError, match="2 files of answers"):
        score_all(tmp_path)


def refusal(action) -> str:
    """The sentence with which an action was refused; empty if it was not."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
json_value = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
names = ["question_id", "id", "text", "response", "prompt", "predict_convs", "conversations", "x"]
entry = st.dictionaries(st.sampled_from(names), json_value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(st.one_of(entry, json_value), max_size=4))
@pytest.mark.parametrize("dataset", ["ptb-test", "ecgqa-test", "arena"])
def test_any_json_lines_are_read_or_refused(entries, dataset, tmp_path) -> None:
    file = tmp_path / "any.jsonl"
    file.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    if dataset == "arena":
        sentence = refusal(lambda: judge_prompts(file, dataset, tmp_path / "p"))
        assert sentence.startswith(str(file)) or not sentence
        return
    for protocol in ("published", "strict"):
        sentence = refusal(lambda protocol=protocol: score_ecgbench(file, dataset, protocol))
        assert sentence.startswith((str(file), "No reference holds")) or not sentence


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(content, tmp_path) -> None:
    file = tmp_path / "any.jsonl"
    file.write_bytes(content)
    sentence = refusal(lambda: read_answers(file))
    assert sentence.startswith(str(file)) or not sentence

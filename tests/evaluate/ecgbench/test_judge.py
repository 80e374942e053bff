"""The judged sets: prompts out, a judge's answers in, arithmetic by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench import judge_prompts, score_ecgbench

REPORTS = {"r-1": "Sinus rhythm. Normal ECG.", "r-2": "Atrial fibrillation. LBBB."}


def lines(path, rows) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def marks(*scores, names=("Diagnosis", "Waveform", "Rhythm")) -> dict:
    return {name: {"Score": score, "Explanation": "so"} for name, score in zip(names, scores, strict=True)}


@pytest.fixture
def report(tmp_path):
    question = "<image>\nPlease write a clinical report based on this ECG image."
    entries = [
        {"id": key, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": text}]}
        for key, text in REPORTS.items()
    ]
    (tmp_path / "ptb-test-report.json").write_text(json.dumps(entries))
    lines(tmp_path / "a.jsonl", [{"question_id": key, "text": f"said {key}"} for key in REPORTS])
    return tmp_path


@pytest.fixture
def score(report):
    def run(replies, protocol="published"):
        lines(report / "judge.jsonl", replies)
        return score_ecgbench(report / "a.jsonl", "ptb-test-report", protocol, report, report / "judge.jsonl")

    return run


def test_prompts_hold_what_the_judge_needs(report) -> None:
    assert judge_prompts(report / "a.jsonl", "ptb-test-report", report / "p.jsonl", report) == 2
    rows = [json.loads(line) for line in (report / "p.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["r-1", "r-2"]
    for row in rows:
        assert row["reference"] == REPORTS[row["id"]]
        assert row["answer"] == f"said {row['id']}"
        for part in (row["reference"], row["answer"], "clinical report", '"Waveform": {"Score"', "JSON"):
            assert part in row["prompt"]
        assert "<image>" not in row["prompt"]


def test_the_score_is_ten_times_the_mean(score) -> None:
    replies = [
        {"id": "r-1", "response": marks(10, 5, 0)},
        {"id": "r-2", "response": json.dumps(marks(8, 7, 9))},
    ]
    for protocol in ("published", "strict"):
        result = score(replies, protocol)
        assert result["n"] == 2
        assert result["score"] == pytest.approx((50 + 80) / 2)
        assert result["aspects"] == pytest.approx({"Diagnosis": 90, "Waveform": 60, "Rhythm": 45})
        assert result["problems"] == {}


def test_replies_in_a_fence_and_in_other_spelling(score) -> None:
    fenced = (
        "Here it is:\n```json\n" + json.dumps(marks(1, 2, 3, names=("diagnosis", "form", "rhythm"))) + "\n```"
    )
    flat = {"Diagnosis": 4, "Waveform": 5.5, "Rhythm": 6}
    result = score([{"id": "r-1", "response": fenced}, {"id": "r-2", "response": flat}], "strict")
    assert result["aspects"] == pytest.approx({"Diagnosis": 25, "Waveform": 37.5, "Rhythm": 45})


def test_what_is_missing_is_left_out_or_refused(score, report) -> None:
    first = {"id": "r-1", "response": marks(10, 10, 10)}
    loose = score([first])
    assert (loose["n"], loose["score"]) == (1, 100)
    assert loose["problems"] == {"answer without the judge's word: left out": 1}
    with pytest.raises(UserError, match=r"lacks 1 of 2 answers, first that of 'r-2'"):
        score([first], "strict")
    lines(report / "a.jsonl", [{"question_id": "r-1", "text": "x"}])
    assert score([first])["problems"] == {"question without an answer: left out": 1}
    strict = score([first], "strict")
    assert (strict["n"], strict["score"]) == (2, 50)
    assert strict["problems"] == {"question without an answer: counted as no answer": 1}


def test_strict_wants_the_aspects_of_the_set(score) -> None:
    second = {"id": "r-2", "response": marks(1, 1, 1)}
    two = {"id": "r-1", "response": marks(4, 6, names=("Diagnosis", "Rhythm"))}
    assert score([two, second])["score"] == pytest.approx((50 + 10) / 2)
    with pytest.raises(UserError, match="line 1: the judge scored Diagnosis, Rhythm in place of"):
        score([two, second], "strict")


@pytest.mark.parametrize("protocol", ["published", "strict"])
@pytest.mark.parametrize(
    ("reply", "what"),
    [
        ({"id": "r-9", "response": marks(1, 2, 3)}, "line 2: 'r-9' is the id of no prompt"),
        ({"id": "r-1", "response": marks(1, 2, 3)}, "line 2: a second answer for 'r-1'"),
        ({"response": marks(1, 2, 3)}, "line 2: 'None' is the id of no prompt"),
        ({"id": "r-2", "response": "I cannot say"}, "line 2: no JSON object"),
        ({"id": "r-2", "response": "{Diagnosis: 5}"}, "line 2: no JSON object"),
        ({"id": "r-2", "response": {}}, "line 2: no JSON object"),
        ({"id": "r-2"}, "line 2: no JSON object"),
        (
            {"id": "r-2", "response": marks(1, 2, 11)},
            "line 2: the score of 'Rhythm' is no number from 0",
        ),
        ({"id": "r-2", "response": marks(1, "7", 3)}, "line 2: the score of 'Waveform'"),
        ({"id": "r-2", "response": marks(True, 7, 3)}, "line 2: the score of 'Diagnosis'"),
        ('{"id": "r-2", "response": {"Diagnosis": NaN}}', "line 2: the score of 'Diagnosis'"),
        ("{", "line 2: not JSON"),
    ],
)
def test_replies_that_cannot_be_used(reply, what, protocol, score) -> None:
    with pytest.raises(UserError, match=what):
        score([{"id": "r-1", "response": marks(1, 2, 3)}, reply], protocol)


replies = st.one_of(
    st.text(),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.floats(), st.text()), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(0, 10), min_size=1, max_size=4),
    st.lists(st.integers()),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(response=replies)
def test_any_reply_is_scored_or_refused(response, score) -> None:
    marked = isinstance(response, dict) and response.values()
    if marked and all(isinstance(v, int | float) and 0 <= v <= 10 for v in marked):
        assert score([{"id": "r-1", "response": response}])["score"] <= 100
    else:
        with pytest.raises(UserError, match=r"judge\.jsonl, line 1"):
            score([{"id": "r-1", "response": response}])


@pytest.fixture
def arena(tmp_path):
    """One conversation of two turns, in the format of PULSE's arena script."""
    turns = [
        {"question": "<image>Rhythm?", "answer": "AF"},
        {"question": "ST elevation?", "answer": "No"},
    ]
    said = [
        {"question": "<image>Rhythm?", "answer": "Sinus"},
        {"question": "ST elevation?", "answer": "None"},
    ]
    row = {"question_id": "arena-0", "golden_convs": turns, "predict_convs": said}
    lines(tmp_path / "a.jsonl", [row])
    return tmp_path, row


def test_arena_is_judged_turn_by_turn(arena) -> None:
    folder, _ = arena
    assert judge_prompts(folder / "a.jsonl", "arena", folder / "p.jsonl") == 2
    rows = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    assert [(r["id"], r["reference"], r["answer"]) for r in rows] == [
        ("arena-0#1", "AF", "Sinus"),
        ("arena-0#2", "No", "None"),
    ]
    names = ("Accuracy", "Completeness", "Instruction Adherence")
    spelled = ("accuracy", "completeness", "instruction_adherence")
    lines(
        folder / "j.jsonl",
        [
            {"id": "arena-0#2", "response": marks(9, 9, 9, names=names)},
            {"id": "arena-0#1", "response": marks(0, 3, 6, names=spelled)},
        ],
    )
    for protocol in ("published", "strict"):
        result = score_ecgbench(folder / "a.jsonl", "arena", protocol, judge=folder / "j.jsonl")
        assert (result["n"], result["score"]) == (2, pytest.approx(60))
        assert result["aspects"] == pytest.approx(dict(zip(names, (45, 60, 75), strict=True)))


def test_the_arena_rows_of_pulse_are_read(shared, tmp_path) -> None:
    row = json.loads((shared / "golden" / "prompt" / "eval_script_rows.json").read_text())["arena_row"]
    lines(tmp_path / "a.jsonl", [row])
    assert judge_prompts(tmp_path / "a.jsonl", "arena", tmp_path / "p.jsonl") == 2
    first = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert first["reference"] == "gold 0"
    assert first["answer"].startswith("The ECG shows atrial fibrillation")


def test_conversations_that_cannot_be_used(arena) -> None:
    folder, row = arena
    for damage, what in (
        ({"predict_convs": row["predict_convs"][:1]}, "1 turns in predict_convs for 2"),
        ({"predict_convs": [{"question": "x"}]}, "a turn lacks question or answer"),
        ({"predict_convs": 5}, "a turn lacks question or answer"),
        ({"golden_convs": []}, "no conversation"),
        ({"golden_convs": ["x"]}, "a turn lacks"),
    ):
        lines(folder / "a.jsonl", [{**row, **damage}])
        with pytest.raises(UserError, match=what):
            judge_prompts(folder / "a.jsonl", "arena", folder / "p.jsonl")
        assert not (folder / "p.jsonl").exists()


def test_prompts_only_for_judged_sets_and_into_a_folder_that_is_there(report) -> None:
    with pytest.raises(UserError, match="ptb-test is scored without a judge"):
        judge_prompts(report / "a.jsonl", "ptb-test", report / "p.jsonl")
    with pytest.raises(UserError, match="no folder"):
        judge_prompts(report / "a.jsonl", "ptb-test-report", report / "none" / "p.jsonl", report)


def test_half_a_character_breaks_nothing(report, score) -> None:
    """A reply cut in the middle of an emoji leaves a surrogate, which no UTF-8 file can hold."""
    lines(report / "a.jsonl", ['{"question_id": "r-1", "text": "\\ud83d AF"}', {"question_id": "r-2"}])
    assert judge_prompts(report / "a.jsonl", "ptb-test-report", report / "p.jsonl", report) == 2
    assert json.loads((report / "p.jsonl").read_text().splitlines()[0])["answer"] == "\ud83d AF"
    result = score([{"id": "r-1", "response": {"\ud83d": 5}}])
    assert json.dumps(result, ensure_ascii=False).encode()
    assert result["problems"]["answer without text: counted as no answer"] == 1

"""Questions and answers: every statement must follow from the labels, read here from the words alone."""

from __future__ import annotations

import csv
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.ecg.instruct import (
    ASKED,
    CLOSED_QUESTIONS,
    FINDINGS,
    RATE_QUESTIONS,
    REPORT_QUESTION,
    RHYTHMS,
    SUPERCLASS_PHRASES,
    Facts,
    finding_turns,
    rate_turn,
    report,
    report_turn,
    superclass_turns,
)

CODES = {**RHYTHMS, **FINDINGS}
FACTS = st.builds(
    Facts,
    codes=st.frozensets(st.sampled_from([*CODES, "NORM", "SR", "unknown"]), max_size=6),
    superclasses=st.frozensets(st.sampled_from(list(SUPERCLASS_PHRASES)), max_size=4),
    rate_bpm=st.one_of(st.none(), st.floats(20, 260)),
)


def phrase_of(question):
    """The phrase of a closed question, by its wording."""
    for template in CLOSED_QUESTIONS:
        pattern = re.escape(template).replace(re.escape("{phrase}"), "(.+)")
        if found := re.fullmatch(pattern, question):
            return found[1]
    raise AssertionError(question)


def supported(phrase, facts):
    """Whether any label of the record means this phrase."""
    return any(CODES[code] == phrase for code in facts.codes if code in CODES) or any(
        SUPERCLASS_PHRASES[name] == phrase for name in facts.superclasses
    )


@given(facts=FACTS, seed=st.integers(0, 1000))
def test_superclasses(facts, seed):
    turns = superclass_turns(facts, random.Random(seed))
    if not facts.superclasses:  # not labelled by this scheme: nothing may be denied
        assert turns == []
        return
    assert {turn.kind for turn in turns} == {"superclass"}
    answers = {phrase_of(turn.question): turn.answer for turn in turns}
    assert answers == {
        phrase: "Yes" if name in facts.superclasses else "No" for name, phrase in SUPERCLASS_PHRASES.items()
    }


@given(facts=FACTS, seed=st.integers(0, 1000), count=st.integers(1, 8))
def test_findings(facts, seed, count):
    turns = finding_turns(facts, random.Random(seed), count)
    assert len(turns) == count
    assert len({phrase_of(turn.question) for turn in turns}) == count  # nothing is asked twice
    for turn in turns:
        assert turn.kind == "finding"
        assert turn.answer == ("Yes" if supported(phrase_of(turn.question), facts) else "No")
    present = sum(code in facts.codes for code in ASKED)
    assert sum(turn.answer == "Yes" for turn in turns) == min(present, (count + 1) // 2)


@given(facts=FACTS, seed=st.integers(0, 1000))
def test_rate(facts, seed):
    turns = rate_turn(facts, random.Random(seed))
    if facts.rate_bpm is None:
        assert turns == []
        return
    (turn,) = turns
    assert turn.kind == "rate"
    assert turn.question in RATE_QUESTIONS
    (number,) = re.findall(r"\d+", turn.answer)
    assert abs(int(number) - facts.rate_bpm) <= 0.5


@given(facts=FACTS)
def test_a_report_states_what_is_supported_and_no_more(facts):
    turn = report_turn(facts)
    assert (turn.kind, turn.question, turn.answer) == ("report", REPORT_QUESTION, report(facts))
    parts = dict(re.findall(r"(Rhythm|Rate|Findings|Conclusion): (.+?)\.(?: |$)", turn.answer))
    stated = [
        phrase
        for key in ("Rhythm", "Findings", "Conclusion")
        if key in parts
        for phrase in parts[key].split(", ")
    ]
    assert all(supported(phrase, facts) for phrase in stated)
    assert len(stated) == len(set(stated))
    wanted = {CODES[code] for code in facts.codes if code in CODES}
    wanted |= {SUPERCLASS_PHRASES[name] for name in facts.superclasses}
    assert set(stated) == wanted
    assert parts.get("Rate") == (None if facts.rate_bpm is None else f"{round(facts.rate_bpm)} bpm")
    rebuilt = " ".join(f"{key}: {text}." for key, text in parts.items())
    assert rebuilt == turn.answer  # there is nothing else in it


def test_a_report_in_full():
    facts = Facts(frozenset({"AFIB", "IMI", "PVC", "foo"}), frozenset({"MI"}), 87.4)
    assert report(facts) == (
        "Rhythm: atrial fibrillation. Rate: 87 bpm. Findings: inferior myocardial infarction, "
        "ventricular premature beats. Conclusion: myocardial infarction."
    )
    assert report(Facts(frozenset(), frozenset(), None)) == ""


def test_two_codes_of_one_phrase_are_said_once():
    assert (
        report(Facts(frozenset({"SVTAC", "PSVT"}), frozenset(), None))
        == "Rhythm: supraventricular tachycardia."
    )


def test_phrases_are_unambiguous():
    shared = [phrase for phrase in CODES.values() if list(CODES.values()).count(phrase) > 1]
    assert set(shared) == {"supraventricular tachycardia"}
    asked = [CODES[code] for code in ASKED]
    assert len(set(asked)) == len(asked)
    assert not set(CODES.values()) & set(SUPERCLASS_PHRASES.values())
    assert not any("," in phrase or "." in phrase for phrase in CODES.values())
    assert not any(CODES[code] in shared for code in ASKED)  # the absence of one code would deny the other


def test_wording_varies_and_favours_the_scored_one():
    facts = Facts(frozenset(), frozenset({"MI"}), None)
    rng = random.Random(0)
    questions = [turn.question for _ in range(200) for turn in superclass_turns(facts, rng)]
    first = sum(question.startswith("Does this ECG show") for question in questions) / len(questions)
    assert first == pytest.approx(0.8, abs=0.05)  # 70 % and a third of the rest
    assert all(turn.question.startswith("Does") for turn in superclass_turns(facts, rng, plain_share=1.0))


def test_the_same_seed_asks_the_same():
    facts = Facts(frozenset({"AFIB"}), frozenset({"MI"}), 70.0)
    assert finding_turns(facts, random.Random(3)) == finding_turns(facts, random.Random(3))


def test_the_labels_of_ptb_xl_are_known(shared):
    """Hardly any code of the real labels is lost; superclasses are exactly the five."""
    with (shared / "ecg" / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["scheme"] == "scp"]
    codes = [code for row in rows for code in row["codes"].split(";") if code]
    known = sum(code in CODES or code == "NORM" for code in codes)
    assert known / len(codes) > 0.98
    assert {name for row in rows for name in row["superclass"].split(";") if name} == set(SUPERCLASS_PHRASES)

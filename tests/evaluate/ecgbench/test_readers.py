"""What published and strict read in the same answer: every difference of docs/ecgbench.md, and any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse_edge.evaluate.ecgbench import published, strict
from pulse_edge.evaluate.ecgbench.sets import LETTERS, SETS

EIGHT = (
    "Choose one. A. atrial fibrillation B. LVH C. left bundle branch block D. sinus rhythm E. atrial flutter "
    "F. PVC G. first degree AV block H. sinus bradycardia"
)


@pytest.mark.parametrize(
    ("text", "loose", "careful"),
    [
        ("C", "C", "C"),
        ("(C)", None, "C"),
        ("C)", None, "C"),
        ("C) left bundle branch block", None, "C"),
        ("c", None, "C"),
        (" C\n", None, "C"),
        ("Ｃ", None, "C"),
        ("**C**", None, "C"),
        ("answer: C", None, "C"),
        ('{"answer": "C"}', None, "C"),
        ("The correct option is (C)", None, "C"),
        ("The answer is C", None, "C"),
        ("The answer is 'C'", None, "C"),
        ("Option C", None, "C"),
        ("C is not it. Answer: D", "D", "D"),
        ("Answer: Atrial flutter", "A", "E"),
        ("This is sinus bradycardia", None, "H"),
        ("This is a normal ECG.", "G", None),
        ("E.g. a slow rhythm", "E", None),
        ("The correct option is D because A. is wrong", "A", "D"),
        ("Not A. It is C.", "A", "C"),
        ("The correct option is B, not C", "B", "B"),
        ("Answer: A. Answer: D", "A", "D"),
        ("Answer: D or B", "B", None),
        ("B. or A.", "A", None),
        ("option C or option D", None, None),
        ("The correct option is AB", "A", None),
        ("The answer is a normal rhythm", None, None),
        ("The answer is A because it is irregular", None, "A"),
        ("There is no atrial fibrillation.", None, None),
        ("sinus rhythm or sinus bradycardia", None, None),
        ("", None, None),
        ("no idea", None, None),
    ],
)
def test_letters(text, loose, careful) -> None:
    assert published.letter(text) == loose
    assert strict.letter(text, EIGHT, LETTERS) == careful


def test_a_letter_that_was_not_offered_is_no_answer() -> None:
    four = "Which? A. sinus rhythm\nB. PVC\nC. LVH\nD. paced\nAnswer with one letter."
    assert strict.choices(four, "ABCD") == {"A": "sinus rhythm", "B": "pvc", "C": "lvh", "D": "paced"}
    assert strict.letter("H", four, "ABCD") is None
    assert published.letter("H") == "H"
    assert strict.letter("paced", four, "ABCD") == "D"
    assert strict.letter("B", "What do you see?", "ABCD") == "B"


@pytest.mark.parametrize(
    ("name", "text", "loose", "careful"),
    [
        ("ptb-test", "NORM", ["NORM"], ["NORM"]),
        ("ptb-test", "ABNORMAL ECG with STTC", ["NORM", "STTC"], ["STTC"]),
        ("ptb-test", "NORMAL ECG", ["NORM"], ["NORM"]),
        ("ptb-test", "MILD changes, CD", ["MI", "CD"], ["CD"]),
        ("ptb-test", "Considering STTC first. Answer: MI", ["MI", "STTC"], ["MI"]),
        ("ptb-test", "No MI or STTC. CD.", ["MI", "STTC", "CD"], ["CD"]),
        ("ptb-test", "MI: no, HYP: yes", ["MI", "HYP"], ["HYP"]),
        ("ptb-test", "without MI, but with HYP", ["MI", "HYP"], ["HYP"]),
        ("ptb-test", "not only MI", ["MI"], ["MI"]),
        ("ptb-test", "- MI\n- HYP", ["MI", "HYP"], ["MI", "HYP"]),
        ("ptb-test", "mi", [], []),
        ("cpsc-test", "II-AVB, AFL, STEMI", ["AF", "I-AVB", "STE"], []),
        ("cpsc-test", "I-AVB and STE", ["I-AVB", "STE"], ["I-AVB", "STE"]),
        ("code15-test", "ST depression in V5", ["ST"], []),
        ("code15-test", "ST-T changes, RBBB", ["RBBB", "ST"], ["RBBB"]),
        ("code15-test", "ST, AF", ["ST", "AF"], ["ST", "AF"]),
        ("code15-test", "ABNORMAL", ["ABNORMAL"], ["ABNORMAL"]),
        ("code15-test", "NORM and ABNORMAL", ["ABNORMAL"], ["NORM", "ABNORMAL"]),
        ("code15-test", "Maybe ST. answer: SB", ["SB", "ST"], ["SB"]),
    ],
)
def test_labels(name, text, loose, careful) -> None:
    bench = SETS[name]
    assert published.labels(text, bench) == loose
    assert strict.labels(text, bench.labels) == careful


@pytest.mark.parametrize(
    ("listed", "text", "loose", "careful"),
    [
        ("yes, no", "No", {"no"}, {"no"}),
        ("yes, no", "none of it is normal", {"no"}, set()),
        ("yes, no, not sure.", "Not sure", {"no"}, {"not sure"}),
        ("normal ecg, abnormal ecg", "Abnormal ECG", {"normal ecg", "abnormal ecg"}, {"abnormal ecg"}),
        ("lead I, lead II, none", "lead II", set(), {"lead ii"}),
        ("lead i, lead ii", "lead ii", {"lead i", "lead ii"}, {"lead ii"}),
        ("lead i, lead ii", "lead i and lead ii", {"lead i", "lead ii"}, {"lead i", "lead ii"}),
        ("0-10, 10-20", "10-20", {"10-20"}, {"10-20"}),
        ("0-10, 20-30", "120-30", {"20-30"}, set()),
    ],
)
def test_options(listed, text, loose, careful) -> None:
    prompt = f"What is it? Options: {listed} Only answer based on the given Options without any explanation."
    assert set(published.chosen(text, published.options(prompt))) == loose
    assert strict.chosen(text, strict.options(prompt)) == careful


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(["A", "B.", "(C)", "Answer:", "is", "option", "not", "\n", "a "]))
    )
)
def test_any_text_gives_an_offered_letter_or_none(piece) -> None:
    text = piece if isinstance(piece, str) else " ".join(piece)
    assert strict.letter(text, EIGHT, LETTERS) in {None, *LETTERS}
    assert strict.letter(text, "A. x B. y", "AB") in {None, "A", "B"}
    try:
        assert published.letter(text) in {None, *LETTERS}
    except ValueError:
        assert text.endswith(published.OPTION_SENTENCE)


@settings(max_examples=120, deadline=None)
@given(
    st.text(max_size=60),
    st.lists(st.sampled_from(SETS["cpsc-test"].labels), unique=True),
    st.text(max_size=9),
)
def test_strict_labels_are_a_part_of_the_published_ones(before, names, after) -> None:
    """Outside CODE-15 published finds every label that stands anywhere; strict can only drop some."""
    text, bench = f"{before}{', '.join(names)}{after}", SETS["cpsc-test"]
    if text.isascii():  # strict reads full-width letters too
        assert set(strict.labels(text, bench.labels)) <= set(published.labels(text, bench))


@given(
    st.lists(st.sampled_from(SETS["code15-test"].labels), unique=True),
    st.sampled_from([", ", "\n- ", " and ", "; "]),
)
def test_a_plain_list_of_labels_is_read_whole(names, separator) -> None:
    labels = SETS["code15-test"].labels
    assert strict.labels(f"The ECG shows {separator.join(names)}.", labels) == [
        n for n in labels if n in names
    ]


@given(
    st.lists(st.text("abcxyz -1", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=6), st.text()
)
def test_options_are_found_among_those_offered(offered, text) -> None:
    prompt = f"Q? Options: {', '.join(offered)}"
    assert strict.chosen(text, strict.options(prompt)) <= {name.lower() for name in offered}
    assert set(published.chosen(text, published.options(prompt))) <= set(offered)


@given(
    st.sampled_from(LETTERS),
    st.sampled_from(["{}", "({})", "{}.", "{})", "Answer: {}", "The answer is {}.", "**{}**"]),
)
def test_the_usual_ways_to_say_a_letter(name, form) -> None:
    assert strict.letter(form.format(name), EIGHT, LETTERS) == name

"""One object of the published schema for any weights, within its budget; null where there is no answer."""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.ecg.instruct import MEASURES, RHYTHMS
from pulse_edge.errors import MissingExtraError, PulseEdgeError, UserError
from pulse_edge.evaluate.answers import FIELDS, Answers, read_answers
from pulse_edge.evaluate.calibration import Calibration
from pulse_edge.evaluate.labels import DEFAULT_LABELS, DEFAULT_SCORING
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.grammar import CLOSING, Vocabulary, constrain
from pulse_edge.runtimes.session import Session
from pulse_edge.runtimes.structured import answer_schema, field_schema, structured

PAGE = np.full((336, 336, 3), 255, np.uint8)
EVERYTHING = {
    **MEASURES,
    **{name: {"question": f"{name}?", "answer": "It is {value} ms."} for name in FIELDS if "." in name},
    "axis": {"question": "Axis?", "answer": "{value}"},
}
COMPOSE = read_answers({"mode": "compose", "measures": EVERYTHING})
DIRECT = read_answers({"mode": "direct", "question": "Describe this ECG as JSON."})


class Rolling:
    """Random weights: logits that depend on all that was read, and tokens that are counted."""

    def __init__(self, seed: int, vocabulary: int, spread: float, context: int = 4096) -> None:
        self.seed, self.vocabulary, self.spread, self.context = seed, vocabulary, spread, context
        self.read: list[int] = []
        self.most = 0

    @property
    def position(self) -> int:
        return len(self.read)

    def encode(self, tiles, image_size):
        return np.zeros((5, 4), np.float32)

    def prefill(self, embeddings, tokens):
        self.read = []
        return self.extend(tokens)

    def extend(self, tokens):
        assert len(self.read) + len(tokens) <= self.context, "read beyond the context"
        self.read += list(tokens)
        self.most = max(self.most, len(self.read))
        draw = np.random.default_rng([self.seed, len(self.read), *(t + 300 for t in self.read[-3:])])
        return (draw.standard_normal(self.vocabulary) * self.spread).astype(np.float32)

    def step(self, token):
        return self.extend([token])

    def reset(self):
        self.read = []

    def rewind(self, position):
        assert 0 <= position <= len(self.read)
        del self.read[position:]


@pytest.fixture(scope="session")
def tokenizer(root) -> Tokenizer:
    return Tokenizer.from_folder(root / "pulse_edge" / "assets" / "pulse-nano")


@pytest.fixture(scope="session")
def make(tokenizer):
    """A session of random weights; padded rows of the embedding table included."""

    def session(seed: int, answers: Answers, spread: float = 3.0, context: int = 4096, padding: int = 8):
        backend = Rolling(seed, tokenizer.vocab_size + padding, spread, context)
        return Session(backend, tokenizer, DEFAULT_LABELS, DEFAULT_SCORING, answers=answers)

    return session


def check(answer: dict) -> None:
    jsonschema.Draft202012Validator(answer_schema()).validate(json.loads(json.dumps(answer)))


def test_the_published_schema_is_one_and_knows_the_model_s_rhythms() -> None:
    jsonschema.Draft202012Validator.check_schema(answer_schema())
    assert set(field_schema("rhythm")["enum"]) == {*RHYTHMS.values(), None}


@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from([COMPOSE, DIRECT, read_answers(None)]),
    spread=st.sampled_from([0.0, 0.5, 5.0, 60.0]),
    budget=st.sampled_from([1, 5, 40]),
    support=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_weights_give_a_valid_object_within_the_budget(make, seed, mode, spread, budget, support) -> None:
    session = make(seed, mode, spread)
    answer = structured(session, PAGE, budget, support=support)
    check(answer)
    assert session.finish_reason in ("stop", "length")
    longest = 40 if mode is not DIRECT else 200  # of one value with its sentence; of all values as JSON
    assert session.backend.most <= session._kept + 60 + longest + budget + CLOSING
    if support == 0 and mode is COMPOSE:  # every question is then answered
        assert None not in [answer["rate"], answer["rhythm"], answer["axis"], *answer["intervals"].values()]


@given(seed=st.integers(0, 2**32 - 1), context=st.integers(60, 420))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_short_context_is_kept_to_or_named(make, seed, context) -> None:
    for mode in (COMPOSE, DIRECT):
        session = make(seed, mode, context=context)
        real, session.backend.extend = session.backend.extend, None

        def extend(tokens, real=real, backend=session.backend):
            if backend.position + len(tokens) > backend.context:
                raise UserError("the context is full")  # as backends do
            return real(tokens)

        session.backend.extend = extend
        try:
            check(structured(session, PAGE, 500, support=0.0))
        except UserError as error:
            assert "context" in str(error)  # noqa: PT017 - both ends are right


def test_the_small_model_itself_answers_in_the_schema(bundled, pages) -> None:
    for mode in (COMPOSE, DIRECT):
        bundled.answers = mode
        for support in (0.0, 0.5):
            answer = structured(bundled, pages["wide"], 20, support=support)
            check(answer)
            assert answer["findings"] == bundled.findings(pages["wide"])
            assert answer["calibrated"] is False


class Saying(Rolling):
    """Weights that say given texts, each behind its question."""

    def __init__(self, tokenizer: Tokenizer, said: dict[str, str], otherwise: str) -> None:
        super().__init__(0, tokenizer.vocab_size, 0.0)
        self.tokenizer = tokenizer
        self.said = [*said.items(), ("", otherwise)]

    def extend(self, tokens):
        super().extend(tokens)
        head = self.tokenizer.encode("ASSISTANT:", bos=False)
        starts = [k for k in range(len(self.read)) if self.read[k : k + len(head)] == head]
        if not starts:  # the picture
            return np.zeros(self.vocabulary, np.float32)
        asked = self.tokenizer.decode([token for token in self.read[: starts[-1]] if token >= 0])
        answer = next(answer for question, answer in self.said if question in asked)
        ids = self.tokenizer.encode(f"ASSISTANT: {answer}", bos=False)[len(head) :] + [self.tokenizer.eos_id]
        wanted = ids[min(len(self.read) - starts[-1] - len(head), len(ids) - 1)]
        return np.where(np.arange(self.vocabulary) == wanted, 20.0, 0.0).astype(np.float32)


def _saying(tokenizer, said, otherwise, answers=COMPOSE) -> Session:
    return Session(
        Saying(tokenizer, said, otherwise), tokenizer, DEFAULT_LABELS, DEFAULT_SCORING, answers=answers
    )


def test_values_are_what_the_model_says_and_null_where_it_would_say_something_else(tokenizer) -> None:
    said = {
        "heart rate": "The heart rate is 143 bpm.",
        "intervals.pr": "It is 162 ms.",
        "intervals.qrs": "It is 999 ms.",  # not possible
        "intervals.qt": "I do not know.",
        "Axis": "left deviation.",
        "clinical report": "Rhythm: atrial flutter, with a rapid rate. Conclusion: none.",
    }
    answer = structured(_saying(tokenizer, said, "No"), PAGE)
    check(answer)
    assert answer["rate"] == 143
    assert answer["rhythm"] == "atrial flutter"
    assert answer["axis"] == "left deviation"
    assert answer["intervals"] == {"pr": 162, "qrs": None, "qt": None, "qtc": None}
    assert answer["report"] == said["clinical report"]
    assert {finding["answer"] for finding in answer["findings"].values()} == {"no"}
    other = structured(_saying(tokenizer, {"clinical report": "Rate: 60 bpm."}, "Yes"), PAGE)
    assert other["rhythm"] is None  # a report without a rhythm
    assert other["report"] == "Rate: 60 bpm."


def test_an_object_that_the_model_writes_itself_is_taken_as_it_is(tokenizer) -> None:
    values = {
        "rate": 72,
        "rhythm": "sinus rhythm",
        "intervals": {"pr": 160, "qrs": None, "qt": 400, "qtc": 410},
        "axis": None,
        "report": 'Said "so", 12 \\ µV.\nEnd.',
    }
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    answer = structured(_saying(tokenizer, {"as JSON": text}, "Yes", DIRECT), PAGE)
    check(answer)
    assert {key: answer[key] for key in values} == values


def test_forced_text_is_read_in_the_tokenizer_s_own_tokens(tokenizer) -> None:
    """Text that the grammar leaves no choice about is what the model was trained to read."""
    grammar = 'start: " The heart rate is " value " bpm."\nvalue: "72"\n'
    backend = Rolling(1, tokenizer.vocab_size, 3.0)
    done = constrain(backend, Vocabulary(tokenizer), grammar, backend.extend([5]), 60)
    asked = tokenizer.encode("ASSISTANT:", bos=False)
    whole = tokenizer.encode("ASSISTANT: The heart rate is 72 bpm.", bos=False)
    assert done.text == " The heart rate is 72 bpm."
    assert backend.read[1:] == whole[len(asked) : -1]  # the last is not read


def test_support_is_the_probability_of_all_that_was_allowed(tokenizer) -> None:
    """Two words of one choice each, and then a choice: computed here from the same logits."""
    vocabulary = Vocabulary(tokenizer)
    backend = Rolling(4, tokenizer.vocab_size, 2.0)
    done = constrain(backend, vocabulary, 'start: " Yes" | " No"\n', backend.extend([5]), 9)
    again = Rolling(4, tokenizer.vocab_size, 2.0)
    logits, expected, left = again.extend([5]), 1.0, b" Yes" if "Yes" in done.text else b" No"
    begun = [b" Yes", b" No"]
    for token in [*backend.read[1:], None]:
        share = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
        fits = [
            k
            for k, text in enumerate(vocabulary.tokens)
            if text and any(word.startswith(text) for word in begun)
        ]
        expected *= share[fits].sum()
        if token is None:
            break
        text = vocabulary.tokens[token]
        begun = [word[len(text) :] for word in begun if word.startswith(text)]
        logits = again.extend([token])
    assert left.decode() == done.text
    assert done.support == pytest.approx(expected, rel=1e-9)


def test_time_and_the_caller_end_it_with_what_is_there(make, monkeypatch) -> None:
    for mode in (COMPOSE, DIRECT):
        asked = itertools.count()
        session = make(3, mode)
        check(structured(session, PAGE, 40, cancel=lambda a=asked: next(a) > 12, support=0.0))
        assert session.finish_reason == "cancelled"
        session = make(3, mode)
        answer = structured(session, PAGE, 40, time_limit=0.0)
        check(answer)
        assert (answer["findings"], answer["rate"], answer["report"]) == ({}, None, "")
        assert session.finish_reason == "time"
        whole = make(3, mode).findings(PAGE)
        asked = itertools.count()
        answer = structured(session, PAGE, 40, cancel=lambda a=asked: next(a) > 4)
        check(answer)
        assert 0 < len(answer["findings"]) < len(whole)  # those that were scored by then
        assert answer["findings"].items() <= whole.items()
        assert (answer["rate"], answer["report"]) == (None, "")


def test_findings_carry_the_calibration(make) -> None:
    session = make(5, COMPOSE)
    names = dict.fromkeys(DEFAULT_LABELS, 1.0)
    session.calibration = Calibration(names, dict.fromkeys(names, 0.0), (0.0, 1.0))
    answer = structured(session, PAGE, 5)
    check(answer)
    assert answer["calibrated"] is True
    assert {finding["answer"] for finding in answer["findings"].values()} == {"uncertain"}


def test_a_grammar_that_cannot_be_compiled_is_an_error(tokenizer) -> None:
    with pytest.raises(PulseEdgeError, match="grammar"):
        Vocabulary(tokenizer).matcher("start: nothing_of_that_name\n")


def test_without_llguidance_the_extra_is_named(make, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "pulse-edge[structured]"')):
        structured(make(1, COMPOSE), PAGE)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(mode="guess"),
        lambda d: d.update(mode="direct"),
        lambda d: d.update(question=3),
        lambda d: d.update(measures=[]),
        lambda d: d["measures"].update(height=d["measures"]["rate"]),
        lambda d: d["measures"]["rate"].update(answer="no value"),
        lambda d: d["measures"]["rate"].update(answer="{value} and {value}"),
        lambda d: d["measures"]["rate"].update(answer="{value}\n"),
        lambda d: d["measures"]["rate"].update(question=" "),
        lambda d: d["measures"].update(rate="What?"),
    ],
)
def test_answers_of_another_form_are_refused(change) -> None:
    document = {"mode": "compose", "measures": copy.deepcopy(MEASURES)}
    assert read_answers(document) == read_answers(None)
    change(document)
    with pytest.raises(ValueError, match="answer"):
        read_answers(document)
    with pytest.raises(ValueError, match="mode"):
        read_answers("compose")


def test_tokens_write_what_decoding_writes(tokenizer) -> None:
    written = tokenizer.token_bytes()
    text = "Größe 12 µV ♥\n of the  heart"
    ids = tokenizer.encode(text, bos=False)
    assert b"".join(written[token] or b"" for token in ids).decode() == " " + text  # the prefix
    assert written[tokenizer.eos_id] is None

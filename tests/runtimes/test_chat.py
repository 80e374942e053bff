"""Conversations: what is kept of them, what ends an answer, and text that is never shown."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.errors import UserError
from pulse_edge.evaluate.calibration import Calibration
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.runtimes.generate import until
from pulse_edge.runtimes.load import load

FIRST, SECOND, THIRD = "What is the heart rate?", "And the rhythm?", "Is there hypertrophy in this ECG?"


@pytest.fixture
def extended(bundled, monkeypatch) -> list[int]:
    """How many tokens each call of ``extend`` read."""
    lengths: list[int] = []
    inner = bundled.backend.extend

    def count(tokens):
        lengths.append(len(tokens))
        return inner(tokens)

    monkeypatch.setattr(bundled.backend, "extend", count)
    # steps are counted apart: OnnxBackend's step goes through extend
    monkeypatch.setattr(bundled.backend, "step", lambda token: inner([token]))
    return lengths


def _after_the_image(session, turns) -> list[int]:
    ids = encode_prompt(build_prompt(turns), session.tokenizer)
    return ids[ids.index(-200) + 1 :]


def test_a_further_turn_reads_only_what_is_new(bundled, pages, extended) -> None:
    turns: list[tuple[str, str | None]] = [(FIRST, None)]
    read: list[int] = []
    for question in (SECOND, THIRD, None):
        answer = "".join(bundled.chat(pages["wide"], turns, 12))
        wanted = _after_the_image(bundled, turns)
        same = next((k for k, (a, b) in enumerate(zip(read, wanted, strict=False)) if a != b), len(read))
        assert extended[-1] == len(wanted) - same
        assert extended[-1] < len(wanted) or len(turns) == 1
        read = wanted + bundled._tail[len(wanted) :]
        assert bundled.backend.position == bundled._kept + len(read)
        if question:
            turns = [*turns[:-1], (turns[-1][0], answer or "-"), (question, None)]


def test_kept_turns_give_the_logits_of_the_whole_conversation_read_at_once(bundled, pages, reference) -> None:
    """Against PyTorch, which reads the whole prompt in one go without any cache."""
    turns = [(FIRST, "The heart rate is 72 bpm."), (SECOND, "Sinus rhythm."), (THIRD, None)]
    for end in (1, 2, 3):
        part = [*turns[: end - 1], (turns[end - 1][0], None)]
        list(bundled.chat(pages["wide"], part, 5))
    got = bundled._read(pages["wide"], turns)
    ids = encode_prompt(build_prompt(turns), reference.tokenizer)
    embeddings = reference.backend.encode(preprocess(pages["wide"]), pages["wide"].shape[1::-1])
    expected = reference.backend.prefill(embeddings, ids)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert np.abs(expected - reference.logits(pages["wide"], THIRD)).max() > 0.01  # the turns do matter


def test_a_conversation_that_branches_off_or_has_another_picture_is_not_mixed_up(
    bundled, pages, small_bundle
) -> None:
    other = [(FIRST, "It is 50 bpm."), (SECOND, None)]
    list(bundled.chat(pages["page"], [(FIRST, "It is 90 bpm."), (SECOND, None)], 6))
    here = "".join(bundled.chat(pages["page"], other, 12))
    there = "".join(bundled.chat(pages["wide"], other, 12))
    fresh = load(small_bundle, threads=1)
    assert "".join(fresh.chat(pages["wide"], other, 12)) == there
    assert "".join(load(small_bundle, threads=1).chat(pages["page"], other, 12)) == here


def test_a_single_question_does_not_depend_on_what_was_asked_before(bundled, pages) -> None:
    first = bundled.logits(pages["wide"], FIRST)
    list(bundled.chat(pages["wide"], [(FIRST, "So."), (SECOND, None)], 6))
    bundled.label(pages["wide"])
    assert np.array_equal(bundled.logits(pages["wide"], FIRST), first)  # to the bit


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [(FIRST, "72")],
        [(FIRST, None), (SECOND, None)],
        [(FIRST, ""), (SECOND, None)],
        [("<image>", None)],
        [(FIRST, "a <image>"), (SECOND, None)],
        [("\udcff", None)],
    ],
)
def test_turns_that_are_no_conversation_are_refused(bundled, pages, turns) -> None:
    with pytest.raises(UserError):
        list(bundled.chat(pages["wide"], turns))


def test_a_conversation_longer_than_the_context_is_refused_and_the_session_goes_on(bundled, pages) -> None:
    before = bundled.ask(pages["wide"], FIRST, 8)
    with pytest.raises(UserError, match="context"):
        list(bundled.chat(pages["wide"], [(FIRST, "word " * 600), (SECOND, None)]))
    assert bundled.ask(pages["wide"], FIRST, 8) == before


def test_why_an_answer_ended(bundled, pages, monkeypatch) -> None:
    assert bundled.finish_reason is None
    whole = "".join(bundled.chat(pages["wide"], [(FIRST, None)], 8))
    assert bundled.finish_reason == "length"
    stream = bundled.stream(pages["wide"], FIRST, 8)
    next(stream)
    assert bundled.finish_reason is None
    stream.close()
    assert bundled.finish_reason == "cancelled"
    assert list(bundled.chat(pages["wide"], [(FIRST, None)], 8, cancel=lambda: True)) == []
    assert bundled.finish_reason == "cancelled"
    part = "".join(bundled.chat(pages["wide"], [(FIRST, None)], 8, stop=[whole[3:5]]))
    assert bundled.finish_reason == "stop"
    assert part == whole[: whole.index(whole[3:5])]
    monkeypatch.setattr(bundled.tokenizer, "eos_id", int(np.argmax(bundled.logits(pages["wide"], FIRST))))
    assert bundled.ask(pages["wide"], FIRST) == ""
    assert bundled.finish_reason == "stop"


def test_cancelling_ends_within_one_token_and_keeps_what_was_said(bundled, pages) -> None:
    whole = "".join(bundled.chat(pages["wide"], [(FIRST, None)], 30))
    asked = itertools.count()
    steps = []
    inner = bundled.backend.step
    bundled.backend.step = lambda token: steps.append(token) or inner(token)
    part = "".join(bundled.chat(pages["wide"], [(FIRST, None)], 30, cancel=lambda: next(asked) >= 6))
    assert bundled.finish_reason == "cancelled"
    assert whole.startswith(part.rstrip("\ufffd"))
    assert 0 < len(steps) <= 6


def test_cancelled_while_a_picture_is_read_no_half_read_picture_stays(bundled, pages) -> None:
    right = bundled.label(pages["wide"])
    for allowed in range(4):
        asked = itertools.count()
        stopped = bundled.chat(
            pages["page"], [(FIRST, None)], 4, cancel=lambda a=asked, n=allowed: next(a) >= n
        )
        assert list(stopped) == []
        assert bundled.label(pages["wide"]) == right


def test_the_time_limit_counts_from_the_first_piece_asked_for(bundled, pages, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pulse_edge.runtimes.session.time.monotonic", lambda: now[0])
    stream = bundled.chat(pages["wide"], [(FIRST, None)], 40, time_limit=5.0)
    now[0] = 100.0  # not asked for yet
    pieces = []
    for piece in stream:
        pieces.append(piece)
        now[0] += 1.0
    assert bundled.finish_reason == "time"
    assert 5 <= len(pieces) <= 6  # the last may be bytes that were held back
    assert list(bundled.chat(pages["wide"], [(FIRST, None)], 40, time_limit=0.0)) == []
    assert bundled.finish_reason == "time"


def _greedily(session, page, question, count) -> list[int]:
    """Tokens of the best answer, by a loop of its own."""
    logits, tokens = session.logits(page, question), []
    while len(tokens) < count:
        tokens.append(int(logits.argmax()))
        logits = session.backend.step(tokens[-1])
    return tokens


def test_usage_counts_every_token_that_was_read_and_written(bundled, pages, monkeypatch) -> None:
    """Also those that a stop string, the end token or a cancelled answer leaves unseen."""
    session, page = bundled, pages["wide"]
    tokens = _greedily(session, page, FIRST, 20)
    visual = len(session.backend.encode(preprocess(page), page.shape[1::-1]))
    read = len(encode_prompt(build_prompt([(FIRST, None)]), session.tokenizer)) - 1 + visual

    def usage(**options) -> tuple[int, int]:
        list(session.chat(page, [(FIRST, None)], 20, **options))
        return session.usage["prompt_tokens"], session.usage["completion_tokens"]

    assert usage() == (read, 20)
    assert usage() == (read, 20)  # with the picture read already
    whole = session.tokenizer.decode(tokens)
    stop = whole[len(whole) // 2 :][:3]
    needed = next(n for n in range(1, 21) if stop in session.tokenizer.decode(tokens[:n]))
    assert usage(stop=[stop]) == (read, needed)
    asked = itertools.count()
    assert usage(cancel=lambda: next(asked) >= 8) == (read, session.backend.position - read)
    assert usage(cancel=lambda: True) == (0, 0)
    turns = [(FIRST, "The heart rate is 72 bpm."), (SECOND, None)]
    list(session.chat(page, turns, 1))
    longer = len(encode_prompt(build_prompt(turns), session.tokenizer)) - 1 + visual
    assert session.usage == {"prompt_tokens": longer, "completion_tokens": 1}
    monkeypatch.setattr(session.tokenizer, "eos_id", tokens[4])
    assert usage() == (read, tokens.index(tokens[4]))


def test_scoring_ends_when_cancelled_or_out_of_time_and_says_so(bundled, pages, monkeypatch) -> None:
    whole = bundled.findings(pages["wide"])
    assert list(whole) == list(bundled.labels)
    assert bundled.finish_reason == "stop"
    counts = []
    for allowed in range(12):
        asked = itertools.count()
        part = bundled.findings(pages["page"], cancel=lambda a=asked, n=allowed: next(a) >= n)
        assert bundled.finish_reason == ("cancelled" if len(part) < len(whole) else "stop")
        counts.append(len(part))
        bundled.findings(pages["wide"])  # so that the page is read anew
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == len(whole)
    assert set(range(len(whole) + 1)) <= set(counts)  # asked before every label
    now = [0.0]
    monkeypatch.setattr("pulse_edge.runtimes.session.time.monotonic", lambda: now[0])
    inner = bundled.backend.extend
    monkeypatch.setattr(
        bundled.backend, "extend", lambda tokens: now.__setitem__(0, now[0] + 1) or inner(tokens)
    )
    part = bundled.findings(pages["wide"], time_limit=2.5)
    assert bundled.finish_reason == "time"
    assert part == {name: whole[name] for name in list(whole)[:3]}
    assert bundled.label(pages["wide"], time_limit=0) == {}
    assert bundled.findings(pages["wide"]) == whole
    assert bundled.finish_reason == "stop"


def _shown(pieces: list[str], stops: list[str]) -> tuple[str, str, int]:
    def speak():
        for number, piece in enumerate(pieces, 1):
            yield piece, number
        return "length"

    stream, out, count = until(speak(), stops), "", 0
    while True:
        try:
            piece, count = next(stream)
        except StopIteration as end:
            return out, end.value, count
        out += piece


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_do_not_depend_on_the_borders_of_the_pieces(pieces, stops) -> None:
    """Against the definition: read letter by letter, and stop as soon as the text ends in a stop string."""
    text = "".join(pieces)
    expected, reason = text, "length"
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            expected, reason = text[: end - max(map(len, ending))], "stop"
            break
    out, why, _ = _shown(pieces, stops)
    assert (out, why) == (expected, reason)


def test_a_stop_string_is_never_shown_in_part(bundled, pages) -> None:
    whole = "".join(bundled.chat(pages["wide"], [(FIRST, None)], 20))
    for start in range(0, len(whole) - 6, 3):
        stop = whole[start : start + 6]  # it lies across the borders of tokens
        pieces = list(bundled.chat(pages["wide"], [(FIRST, None)], 20, stop=[stop]))
        assert "".join(pieces) == whole[: whole.index(stop)]
    with pytest.raises(UserError, match="empty"):
        list(bundled.chat(pages["wide"], [(FIRST, None)], 20, stop=[""]))


def test_findings_are_calibrated_and_uncertain_inside_the_band(bundled, pages) -> None:
    raw = bundled.label(pages["wide"])
    plain = bundled.findings(pages["wide"])
    assert {name: entry["probability"] for name, entry in plain.items()} == pytest.approx(raw)
    assert all(entry["answer"] == ("yes" if raw[name] >= 0.5 else "no") for name, entry in plain.items())
    assert all(entry["phrase"] == bundled.labels[name]["phrase"] for name, entry in plain.items())
    names = list(raw)
    bundled.calibration = Calibration(dict.fromkeys(names, 0.5), dict.fromkeys(names, -0.25), (0.3, 0.6))
    for name, entry in bundled.findings(pages["wide"]).items():
        odds = (raw[name] / (1 - raw[name])) ** 0.5 * np.exp(-0.25)
        assert entry["probability"] == pytest.approx(odds / (1 + odds))
        wanted = (
            "yes" if entry["probability"] >= 0.6 else "no" if entry["probability"] <= 0.3 else "uncertain"
        )
        assert entry["answer"] == wanted

"""The ONNX runtime against the PyTorch reference, on a whole page and on strips with fewer tiles."""

from __future__ import annotations

import numpy as np
import pytest

from pulse_edge.errors import UserError
from pulse_edge.model.preprocess import preprocess

QUESTIONS = ("What is the heart rate?", "Is this ECG normal? Größe: 5 µV ♥")
TILES = {"page": 5, "wide": 4, "tall": 3}


@pytest.mark.parametrize("name", TILES)
def test_visual_embeddings_are_those_of_pytorch(name, pages, bundled, reference) -> None:
    pixels = preprocess(pages[name])
    assert len(pixels) == TILES[name]
    size = pages[name].shape[1::-1]
    ours, theirs = bundled.backend.encode(pixels, size), reference.backend.encode(pixels, size)
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", TILES)
def test_logits_answers_and_labels_are_those_of_pytorch(name, pages, bundled, reference) -> None:
    for question in QUESTIONS:
        ours, theirs = (s.logits(pages[name], question) for s in (bundled, reference))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        answer = bundled.ask(pages[name], question, 16)
        assert answer
        assert answer == reference.ask(pages[name], question, 16)
        assert "".join(bundled.stream(pages[name], question, 16)) == answer
    ours, theirs = bundled.label(pages[name]), reference.label(pages[name])
    assert list(ours) == list(theirs) == ["NORM", "MI", "STTC", "CD", "HYP"]
    for label, probability in ours.items():
        assert probability == pytest.approx(theirs[label], abs=1e-4)


def test_answers_depend_on_picture_and_question(pages, bundled) -> None:
    """Otherwise the comparisons above would compare nothing."""
    answers = {bundled.ask(page, question, 16) for page in pages.values() for question in QUESTIONS}
    assert len(answers) == len(pages) * len(QUESTIONS)


def test_reading_token_by_token_equals_reading_at_once(bundled) -> None:
    tokens = bundled.tokenizer.encode("Does this ECG show hypertrophy?")
    at_once = bundled.backend.prefill(None, tokens)
    assert bundled.backend.position == len(tokens)
    one_by_one = bundled.backend.prefill(None, tokens[:1])
    for token in tokens[1:]:
        one_by_one = bundled.backend.step(token)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-4)


@pytest.mark.parametrize("which", ["bundled", "reference"])
def test_rewinding_forgets_what_came_after(which, request) -> None:
    session = request.getfixturevalue(which)
    backend, encode = session.backend, session.tokenizer.encode
    start, first, second = encode("The"), encode(" heart rate", bos=False), encode(" P wave", bos=False)
    backend.prefill(None, start)
    at = backend.position
    fresh = backend.extend(first)
    backend.rewind(at)
    assert backend.position == at
    assert not np.allclose(backend.extend(second), fresh, atol=1e-2)
    backend.rewind(at)
    np.testing.assert_allclose(backend.extend(first), fresh, atol=1e-4)
    for wrong in (-1, backend.position + 1):
        with pytest.raises(ValueError, match="cannot rewind"):
            backend.rewind(wrong)
    backend.reset()
    assert backend.position == 0


@pytest.mark.parametrize("which", ["bundled", "reference"])
def test_a_question_longer_than_the_context_is_refused_and_the_next_one_answered(
    which, request, pages
) -> None:
    session = request.getfixturevalue(which)
    before = session.ask(pages["page"], QUESTIONS[0], 4)
    assert session.backend.context == 512
    with pytest.raises(UserError, match=r"context is 512.*shorter question"):
        session.ask(pages["page"], "Why? " * 400)
    assert session.ask(pages["page"], QUESTIONS[0], 4) == before


@pytest.mark.parametrize("which", ["bundled", "reference"])
def test_an_answer_ends_where_the_context_ends(which, request, pages) -> None:
    """The question leaves room for a few tokens: they come, and no error."""
    session = request.getfixturevalue(which)
    session.tokenizer.eos_id = -1  # never
    session.logits(pages["wide"], "?")
    spare = session.backend.context - session.backend.position
    question = "?" + "5" * (spare - 3)  # digits are tokens of their own
    session.logits(pages["wide"], question)
    left = session.backend.context - session.backend.position
    assert 0 <= left <= 5
    pieces = list(session.stream(pages["wide"], question, 10_000))
    assert session.backend.position == session.backend.context
    assert len(pieces) <= left + 1

"""What a session adds to its backend: the kept picture, held-back text, probabilities, times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from pulse_edge.errors import ImageError, PulseEdgeError, UserError
from pulse_edge.evaluate.labels import DEFAULT_LABELS, DEFAULT_SCORING
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.generate import greedy
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.session import Session

RATE = "What is the heart rate?"
TIMES = {"preprocess", "vision", "prefill", "decode_per_token"}


@pytest.fixture
def counted(bundled, monkeypatch) -> dict[str, int]:
    """How often the expensive parts of ``bundled`` ran."""
    counts = {"encode": 0, "prefill": 0}
    for name in counts:
        inner = getattr(bundled.backend, name)

        def count(*args, name=name, inner=inner):
            counts[name] += 1
            return inner(*args)

        monkeypatch.setattr(bundled.backend, name, count)
    return counts


class Scripted:
    """A backend that says given tokens, whatever it is asked."""

    context = 10_000

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        self.tokens, self.vocabulary, self.position = list(tokens), vocabulary, 0
        self.steps = 0

    def first(self) -> np.ndarray:
        return np.eye(self.vocabulary, dtype=np.float32)[self.tokens[0]]

    def step(self, token: int) -> np.ndarray:
        assert token == self.tokens[self.steps]
        self.steps += 1
        return np.eye(self.vocabulary, dtype=np.float32)[self.tokens[self.steps]]


@pytest.fixture(scope="session")
def tokenizer(small_checkpoint) -> Tokenizer:
    return Tokenizer.from_folder(small_checkpoint)


def say(tokenizer: Tokenizer, tokens: Sequence[int], budget: int = 10_000) -> tuple[list[str], Scripted]:
    backend = Scripted(tokens, tokenizer.vocab_size)
    pieces = [piece for piece, _ in greedy(backend, tokenizer, backend.first(), budget)]  # type: ignore[arg-type]
    return pieces, backend


def test_the_picture_is_read_once_for_many_questions(bundled, pages, counted) -> None:
    for question in (RATE, "Rhythm?", RATE):
        bundled.ask(pages["page"], question, 3)
    bundled.label(pages["page"])
    bundled.label(Image.fromarray(pages["page"]))  # the same pixels in another form
    assert counted == {"encode": 1, "prefill": 1}


def test_another_picture_is_not_answered_from_the_kept_one(bundled, pages, counted, small_bundle) -> None:
    other = pages["page"].copy()
    other[600:900, 400:900] = 0
    before = bundled.label(pages["page"])
    changed = bundled.label(other)
    assert counted["encode"] == 2
    assert changed != before
    assert changed == load(small_bundle, threads=1).label(other)
    assert bundled.label(pages["page"]) == before
    assert counted["encode"] == 3


def test_a_camera_buffer_that_is_drawn_into_again_is_seen_again(bundled, pages, counted) -> None:
    frame = pages["wide"].copy()
    before = bundled.label(frame)
    frame[:] = frame[:, ::-1]
    assert bundled.label(frame) != before
    assert counted["encode"] == 2


def test_answers_do_not_depend_on_what_was_asked_before(bundled, pages, small_bundle) -> None:
    fresh = load(small_bundle, threads=1).ask(pages["wide"], RATE, 12)
    bundled.label(pages["page"])
    bundled.ask(pages["page"], "Rhythm?", 12)
    stopped = bundled.stream(pages["wide"], "And this?", 50)
    next(stopped)
    stopped.close()
    assert bundled.ask(pages["wide"], RATE, 12) == fresh


def test_a_failure_while_a_picture_is_read_leaves_no_half_read_picture(bundled, pages, monkeypatch) -> None:
    right = bundled.label(pages["wide"])
    with monkeypatch.context() as patch:
        patch.setattr(bundled.backend, "prefill", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bundled.label(pages["page"])
    assert bundled.label(pages["wide"]) == right


def test_paths_pillow_images_and_arrays_are_the_same_picture(bundled, pages, tmp_path) -> None:
    Image.fromarray(pages["wide"]).save(tmp_path / "wide.png")
    labels = bundled.label(pages["wide"])
    assert bundled.label(tmp_path / "wide.png") == labels
    assert bundled.label(str(tmp_path / "wide.png")) == labels
    assert bundled.label(Image.open(tmp_path / "wide.png")) == labels


def test_a_sixteen_bit_pillow_image_is_not_clipped_to_white(bundled, pages) -> None:
    grey = np.asarray(Image.fromarray(pages["wide"]).convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    assert wide.mode.startswith("I;16")
    assert bundled.label(wide) == bundled.label(Image.fromarray(grey))


def test_arrays_that_are_no_pictures_are_refused(bundled, pages) -> None:
    with pytest.raises(ImageError, match="uint8"):
        bundled.label(pages["page"].astype(np.float32))


@pytest.mark.parametrize("question", ["<image>", "What is <image> this?"])
def test_a_question_with_the_picture_s_mark_is_refused(question, bundled, pages) -> None:
    with pytest.raises(UserError, match="must not contain <image>"):
        bundled.ask(pages["wide"], question)


def test_probabilities_are_the_softmax_of_yes_against_no(reference, bundled, pages) -> None:
    """Computed here from the PyTorch logits of each whole prompt, read in one go without any cache."""
    yes, no = (reference.tokenizer.encode(f"ASSISTANT: {word}", bos=False) for word in ("Yes", "No"))
    common = next(k for k, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    expected = {}
    for name, label in DEFAULT_LABELS.items():
        question = DEFAULT_SCORING["question"].format(**label)
        ids = encode_prompt(build_prompt([(question, None)]), reference.tokenizer)
        from pulse_edge.model.preprocess import preprocess

        embeddings = reference.backend.encode(preprocess(pages["wide"]), pages["wide"].shape[1::-1])
        logits = reference.backend.prefill(embeddings, ids).astype(np.float64)
        two = np.exp(logits[[yes[common], no[common]]] - logits.max())
        expected[name] = two[0] / two.sum()
    got = bundled.label(pages["wide"])
    assert got == pytest.approx(expected, abs=1e-5)
    assert max(got.values()) - min(got.values()) > 0.05  # the labels really differ


@pytest.mark.parametrize("text", ["ECG", "Größe µV ♥ 心電図", "♥", "a\ufffdb", "end \ufffd", "👩‍⚕️ ok"])
def test_a_character_is_shown_only_when_its_bytes_are_complete(text, tokenizer) -> None:
    tokens = tokenizer.encode(text, bos=False)
    pieces, _ = say(tokenizer, [*tokens, tokenizer.eos_id])
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert all(pieces)


def test_bytes_that_stay_incomplete_are_shown_at_the_end(tokenizer) -> None:
    tokens = tokenizer.encode("ok ♥", bos=False)[:-1]
    pieces, _ = say(tokenizer, [*tokens, tokenizer.eos_id])
    assert "".join(pieces).startswith("ok ")
    assert "\ufffd" in pieces[-1]


def test_generation_stops_at_the_end_token_or_the_budget_and_reads_no_token_in_vain(tokenizer) -> None:
    tokens = [*tokenizer.encode("The heart rate is 72 bpm.", bos=False), tokenizer.eos_id]
    pieces, backend = say(tokenizer, tokens)
    assert "".join(pieces) == "The heart rate is 72 bpm."
    assert backend.steps == len(tokens) - 1
    pieces, backend = say(tokenizer, tokens, 3)
    assert "".join(pieces) == tokenizer.decode(tokens[:3])
    assert backend.steps == 2
    assert say(tokenizer, [tokenizer.eos_id])[0] == []
    assert say(tokenizer, tokens, 0)[0] == []


def test_times_are_there_once_measured_and_only_then(bundled, pages, monkeypatch) -> None:
    assert bundled.timing_ms == dict.fromkeys(TIMES)
    bundled.label(pages["wide"])
    assert set(bundled.timing_ms) == TIMES
    assert bundled.timing_ms["decode_per_token"] is None
    assert all(bundled.timing_ms[key] > 0 for key in TIMES - {"decode_per_token"})
    vision = bundled.timing_ms["vision"]
    bundled.ask(pages["wide"], RATE, 4)
    assert bundled.timing_ms["decode_per_token"] > 0
    assert bundled.timing_ms["vision"] == vision  # it was not run again
    bundled.label(pages["tall"])
    assert bundled.timing_ms["decode_per_token"] is None


def test_the_reader_s_time_is_not_counted_as_decoding(bundled, pages, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pulse_edge.runtimes.session.time.perf_counter", lambda: now[0])
    for _ in bundled.stream(pages["wide"], RATE, 6):
        now[0] += 60.0  # a slow terminal; the clock stands still otherwise
    assert math.isclose(bundled.timing_ms["decode_per_token"], 0.0)


def test_labels_and_scoring_are_the_session_s_own(bundled, pages) -> None:
    base = dict(zip(bundled.labels, bundled.label(pages["wide"]).values(), strict=True))
    other = Session(
        bundled.backend,
        bundled.tokenizer,
        {"X": {"phrase": DEFAULT_LABELS["MI"]["phrase"]}},
        {**DEFAULT_SCORING, "positive": "No", "negative": "Yes"},
    )
    assert other.label(pages["wide"]) == {"X": pytest.approx(1 - base["MI"], abs=1e-6)}


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_output_that_is_no_number_is_an_error_and_never_an_answer(bundled, pages, monkeypatch, wrong):
    inner = bundled.backend.extend

    def overflowed(tokens):
        logits = inner(tokens).copy()
        logits[7] = wrong
        return logits

    monkeypatch.setattr(bundled.backend, "extend", overflowed)
    with pytest.raises(PulseEdgeError, match="not a number"):
        bundled.ask(pages["page"], RATE)
    with pytest.raises(PulseEdgeError, match="not a number"):
        bundled.label(pages["page"])


def test_output_that_stops_being_a_number_while_decoding_ends_the_answer(tokenizer):
    class Failing(Scripted):
        def step(self, token: int) -> np.ndarray:
            return super().step(token) * (np.nan if self.steps else 1)

    spoken = tokenizer.encode("Rate: 70 bpm.", bos=False)
    backend = Failing(spoken, tokenizer.vocab_size)
    with pytest.raises(PulseEdgeError, match="not a number"):
        list(greedy(backend, tokenizer, backend.first(), budget=24))

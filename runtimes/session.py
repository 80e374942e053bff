"""What a device program talks to: :class:`Session`, over any :class:`Backend`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.errors import UserError
from pulse_edge.evaluate.answers import Answers, read_answers
from pulse_edge.evaluate.calibration import Calibration, uncalibrated
from pulse_edge.image_io import as_rgb, open_image
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.conversation import (
    Halt,
    Halted,
    Limits,
    Recorder,
    Turns,
    agreement,
    go_on,
    sound_turns,
)
from pulse_edge.runtimes.generate import Finish, Pieces, greedy, most_likely, split_at_image, until, yes_no
from pulse_edge.runtimes.grammar import Vocabulary

Picture = str | PathLike[str] | Image.Image | NDArray[np.uint8]


class Backend(Protocol):
    """One engine with a key-value cache: ONNX Runtime, TensorRT, Core ML, or PyTorch for reference."""

    @property
    def context(self) -> int:
        """The most tokens that it can hold, visual ones included."""

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Tiles float32 [n, 3, 336, 336] of a picture of (width, height) -> merged embeddings [N, H]."""

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything, read a prompt with one -200 for the image; logits [V] behind it."""

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token; logits [V] behind it."""

    def reset(self) -> None:
        """Forget everything."""

    @property
    def position(self) -> int:
        """Tokens read so far, visual ones included."""

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``."""


class Session:
    """Ask about ECG pages and score labels.

    The image part of a prompt is computed once and kept: further questions about the same picture,
    and every label, cost only their own tokens.

    Args:
        backend: runs the graphs.
        tokenizer: of the model.
        labels: ``{name: {"phrase": ...}}``, the label set.
        scoring: ``{"question", "positive", "negative"}``; the question has ``{phrase}`` in it.
        max_new_tokens: bound of an answer's length.
        runtime: what runs the graphs, and why, for people.
        calibration: of the label set; None if the model has none.
        answers: how it is asked for structured answers; by default with the questions of ``ecg/instruct.py``.

    Attributes:
        runtime: as given.
        calibration, answers: as given.
        finish_reason: why the last answer or scoring ended: ``stop`` (the model or a stop string ended it, or
            every label was scored), ``length`` (its bound or the model's context), ``time``, ``cancelled``
            (or no longer read); None while it goes on.
        usage: ``prompt_tokens`` (those of the picture included, read anew or not) and ``completion_tokens``
            (every one that was generated, but the end token) of the last conversation.
        timing_ms: of the last calls on the present picture: preprocess, vision, prefill (image and
            question, up to the first logits) and decode_per_token; None until measured.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        labels: Mapping[str, Mapping[str, str]],
        scoring: Mapping[str, str],
        max_new_tokens: int = 128,
        runtime: str = "",
        calibration: Calibration | None = None,
        answers: Answers | None = None,
    ) -> None:
        self.backend, self.tokenizer = backend, tokenizer
        self.labels, self.scoring, self.max_new_tokens = labels, scoring, max_new_tokens
        self.runtime, self.calibration = runtime, calibration
        self.answers = answers or read_answers(None)
        self._vocabulary: Vocabulary | None = None
        self.finish_reason: Finish | None = None
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        self.timing_ms: dict[str, float | None] = {}
        self._seen: NDArray[np.uint8] | None = None
        self._forget()

    def warm_up(self) -> None:
        """Do now what a backend does but once, where it has such things to do: read weights from the disk,
        reserve memory. The first question then takes no longer than any other."""
        self._forget()
        getattr(self.backend, "warm_up", lambda: None)()

    def ask(self, image: Picture, question: str, max_new_tokens: int | None = None) -> str:
        """Return the whole answer; see :meth:`stream`."""
        return "".join(self.stream(image, question, max_new_tokens))

    def stream(self, image: Picture, question: str, max_new_tokens: int | None = None) -> Iterator[str]:
        """Answer one question about a page piece by piece; see :meth:`chat`."""
        return self.chat(image, [(question, None)], max_new_tokens)

    def chat(
        self,
        image: Picture,
        turns: Turns,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        time_limit: float | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Go on with a conversation about a page greedily, piece by piece, as PULSE is evaluated.

        Where the conversation begins as the last one did, what was read of that is kept, and only the rest is
        read. A single question is always read anew behind the picture, so its answer depends on nothing else.

        Args:
            image: a path, which is opened upright, a Pillow image, or uint8 [H, W, 3] RGB.
            turns: (question, answer) pairs, free text without ``<image>``; the last answer is None.
            max_new_tokens: at most so many tokens; the session's bound by default. An answer also ends
                where the model's context does.
            stop: an answer ends before any of these texts.
            time_limit: seconds from the first piece asked for; the answer ends there, as far as it came.
            cancel: asked before every token and between the steps before the first; True ends the answer.

        Raises:
            ImageError: the picture cannot be used.
            UserError: picture and conversation do not fit the model's context, or it is not one.
        """
        if not all(stop):
            raise UserError("A stop string is empty. Leave it out, or write the text to stop before.")
        self.finish_reason = None
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        limits = Limits(time_limit, cancel)
        try:
            logits = self._read(image, turns, limits)
            self.usage["prompt_tokens"] = self.backend.position
            self.finish_reason = yield from self._decode(logits, max_new_tokens, stop, limits)
        except GeneratorExit:  # the caller reads no further
            self.finish_reason = "cancelled"
            raise
        except Halted as halted:
            self.finish_reason = halted.reason

    def findings(
        self,
        image: Picture,
        time_limit: float | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return what the label set says of a page, calibrated if the model carries a calibration.

        Args:
            image, time_limit, cancel: see :meth:`label`.

        Returns:
            ``{NAME: {"phrase": str, "probability": 0 to 1, "answer": "yes" | "no" | "uncertain"}}``

        Raises:
            ImageError: the picture cannot be used.
        """
        calibration = self.calibration or uncalibrated(self.labels)
        found = {}
        for name, score in self.label(image, time_limit, cancel).items():
            probability = score if self.calibration is None else calibration.probability(name, score)
            found[name] = {
                "phrase": self.labels[name]["phrase"],
                "probability": probability,
                "answer": calibration.answer(probability),
            }
        return found

    def label(
        self,
        image: Picture,
        time_limit: float | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """Return the model's own probability of every label: that of the positive answer to its closed
        question, against the negative one. It is not calibrated: see :meth:`findings`.

        Args:
            image: a path, which is opened upright, a Pillow image, or uint8 [H, W, 3] RGB.
            time_limit: seconds from now; labels that were not scored by then are missing, and
                ``finish_reason`` is ``time``.
            cancel: asked before every label and between the steps of reading the picture; True ends the
                scoring likewise.

        Raises:
            ImageError: the picture cannot be used.
        """
        self.finish_reason = None
        limits = Limits(time_limit, cancel)
        positive, negative = self.scoring["positive"], self.scoring["negative"]
        probabilities = {}
        try:
            for name, label in self.labels.items():
                logits = self._read(image, [(self.scoring["question"].format(**label), None)], limits)
                probabilities[name] = yes_no(logits, self.tokenizer, positive, negative)
            self.finish_reason = "stop"
        except Halted as halted:
            self.finish_reason = halted.reason
        return probabilities

    def structured(
        self,
        image: Picture,
        max_new_tokens: int | None = None,
        time_limit: float | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Return one object of ``runtimes/answer_schema.json`` about a page; see ``runtimes.structured``."""
        from pulse_edge.runtimes.structured import structured

        return structured(self, image, max_new_tokens, time_limit, cancel)

    def vocabulary(self) -> Vocabulary:
        """Return the tokens as a grammar needs them; made once.

        Raises:
            MissingExtraError: llguidance is not installed.
        """
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.tokenizer)
        return self._vocabulary

    def logits(self, image: Picture, question: str) -> NDArray[np.float32]:
        """Return the logits [V] behind picture and question, for comparing backends."""
        return self._read(image, [(question, None)])

    def _decode(
        self, logits: NDArray[np.float32], max_new_tokens: int | None, stop: Sequence[str], halt: Halt
    ) -> Generator[str, None, Finish]:
        budget = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        room = self.backend.context - self.backend.position + 1  # the last token is not read again

        def pick(scores: NDArray[np.float32]) -> int:
            token = most_likely(scores)
            self.usage["completion_tokens"] += token != self.tokenizer.eos_id
            return token

        pieces: Pieces = greedy(
            Recorder(self.backend, self._tail), self.tokenizer, logits, min(budget, room), pick, halt
        )
        if stop:
            pieces = until(pieces, stop)
        spent = 0.0
        while True:
            start = time.perf_counter()
            try:
                piece, count = next(pieces)
            except StopIteration as end:
                reason: Finish = end.value
                return reason
            spent += time.perf_counter() - start
            self.timing_ms["decode_per_token"] = spent * 1e3 / count
            yield piece  # the time that the caller takes over it is not ours

    def _read(self, image: Picture, turns: Turns, halt: Halt = lambda: None) -> NDArray[np.float32]:
        """Bring the backend behind a conversation about a picture; logits [V] there."""
        before, after = split_at_image(encode_prompt(build_prompt(sound_turns(turns)), self.tokenizer))
        self._see(image, before, halt)
        go_on(halt)
        # A single question is read in one piece, so that its numbers do not depend on what was asked before.
        same = agreement(self._tail, after[:-1]) if len(turns) > 1 else 0
        self.backend.rewind(self._kept + same)
        del self._tail[same:]
        start = time.perf_counter()
        logits = self.backend.extend(after[same:])
        self._tail += after[same:]
        self.timing_ms["prefill"] = self._prefix_ms + (time.perf_counter() - start) * 1e3
        return logits

    def _see(self, image: Picture, before: list[int], halt: Halt) -> None:
        """Bring the backend to where the image has been read, unless it has been already."""
        pixels = _pixels(image)
        if self._seen is not None and np.array_equal(self._seen, pixels):
            return
        self._forget()
        go_on(halt)
        start = time.perf_counter()
        tiles = preprocess(pixels)
        encoded = time.perf_counter()
        embeddings = self.backend.encode(tiles, (pixels.shape[1], pixels.shape[0]))
        read = time.perf_counter()
        go_on(halt)
        self.backend.prefill(embeddings, before)
        self._prefix_ms = (time.perf_counter() - read) * 1e3
        self._kept = self.backend.position
        self._seen = pixels.copy()  # the caller may draw the next picture into the same array
        self.timing_ms |= {"preprocess": (encoded - start) * 1e3, "vision": (read - encoded) * 1e3}

    def _forget(self) -> None:
        self._seen, self._kept, self._prefix_ms = None, 0, 0.0
        self._tail: list[int] = []  # the tokens that the backend has read behind the picture
        self.timing_ms = dict.fromkeys(("preprocess", "vision", "prefill", "decode_per_token"))


def _pixels(image: Picture) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        return image
    return np.asarray(as_rgb(image) if isinstance(image, Image.Image) else open_image(image, upright=True))

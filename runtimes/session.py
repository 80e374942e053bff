"""What a device program talks to: :class:`Session`, over any :class:`Backend`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.contract import IMAGE_TOKEN
from pulse_edge.errors import UserError
from pulse_edge.image_io import as_rgb, open_image
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.generate import greedy, split_at_image, yes_no

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

    Attributes:
        runtime: as given.
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
    ) -> None:
        self.backend, self.tokenizer = backend, tokenizer
        self.labels, self.scoring, self.max_new_tokens = labels, scoring, max_new_tokens
        self.runtime = runtime
        self.timing_ms: dict[str, float | None] = {}
        self._seen: NDArray[np.uint8] | None = None
        self._forget()

    def ask(self, image: Picture, question: str, max_new_tokens: int | None = None) -> str:
        """Return the whole answer; see :meth:`stream`."""
        return "".join(self.stream(image, question, max_new_tokens))

    def stream(self, image: Picture, question: str, max_new_tokens: int | None = None) -> Iterator[str]:
        """Answer a question about a page greedily, piece by piece, as PULSE is evaluated.

        Args:
            image: a path, which is opened upright, a Pillow image, or uint8 [H, W, 3] RGB.
            question: free text, without ``<image>``.
            max_new_tokens: at most so many tokens; the session's bound by default. An answer also ends
                where the model's context does.

        Raises:
            ImageError: the picture cannot be used.
            UserError: picture and question do not fit the model's context.
        """
        logits = self._read(image, question)
        budget = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        room = self.backend.context - self.backend.position + 1  # the last token is not read again
        spent, start = 0.0, time.perf_counter()
        for piece, count in greedy(self.backend, self.tokenizer, logits, min(budget, room)):
            spent += time.perf_counter() - start
            self.timing_ms["decode_per_token"] = spent * 1e3 / count
            yield piece  # the time that the caller takes over it is not ours
            start = time.perf_counter()

    def label(self, image: Picture) -> dict[str, float]:
        """Return the probability of every label: that of the positive answer to its closed question,
        against the negative one.

        Raises:
            ImageError: the picture cannot be used.
        """
        probabilities = {}
        for name, label in self.labels.items():
            logits = self._read(image, self.scoring["question"].format(**label))
            probabilities[name] = yes_no(
                logits, self.tokenizer, self.scoring["positive"], self.scoring["negative"]
            )
        return probabilities

    def logits(self, image: Picture, question: str) -> NDArray[np.float32]:
        """Return the logits [V] behind picture and question, for comparing backends."""
        return self._read(image, question)

    def _read(self, image: Picture, question: str) -> NDArray[np.float32]:
        if IMAGE_TOKEN in question:
            raise UserError(
                f"The question must not contain {IMAGE_TOKEN}. Leave it out: the picture comes first."
            )
        try:
            question.encode()
        except UnicodeEncodeError as error:  # bytes of another encoding on the command line
            raise UserError("The question is not valid UTF-8 text. Type it again in UTF-8.") from error
        before, after = split_at_image(encode_prompt(build_prompt([(question, None)]), self.tokenizer))
        self._see(image, before)
        self.backend.rewind(self._kept)
        start = time.perf_counter()
        logits = self.backend.extend(after)
        self.timing_ms["prefill"] = self._prefix_ms + (time.perf_counter() - start) * 1e3
        return logits

    def _see(self, image: Picture, before: list[int]) -> None:
        """Bring the backend to where the image has been read, unless it is there already."""
        pixels = _pixels(image)
        if self._seen is not None and np.array_equal(self._seen, pixels):
            return
        self._forget()
        start = time.perf_counter()
        tiles = preprocess(pixels)
        encoded = time.perf_counter()
        embeddings = self.backend.encode(tiles, (pixels.shape[1], pixels.shape[0]))
        read = time.perf_counter()
        self.backend.prefill(embeddings, before)
        self._prefix_ms = (time.perf_counter() - read) * 1e3
        self._kept = self.backend.position
        self._seen = pixels.copy()  # the caller may draw the next picture into the same array
        self.timing_ms |= {"preprocess": (encoded - start) * 1e3, "vision": (read - encoded) * 1e3}

    def _forget(self) -> None:
        self._seen, self._kept, self._prefix_ms = None, 0, 0.0
        self.timing_ms = dict.fromkeys(("preprocess", "vision", "prefill", "decode_per_token"))


def _pixels(image: Picture) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        return image
    return np.asarray(as_rgb(image) if isinstance(image, Image.Image) else open_image(image, upright=True))

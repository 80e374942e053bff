"""The generation loop and label scoring, over any backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN_ID, ROLES
from pulse_edge.errors import PulseEdgeError
from pulse_edge.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Backend


def split_at_image(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split token ids behind their image sentinel; the first part ends with it."""
    cut = list(ids).index(IMAGE_TOKEN_ID) + 1
    return list(ids[:cut]), list(ids[cut:])


def greedy(
    backend: Backend, tokenizer: Tokenizer, logits: NDArray[np.float32], budget: int
) -> Iterator[tuple[str, int]]:
    """Generate the most likely token again and again, until the end token or ``budget`` tokens.

    Args:
        backend: has read the prompt.
        tokenizer: turns tokens into text.
        logits: float32 [V], behind the prompt.
        budget: at most so many tokens.

    Yields:
        New text, and how many tokens were generated so far. Text is held back while the bytes of a
        character are incomplete.

    Raises:
        PulseEdgeError: the logits are not numbers.
    """
    tokens: list[int] = []
    shown = ""
    while len(tokens) < budget:
        token = int(np.argmax(_numbers(logits)))
        if token == tokenizer.eos_id:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens)
        if not text.endswith("\ufffd") and len(text) > len(shown):
            yield text[len(shown) :], len(tokens)
            shown = text
        if len(tokens) < budget:
            logits = backend.step(token)
    rest = tokenizer.decode(tokens)[len(shown) :]
    if rest:
        yield rest, len(tokens)


def yes_no(logits: NDArray[np.float32], tokenizer: Tokenizer, positive: str, negative: str) -> float:
    """Return the probability of the positive answer's first token against the negative's, 0 to 1.

    Raises:
        PulseEdgeError: the logits are not numbers.
    """
    logits = _numbers(logits)
    yes, no = (float(logits[answer_id(tokenizer, word)]) for word in (positive, negative))
    return float(1.0 / (1.0 + np.exp(np.clip(no - yes, -80.0, 80.0))))


def answer_id(tokenizer: Tokenizer, word: str) -> int:
    """Return the first token of an answer where it stands: behind ``ASSISTANT:``."""
    asked = tokenizer.encode(f"{ROLES[1]}:", bos=False)
    return tokenizer.encode(f"{ROLES[1]}: {word}", bos=False)[len(asked)]


def _numbers(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Overflowed weights or activations must not become an answer: argmax takes NaN for the best token."""
    if not np.isfinite(logits).all():
        raise PulseEdgeError(
            "The model's output is not a number: its weights are damaged or overflow in this precision. "
            "Check the model with `pulse-edge verify`, or export it again with a higher --precision."
        )
    return logits

"""The generation loop, stop strings and label scoring, over any backend."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN_ID, ROLES
from pulse_edge.errors import PulseEdgeError
from pulse_edge.model.tokenizer import Tokenizer

# Why an answer ended: the model or a stop string ended it, its bound or the context was reached, the time
# limit was, or the caller wanted no more.
Finish = Literal["stop", "length", "time", "cancelled"]
# New text with the count of tokens so far, again and again; why it ended, at last.
Pieces = Generator[tuple[str, int], None, Finish]


class Stepping(Protocol):
    """What the loop needs of a backend."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token; logits [V] behind it."""


def split_at_image(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split token ids behind their image sentinel; the first part ends with it."""
    cut = list(ids).index(IMAGE_TOKEN_ID) + 1
    return list(ids[:cut]), list(ids[cut:])


def most_likely(logits: NDArray[np.float32]) -> int:
    """Return the best token: greedy decoding, PULSE's evaluation setting."""
    return int(np.argmax(logits))


def greedy(
    backend: Stepping,
    tokenizer: Tokenizer,
    logits: NDArray[np.float32],
    budget: int,
    pick: Callable[[NDArray[np.float32]], int] = most_likely,
    halt: Callable[[], Finish | None] = lambda: None,
) -> Pieces:
    """Generate a token again and again, until the end token or ``budget`` tokens.

    Args:
        backend: has read the prompt.
        tokenizer: turns tokens into text.
        logits: float32 [V], behind the prompt.
        budget: at most so many tokens.
        pick: chooses a token by logits [V]; a grammar has its own.
        halt: asked before every token; says why no further one is wanted.

    Yields:
        New text, and how many tokens were generated so far. Text is held back while the bytes of a
        character are incomplete.

    Returns:
        Why it ended.

    Raises:
        PulseEdgeError: the logits are not numbers.
    """
    tokens: list[int] = []
    shown, reason = "", None
    while len(tokens) < budget:
        reason = halt()
        if reason is not None:
            break
        token = pick(finite(logits))
        if token == tokenizer.eos_id:
            reason = "stop"
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
    return reason or "length"


def until(pieces: Pieces, stops: Sequence[str]) -> Pieces:
    """End text before the first stop string in it, wherever the borders of its pieces are.

    Text that a stop string may begin with is held back until it is known not to be one; the stop string
    itself is never shown. Of several, the one that is complete first counts.

    Args:
        pieces: as :func:`greedy` yields them; closed once a stop string was found.
        stops: none of them empty.
    """
    held, count = "", 0
    while True:
        try:
            piece, count = next(pieces)
        except StopIteration as end:
            if held:
                yield held, count
            reason: Finish = end.value
            return reason
        held += piece
        found = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            pieces.close()
            if before := held[: min(found)[1]]:
                yield before, count
            return "stop"
        safe = len(held) - _begun(held, stops)
        if safe:
            yield held[:safe], count
            held = held[safe:]


def _begun(text: str, stops: Sequence[str]) -> int:
    """How long the end of a text is that a stop string may begin with."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def yes_no(logits: NDArray[np.float32], tokenizer: Tokenizer, positive: str, negative: str) -> float:
    """Return the probability of the positive answer's first token against the negative's, 0 to 1.

    Raises:
        PulseEdgeError: the logits are not numbers.
    """
    logits = finite(logits)
    yes, no = (float(logits[answer_id(tokenizer, word)]) for word in (positive, negative))
    return float(1.0 / (1.0 + np.exp(np.clip(no - yes, -80.0, 80.0))))


def answer_id(tokenizer: Tokenizer, word: str) -> int:
    """Return the first token of an answer where it stands: behind ``ASSISTANT:``."""
    asked = tokenizer.encode(f"{ROLES[1]}:", bos=False)
    return tokenizer.encode(f"{ROLES[1]}: {word}", bos=False)[len(asked)]


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits. Overflow must not become an answer: argmax takes NaN for the best token.

    Raises:
        PulseEdgeError: they are not numbers.
    """
    if not np.isfinite(logits).all():
        raise PulseEdgeError(
            "The model's output is not a number: its weights are damaged or overflow in this precision. "
            "Check the model with `pulse-edge verify`, or export it again with a higher --precision."
        )
    return logits

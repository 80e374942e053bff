"""Answers of a given form: llguidance says which tokens may come next, the model which of them does.

llguidance (MIT, Rust) compiles a grammar over the bytes of the tokenizer's vocabulary. Nothing outside the
grammar can be generated, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import MissingExtraError, PulseEdgeError
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.generate import Finish, finite

# What ends an object whose last value is a string: `"`, then `}`; and at most so many tokens before, where a
# character or an escape sequence has begun: \uD83D\uDE00 and its like have twelve.
CLOSERS: Final = (b'"}', b'"', b"}")
CLOSING: Final = 16


class Reading(Protocol):
    """What is needed of a backend."""

    def extend(self, tokens: list[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""


@dataclass(frozen=True)
class Constrained:
    """An answer in a grammar.

    Attributes:
        text: of the answer.
        complete: whether it is all of an answer; False where the budget or ``halt`` ended it.
        support: how likely the model, unconstrained, would have stayed inside the grammar on this way: the
            product over the tokens of the probability of all that were allowed, 0 to 1.
        reason: as of ``generate.Finish``.
    """

    text: str
    complete: bool
    support: float
    reason: Finish


class Vocabulary:
    """A tokenizer's tokens as llguidance reads them; made once for a model.

    Args:
        tokenizer: of the model.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise MissingExtraError("llguidance", "structured") from error
        written = tokenizer.token_bytes()
        self.tokens = [b"" if text is None else text for text in written]
        self.closers = [self.tokens.index(text) for text in CLOSERS if text in self.tokens]
        self.single = np.array([len(text) == 1 for text in self.tokens])
        self.eos_id = tokenizer.eos_id
        self._matcher: Any = llguidance.LLMatcher
        self._table: Any = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Adapter(tokenizer, self.tokens, written)), slices=[]
        )

    def matcher(self, grammar: str) -> Any:
        """Return llguidance's matcher of a grammar in its Lark syntax, at its start."""
        made = self._matcher(self._table, grammar, log_level=0)
        if made.is_error():
            raise PulseEdgeError(f"The grammar of an answer cannot be used: {made.get_error()}. Report this.")
        return made


class _Adapter:
    """What ``llguidance.TokenizerWrapper`` asks for."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], written: list[bytes | None]) -> None:
        self.eos_token_id, self.bos_token_id, self._tokenizer = tokenizer.eos_id, tokenizer.bos_id, tokenizer
        self.special_token_ids = [token for token, text in enumerate(written) if text is None]
        # llguidance takes special tokens by their names; they cannot stand in an answer.
        self.tokens = [text or f"<special {token}>".encode() for token, text in enumerate(tokens)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode_inside(text.decode() if isinstance(text, bytes) else text)


def constrain(
    backend: Reading,
    vocabulary: Vocabulary,
    grammar: str,
    logits: NDArray[np.float32],
    budget: int,
    weigh: bool = True,
    closing: int = 0,
    last: tuple[bytes, int] | None = None,
    halt: Callable[[], Finish | None] = lambda: None,
) -> Constrained:
    """Generate the best answer, token by token, that lies in a grammar.

    Args:
        backend: has read the prompt.
        vocabulary: of the model.
        grammar: in llguidance's Lark syntax; it begins behind ``ASSISTANT:``, so with a space.
        logits: float32 [V], behind the prompt.
        budget: at most so many tokens.
        weigh: measure the support; without, what the grammar leaves no choice about is read in one piece.
        closing: with so many tokens left, an object is closed as soon as it can be; see :data:`CLOSING`.
        last: (text, tokens): behind this text, at most so many tokens more, those for closing included.
        halt: asked before every token; says why no further one is wanted.

    Raises:
        PulseEdgeError: the logits are not numbers.
    """
    matcher = vocabulary.matcher(grammar)
    written, support, spent = b"", 1.0, 0
    reason: Finish = "stop"
    while not matcher.is_stopped():
        halted = halt() or ("length" if spent >= budget else None)
        if halted is not None:
            reason = halted
            break
        tokens = [] if weigh else list(matcher.compute_ff_tokens())[: budget - spent]
        if not tokens:
            if budget - spent <= closing:
                reason = "length"
            token, share = _choose(vocabulary, matcher, finite(logits), reason == "length")
            support *= share
            if token == vocabulary.eos_id:
                break
            tokens = [token]
        if not matcher.consume_tokens(tokens):
            raise PulseEdgeError(f"An answer left its grammar: {matcher.get_error()}. Report this.")
        written += b"".join(vocabulary.tokens[token] for token in tokens)
        spent += len(tokens)
        if last is not None and last[0] in written:
            budget, last = min(budget, spent + last[1]), None
        if not matcher.is_stopped():
            logits = backend.extend(tokens)
    complete = bool(matcher.is_accepting())
    return Constrained(written.decode(errors="replace"), complete, support, reason)


def _choose(
    vocabulary: Vocabulary, matcher: Any, logits: NDArray[np.float32], closing: bool
) -> tuple[int, float]:
    """Return the best token that the grammar allows, and how likely any of the allowed was."""
    allowed = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: len(logits)] != 0
    if not allowed.any():
        raise PulseEdgeError(f"The grammar of an answer allows no token: {matcher.get_error()}. Report this.")
    scores = logits[: len(allowed)].astype(np.float64)
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    share = float(weights[: len(allowed)][allowed].sum() / weights.sum())
    if closing:
        closers = [token for token in vocabulary.closers if allowed[token]]
        if closers:
            return closers[0], share
        if (allowed & vocabulary.single[: len(allowed)]).any():
            allowed = allowed & vocabulary.single[: len(allowed)]
    return int(np.where(allowed, scores, -np.inf).argmax()), share

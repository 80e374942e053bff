"""What a conversation about one picture takes: sound turns, which tokens were read, and being stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN
from pulse_edge.errors import UserError
from pulse_edge.runtimes.generate import Finish, Stepping

Turns = Sequence[tuple[str, str | None]]
Halt = Callable[[], Finish | None]


class Halted(Exception):
    """An answer was ended before its first token; it never leaves a session."""

    def __init__(self, reason: Finish) -> None:
        super().__init__(reason)
        self.reason: Finish = reason


class Limits:
    """What ends an answer from outside: time, counted from here, and the caller.

    Args:
        time_limit: seconds; None for no limit.
        cancel: True ends the answer.
    """

    def __init__(self, time_limit: float | None, cancel: Callable[[], bool] | None) -> None:
        self.time_limit, self.cancel, self._began = time_limit, cancel, time.monotonic()

    def __call__(self) -> Finish | None:
        """Return why to end now; None to go on."""
        if self.cancel is not None and self.cancel():
            return "cancelled"
        return "time" if self.left() == 0 else None

    def left(self) -> float | None:
        """Return the seconds that are left; None without a limit."""
        if self.time_limit is None:
            return None
        return max(0.0, self.time_limit - (time.monotonic() - self._began))


class Recorder:
    """A backend that writes down the tokens it reads.

    Args:
        backend: reads them.
        read: is added to.
    """

    def __init__(self, backend: Stepping, read: list[int]) -> None:
        self.backend, self.read = backend, read

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token; logits [V] behind it."""
        logits = self.backend.step(token)
        self.read.append(token)
        return logits


def go_on(halt: Halt) -> None:
    """Ask whether to go on.

    Raises:
        Halted: it is not wanted.
    """
    reason = halt()
    if reason is not None:
        raise Halted(reason)


def agreement(read: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their start."""
    shorter = min(len(read), len(wanted))
    return next((k for k in range(shorter) if read[k] != wanted[k]), shorter)


def sound_turns(turns: Turns) -> Turns:
    """Return the turns if a prompt can be made of them.

    Raises:
        UserError: a turn but the last has no answer, or the last has one; ``<image>`` is written somewhere;
            a text is not UTF-8.
    """
    if not turns or turns[-1][1] is not None or not all(answer for _, answer in turns[:-1]):
        raise UserError(
            "A conversation is questions with their answers, and a last one without. Leave out those that "
            "were not answered."
        )
    for text in (text for turn in turns for text in turn if text is not None):
        if IMAGE_TOKEN in text:
            raise UserError(
                f"The question must not contain {IMAGE_TOKEN}. Leave it out: the picture comes first."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes of another encoding on the command line
            raise UserError("The question is not valid UTF-8 text. Type it again in UTF-8.") from error
    return turns

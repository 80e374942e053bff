"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the program happens to be. In a finaliser or a callback from C it
can only print a traceback and go on, and a job would end as if nobody had stopped it. So the signal is
remembered too, and asked for at the points where something would become final.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_received = False


@contextmanager
def heard() -> Iterator[None]:
    """Remember SIGINT and SIGTERM while the block runs; both raise KeyboardInterrupt.

    A service manager stops a job with SIGTERM: it cleans up as it does after Ctrl-C. A shell's background job
    ignores SIGINT, and goes on doing so. Outside the main thread nothing changes: signals are not its.
    """
    global _received
    _received = False
    before: dict[int, Any] = {}
    hook = sys.unraisablehook
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _remember)
    except ValueError:  # not the main thread
        yield
        return

    def unraisable(event: Any) -> None:
        if not isinstance(event.exc_value, KeyboardInterrupt):
            hook(event)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for caught, handler in before.items():
            signal.signal(caught, handler)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came and was lost: call it before a result becomes final."""
    if _received:
        raise KeyboardInterrupt


def forget() -> None:
    """Go on after a signal that was answered: a job that ends early keeps what it has."""
    global _received
    _received = False


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    raise KeyboardInterrupt

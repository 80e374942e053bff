"""What one process measures: a page read anew, an answer of a fixed length, and what comes after it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.instruct import RATE_QUESTIONS, REPORT_QUESTION
from pulse_edge.runtimes.session import Session

_STATUS: Final = Path("/proc/self/status")


def measure_page(session: Session, page: NDArray[np.uint8], tokens: int) -> dict[str, Any]:
    """Read a page that the session has not seen, and answer.

    Args:
        session: of the model.
        page: uint8 [H, W, 3]; other than the one before it.
        tokens: generated greedily behind the report's question, the end token like any other, so that every
            run does the same work; fewer where the context ends.

    Returns:
        ``start``, ``decode_start`` and ``end`` of ``time.monotonic``; milliseconds of ``preprocess``,
        ``vision``, ``prefill`` (picture and question), ``ttft`` (all three: picture in memory to the first
        token), ``followup`` (another question's first token) and ``labels`` (the whole label set);
        ``tokens`` and ``tokens_per_s``.
    """
    start, clock = time.monotonic(), time.perf_counter()
    logits = session.logits(page, REPORT_QUESTION)
    ttft = time.perf_counter() - clock
    parts = dict(session.timing_ms)
    count = min(tokens, session.backend.context - session.backend.position)
    decode_start, clock = time.monotonic(), time.perf_counter()
    for _ in range(count):
        logits = session.backend.step(int(logits.argmax()))
    decoding = time.perf_counter() - clock
    end = time.monotonic()
    clock = time.perf_counter()
    session.logits(page, RATE_QUESTIONS[0])
    followup = time.perf_counter() - clock
    clock = time.perf_counter()
    session.label(page)
    labels = time.perf_counter() - clock
    return {
        "start": start,
        "decode_start": decode_start,
        "end": end,
        **{name: parts[name] for name in ("preprocess", "vision", "prefill")},
        "ttft": ttft * 1e3,
        "followup": followup * 1e3,
        "labels": labels * 1e3,
        "tokens": count,
        "tokens_per_s": count / decoding if count else 0.0,
    }


def work(
    open_it: Callable[[], Session],
    page: NDArray[np.uint8],
    tokens: int,
    warm_up: int,
    runs: int,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Open a model and measure it again and again.

    Args:
        open_it: opens it.
        page: uint8 [H, W, 3].
        tokens: see :func:`measure_page`.
        warm_up: pages before the first that counts.
        runs: pages that count; without an end for ``seconds``.
        seconds: go on for so long instead.

    Yields:
        ``{"event": "open", "ms", "runtime"}``, then ``{"event": "run", …}`` for each page, then
        ``{"event": "end", "peak_mb"}``.
    """
    clock = time.perf_counter()
    session = open_it()
    yield {"event": "open", "ms": (time.perf_counter() - clock) * 1e3, "runtime": session.runtime}
    number = 0

    def fresh() -> NDArray[np.uint8]:
        nonlocal number
        number += 1
        other = page.copy()
        other[0, 0] = (number % 251, number // 251 % 251, 1)  # one corner: the work is the same
        return other

    for _ in range(warm_up):
        measure_page(session, fresh(), tokens)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds if seconds is not None else done < runs:
        yield {"event": "run", **measure_page(session, fresh(), tokens)}
        done += 1
    yield {"event": "end", "peak_mb": peak_memory()}


def peak_memory() -> float:
    """Return this process's largest resident memory in megabytes.

    On Linux from its own status: ``getrusage`` would begin with what the parent had when it was forked.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1.024e-3
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

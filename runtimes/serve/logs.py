"""Log lines as JSON on standard error, which cannot hold what a patient or nurse sent.

Only named fields of our own are written. Of an exception the kind and the places in the code are, never its
message: a message may quote what was sent. Of other libraries' lines the unfilled template is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any, Final, TextIO

from pulse_edge.runtimes.serve.clock import iso

LOGGER: Final = logging.getLogger("pulse_edge.serve")
_PLACES: Final = 12  # innermost lines of a traceback


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; see the module for what it may hold."""
        line: dict[str, Any] = {"time": iso(record.created), "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        if record.name == LOGGER.name and isinstance(fields, dict):
            line |= {"event": record.msg, **fields}
        else:
            line |= {"event": "library", "logger": record.name, "template": str(record.msg)[:200]}
        if record.exc_info and record.exc_info[1] is not None:
            line |= describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True)


def describe(error: BaseException) -> dict[str, Any]:
    """Return kind and places of an exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_PLACES:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "places": places}


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line of our own; ``fields`` must hold nothing that a client sent."""
    LOGGER.log(level, event, extra={"fields": fields})


def log_failure(error: BaseException) -> None:
    """Write that something failed that should not have."""
    log("failure", logging.ERROR, **describe(error))


@contextlib.contextmanager
def alone() -> Iterator[TextIO]:
    """Give standard error to our lines alone: what decodes pictures in C prints there what it likes."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with os.fdopen(kept, "w", buffering=1, encoding="utf-8", closefd=False) as stream:
            yield stream
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def set_up(stream: TextIO) -> None:
    """Send our lines and those of the server's libraries to a stream, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (
        (LOGGER.name, logging.INFO),
        ("uvicorn", logging.WARNING),
        ("asyncio", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)

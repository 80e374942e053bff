"""The wall's clock, which a cart's flat battery or a nurse may set back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

_TOLERANCE_S: Final = 2.0  # network time corrects by less without being noticed


class Clock:
    """Tells the time, and whether it runs behind what was seen before.

    Args:
        wall: seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall, self._latest = wall, 0.0
        self._lock = threading.Lock()

    def now(self) -> str:
        """Return the time in ISO 8601, UTC, with milliseconds."""
        with self._lock:
            seconds = self._wall()
            self._latest = max(self._latest, seconds)
        return iso(seconds)

    def seen(self, moment: str) -> None:
        """Take in a time that was written down before."""
        with self._lock:
            self._latest = max(self._latest, seconds_of(moment))

    def behind(self) -> float:
        """Return by how many seconds the clock is behind the latest time that it or a record showed."""
        with self._lock:
            gap = self._latest - self._wall()
        return gap if gap > _TOLERANCE_S else 0.0

    def days_ago(self, days: float) -> str:
        """Return the time so many days ago."""
        return iso(max(0.0, self._wall() - days * 86400.0))


def iso(seconds: float) -> str:
    """Write a time, seconds since 1970, as ``2026-11-24T23:40:00.000Z``: in order as text is."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def seconds_of(moment: str) -> float:
    """Read a time in ISO 8601; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    parsed = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()

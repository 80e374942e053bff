"""What was done, line by line: JSON that is only ever added to, each line bound to the one before.

Every line holds the SHA-256 of the line before it and of itself, so that a line that is changed, taken out or
put in breaks the chain. Cutting lines off at the end leaves a sound chain; so the database remembers the last
one (``studies``), and both are compared. Whoever can write both files can forge both: the log shows accidents
and tampering by halves, and is no proof against the owner of the machine. No line holds a picture, a
question, an answer or a reference.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import sha256_file
from pulse_edge.runtimes.serve.clock import Clock

NAME: Final = "audit.jsonl"
ROOT: Final = "0" * 64  # what the first line names as its predecessor


@dataclass(frozen=True)
class Checked:
    """What reading a log found.

    Attributes:
        lines: that are sound, from the beginning.
        head: hash of the last of them.
        latest: time of the latest of them; empty without lines.
        problem: the first broken line in a sentence; None if all are sound.
        torn: bytes behind the last line break: a line that a power cut kept from being finished.
    """

    lines: int
    head: str
    latest: str
    problem: str | None
    torn: int


class Audit:
    """The open log. A new chain is begun where the old one is broken, and says so.

    Args:
        folder: of the log.
        clock: for the times.
        on_line: called with number and hash of each line behind the disk's acknowledgement.
    """

    def __init__(
        self, folder: Path, clock: Clock, on_line: Callable[[int, str], None] = lambda number, head: None
    ) -> None:
        self._path, self._clock, self.on_line = folder / NAME, clock, on_line
        self._lock = threading.Lock()
        found = check(self._path)
        broken = _set_aside(self._path, found)
        if broken:
            found = Checked(0, ROOT, found.latest, None, 0)
        elif found.torn:
            _cut(self._path, found.torn)
        self._number, self._head = found.lines, found.head
        if found.latest:
            clock.seen(found.latest)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        _fsync_folder(folder)
        if broken:
            self.add("log_broken", **broken)
        elif found.torn:
            self.add("line_torn", bytes=found.torn)

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last line."""
        return self._number, self._head

    def add(self, event: str, **fields: Any) -> None:
        """Write a line and wait until the disk has it.

        Raises:
            OSError: the disk is full or broken; nothing was added.
        """
        with self._lock:
            entry = {"number": self._number + 1, "time": self._clock.now(), "event": event, **fields}
            digest = _digest(entry, self._head)
            line = json.dumps({**entry, "previous": self._head, "hash": digest}, ensure_ascii=True) + "\n"
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line.encode()) != len(line):
                    raise OSError(28, os.strerror(28))
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self._number, self._head = self._number + 1, digest
            head = self.head
        self.on_line(*head)

    def close(self) -> None:
        """Close the file; nothing may be added any more."""
        os.close(self._file)


def check(path: Path, remembered: tuple[int, str] | None = None) -> Checked:
    """Read a log from the beginning and recompute its chain.

    Args:
        path: of the log; one that does not exist has no lines.
        remembered: number and hash of a line that must be there.
    """
    number, head, latest = 0, ROOT, ""
    known = remembered[0] if remembered else 0
    there = not known
    if path.is_file():
        with path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    return Checked(number, head, latest, None if there else _missing(known), len(line))
                entry = _entry(line, number + 1, head)
                if entry is None:
                    return Checked(
                        number, head, latest, f"Line {number + 1} of {path} is not what was written.", 0
                    )
                number, head, latest = number + 1, entry["hash"], max(latest, entry["time"])
                there = there or remembered == (number, head)
    return Checked(number, head, latest, None if there else _missing(known), 0)


def _missing(number: int) -> str:
    return f"Line {number} is not what was written, or is missing: the log was cut off or replaced."


def _entry(line: bytes, number: int, before: str) -> dict[str, Any] | None:
    """Return a line's content if it is the one that belongs there."""
    try:
        entry = json.loads(line)
        claimed = entry["hash"]
        rest = {key: value for key, value in entry.items() if key not in ("previous", "hash")}
        sound = entry["previous"] == before and entry["number"] == number and isinstance(entry["time"], str)
        same = json.dumps(entry, ensure_ascii=True).encode() + b"\n" == line
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return entry if sound and same and claimed == _digest(rest, before) else None


def _digest(entry: dict[str, Any], before: str) -> str:
    return hashlib.sha256((before + json.dumps(entry, sort_keys=True)).encode()).hexdigest()


def _set_aside(path: Path, found: Checked) -> dict[str, Any]:
    """Rename a broken log; return what the new one shall say of it, nothing if it is sound."""
    if found.problem is None:
        return {}
    digest = sha256_file(path)
    number = 1
    while (aside := path.with_name(f"audit.broken-{number}.jsonl")).exists():
        number += 1
    os.rename(path, aside)
    return {"kept_as": aside.name, "sha256": digest, "sound_lines": found.lines}


def _cut(path: Path, torn: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - torn)
        os.fsync(stream.fileno())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

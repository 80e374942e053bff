"""Whether answers can be trusted and kept, in one word and one sentence."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import sha256_file, verify_bundle
from pulse_edge.contract import MANIFEST
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.settings import Settings

STATES: Final = (
    *("ok", "loading", "bundle_changed", "disk_full"),
    *("database_damaged", "clock_went_back", "stopping"),
)
_SENTENCES: Final = {
    "ok": "Ready.",
    "loading": "The model is being loaded. This takes up to a minute.",
    "bundle_changed": "The model's files were changed while it ran, so its answers are not to be trusted. "
    "Restart the service.",
    "disk_full": "The disk is full, so no ECG can be stored. Delete old studies or free some space.",
    "database_damaged": "The history of this cart is damaged and was set aside; nothing can be stored. "
    "Tell whoever looks after this cart.",
    "clock_went_back": "The clock of this cart runs behind its own records. Times of new studies are wrong "
    "until it is set; their order is kept.",
    "stopping": "The service is shutting down.",
}
_STATUS: Final = {"disk_full": 507}
_FRESH_S: Final = 0.5  # so long a look at the disk is believed
_HOLDS_S: Final = 5.0  # after a write failed for want of space, so long the disk counts as full

Stamp = tuple[int, int, int]  # inode, bytes, time of the last change in ns


class Bundle:
    """Knows whether a bundle's files are still those that were loaded.

    Args:
        named: the folder, or a link to it, such as `pulse-edge bundle install` switches.
        folder: where that led.
        names: of its files; hashing them again would take minutes, so size, inode and time are compared,
            and the manifest's hash.

    Attributes:
        sha256: of the manifest, which names the hash of every file.
    """

    def __init__(self, named: Path, folder: Path, names: list[str]) -> None:
        self._named, self._folder = named, folder
        self._names = [MANIFEST, *names]
        self.sha256 = sha256_file(self._folder / MANIFEST)
        self._stamps = self._look()
        self._changed = False

    def changed(self) -> bool:
        """Whether a file was changed, replaced or taken away, which stays so, or the name leads elsewhere."""
        if not self._changed:
            try:
                same = self._look() == self._stamps and sha256_file(self._folder / MANIFEST) == self.sha256
            except OSError:
                same = False
            self._changed = not same
        return self._changed or self.moved()

    def moved(self) -> bool:
        """Whether the name leads to another folder than the one that was loaded."""
        return Path(os.path.realpath(self._named)) != self._folder

    def successor(self) -> bool:
        """Whether the name leads to another bundle, and that one is sound; reads all of it."""
        return self.moved() and not verify_bundle(Path(os.path.realpath(self._named)))

    def _look(self) -> list[Stamp]:
        found = (os.stat(self._folder / name) for name in self._names)
        return [(about.st_ino, about.st_size, about.st_mtime_ns) for about in found]


class Health:
    """The service's state.

    Args:
        settings: of the service.
        clock: the wall's.
        on_change: called with the old and the new state, once for each change.
    """

    def __init__(
        self, settings: Settings, clock: Clock, on_change: Callable[[str, str], None] = lambda old, new: None
    ) -> None:
        self._settings, self._clock, self.on_change = settings, clock, on_change
        self.bundle: Bundle | None = None  # set when the model is loaded
        self.stopping = False
        self._damaged, self._full_until = False, 0.0
        self._free: tuple[float, int] = (0.0, 0)
        self._last = "loading"
        self._lock = threading.Lock()

    def trouble(self, state: str) -> None:
        """Take in that something failed: ``disk_full`` or ``database_damaged``."""
        if state == "database_damaged":
            self._damaged = True
        elif state == "disk_full":
            self._full_until = time.monotonic() + _HOLDS_S

    def state(self) -> str:
        """Return the state: the first of those that apply, the heaviest first."""
        state = self._state()
        with self._lock:
            old, self._last = self._last, state
        if old != state:
            self.on_change(old, state)
        return state

    def report(self) -> dict[str, Any]:
        """Return ``{"state", "message", "ready", "stores"}``: whether it answers, and whether it keeps."""
        state = self.state()
        return {
            "state": state,
            "message": _SENTENCES[state],
            "ready": state not in ("loading", "bundle_changed", "stopping"),
            "stores": state in ("ok", "clock_went_back"),
        }

    def require(self, stores: bool) -> None:
        """Refuse what cannot be answered, or with ``stores`` cannot be kept.

        Raises:
            Refusal: with the state as its code.
        """
        report = self.report()
        if not report["ready"] or (stores and not report["stores"]):
            state = report["state"]
            waits = {"loading": 5, "disk_full": 60, "stopping": 10}
            raise Refusal(_STATUS.get(state, 503), state, report["message"], waits.get(state))

    def _state(self) -> str:
        if self.stopping:
            return "stopping"
        if self.bundle is None:
            return "loading"
        if self.bundle.changed():
            return "bundle_changed"
        if self._damaged:
            return "database_damaged"
        if time.monotonic() < self._full_until or self._free_bytes() < self._settings.min_free:
            return "disk_full"
        return "clock_went_back" if self._clock.behind() else "ok"

    def _free_bytes(self) -> int:
        looked, free = self._free
        if time.monotonic() - looked > _FRESH_S:
            try:
                free = shutil.disk_usage(self._settings.data).free
            except OSError:  # the disk was taken out
                free = 0
            self._free = (time.monotonic(), free)
        return free

"""Everything that the routes share: opened at the start, closed at the end, in the right order."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge import __version__
from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.runtimes.serve.audit import NAME as AUDIT
from pulse_edge.runtimes.serve.audit import Audit, check
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.database import is_full
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.guidance import Guide
from pulse_edge.runtimes.serve.health import Health
from pulse_edge.runtimes.serve.logs import log, log_failure
from pulse_edge.runtimes.serve.metrics import Metrics
from pulse_edge.runtimes.serve.model import Model
from pulse_edge.runtimes.serve.settings import Settings
from pulse_edge.runtimes.serve.studies import Studies
from pulse_edge.runtimes.serve.worker import Worker


class Service:
    """The parts of a running service.

    Args:
        settings: of the service.
        open_model: opens the bundle; called in the model's thread.
        clock: the wall's.
        end: called when the process shall end: the model cannot be opened, or another one is to be.

    Attributes:
        failure: why the model could not be opened.
        pages: flat pages, PNG, of studies that are being read, by id.
        scratch: folder for files that live no longer than a request.

    Raises:
        UserError: the data folder cannot be used, or another service uses it.
    """

    def __init__(
        self,
        settings: Settings,
        open_model: Callable[[], Model],
        clock: Clock | None = None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self._open_model, self._end = settings, open_model, end
        self.clock = clock or Clock()
        self._lock = _claim(settings.data)
        self.health = Health(settings, self.clock)
        self.studies = Studies(settings.data, self.clock, settings.new_database, self.health.trouble)
        self.audit = _open_log(settings.data, self.clock, self.studies)
        self.studies.audit = self.audit
        self.health.on_change = self._changed
        self.worker = Worker(settings.queue)
        self.metrics = Metrics(self.health.state, lambda: self.worker.taken)
        self.guide = Guide()
        self.pages: dict[str, bytes] = {}
        self.scratch = settings.data / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)  # what a crash left
        self.scratch.mkdir(mode=0o700)
        self.failure: PulseEdgeError | None = None
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The opened bundle.

        Raises:
            Refusal: it is still being loaded.
        """
        if self._model is None:
            raise Refusal(503, "loading", "The model is being loaded. This takes up to a minute.", 5)
        return self._model

    def start(self) -> None:
        """Delete what is too old, and start loading the model."""
        self.note("start", version=__version__, undone=self.studies.undone)
        if self.settings.new_database:
            self.note("new_database")
        log("start", version=__version__, undone=self.studies.undone)
        self.purge()
        self.worker.start(self._load)

    def drain(self) -> None:
        """Take nothing new; called from the signal's handler."""
        self.health.stopping = True
        self.worker.drain()

    def stop(self) -> None:
        """End what runs, write everything down and close it."""
        self.drain()
        self.worker.stop()
        self.note("stop")
        self.studies.close()
        self.audit.close()
        os.close(self._lock)
        log("stop")

    def note(self, event: str, **fields: Any) -> None:
        """Write to the audit log; a full disk is noted as the service's state."""
        try:
            self.audit.add(event, **fields)
        except OSError:
            self.health.trouble("disk_full")

    def unwritten(self, error: OSError) -> Refusal:
        """Return what to answer when a picture could not be written."""
        if is_full(error):
            self.health.trouble("disk_full")
            return Refusal(507, "disk_full", "The disk is full, so the photo could not be stored.", 60)
        return Refusal(
            503, "storage_failed", "The photo could not be stored. Tell whoever looks after this cart."
        )

    def purge(self) -> int:
        """Delete studies older than is kept, unless the clock is known to be wrong; return how many."""
        days = self.settings.keep_days
        if days is None or self.clock.behind():
            return 0
        with contextlib.suppress(Refusal):
            count = self.studies.purge(self.clock.days_ago(days))
            if count:
                log("purged", count=count)
            return count
        return 0

    def follow(self) -> bool:
        """End the process if the bundle's name leads to another sound one, where that is wanted."""
        bundle = self.health.bundle
        if not self.settings.follow or bundle is None or not bundle.successor():
            return False
        self.note("successor_found")
        log("successor_found")
        self.drain()
        self._end()
        return True

    def _load(self) -> None:
        try:
            model = self._open_model()
        except Exception as error:  # without a model there is nothing to serve, whatever it was
            if not isinstance(error, PulseEdgeError):
                log_failure(error)
            self.failure = error if isinstance(error, PulseEdgeError) else _unusable(error)
            self._end()
            return
        self._model, self.health.bundle = model, model.bundle
        self.note("model_loaded", model=model.about)
        log("model_loaded", bundle_sha256=model.about["bundle_sha256"])
        self.health.state()

    def _changed(self, old: str, new: str) -> None:
        log("state", old=old, new=new)
        if "stopping" not in (old, new):
            self.note("state", old=old, new=new)


def _unusable(error: Exception) -> PulseEdgeError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return PulseEdgeError(
        f"The model was loaded but does not run ({reason}). See whether this machine has memory left, and "
        "try the bundle with: pulse-edge run"
    )


def _claim(data: Path) -> int:
    """Make the data folder and lock it; return the lock's handle."""
    import fcntl

    try:
        data.mkdir(parents=True, exist_ok=True)
        os.chmod(data, 0o700)
        handle = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(
            f"{data} cannot be used ({error.strerror}). Choose another folder with --data."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UserError(
            f"Another service uses {data}. Stop it, or choose another folder with --data."
        ) from None
    return handle


def _open_log(data: Path, clock: Clock, studies: Studies) -> Audit:
    """Open the audit log, and bind it to the database from here on."""
    remembered = None
    with contextlib.suppress(Refusal):
        remembered = studies.remembered_log()
    cut = check(data / AUDIT, remembered).problem if remembered else None
    audit = Audit(data, clock)
    if cut:
        audit.add("log_cut", remembered=remembered[0] if remembered else 0)
        log("audit_log_broken")
    audit.on_line = studies.remember_log
    return audit

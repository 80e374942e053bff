"""The thread that runs the model, a bounded queue before it, and jobs that can be stopped between tokens."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from pulse_edge.errors import PulseEdgeError
from pulse_edge.runtimes.serve.errors import Refusal, as_refusal, busy, deadline, stopping
from pulse_edge.runtimes.serve.logs import log_failure
from pulse_edge.runtimes.serve.settings import DRAIN_S

Event = tuple[str, Any]  # name and content
END: Final = "end"  # the last event of every job
_POLL_S: Final = 0.2  # how often a waiting request looks whether its client is still there
_GRACE_S: Final = 0.5  # that the thread is given to stop by itself at the deadline


class Stopped(Exception):
    """The job's client has gone; nobody waits for an answer."""


class Job:
    """One piece of work for the model's thread, and the events that it sends to the request.

    Args:
        deadline_s: seconds from now to its end.
        release: gives its place in the queue back.
    """

    def __init__(self, deadline_s: float, release: Callable[[], None]) -> None:
        self.until = time.monotonic() + deadline_s
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._gone, self._stopping = threading.Event(), threading.Event()
        self._release = release

    def emit(self, name: str, content: Any) -> None:
        """Send an event to the request; from the model's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (name, content))

    def halted(self) -> bool:
        """Whether to stop now: asked between tokens and between steps."""
        return self._gone.is_set() or self._stopping.is_set() or time.monotonic() >= self.until

    def check(self) -> None:
        """Raise what stops the job, if anything does.

        Raises:
            Stopped: the client has gone.
            Refusal: the deadline has passed, or the server stops.
        """
        if self._gone.is_set():
            raise Stopped
        if self._stopping.is_set():
            raise stopping()
        if time.monotonic() >= self.until:
            raise deadline()

    def leave(self) -> None:
        """Say that nobody waits any more."""
        self._gone.set()

    def stop(self) -> None:
        """Say that the server stops."""
        self._stopping.set()

    def hurry(self, seconds: float) -> None:
        """Bring the deadline forward."""
        self.until = min(self.until, time.monotonic() + seconds)

    def done(self) -> None:
        """Give the place back; once."""
        release, self._release = self._release, lambda: None
        release()

    async def events(self, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[Event]:
        """Yield the job's events until it ends.

        Args:
            is_gone: whether the client has disconnected.

        Raises:
            Refusal: what the job was ended by.
            Stopped: the client has gone.
        """
        getter = asyncio.ensure_future(self._events.get())
        try:
            while True:
                late = time.monotonic() - self.until
                done, _ = await asyncio.wait({getter}, timeout=max(0.01, min(_POLL_S, _GRACE_S - late)))
                if done:
                    name, content = getter.result()
                    if name == END:
                        if isinstance(content, BaseException):
                            raise content
                        return
                    yield name, content
                    getter = asyncio.ensure_future(self._events.get())
                elif await is_gone():
                    raise Stopped
                elif late >= _GRACE_S:  # within one long step of the model; the thread stops behind it
                    raise deadline()
        finally:
            self.leave()
            getter.cancel()


class Worker:
    """The thread, and the places before it.

    Args:
        size: jobs that may wait or run at once.
    """

    def __init__(self, size: int) -> None:
        self._size, self._taken = size, 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[Job], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: Job | None = None
        self._stopping = False
        self._typical_s = 1.0  # moving average of what a job takes

    @property
    def taken(self) -> int:
        """Jobs that wait or run."""
        return self._taken

    def start(self, first: Callable[[], None]) -> None:
        """Start the thread; ``first`` runs in it before any job, and loads the model."""
        self._thread = threading.Thread(target=self._run, args=(first,), name="model", daemon=True)
        self._thread.start()

    def admit(self, deadline_s: float) -> Job:
        """Take a place in the queue; ``submit`` or ``done`` must follow.

        Raises:
            Refusal: there is none, or the server stops.
        """
        with self._lock:
            if self._stopping:
                raise stopping()
            if self._taken >= self._size:
                raise busy(min(60, max(1, round(self._typical_s * self._taken / 2))))
            self._taken += 1
        return Job(deadline_s, self._free)

    def submit(self, job: Job, work: Callable[[Job], None]) -> None:
        """Put a job into the queue."""
        if self._stopping:  # the thread may have gone already
            job.done()
            job.emit(END, stopping())
            return
        self._jobs.put((job, work))

    def drain(self) -> None:
        """Take no more jobs, end those that wait, and give the one that runs a few seconds."""
        self._stopping = True  # without the lock: this is called from a signal's handler
        self._jobs.put(None)
        running = self._running
        if running is not None:
            running.hurry(DRAIN_S)

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self.drain()
        running = self._running
        if running is not None:
            running.stop()
        if self._thread is not None:
            self._thread.join(timeout=DRAIN_S)

    def _free(self) -> None:
        with self._lock:
            self._taken -= 1

    def _run(self, first: Callable[[], None]) -> None:
        first()
        while True:
            entry = self._jobs.get()
            if entry is None:
                break
            job, work = entry
            self._running = job
            if self._stopping:
                job.stop()
            self._do(job, work)
            self._running = None
        while not self._jobs.empty():
            entry = self._jobs.get()
            if entry is not None:
                entry[0].stop()
                self._do(*entry)

    def _do(self, job: Job, work: Callable[[Job], None]) -> None:
        began = time.monotonic()
        result: BaseException | None = None
        try:
            job.check()
            work(job)
            self._typical_s += 0.2 * (time.monotonic() - began - self._typical_s)
        except Stopped as gone:
            result = gone
        except PulseEdgeError as error:
            result = as_refusal(error)
            if not isinstance(error, Refusal) and result.status >= 500:
                log_failure(error)
        except MemoryError as error:
            log_failure(error)
            result = Refusal(
                503, "no_memory", "There was not enough memory for this picture. Send a smaller one.", 5
            )
        except Exception as error:  # the thread must live on
            log_failure(error)
            result = Refusal(
                500, "internal", "Something failed inside the service. Try again, then tell its keeper."
            )
        finally:
            job.done()
            job.emit(END, result)

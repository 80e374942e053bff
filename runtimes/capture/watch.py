"""A folder that pictures arrive in, as on a cart: each is taken once, its result written beside it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pulse_edge import interrupt
from pulse_edge.bundle import write_atomic
from pulse_edge.errors import ImageError, PulseEdgeError, UserError
from pulse_edge.runtimes.capture.quality import REFUSE
from pulse_edge.runtimes.capture.take import take_file, write_grid, write_page

RESULT, PAGE, GRID = ".capture.json", ".page.png", ".grid.json"
_PICTURES: Final = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"),
    *(".heic", ".heif", ".avif", ".jp2", ".ppm", ".gif"),
)
_SETTLED_S: Final = 1.0  # a file that has not changed for so long is whole
_PAUSE_S: Final = 0.3

Report = Callable[[str, dict[str, Any]], None]


def watch(
    folder: Path,
    report: Report = lambda name, result: None,
    stop: Callable[[], bool] = lambda: False,
    settled_s: float = _SETTLED_S,
) -> None:
    """Take every picture that lies in a folder or arrives there, until ``stop`` says so or Ctrl-C.

    Of ``ecg.jpg`` come ``ecg.jpg.grid.json``, ``ecg.jpg.page.png`` (unless it is refused) and, last,
    ``ecg.jpg.capture.json``: where that stands, the picture is done. A picture that is replaced by another
    is taken again. Several watchers may share a folder. A file that cannot be read gets a result that says
    why and stops nothing.

    Args:
        folder: is not searched below.
        report: called with each picture's name and result.
        stop: asked between pictures.
        settled_s: how long a file must not have changed.

    Raises:
        UserError: there is no such folder.
        PulseEdgeError: results cannot be written there.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Make it, or name another with --watch.")
    while not stop():
        idle = True
        interrupt.check()
        for path in pending(folder, settled_s):
            if stop():
                return
            result = take_once(path)
            if result is not None:
                idle = False
                report(path.name, result)
        if idle:
            time.sleep(_PAUSE_S)


def pending(folder: Path, settled_s: float = _SETTLED_S) -> list[Path]:
    """Return the pictures of a folder that are whole and not done, the oldest first."""
    found = []
    for path in folder.iterdir():
        if path.suffix.lower() not in _PICTURES or path.name.startswith(".") or _is_ours(path):
            continue
        state = _state(path)
        if state is None or time.time() - state["mtime_ns"] / 1e9 < settled_s or _is_done(path, state):
            continue
        found.append((state["mtime_ns"], path))
    return [path for _, path in sorted(found)]


def take_once(path: Path) -> dict[str, Any] | None:
    """Take one picture unless another watcher has it or it is done; return its result.

    A result is what `pulse-edge capture --json` prints and ``source``: the file's size and time. Of a file
    that cannot be read it is ``grade`` (refuse), ``reasons`` and ``source``.
    """
    with _claim(path) as mine:
        state = _state(path)
        if not mine or state is None or _is_done(path, state):
            return None
        try:
            taken = take_file(path)
            result = taken.result()
            write_grid(taken, _beside(path, GRID))
            if result["grade"] == REFUSE:
                _beside(path, PAGE).unlink(missing_ok=True)  # of an earlier picture of that name
            else:
                write_page(taken, _beside(path, PAGE))
        except ImageError as error:
            result = {"grade": REFUSE, "reasons": [str(error)]}
            for suffix in (PAGE, GRID):
                _beside(path, suffix).unlink(missing_ok=True)
        except PulseEdgeError:
            raise  # the disk is full, or the folder cannot be written
        except Exception as error:  # one picture must not stop a cart
            result = {"grade": REFUSE, "reasons": [f"Unexpected {type(error).__name__}: {error}"[:300]]}
        result["source"] = state
        write_atomic(_beside(path, RESULT), (json.dumps(result, ensure_ascii=False) + "\n").encode())
        return result


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Lock a picture against other watchers while it is worked on; a lock dies with its process."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        # Gone, or not ours to read: the latter is for `take_file` to say.
        yield path.is_file()
        return
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # not a Unix system: one watcher at a time
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _is_ours(path: Path) -> bool:
    return path.name.endswith(PAGE) and path.with_name(path.name.removesuffix(PAGE)).exists()


def _state(path: Path) -> dict[str, int] | None:
    """Size and time of a plain file that is not empty, else None."""
    try:
        about = path.stat()
    except OSError:
        return None
    if not path.is_file() or not about.st_size:
        return None
    return {"bytes": about.st_size, "mtime_ns": about.st_mtime_ns}


def _is_done(path: Path, state: dict[str, int]) -> bool:
    try:
        result = json.loads(_beside(path, RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(result, dict) and result.get("source") == state

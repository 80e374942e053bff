"""Writing files and folders whole or not at all, and hashing them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from pulse_edge import interrupt
from pulse_edge.errors import PulseEdgeError, UserError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE: Final = (
    *(errno.EACCES, errno.EROFS, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY),
)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that it is there in full or not at all, even after a crash.

    Raises:
        PulseEdgeError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path, mode) as stream:
        stream.write(content)


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Give a stream whose content becomes the file ``path`` if the block ends well; see ``write_atomic``."""
    with disk_errors(path.parent):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)
            interrupt.check()
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(
    path: Path, work: Path | None = None, keep: Callable[[BaseException], bool] = lambda error: False
) -> Iterator[Path]:
    """Give a temporary folder that becomes ``path`` if the block ends well, and vanishes otherwise.

    An existing ``path`` is replaced only at the end. Ctrl-C, an error or a full disk leave nothing
    behind. Everything is flushed to the disk before the folder gets its name.

    Args:
        path: name of the folder.
        work: the temporary folder, on the same disk, where it has a name and may hold earlier work.
        keep: says after which errors the temporary folder stays.

    Raises:
        PulseEdgeError: the disk is full or the place cannot be written.
        UserError: ``path`` is a file.
    """
    path = Path(os.path.realpath(path))  # of a link, the folder that it names is replaced
    with disk_errors(path.parent):
        if os.path.lexists(path) and not path.is_dir():  # a link is left here only if it leads to itself
            raise UserError(f"{path} is a file; a folder is to be written there. Choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if work is None:
            work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        else:
            work.mkdir(parents=True, exist_ok=True)
        kept = False
        try:
            work.chmod(0o755)
            yield work
            _flush(work)
            interrupt.check()
            if path.exists():
                old = work.with_suffix(".replaced")
                _swap(path, work, old)
                try:
                    shutil.rmtree(old)
                finally:
                    shutil.rmtree(old, ignore_errors=True)  # again, if Ctrl-C cut the first short
            else:
                os.rename(work, path)
            _fsync(path.parent)
        except BaseException as error:
            kept = keep(error)
            raise
        finally:
            if not kept:
                shutil.rmtree(work, ignore_errors=True)


def _swap(path: Path, new: Path, old: Path) -> None:
    """Give ``new`` the name ``path`` and what was there the name ``old``, or leave all as it was."""
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn what the operating system says about a disk into a sentence.

    Raises:
        PulseEdgeError: the disk is full.
        UserError: ``place`` cannot be written.
    """
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise PulseEdgeError(
                f"The disk of {place} is full; nothing was left there. "
                "Free some space or choose another --output."
            ) from error
        if isinstance(error, OSError) and error.errno in _UNUSABLE:
            raise UserError(
                f"{place} cannot be written ({error.strerror}). Choose another --output."
            ) from error
        raise


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # The core of safetensors is written in Rust and hands on the system's error as text.
    return type(error).__name__ == "SafetensorError" and any(f"(os error {n})" in str(error) for n in _FULL)


def need_space(place: Path, size: int, what: str) -> None:
    """Refuse before anything is written what the disk cannot hold.

    Raises:
        PulseEdgeError: fewer than ``size`` bytes are free where ``place`` is to be.
    """
    place = Path(os.path.realpath(place))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise PulseEdgeError(
            f"{what} needs {size / 1e6:.0f} MB, but the disk of {place} has {free / 1e6:.0f} MB free. "
            "Free some space or choose another place."
        )

"""Exports that survive being killed: a named partial folder, and a journal of what is finished in it.

A chunk is written down only when it is on the disk, so that after kill -9 or a power cut everything in
the journal is whole; what is not in it is made again at the same place. The first line says what the
partial folder is of; one of another checkpoint or other options is never gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import atomic_folder, disk_errors
from pulse_edge.errors import GateError, PulseEdgeError, UserError
from pulse_edge.export.onnx_writer import GraphWriter

_JOURNAL: Final = "journal"


class Journal:
    """What is finished in a partial folder.

    Args:
        path: of the file, which has its first line.

    Attributes:
        done: names that are finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").split("\n")
        self.done = frozenset(lines[1:-1])  # a line that was cut short has no end
        with path.open("r+", encoding="utf-8") as stream:
            stream.truncate(len("\n".join(lines[:-1]).encode()) + 1)

    def finish(self, names: list[str], handle: int | None = None) -> None:
        """Write down that something is finished, once the file that it is in is on the disk."""
        if handle is not None:
            getattr(os, "fdatasync", os.fsync)(handle)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{name}\n" for name in names)
            stream.flush()
            os.fsync(stream.fileno())

    def fill(self, writer: GraphWriter, tick: Any = lambda size: None) -> str | None:
        """Make a graph's weights, those that are not finished, and flush them to the disk meanwhile.

        Args:
            writer: of the graph.
            tick: called with the bytes of every chunk, also of those that were there.

        Returns:
            As ``GraphWriter.fill``.
        """
        start = f"{writer.path.name}/"
        skip = frozenset(name.removeprefix(start) for name in self.done if name.startswith(start))
        sizes = {chunk.name: chunk.bytes for chunk in writer.chunks}
        waiting: list[str] = []
        flush: Future[None] | None = None

        with ThreadPoolExecutor(1) as thread:

            def finished(name: str, handle: int) -> None:
                nonlocal flush, waiting
                tick(sizes[name])
                if name not in skip:
                    waiting.append(start + name)
                last = name == writer.chunks[-1].name
                if flush is not None and (last or flush.done()):
                    flush.result()
                    flush = None
                if waiting and flush is None:
                    flush, waiting = thread.submit(self.finish, waiting, handle), []
                if last and flush is not None:  # before the file is closed
                    flush.result()

            return writer.fill(finished, skip)


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of what an export is made from: any JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path) -> dict[str, Any]:
    """Name, size and time of change of a checkpoint's files, for :func:`fingerprint`."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: [entry.st_size, entry.st_mtime_ns] for name, entry in stats.items()}


def partial_place(output: Path) -> Path:
    """Where the unfinished export of a bundle lies: beside it."""
    output = Path(os.path.realpath(output))
    return output.with_name(f".{output.name}.partial")


@contextlib.contextmanager
def partial_folder(output: Path, key: str, resume: bool) -> Iterator[tuple[Path, Journal]]:
    """Give a folder that becomes ``output`` if the block ends well, and the journal of what is in it.

    Without ``resume``, what an earlier export left is thrown away, and an error or Ctrl-C leaves nothing.
    With it, the folder that a killed or interrupted export left is gone on with, and is kept when this one
    is interrupted or runs out of disk.

    Args:
        output: folder of the bundle.
        key: :func:`fingerprint` of inputs and options.
        resume: go on with what is there.

    Raises:
        UserError: with ``resume``, what is there was of another checkpoint or other options; or another
            export is writing it at this moment.
        PulseEdgeError: interrupted, with ``resume``.
    """
    place = partial_place(output)
    kept = False

    def keep(error: BaseException) -> bool:
        nonlocal kept
        kept = resume and not isinstance(error, (UserError, GateError))  # they would be refused again
        return kept

    with contextlib.ExitStack() as stack:
        try:
            with disk_errors(place.parent):
                place.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((place / "lock").open("wb"))
            kept = not _lock(lock.fileno())  # what another export is writing is not ours to remove
            if kept:
                raise UserError(
                    f"Another export is writing {output} at this moment. "
                    "Wait for it, or choose another --output."
                )
            journal = _open(place, key, resume, output)
            with atomic_folder(output, place / "bundle", keep) as folder:
                yield folder, journal
        except KeyboardInterrupt as error:
            if not kept:
                raise
            raise PulseEdgeError(
                f"Interrupted; what is finished is kept in {place}. Run the same command again with --resume."
            ) from error
        finally:
            if not kept:
                shutil.rmtree(place, ignore_errors=True)


def _open(place: Path, key: str, resume: bool, output: Path) -> Journal:
    file, work, replaced = place / _JOURNAL, place / "bundle", place / "bundle.replaced"
    if replaced.is_dir() and not output.exists():  # killed between two renames
        os.rename(replaced, output)
    first = json.dumps({"key": key}) + "\n"
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    if resume and old and not old.startswith(first):
        raise UserError(
            f"The unfinished export in {place} is of another checkpoint, other options or another version. "
            f"Begin anew without --resume, or choose another --output than {output}."
        )
    listed = {line.split("/")[0] for line in old.split("\n")[1:-1]}
    if not (resume and old and all((work / f"{graph}.data").is_file() for graph in listed)):
        shutil.rmtree(work, ignore_errors=True)
        file.write_text(first, encoding="utf-8")
    for path in work.iterdir() if work.is_dir() else ():  # all but graphs is quickly made again
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.endswith((".onnx", ".onnx.data")):
            path.unlink()
    return Journal(file)


def _lock(handle: int) -> bool:
    """Lock a file until it is closed; say whether that worked."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

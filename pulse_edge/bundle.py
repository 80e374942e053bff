"""Bundles: the folder that a device runs, its manifest, and writing it all or not at all.

The manifest names every file with its SHA-256 and size; a bundle whose files differ is not run.
Signatures are not covered yet: the manifest keeps ``signature`` for them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge import interrupt
from pulse_edge.contract import BUNDLE_SCHEMA, MANIFEST
from pulse_edge.errors import BundleError, PulseEdgeError, UserError

_UNUSABLE: Final = (
    *(errno.EACCES, errno.EROFS, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY),
)
REQUIRED: Final = ("schema", "model", "target", "graphs", "files", "preprocessing", "prompt", "generation")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there in full or not at all, even after a crash.

    Raises:
        PulseEdgeError: the disk is full or the folder cannot be written.
    """
    with disk_errors(path.parent):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
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


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest.json`` with the hash of every file in the folder; return what was written.

    Args:
        folder: of the bundle; symbolic links in it are refused.
        fields: everything but ``schema``, ``files``, ``signature`` and ``digest``: the SHA-256 of all the
            others, which shows damage to the manifest itself (not a forgery).
    """
    files = {
        name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in _files(folder)
    }
    manifest = {"schema": BUNDLE_SCHEMA, **fields, "files": files, "signature": None}
    manifest["digest"] = manifest_digest(manifest)
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest's form, not the files.

    Raises:
        BundleError: there is none, it is not one, or its schema is newer than this pulse-edge.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}. Make one with: pulse-edge export")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Copy the bundle again.") from error
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int or manifest["schema"] < 1:
        raise BundleError(f"{path} is not a manifest of pulse-edge. Copy the bundle again.")
    if manifest["schema"] > BUNDLE_SCHEMA:
        raise BundleError(
            f"The bundle {folder} has schema {manifest['schema']}; this pulse-edge reads up to "
            f"{BUNDLE_SCHEMA}. Update it with: pip install --upgrade pulse-edge"
        )
    missing = [key for key in REQUIRED if key not in manifest]
    missing = missing or [key for key in ("files", "graphs") if not isinstance(manifest[key], dict)]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}. Export the bundle again.")
    return manifest


def verify_bundle(folder: Path) -> list[str]:
    """Compare a bundle with its manifest; return one sentence for each problem, none if it is sound."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        return [str(error)]
    listed: dict[str, Any] = manifest["files"]
    problems = [text for name, entry in listed.items() if (text := _problem(folder, name, entry))]
    if manifest.get("digest") != manifest_digest(manifest):
        problems.append(f"{MANIFEST} differs from what was exported; copy the bundle again.")
    for role, graph in manifest["graphs"].items():
        if not isinstance(graph, dict) or graph.get("file") not in listed:
            problems.append(f"The graph {role} names no file of the bundle; export the bundle again.")
    try:
        extra = [name for name, _ in _files(folder) if name not in listed]
    except BundleError as error:
        return [*problems, str(error)]
    return problems + [
        f"{name} is not part of the bundle; delete it or copy the bundle again." for name in extra
    ]


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's fields but ``digest`` and ``signature``, however it is laid out."""
    fields = {key: value for key, value in manifest.items() if key not in ("digest", "signature")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _problem(folder: Path, name: str, entry: Any) -> str | None:
    """Compare one file with its entry in the manifest."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name} lies outside the bundle; do not use this bundle."
    if os.path.islink(path) or not os.path.isfile(path):
        return f"{name} is missing; copy the bundle again."
    if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
        return f"{name} has another size than the manifest says; copy the bundle again."
    try:
        same = sha256_file(path) == entry.get("sha256")
    except OSError as error:
        return f"{name} cannot be read ({error.strerror}); check its rights or copy the bundle again."
    return None if same else f"{name} differs from what was exported; copy the bundle again."


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BundleError(f"{path} is a symbolic link; a bundle holds plain files. Copy the file itself.")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            found.append((name, path))
    return found


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PulseEdgeError(
                f"The disk of {place} is full; nothing was left there. "
                "Free some space or choose another --output."
            ) from error
        if error.errno in _UNUSABLE:
            raise UserError(
                f"{place} cannot be written ({error.strerror}). Choose another --output."
            ) from error
        raise

"""Installing bundles on a device: every version in a folder of its own, and a link that says which runs.

::

    DIR/versions/NAME-DIGEST/   a bundle, complete and verified before it gets this name
    DIR/current                 symbolic link to one of them; switched in one step
    DIR/history.json            what was current before, oldest first, for `rollback`
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle.files import atomic_folder, need_space, write_atomic
from pulse_edge.bundle.kit import INDEX
from pulse_edge.bundle.manifest import (
    ENGINES,
    file_problem,
    is_inside,
    list_files,
    manifest_digest,
    read_json,
    read_manifest,
    verify_bundle,
)
from pulse_edge.bundle.signature import KIT, signature_problems
from pulse_edge.contract import MANIFEST
from pulse_edge.errors import BundleError, UserError

CURRENT: Final = "current"
VERSIONS: Final = "versions"
HISTORY: Final = "history.json"
_INDEX_LIMIT: Final = 16 << 20  # no index of a kit is nearly as long


def install(source: Path, into: Path, keys: Sequence[Path] = ()) -> dict[str, Any]:
    """Install a bundle, a kit or an unpacked kit, and make it the current version; all or nothing.

    A version that is there already and sound is kept, with the engines that were built in it.

    Args:
        source: folder of a bundle, a kit's archive, or the folder that one was unpacked to.
        into: folder of the installation.
        keys: public keys; if there are any, one of them must have signed bundle and kit.

    Returns:
        ``{"installed": version, "path": folder, "previous": version or None, "current": link, "engines":
        whether it has some}``.

    Raises:
        BundleError: the source is damaged, unsafe or not signed as required; nothing was changed.
        UserError: there is no such source, or the place cannot be used.
    """
    source, into = Path(source), Path(into)
    with _locked(into):
        staging = into / VERSIONS / "staging"
        try:
            with atomic_folder(staging) as work:
                _unpack(source, work, keys)
                if problems := verify_bundle(work, keys):
                    raise BundleError(f"{source} was not installed: {problems[0]}")
                version = _version(read_manifest(work))
            target = into / VERSIONS / version
            if not (target / MANIFEST).is_file() or verify_bundle(target, keys):
                with atomic_folder(target) as work:
                    os.rmdir(work)
                    os.rename(staging, work)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        previous = current_version(into)
        if version != previous:
            _write_history(into, [*_past(into, previous), version])
            _switch(into, version)
    return _result(into, version, previous if previous != version else None)


def rollback(into: Path, keys: Sequence[Path] = ()) -> dict[str, Any]:
    """Go back to the version that was current before; it is verified first.

    Returns:
        The same as :func:`install`; ``previous`` is the version that was left.

    Raises:
        UserError: nothing is installed there, or there is no earlier version.
        BundleError: the earlier version is not sound any more.
    """
    into = Path(into)
    if current_version(into) is None:
        raise UserError(
            f"Nothing is installed in {into}. Install with: pulse-edge bundle install KIT --into DIR"
        )
    with _locked(into):
        now = current_version(into)
        past = _past(into, now)[:-1]
        if not past:
            raise UserError(f"{into} has no earlier version than {now}; nothing was changed.")
        target = into / VERSIONS / past[-1]
        if problems := verify_bundle(target, keys):
            raise BundleError(f"The earlier version {past[-1]} is not sound; {now} stays. {problems[0]}")
        _switch(into, past[-1])
        _write_history(into, past)
    return _result(into, past[-1], now)


def _result(into: Path, version: str, previous: str | None) -> dict[str, Any]:
    target = into / VERSIONS / version
    return {
        "installed": version,
        "path": str(target),
        "previous": previous,
        "current": str(into / CURRENT),
        "engines": (target / ENGINES).is_dir(),
    }


def current_version(into: Path) -> str | None:
    """Return the name of the version that the link ``current`` leads to, None without one."""
    try:
        return Path(os.readlink(into / CURRENT)).name
    except OSError:
        return None


def _version(manifest: Mapping[str, Any]) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(manifest["model"].get("name") or "bundle")).strip(".-")
    return f"{name[:60] or 'bundle'}-{manifest['digest'][:12]}"


def _past(into: Path, now: str | None) -> list[str]:
    """The history up to and with the current version, whatever a crash left behind it."""
    try:
        names = json.loads((into / HISTORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        names = []
    names = [n for n in names if isinstance(n, str) and n == Path(n).name] if isinstance(names, list) else []
    if now is None:
        return []
    if now not in names:
        return [now]
    return names[: len(names) - names[::-1].index(now)]


def _write_history(into: Path, names: list[str]) -> None:
    write_atomic(into / HISTORY, (json.dumps(names, indent=1) + "\n").encode())


def _switch(into: Path, version: str) -> None:
    """Let ``current`` lead to a version: a new link takes the old one's name, which is one step."""
    link, fresh = into / CURRENT, into / f".{CURRENT}.partial"
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is no link of an installation. Choose another folder with --into.")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(Path(VERSIONS) / version, fresh)
    os.replace(fresh, link)


@contextlib.contextmanager
def _locked(into: Path) -> Iterator[None]:
    """Keep other installations out of the folder."""
    try:
        (into / VERSIONS).mkdir(parents=True, exist_ok=True)
        lock = (into / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{into} cannot be written ({error.strerror}). Choose another --into.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another installation into {into} is running. Wait for it to end.") from error
        for left in (into / VERSIONS).glob(".*"):  # by an installation that was killed
            if f".{ENGINES}." not in left.name:  # those of `pulse-edge build` may be of one that runs
                shutil.rmtree(left, ignore_errors=True)
        yield


# --- where it comes from ------------------------------------------------------------------------


def _unpack(source: Path, work: Path, keys: Sequence[Path]) -> None:
    """Put the portable half of what is to be installed into ``work``."""
    if (source / MANIFEST).is_file():
        _copy(source, work)
    elif (source / INDEX).is_file():
        index = _checked(read_json(source / INDEX, "an index"), source, keys)
        wrong = [
            text for name, entry in index["files"].items() if (text := file_problem(source, name, entry))
        ]
        if wrong:
            raise BundleError(f"The kit {source} is damaged: {wrong[0]}")
        _copy(source / "bundle", work)
    elif source.is_file():
        try:
            with tarfile.open(source, mode="r:") as tar:
                _extract(tar, source, work, keys)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise BundleError(f"{source} is not a kit, or is cut short: {error}. Copy it again.") from error
    else:
        raise UserError(f"{source} is neither a bundle nor a kit. Make one with: pulse-edge bundle kit")


def _copy(folder: Path, work: Path) -> None:
    files = [(n, p) for n, p in list_files(folder) if not n.startswith(f"{ENGINES}/")]
    need_space(work, sum(path.stat().st_size for _, path in files), "The bundle")
    for name, path in files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, work / name)


def _extract(tar: tarfile.TarFile, source: Path, work: Path, keys: Sequence[Path]) -> None:
    """Unpack a kit's bundle and hash all the rest; nothing is written outside ``work``."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if not member.isreg() or not is_inside(member.name) or member.name in members:
            raise BundleError(
                f"The kit {source} holds {member.name!r}, which is no plain file of its own within the kit. "
                "Do not use it; get it again from its maker."
            )
        members[member.name] = member
    first = members.pop(INDEX, None)
    stream = tar.extractfile(first) if first is not None and first.size <= _INDEX_LIMIT else None
    if stream is None:
        raise BundleError(f"{source} is not a kit: it has no {INDEX}. Make one with: pulse-edge bundle kit")
    index = _checked(_parse(stream.read(), source), source, keys)
    if set(index["files"]) != set(members):
        odd = sorted(set(index["files"]) ^ set(members))[0]
        raise BundleError(f"The kit {source} and its index differ in {odd!r}. Copy it again.")
    size = sum(m.size for name, m in members.items() if name.startswith("bundle/"))
    need_space(work, size, "The bundle")
    for name, member in members.items():
        target = work / name.removeprefix("bundle/") if name.startswith("bundle/") else None
        _extract_one(tar, member, index["files"][name], target, source)


def _extract_one(
    tar: tarfile.TarFile, member: tarfile.TarInfo, entry: Any, target: Path | None, source: Path
) -> None:
    damaged = BundleError(f"The kit {source} is damaged in {member.name}. Copy it again.")
    if not isinstance(entry, dict) or entry.get("bytes") != member.size:
        raise damaged  # before anything of that size is read
    stream = tar.extractfile(member)
    digest, count = hashlib.sha256(), 0
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(target.open("xb")) if target is not None else None
        while stream is not None and (block := stream.read(1 << 20)):
            digest.update(block)
            count += len(block)
            if out is not None:
                out.write(block)
    if (entry.get("sha256"), entry["bytes"]) != (digest.hexdigest(), count):
        raise damaged
    if target is not None:
        target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _parse(content: bytes, source: Path) -> dict[str, Any]:
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The index of the kit {source} cannot be read: {error}. Copy it again.") from error
    return index if isinstance(index, dict) else {}


def _checked(index: dict[str, Any], source: Path, keys: Sequence[Path]) -> dict[str, Any]:
    if index.get("kind") != KIT or not isinstance(index.get("files"), dict):
        raise BundleError(f"{source} is not a kit of pulse-edge. Make one with: pulse-edge bundle kit")
    if index.get("digest") != manifest_digest(index):
        raise BundleError(f"The index of the kit {source} is damaged. Copy it again.")
    if problems := signature_problems(index, KIT, keys):
        raise BundleError(problems[0])
    return index

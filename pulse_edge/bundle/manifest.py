"""The manifest of a bundle: every file with its SHA-256 and size. A bundle whose files differ is not run.

What a device adds later, its engines, has an index of its own (``engines``): the manifest and its
signature stay those of the export.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pulse_edge.bundle.files import sha256_file, write_atomic
from pulse_edge.contract import BUNDLE_SCHEMA, MANIFEST
from pulse_edge.errors import BundleError

REQUIRED: Final = ("schema", "model", "target", "graphs", "files", "preprocessing", "prompt", "generation")
ENGINES: Final = "engines"  # the folder that `pulse-edge build` adds on the device


def write_manifest(
    folder: Path, fields: Mapping[str, Any], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write ``manifest.json`` with the hash of every file in the folder; return what was written.

    Args:
        folder: of the bundle; symbolic links in it are refused.
        fields: everything but ``schema``, ``files``, ``signature`` and ``digest``: the SHA-256 of all the
            others, which shows damage to the manifest itself (not a forgery; see ``signature``).
        known: SHA-256 of files that were hashed as they were written, and need not be read again.
    """
    files = hash_files(folder, MANIFEST, known=known or {})
    manifest = {"schema": BUNDLE_SCHEMA, **fields, "files": files, "signature": None}
    manifest["digest"] = manifest_digest(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, whole or not at all."""
    write_atomic(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a document with a ``schema`` that this pulse-edge knows.

    Raises:
        BundleError: it cannot be read, is not of this form, or is newer.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Copy the bundle again.") from error
    if not isinstance(document, dict) or type(document.get("schema")) is not int or document["schema"] < 1:
        raise BundleError(f"{path} is not {what} of pulse-edge. Copy the bundle again.")
    if document["schema"] > BUNDLE_SCHEMA:
        raise BundleError(
            f"The bundle {path.parent} has schema {document['schema']}; this pulse-edge reads up to "
            f"{BUNDLE_SCHEMA}. Update it with: pip install --upgrade pulse-edge"
        )
    return document


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest's form, not the files.

    Raises:
        BundleError: there is none, it is not one, or its schema is newer than this pulse-edge.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}. Make one with: pulse-edge export")
    manifest = read_json(path, "a manifest")
    missing = [key for key in REQUIRED if key not in manifest]
    missing = missing or [key for key in ("files", "graphs") if not isinstance(manifest[key], dict)]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}. Export the bundle again.")
    return manifest


def verify_bundle(folder: Path, keys: Sequence[Path] = (), engines: bool = True) -> list[str]:
    """Compare a bundle with its manifest; return one sentence for each problem, none if it is sound.

    Args:
        folder: of the bundle.
        keys: public keys; if there are any, one of them must have signed.
        engines: compare what `pulse-edge build` added, too.

    Raises:
        UserError: a key cannot be read.
    """
    from pulse_edge.bundle.engines import engine_problems
    from pulse_edge.bundle.signature import BUNDLE, signature_problems

    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
        problems = content_problems(folder, manifest) + signature_problems(manifest, BUNDLE, keys)
        if engines and (folder / ENGINES).is_dir():
            problems += engine_problems(folder, manifest, keys)
    except BundleError as error:
        return [str(error)]
    return problems


def content_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Compare the portable half of a bundle with its manifest, whoever signed it; see ``verify_bundle``."""
    listed: dict[str, Any] = manifest["files"]
    problems = [text for name, entry in listed.items() if (text := file_problem(folder, name, entry))]
    if manifest.get("digest") != manifest_digest(manifest):
        problems.append(f"{MANIFEST} differs from what was exported; copy the bundle again.")
    for role, graph in manifest["graphs"].items():
        file = graph.get("file") if isinstance(graph, dict) else None
        # A Core ML package is a folder of files.
        if file not in listed and not any(name.startswith(f"{file}/") for name in listed):
            problems.append(f"The graph {role} names no file of the bundle; export the bundle again.")
    try:
        names = [name for name, _ in list_files(folder) if name not in listed and name != MANIFEST]
    except BundleError as error:
        return [*problems, str(error)]
    return problems + [
        f"{name} is not part of the bundle; delete it or copy the bundle again."
        for name in names
        if not name.startswith(f"{ENGINES}/")
    ]


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's fields but ``digest`` and ``signature``, however it is laid out."""
    fields = {key: value for key, value in manifest.items() if key not in ("digest", "signature")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def hash_files(
    folder: Path, *without: str, known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Return hash and size of every file in a folder by its name, but of those ``without``.

    Args:
        folder: whose files are hashed.
        without: names that are left out.
        known: hashes that need not be computed, by name.
    """
    return {
        name: {"sha256": known.get(name) or sha256_file(path), "bytes": path.stat().st_size}
        for name, path in list_files(folder)
        if name not in without
    }


def file_problem(folder: Path, name: str, entry: Any) -> str | None:
    """Compare one file with its entry in a manifest; return the problem, if there is one."""
    path = folder / name
    if not is_inside(name):
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


def is_inside(name: str) -> bool:
    """Whether a relative path stays inside its folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def list_files(folder: Path) -> list[tuple[str, Path]]:
    """Return every file of a folder with its name in it, sorted.

    Raises:
        BundleError: there is a symbolic link.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BundleError(f"{path} is a symbolic link; a bundle holds plain files. Copy the file itself.")
        if path.is_file():
            found.append((path.relative_to(folder).as_posix(), path))
    return found

"""What `pulse-edge build` adds to a bundle on the device: the folder ``engines`` with an index of its own.

The portable half, its manifest and its signature stay as they were exported: deleting the folder gives
back the bundle that came. The index names the hash of every engine, the digest of the bundle that they
were made from, and what they are tied to, as it was detected on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle.manifest import (
    ENGINES,
    file_problem,
    hash_files,
    list_files,
    manifest_digest,
    read_json,
    write_json,
)
from pulse_edge.bundle.signature import ENGINES as KIND
from pulse_edge.bundle.signature import sign_document, signature_problems
from pulse_edge.contract import BUNDLE_SCHEMA
from pulse_edge.errors import BundleError

INDEX: Final = "engines.json"
REBUILD: Final = "Build again from the portable half: pulse-edge build {bundle}"
_REQUIRED: Final = ("portable", "constraints", "engines", "files", "digest")
# An engine runs on this GPU architecture and this version only.
_TIED: Final = {"sm": "compute capability (SM)", "tensorrt": "TensorRT"}


def write_engines(folder: Path, fields: Mapping[str, Any], key: Path | None = None) -> dict[str, Any]:
    """Write the index of a folder of engines; return what was written.

    Args:
        folder: ``engines``, or the temporary folder that becomes it.
        fields: ``portable`` (digest of the bundle's manifest), ``constraints``, ``engines``, and whatever
            else was found.
        key: private key to sign the index with.
    """
    index = {"schema": BUNDLE_SCHEMA, **fields, "files": hash_files(folder, INDEX), "signature": None}
    index["digest"] = manifest_digest(index)
    if key is not None:
        index["signature"] = sign_document(index, KIND, key)
    write_json(folder / INDEX, index)
    return index


def read_engines(folder: Path) -> dict[str, Any] | None:
    """Return the index of a folder of engines, None if it has none.

    Args:
        folder: ``engines`` in a bundle.

    Raises:
        BundleError: it cannot be read or lacks a field.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        return None
    index = read_json(path, "an index of engines")
    missing = [name for name in _REQUIRED if name not in index]
    missing = missing or [n for n in ("constraints", "engines", "files") if not isinstance(index[n], dict)]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}. {REBUILD.format(bundle=path.parent.parent)}")
    return index


def engine_problems(bundle: Path, manifest: Mapping[str, Any], keys: Sequence[Path] = ()) -> list[str]:
    """Compare the folder ``engines`` with its index; return one sentence for each problem."""
    folder, again = Path(bundle) / ENGINES, REBUILD.format(bundle=bundle)
    try:
        index = read_engines(folder)
    except BundleError as error:
        return [str(error)]
    if index is None:
        return [f"The folder {ENGINES} has no {INDEX}; make it with `pulse-edge build`, or delete it."]
    listed = index["files"]
    problems = [
        f"{ENGINES}/{text.split(';')[0].replace('exported', 'built')}; delete the folder {ENGINES}, or run: "
        f"pulse-edge build {bundle}"
        for name, entry in listed.items()
        if (text := file_problem(folder, name, entry))
    ]
    if index["digest"] != manifest_digest(index):
        problems.append(f"{ENGINES}/{INDEX} differs from what was built. {again}")
    if index["portable"] != manifest_digest(manifest):
        problems.append(f"The engines were made from another bundle. {again}")
    for role, entry in index["engines"].items():
        if not isinstance(entry, dict) or entry.get("file") not in listed:
            problems.append(f"The engine {role} names no file in {ENGINES}. {again}")
    problems += [
        f"{ENGINES}/{name} is not part of the engines; delete it."
        for name, _ in list_files(folder)
        if name not in listed and name != INDEX
    ]
    return problems + signature_problems(index, KIND, keys)


def mismatch(index: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Say why engines cannot run on this machine, None if they can.

    Args:
        index: of the engines.
        here: ``sm`` and ``tensorrt`` as detected, e.g. ``"8.7"`` and ``"10.3.0"``.
    """
    built = index["constraints"]
    wrong = [key for key in _TIED if built.get(key) != here.get(key)]
    there, now = (" and ".join(f"{_TIED[key]} {of.get(key)}" for key in wrong) for of in (built, here))
    return f"The engines were built for {there}, and this machine has {now}" if wrong else None

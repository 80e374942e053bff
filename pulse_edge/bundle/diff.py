"""What changed between two bundles, for whoever has to approve the change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle.engines import read_engines
from pulse_edge.bundle.manifest import ENGINES, read_manifest

# Section of the result -> fields of the manifest. Fields that no section names come as "other".
SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "model": ("model",),
    "target": ("target", "device"),
    "precision": ("precision",),
    "calibration": ("calibration",),
    "preprocessing": ("preprocessing",),
    "prompt": ("prompt", "labels", "scoring"),
    "generation": ("generation",),
    "toolchain": ("toolchain",),
    "accuracy": ("accuracy", "parity"),
    "licences": ("licences", "intended_use"),
    "signature": ("signature",),
}
_HASHED: Final = ("files", "digest")  # told file by file
Change = dict[str, Any]


def diff_bundles(a: Path, b: Path) -> dict[str, Any]:
    """Compare two bundles by their manifests; the files themselves are compared by `verify`.

    Returns:
        ``{"a": path, "b": path, "same": bool, "changes": {section: [{"what", "a", "b"}, …]}}`` with the
        sections that differ: ``weights`` (a graph's tensors) and ``graphs`` (its operators) by graph and
        file, those of :data:`SECTIONS`, ``files``, ``engines`` and ``other``. What one of the two lacks
        is None.

    Raises:
        BundleError: one of them is no bundle.
    """
    one, two = read_manifest(Path(a)), read_manifest(Path(b))
    changes = _file_changes(one, two)
    known = {field for fields in SECTIONS.values() for field in fields}
    rest = sorted((set(one) | set(two)) - known - {"graphs", *_HASHED})
    for section, fields in {**SECTIONS, "other": tuple(rest)}.items():
        changes[section] = [c for field in fields for c in _compare(field, one.get(field), two.get(field))]
    changes["graphs"] += list(_compare("", one["graphs"], two["graphs"]))
    built = [
        {k: v for k, v in (read_engines(Path(x) / ENGINES) or {}).items() if k != "digest"} for x in (a, b)
    ]
    changes["engines"] = list(_compare("", *built))
    changes = {section: rows for section, rows in changes.items() if rows}
    return {"a": str(a), "b": str(b), "same": not changes, "changes": changes}


def _file_changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[Change]]:
    """Tell changed files apart: a graph's operators, a graph's weights beside it, and others."""
    roles = {
        str(entry.get("file")): role
        for manifest in (one, two)
        for role, entry in manifest["graphs"].items()
        if isinstance(entry, dict)
    }
    changes: dict[str, list[Change]] = {"weights": [], "graphs": [], "files": []}
    for name in sorted({*one["files"], *two["files"]}):
        hashes = [(m["files"].get(name) or {}).get("sha256") for m in (one, two)]
        if hashes[0] == hashes[1]:
            continue
        owner = next((role for file, role in roles.items() if name.startswith(f"{file}.")), None)
        section = "weights" if owner else "graphs" if name in roles else "files"
        label = f"{owner or roles[name]} ({name})" if section != "files" else name
        changes[section].append({"what": label, "a": hashes[0], "b": hashes[1]})
    return changes


def _compare(path: str, a: Any, b: Any) -> Iterator[Change]:
    """Yield the innermost values that differ, with their path."""
    if a == b and type(a) is type(b):
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _compare(f"{path}.{key}" if path else str(key), a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list):
        for i in range(max(len(a), len(b))):
            pair = (x[i] if i < len(x) else None for x in (a, b))
            yield from _compare(f"{path}[{i}]", *pair)
    else:
        yield {"what": path, "a": a, "b": b}

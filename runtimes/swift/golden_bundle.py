"""The golden vectors of bundles, sound and damaged, with what Python says of them; see `golden.py`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import manifest_digest, read_manifest, verify_bundle, write_manifest
from pulse_edge.bundle.signature import BUNDLE, _message
from pulse_edge.errors import PulseEdgeError
from pulse_edge.evaluate.labels import DEFAULT_LABELS, DEFAULT_SCORING


def bundle_cases() -> dict[str, list[Any]]:
    """SHA-256 of bytes; whole bundles, sound and damaged, with what `verify` says of them."""
    lengths = [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 1000, 70000]
    hashes = []
    for length in lengths:
        data = bytes(k * 31 % 251 for k in range(length))
        hashes.append({"length": length, "sha256": hashlib.sha256(data).hexdigest()})
    return {"sha256": hashes, "bundles": [_bundle(name, damage) for name, damage in _DAMAGES.items()]}


_FIELDS: Final[Mapping[str, Any]] = {
    "model": {"name": "tiny", "parent": None, "rate": 1e-05, "n": [1, 2.5, -3, True]},
    "target": "coreml",
    "graphs": {"decoder": {"file": "decoder.bin"}, "vision": {"file": "models/vision.bin"}},
    "preprocessing": {"merge": "flat"},
    "prompt": {"template": "llava_v1", "system": 'quote " backslash \\ tab \t é 心 🫀 \x7f'},
    "generation": {"context": 1024, "max_new_tokens": 128},
    "labels": DEFAULT_LABELS,
    "scoring": DEFAULT_SCORING,
    "intended_use": "Research.",
}


def _rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text("utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")

    return damage


def _with_digest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def also_sign(manifest: dict[str, Any]) -> None:
        change(manifest)
        manifest["digest"] = manifest_digest(manifest)

    return _rewrite(also_sign)


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _link_instead(folder: Path) -> None:
    (folder / "decoder.bin").rename(folder / "d")
    (folder / "decoder.bin").symlink_to("d")


_DAMAGES: Final[Mapping[str, Callable[[Path], Any]]] = {
    "sound": lambda folder: None,
    "laid out anew": _rewrite(lambda m: None),
    "a byte changed": _write("decoder.bin", "decodes"),
    "a byte more": _write("decoder.bin", "decoder "),
    "a file missing": lambda folder: (folder / "models" / "vision.bin").unlink(),
    "a file too many": _write("models/other.bin", "x"),
    "a link": lambda folder: (folder / "link").symlink_to("decoder.bin"),
    "a listed link": _link_instead,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "not JSON": _write("manifest.json", "{"),
    "a list": _write("manifest.json", "[]"),
    "empty": _write("manifest.json", ""),
    "no schema": _rewrite(lambda m: m.pop("schema")),
    "schema true": _rewrite(lambda m: m.update(schema=True)),
    "schema 1.0": _rewrite(lambda m: m.update(schema=1.0)),
    "schema 0": _rewrite(lambda m: m.update(schema=0)),
    "fields gone": _rewrite(lambda m: (m.pop("prompt"), m.pop("graphs"))),
    "files a list": _rewrite(lambda m: m.update(files=[])),
    "target changed": _rewrite(lambda m: m.update(target="onnx")),
    "outside": _with_digest(lambda m: m["files"].update({"../x": {"sha256": "", "bytes": 1}})),
    "absolute": _with_digest(lambda m: m["files"].update({"/etc/passwd": {"sha256": "", "bytes": 1}})),
    "an entry null": _with_digest(lambda m: m["files"].update({"decoder.bin": None})),
    "a graph without file": _with_digest(lambda m: m["graphs"].update(vision=None, decoder={"file": "no"})),
    "a package": _with_digest(lambda m: m["graphs"].update(vision={"file": "models"})),
    "a folder listed": _with_digest(lambda m: m["files"].update(models={"sha256": "", "bytes": 1})),
}  # fmt: skip


def _bundle(name: str, damage: Callable[[Path], Any]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "models").mkdir()
        (folder / "decoder.bin").write_text("decoder")
        (folder / "models" / "vision.bin").write_text("vision" * 9)
        write_manifest(folder, _FIELDS)
        damage(folder)
        files = {
            path.relative_to(folder).as_posix(): path.read_text("utf-8")
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        links = {
            path.relative_to(folder).as_posix(): str(path.readlink())
            for path in sorted(folder.rglob("*"))
            if path.is_symlink()
        }
        digest: str | None = None
        message: str | None = None
        with contextlib.suppress(PulseEdgeError):
            manifest = read_manifest(folder)
            digest, message = manifest_digest(manifest), _message(manifest, BUNDLE).decode()
        problems = [text.replace(str(folder), "{folder}") for text in verify_bundle(folder)]
        # Why a text is not JSON, every reader says in its own words.
        problems = [re.sub(r"(cannot be read: ).*(\. Copy)", r"\1…\2", text) for text in problems]
        return {"name": name, "files": files, "links": links, "digest": digest, "problems": problems} | {
            "message": message
        }
    finally:
        shutil.rmtree(folder)


MAKERS: Final = {"bundle": bundle_cases}

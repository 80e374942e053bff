"""Small bundles with nothing in them that runs, and keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.bundle import write_manifest
from pulse_edge.bundle.signature import PASSPHRASE, REQUIRE_KEY, make_keys

FIELDS: dict[str, Any] = {
    "model": {"name": "tiny"},
    "target": "onnx",
    "graphs": {"vision": {"file": "vision.onnx"}},
    "preprocessing": {"merge": "flat"},
    "prompt": {"system": "Be brief."},
    "generation": {"context": 512},
}


@pytest.fixture(autouse=True)
def _no_keys_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUIRE_KEY, raising=False)
    monkeypatch.delenv(PASSPHRASE, raising=False)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle; ``weights`` and further fields of the manifest tell one from the other."""

    def make(name: str = "bundle", weights: bytes = b"weights", **fields: Any) -> Path:
        folder = tmp_path / name
        (folder / "build").mkdir(parents=True)
        (folder / "vision.onnx").write_bytes(b"graph")
        (folder / "vision.onnx.data").write_bytes(weights)
        (folder / "build" / "build.sh").write_text("exit 0\n")
        (folder / "build" / "build.sh").chmod(0o755)
        write_manifest(folder, {**FIELDS, **fields})
        return folder

    return make


@pytest.fixture
def tiny(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is ``public(key)``."""
    return Path(make_keys(tmp_path / "maker.key")["key"])


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    return Path(make_keys(tmp_path / "other.key")["key"])

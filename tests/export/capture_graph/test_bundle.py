"""The capture graph stands in the bundle, as one more role."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.contract import CAPTURE_FACTS
from pulse_edge.export import export_bundle
from pulse_edge.export.capture_graph import onnx as writer
from pulse_edge.runtimes.capture.onnx import open_graph


@pytest.fixture
def at_hand(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the graph takes most of a minute: the one that was written is copied."""
    monkeypatch.setattr(writer, "write_onnx", lambda path: shutil.copyfile(graph, path))


@pytest.mark.parametrize("target", ["onnx", "jetson"])
@pytest.mark.usefixtures("at_hand")
def test_a_bundle_holds_the_graph(checkpoint: Path, tmp_path: Path, target: str) -> None:
    bundle = tmp_path / "bundle"
    steps: list[str] = []
    export_bundle(checkpoint, bundle, target, capture=True, report=steps.append)
    assert "capture graph" in steps
    entry: dict[str, Any] = read_manifest(bundle)["graphs"]["capture"]
    assert entry["file"] == "capture.onnx"
    assert entry["inputs"]["image"] == {"dtype": "float", "shape": [1, 3, 1600, 1600]}
    assert entry["outputs"]["pixel_values"]["shape"] == [5, 3, 336, 336]
    assert entry["outputs"]["facts"]["shape"] == [len(CAPTURE_FACTS)]
    assert verify_bundle(bundle) == []
    assert open_graph(bundle).side == 1600
    if target == "jetson":
        script = bundle / "build" / "build.sh"
        assert "--onnx=capture.onnx" in script.read_text("utf-8")
        subprocess.run(["sh", "-n", str(script)], check=True)


def test_a_bundle_is_as_before_without_it(checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path / "bundle", "onnx")
    assert "capture" not in read_manifest(tmp_path / "bundle")["graphs"]

"""A bundle runs where torch, transformers and the ONNX tool chain cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pulse_edge.samples import SAMPLES

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "onnx", "onnxscript", "accelerate"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from pulse_edge.cli import main
main()
"""


@pytest.mark.parametrize(
    "source", [("--image", SAMPLES / "normal.png"), ("--record", SAMPLES / "00057")], ids=["image", "record"]
)
def test_a_bundle_runs_without_torch(source, small_bundle) -> None:
    command = [sys.executable, "-c", BLOCKED, "run", str(small_bundle), *map(str, source)]
    done = subprocess.run(
        [*command, "--max-new-tokens", "6", "--json"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert len(result["labels"]) == 5
    assert all(value > 0 for value in result["timing_ms"].values())

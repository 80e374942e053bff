"""An export holds one panel of one weight, whatever the size of the checkpoint: the kernel sees to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Beyond what the imports take: a panel of 96 MiB, one piece and its rounding. RLIMIT_DATA counts what a
# process allocates, and unlike RLIMIT_AS not the libraries and files that it maps.
ROOM = 220 << 20
SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np
from pulse_edge.export import exporter, export_bundle

def status(key):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key + ":"))

before = status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (before + int(sys.argv[4]), resource.RLIM_INFINITY))
if sys.argv[3] == "load":  # the control: reading a checkpoint whole
    arrays = [np.fromfile(path, np.uint8) for path in sorted(Path(sys.argv[1]).glob("*.safetensors"))]
else:
    export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), "jetson", precision=sys.argv[3])
print(json.dumps({"peak": status("VmHWM"), "torch": "torch" in sys.modules}))
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """PULSE's own tower in full, and a decoder with wide matrices: 260 million weights in bfloat16."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    script = (
        "import sys; sys.path.insert(0, 'benchmarks'); import make_checkpoint as m;"
        "m.SIZES['7b'].update(hidden_size=2048, intermediate_size=5632, num_hidden_layers=1, "
        "num_attention_heads=16, num_key_value_heads=16, shard=3e8);"
        "m.VOCABULARY = 4000; m.CLIP['layers'] = 14;"
        f"sys.argv = ['make_checkpoint', {str(folder)!r}]; m.main()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    return folder


def run(checkpoint, output, what, room=ROOM):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(output), what, str(room)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@linux
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_peak_memory_is_bounded_by_the_kernel(checkpoint, tmp_path, precision) -> None:
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert size > 1.8 * ROOM
    done = run(checkpoint, tmp_path / "out", precision)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["peak"] < 500e6  # with interpreter and libraries; for any size of checkpoint
    assert not result["torch"]


@linux
def test_the_limit_would_stop_what_holds_the_checkpoint(checkpoint, tmp_path) -> None:
    done = run(checkpoint, tmp_path / "out", "load")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr
    assert run(checkpoint, tmp_path / "out", "load", room=10 * ROOM).returncode == 0


@linux
def test_the_embedding_table_is_mapped_not_read(tmp_path) -> None:
    """ONNX Runtime maps the file: a table of 131 MB costs what is looked up."""
    script = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from pulse_edge.export.decoder import plan_embedding
from pulse_edge.export.weights import precision

class Table:
    shape = staticmethod(lambda name: (32000, 2048))
    kind = staticmethod(lambda name: "F16")
    form = staticmethod(lambda name: None)
    rows = staticmethod(lambda name, start, stop: np.full((stop - start, 2048), 0.5, np.float16))

def own():
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:")) * 1024

writer, _ = plan_embedding(Path(sys.argv[1]), Table(), precision("fp16", "jetson"))
writer.fill()
before = own()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
assert session.run(None, {"input_ids": np.array([[1, 31999]])})[0].max() == 0.5
print(own() - before)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tmp_path / "embed.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32e6

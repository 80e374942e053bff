"""How much memory ONNX Runtime holds for a decoder, by precision: what `fit.HELD` and `fit.RUNTIME` rest on.

    python benchmarks/ort_memory.py

Exports a decoder of 170 million random weights in each precision, opens its graphs as the runtime does, reads
a prompt and a token in a process of its own, and compares its peak with the weights that the plan counts.
Needs Linux, 3 GB and the extra `export`. Prints a table and writes results/ort_memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe_machine

from pulse_edge.fit import Setup, prompt_bytes, weight_bytes
from pulse_edge.model.checkpoint import resolve_model, save_model
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.shape import read_shape

RESULT = Path(__file__).parent / "results" / "ort_memory.json"
PRECISIONS = ("fp32", "fp16", "int8", "int4")
VISION = {"widths": [6, 6, 12, 24], "strides": [4, 2, 2, 3], "depths": [0, 0, 0, 1], "context_layers": 1}
TEXT = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 512,
}
# Run in a process of its own: prints the peaks in MB before and after. (getrusage would begin with the
# peak of the process that started this one.)
RUN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from pulse_edge.runtimes.cache import PROMPT, open_cache
from pulse_edge.runtimes.onnx import _open
def peak():
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1.024e-3
before = peak()
folder = Path(sys.argv[1])
graphs = json.loads((folder / "manifest.json").read_text("utf-8"))["graphs"]
decoder = _open(folder / "decoder.onnx", 1)
prompt = _open(folder / "prompt.onnx", 1, True) if "prompt" in graphs else None
cache = open_cache(decoder, graphs["decoder"], 2 * PROMPT, prompt)
for count in (PROMPT, 1):
    cache.read(np.zeros((count, graphs["decoder"]["inputs"]["inputs_embeds"]["shape"][2]), np.float32))
print(before, peak())
"""


def make_checkpoint(folder: Path) -> None:
    """Write a checkpoint with random weights and pulse-nano's tokenizer."""
    from pulse_edge.train.build import build_model
    from pulse_edge.train.recipe import ModelShape

    tokenizer = Tokenizer.from_folder(resolve_model("pulse-nano"))
    model = build_model(ModelShape(tokenizer.vocab_size, VISION, TEXT), tokenizer.vocab_size)
    save_model(model.eval(), tokenizer, folder, {"name": "ort-memory"})


def measure(checkpoint: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Export in a precision and run the decoder once.

    Returns:
        In MB: ``counted`` (weights as the plan counts them, the embedding table, which is another graph's,
        left out), ``before`` and ``peak`` of the process, and ``held``, the rise over ``counted``.
    """
    from pulse_edge.export import export_bundle

    export_bundle(checkpoint, folder, "onnx", precision=precision)
    command = [sys.executable, "-c", RUN, str(folder)]
    before, peak = map(
        float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    shape, setup = read_shape(checkpoint), Setup(precision=precision, target="onnx")
    table = shape.table * (4 if precision == "fp32" else 2)
    counted = (weight_bytes(shape, setup) + prompt_bytes(shape, setup) - table) / 1e6
    return {"counted": counted, "before": before, "peak": peak, "held": (peak - before) / counted}


def main() -> None:
    """Measure every precision, print a table and write the result."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        make_checkpoint(checkpoint)
        rows = {name: measure(checkpoint, Path(scratch) / name, name) for name in PRECISIONS}
    for name, row in rows.items():
        print(
            f"{name:6s}counted {row['counted']:7.1f} MB, process {row['before']:6.1f} to "
            f"{row['peak']:7.1f} MB: {row['held']:.2f} times"
        )
    RESULT.write_text(
        json.dumps({**describe_machine(), "precisions": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

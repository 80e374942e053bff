"""The capture graph as one ONNX file, weights inside.

torch's exporter through dynamo takes minutes of processor time for so many small operations, so the trace
is exported; ONNX Runtime's basic optimiser then computes what is constant, and constants that are the same
are stored once.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import onnx
import torch

from pulse_edge.bundle import write_atomic
from pulse_edge.errors import PulseEdgeError
from pulse_edge.export.capture_graph.module import OUTPUTS, CaptureGraph
from pulse_edge.export.capture_graph.reference import LONG_SIDE
from pulse_edge.export.capture_graph.traced import example, quiet

OPSET: Final = 18  # reductions with computed axes; every TensorRT 10 reads it
INPUTS: Final = ("image", "size")


def write_onnx(path: Path, side: int = LONG_SIDE) -> None:
    """Write ``capture.onnx``: `module.CaptureGraph` for a canvas of ``side`` pixels.

    Raises:
        OSError: the disk is full.
        PulseEdgeError: the optimiser left operators that are not ONNX's own.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        raw, folded = Path(place) / "raw.onnx", Path(place) / "folded.onnx"
        with quiet():
            torch.onnx.export(
                CaptureGraph(side).eval(),
                example(side),
                str(raw),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
            )
        _fold(raw, folded)
        model = onnx.load(str(folded))
    foreign = {node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign:
        raise PulseEdgeError(
            f"ONNX Runtime put {', '.join(sorted(foreign))} into the capture graph, "
            "which other runtimes lack. "
            "Export with --no-capture, or with another version of onnxruntime."
        )
    tidy(model)
    onnx.checker.check_model(model)
    write_atomic(path, model.SerializeToString(deterministic=True))


def _fold(source: Path, target: Path) -> None:
    """Let ONNX Runtime compute what is constant and drop what is said twice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = os.fspath(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])


def tidy(model: onnx.ModelProto) -> None:
    """Store equal constants once, and remove what names this machine; in place."""
    graph = model.graph
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        same[tensor.name] = first.setdefault(key, tensor.name)
        if same[tensor.name] == tensor.name:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for k, name in enumerate(node.input):
            node.input[k] = same.get(name, name)
    del graph.value_info[:]
    model.doc_string = ""
    # The optimiser lists its own domains even where it used none of them.
    plain = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(plain)

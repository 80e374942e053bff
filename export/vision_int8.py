"""The vision graph with 8-bit weights and activations, by NNCF, in the form that engines take.

NNCF observes ranges on calibration pages and corrects biases (its FAST_BIAS_CORRECTION). Weights have a scale
for every output channel, activations one for the tensor; all zero points are 0. Only convolutions and matrix
products are rounded: of a network that reads ECGs, sums and activation functions cost more accuracy than
time (docs/compress.md has the figures).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from pulse_edge.errors import GateError, MissingExtraError

# Everything that NNCF would round as well.
LEFT: Final = ("Add", "Div", "Erf", "Gelu", "LayerNormalization", "Mul", "Sigmoid", "Softmax", "Sub")
_SMALL: Final = 1024  # bytes of a tensor that stays in the graph's own file


def round_vision(path: Path, tiles: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """Round ``vision.onnx`` in place.

    Args:
        path: of the graph, float32, with its weights beside it.
        tiles: calibration pages, float32 [5, 3, 336, 336] each.

    Returns:
        ``method``, ``pages`` and ``products``: how many convolutions and matrix products read integers.

    Raises:
        GateError: NNCF made a form that TensorRT does not take.
        MissingExtraError: nncf is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its makers
    with contextlib.redirect_stdout(io.StringIO()):  # it draws bars
        try:
            import nncf
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "nncf", "compress") from error
        logging.getLogger("nncf").setLevel(logging.ERROR)
        model = onnx.load(str(path))
        feed = model.graph.input[0].name
        rounded = nncf.quantize(
            model,
            nncf.Dataset([{feed: page} for page in tiles]),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric: TensorRT takes no other zero point
            subset_size=len(tiles),
            ignored_scope=nncf.IgnoredScope(types=list(LEFT), validate=False),
        )
    _settle(rounded)
    for entry in (path, path.with_name(f"{path.name}.data")):
        entry.unlink()
    onnx.save(
        rounded, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=_SMALL
    )
    made = {output: node for node in rounded.graph.node for output in node.output}
    products = [
        node
        for node in rounded.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and all(made[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in made)
    ]
    return {"method": f"nncf {nncf.__version__}", "pages": len(tiles), "products": len(products)}


def _settle(model: onnx.ModelProto) -> None:
    """Count axes from the front, as TensorRT's and ONNX Runtime's patterns do, and make unsigned integers
    signed: for what is never negative NNCF takes uint8, but TensorRT int8 only."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        node.doc_string = ""
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        scale, zero = (held[name] for name in node.input[1:3])
        for attribute in node.attribute:
            if attribute.name == "axis" and attribute.i < 0 and node.input[0] in held:
                attribute.i += len(held[node.input[0]].dims)
        offset = onnx.numpy_helper.to_array(zero)
        if offset.any():
            raise GateError(
                f"NNCF gave {node.name} a zero point, which TensorRT does not take. Nothing was kept. "
                'Install the tested version: pip install "pulse-edge[compress]"'
            )
        if offset.dtype == np.uint8:
            wider = onnx.numpy_helper.to_array(scale) * np.float32(255 / 127)
            scale.CopyFrom(onnx.numpy_helper.from_array(wider, scale.name))
            zero.CopyFrom(onnx.numpy_helper.from_array(offset.astype(np.int8), zero.name))
    del model.graph.value_info[:]  # which says uint8

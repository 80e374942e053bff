"""What each version of TensorRT documents that its ONNX parser takes: data, every entry with its source.

Sources, by short name in the entries:

- ``tables``: docs/operators.md of onnx/onnx-tensorrt as released with TensorRT 9.2 and with 10.15. What
  both tables have holds for every 10.x between; of their restrictions the stricter counts.
- ``tables 8.5``: the same file as released with TensorRT 8.5.
- ``changelog``: docs/Changelog.md of onnx/onnx-tensorrt, the entries of 10.0 to 10.15.
- ``guide``: NVIDIA's developer guide, "Working with Quantized Types", 10.11 and 11.0.
- ``opsets``: "ONNX Opset Guide" of TensorRT 11.x, and the release notes of NVIDIA/TensorRT v11.5.

TensorRT 11 removed precision flags and weak typing but no operator that is used here. Only what our graphs
use is listed. Nothing here was run on TensorRT: it says what the documents promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Version = tuple[int, int]

FLOATS: Final = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
INTEGERS: Final = frozenset({"INT32", "INT64"})
NUMBERS: Final = FLOATS | INTEGERS
ANY: Final = NUMBERS | {"BOOL"}
QUANTISED: Final = frozenset({"INT8", "INT4"})


@dataclass(frozen=True)
class Operator:
    """An operator.

    Attributes:
        types: that its data may have.
        since: first version that takes it.
        source: short name, see above.
    """

    types: frozenset[str]
    since: Version = (9, 2)
    source: str = "tables"


OPERATORS: Final[dict[str, Operator]] = {
    **dict.fromkeys(
        ("Add", "Div", "LessOrEqual", "Mul", "Neg", "Range", "ReduceMean", "Sub"), Operator(NUMBERS)
    ),
    **dict.fromkeys(
        ("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze",
         "Transpose", "Unsqueeze", "Where"), Operator(ANY),
    ),
    **dict.fromkeys(
        ("Conv", "Erf", "Gemm", "Greater", "LayerNormalization", "MatMul", "MaxPool", "QuantizeLinear",
         "ReduceSum", "Sigmoid", "Softmax", "Sqrt", "TopK"),
        Operator(FLOATS),
    ),
    # Of the capture graph; the table of 8.5 has them, and none was taken out since.
    **dict.fromkeys(
        ("Abs", "GreaterOrEqual", "Less", "Max", "Min", "Pad", "Sign"),
        Operator(NUMBERS, source="tables 8.5"),
    ),
    **dict.fromkeys(
        ("ArgMax", "AveragePool", "Ceil", "Clip", "Cos", "Exp", "Floor", "GridSample", "Log", "Pow",
         "Reciprocal", "ReduceMax", "ReduceMin", "Relu", "Round", "Sin"),
        Operator(FLOATS, source="tables 8.5"),
    ),
    **dict.fromkeys(("GatherElements", "Split"), Operator(ANY, source="tables 8.5")),
    "DequantizeLinear": Operator(QUANTISED),
    "Attention": Operator(FLOATS, (10, 14), "changelog"),
    "RMSNormalization": Operator(FLOATS, (10, 15), "changelog"),
    "RotaryEmbedding": Operator(FLOATS, (10, 15), "changelog"),
}  # fmt: skip
# Types that are younger than their operator: (operator, type) -> first version, source.
TYPES_SINCE: Final[dict[tuple[str, str], tuple[Version, str]]] = {
    ("DequantizeLinear", "INT4"): ((10, 0), "changelog"),
}
# Inputs that steer an operator rather than being its data: position -> types.
STEERING: Final[dict[str, dict[int, frozenset[str]]]] = {
    "Attention": {3: FLOATS | {"BOOL"}},
    "DequantizeLinear": {1: FLOATS, 2: QUANTISED},
    "Expand": {1: INTEGERS},
    "Gather": {1: INTEGERS},
    "GatherElements": {1: INTEGERS},
    "Pad": {1: INTEGERS, 3: INTEGERS},
    "QuantizeLinear": {2: QUANTISED},
    **{name: {1: INTEGERS} for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")},
    "Reshape": {1: INTEGERS},
    "RotaryEmbedding": {3: frozenset({"INT64"})},
    "Slice": dict.fromkeys((1, 2, 3, 4), INTEGERS),
    "Split": {1: INTEGERS},
    "Squeeze": {1: INTEGERS},
    "Unsqueeze": {1: INTEGERS},
    "TopK": {1: INTEGERS},
    "Where": {0: frozenset({"BOOL"})},
}
# Inputs that must be known when the engine is built: operator -> position, first version that lifts it,
# source.
FIXED: Final[dict[str, tuple[int, Version | None, str]]] = {
    "ReduceMean": (1, None, "tables"),
    "Slice": (3, (10, 3), "changelog"),
    "Squeeze": (1, (10, 7), "changelog"),
    "TopK": (1, None, "tables 8.5"),
    "Unsqueeze": (1, (10, 7), "changelog"),
}
# Highest opset by the first version that states it.
OPSETS: Final[tuple[tuple[Version, int, str], ...]] = (
    ((9, 2), 19, "tables"),
    ((10, 0), 20, "docs/operators.md of 10.0"),
    ((10, 9), 22, "release notes of 10.9"),
    ((10, 13), 24, "release notes of 10.13; tables"),
    ((11, 5), 25, "opsets"),
)
# Blocks of DequantizeLinear are opset 21. The parser has taken int4 since 10.0, whose blocks need it, while
# versions before 10.9 state opset 20: the first thing to check on such a device.
INT4_OPSET: Final[tuple[Version, int, str]] = ((10, 1), 21, "changelog; guide")
INT4_BLOCKS: Final = (64, 128)  # guide
# Attention's inputs, outputs and attributes that the parser refuses (tables, 10.15).
ATTENTION_INPUTS: Final = 4
ATTENTION_REFUSED: Final = ("softcap", "qk_matmul_output_mode")

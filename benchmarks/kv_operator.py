"""What a key-value cache of 8-bit integers does to the speed of attention in ONNX Runtime on a CPU.

    python benchmarks/kv_operator.py

The profile ``ort`` attends with GroupQueryAttention, which takes such a cache with a fixed scale for every
head and channel. Here the operator is alone, with random queries, keys and values, once with a cache of
float32 and once of int8, its memory appended to in place as the runtime does: the picture and its question
are read at once, then tokens one by one. Times are of the processor, one thread, the median of several runs;
the largest difference of the output says that both compute the same. Prints a table and writes
results/kv_operator.json. Two minutes and 1 GB.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from machine import describe_machine
from numpy.typing import NDArray
from onnx import TensorProto, helper

os.environ["ORT_GQA_DISABLE_FLASH_ATTENTION"] = "1"  # as runtimes/onnx.py opens graphs
import onnxruntime

RESULT = Path(__file__).parent / "results" / "kv_operator.json"
LARGEST = 5.0  # of what enters the cache: normal numbers, cut there
# name: query heads, key-value heads, width of a head, layers, visual tokens and a question
SHAPES = {"pulse-nano": (6, 2, 32, 4, 309), "pulse-7b": (32, 32, 128, 32, 2944)}
TOKENS, PROMPTS = 64, 3
ROOM = 8
Array = NDArray[np.float32]


def graph(heads: int, pairs: int, width: int, integers: bool) -> bytes:
    """Return a model of one operator; its cache is int8 if ``integers``."""
    cache = TensorProto.INT8 if integers else TensorProto.FLOAT
    value = helper.make_tensor_value_info
    widths = {"q": heads * width, "k": pairs * width, "v": pairs * width}
    inputs = [value(name, TensorProto.FLOAT, [1, "S", wide]) for name, wide in widths.items()]
    inputs += [value(f"past_{n}", cache, [1, pairs, "P", width]) for n in "kv"]
    inputs += [value(n, TensorProto.INT32, [1]) for n in ("last", "total")]
    outputs = [value("out", TensorProto.FLOAT, [1, "S", heads * width])]
    outputs += [value(f"present_{n}", cache, [1, pairs, "T", width]) for n in "kv"]
    names, scales = ["q", "k", "v", "past_k", "past_v", "last", "total"], []
    form: dict[str, Any] = {}
    if integers:
        scale = np.full((1, pairs, 1, width), LARGEST / 127, np.float32)
        scales = [onnx.numpy_helper.from_array(scale, f"scale_{n}") for n in "kv"]
        names += ["", "", "", "", "", "scale_k", "scale_v"]
        form = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    node = helper.make_node(
        "GroupQueryAttention", names, [o.name for o in outputs], domain="com.microsoft",
        num_heads=heads, kv_num_heads=pairs, scale=width**-0.5, **form,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    whole = helper.make_graph([node], "attention", inputs, outputs, scales)
    return bytes(helper.make_model(whole, opset_imports=opsets, ir_version=10).SerializeToString())


class Attention:
    """The operator with its cache; the numbers that it is given are the same in every object."""

    def __init__(self, heads: int, pairs: int, width: int, context: int, integers: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph(heads, pairs, width, integers), options)
        self.sizes = {"q": heads * width, "k": pairs * width, "v": pairs * width}
        self.draw = np.random.default_rng(0)
        kind = np.int8 if integers else np.float32
        self.memory = {
            n: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, pairs, context, width), kind))
            for n in "kv"
        }

    def read(self, count: int, total: int) -> tuple[float, Array]:
        """Read ``count`` tokens, ``total`` with them; seconds of the processor, and the output."""
        binding = self.session.io_binding()
        for name, size in self.sizes.items():
            drawn = self.draw.standard_normal((1, count, size)).astype(np.float32)
            binding.bind_cpu_input(name, np.clip(drawn, -LARGEST, LARGEST))
        binding.bind_cpu_input("last", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total", np.array([total], np.int32))
        binding.bind_output("out")
        for name, value in self.memory.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        begin = time.process_time()
        self.session.run_with_iobinding(binding)
        return time.process_time() - begin, binding.get_outputs()[0].numpy()


def measure(name: str) -> dict[str, Any]:
    """Time one shape in both forms: milliseconds of one layer, and bytes of the cache of all layers."""
    heads, pairs, width, layers, length = SHAPES[name]
    row: dict[str, Any] = {"model": name, "tokens": length, "layers": layers}
    outputs = {}
    for form in ("float32", "int8"):
        one = Attention(heads, pairs, width, length + ROOM, form == "int8")
        prompts = [one.read(length, length) for _ in range(PROMPTS)]
        steps = [one.read(1, length + 1) for _ in range(TOKENS)]
        outputs[form] = steps[0][1]
        row[form] = {
            "prompt_ms": 1e3 * median(seconds for seconds, _ in prompts),
            "token_ms": 1e3 * median(seconds for seconds, _ in steps),
            "cache_bytes": 2 * layers * pairs * width * length * (1 if form == "int8" else 4),
        }
    row["largest_difference"] = float(np.abs(outputs["int8"] - outputs["float32"]).max())
    slower, faster = (row["int8"][k] - row["float32"][k] for k in ("prompt_ms", "token_ms"))
    # Tokens after which what every token saves has paid for what the prompt cost.
    row["pays_after_tokens"] = slower / -faster if faster < 0 < slower else None
    return row


def main() -> None:
    """Measure, print the table, write the JSON."""
    rows = [measure(name) for name in SHAPES]
    print(f"{'a layer':12s}{'tokens':>8s}{'prompt, ms':>22s}{'a token, ms':>22s}{'cache, MB':>18s}")
    for row in rows:
        pairs = [(row["float32"][k], row["int8"][k]) for k in ("prompt_ms", "token_ms", "cache_bytes")]
        (p0, p1), (t0, t1), (c0, c1) = pairs
        print(
            f"{row['model']:12s}{row['tokens']:>8d}{p0:>11.2f} -> {p1:.2f}{t0:>13.4f} -> {t1:.4f}"
            f"{c0 / 1e6:>10.1f} -> {c1 / 1e6:.1f}   differs by {row['largest_difference']:.4f}, pays after "
            f"{row['pays_after_tokens'] and round(row['pays_after_tokens'])} tokens"
        )
    report = {"command": "python benchmarks/kv_operator.py", "onnxruntime": onnxruntime.__version__}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**report, **describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

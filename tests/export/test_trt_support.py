"""The check against TensorRT's documents must refuse what they do not promise, and say what and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pulse_edge.device import list_devices, load_device
from pulse_edge.errors import GateError
from pulse_edge.export.onnx_writer import check_graph, infer
from pulse_edge.export.trt_support import highest_opset, problems
from pulse_edge.export.trt_tables import OPERATORS


def write(path, nodes, inputs, outputs, constants=(), opset=18, domain=None):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        list(constants),
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def array(name, values):
    return onnx.numpy_helper.from_array(np.asarray(values), name)


FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
X = ("x", FLOAT, [2, 4])


def node(kind, *inputs, out="y", **attributes):
    return helper.make_node(kind, list(inputs), [out], name="culprit", **attributes)


CASES = {
    "no such operator": (
        [node("Unique", "x")], [X], [("y", FLOAT, None)], [],
        "'culprit' (Unique) is not in TensorRT's table; rewrite",
    ),
    "type of the data": (
        [node("Add", "x", "x")], [("x", DOUBLE, [2])], [("y", DOUBLE, [2])], [],
        "'culprit' (Add) is not documented for DOUBLE 'x'; cast",
    ),
    "type of a second input": (
        [node("Where", "c", "x", "x")], [("c", TensorProto.BOOL, [2]), ("x", TensorProto.UINT8, [2])],
        [("y", TensorProto.UINT8, [2])], [],
        "'culprit' (Where) is not documented for UINT8 'x'; cast",
    ),
    "type that a cast makes": (
        [node("Cast", "x", to=DOUBLE)], [X], [("y", DOUBLE, [2, 4])], [],
        "'culprit' (Cast) cannot make DOUBLE; cast",
    ),
    "computed axes": (
        [node("ReduceMean", "x", "a")], [X, ("a", INT64, [1])], [("y", FLOAT, None)], [],
        "'culprit' (ReduceMean) computes its axes 'a'; make them an initialiser",
    ),
    "second output": (
        [helper.make_node("LayerNormalization", ["x", "s"], ["y", "m"], name="culprit")], [X],
        [("y", FLOAT, [2, 4]), ("m", FLOAT, [2, 1])], [array("s", np.ones(4, np.float32))],
        "'culprit' (LayerNormalization) has more than one output; use only the first",
    ),
    "zero point": (
        [node("DequantizeLinear", "q", "s", "z", axis=1)], [], [("y", FLOAT, [2, 4])],
        [array("q", np.ones((2, 4), np.int8)), array("s", np.ones(4, np.float32)),
         array("z", np.arange(4, dtype=np.int8))],
        "'culprit' (DequantizeLinear) has a zero point other than 0; quantise symmetrically",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_names_node_operator_and_remedy(tmp_path, case):
    nodes, inputs, outputs, constants, sentence = CASES[case]
    found = problems(write(tmp_path / "g.onnx", nodes, inputs, outputs, constants))
    assert [f for f in found if f.startswith("g.onnx: node ") and sentence in f], found


def test_a_foreign_domain_is_refused(tmp_path):
    path = tmp_path / "g.onnx"
    write(
        path,
        [node("MatMulNBits", "x", domain="com.microsoft")],
        [X],
        [("y", FLOAT, [2, 4])],
        domain="com.microsoft",
    )
    assert "is of domain 'com.microsoft'; rewrite it with plain ONNX operators" in problems(path)[0]


@pytest.mark.parametrize(
    ("rows", "columns", "block", "fault"),
    [(128, 4, 64, None), (256, 4, 128, None), (64, 4, 32, "int4 blocks of 32; use 64 or 128"),
     (64, 3, 64, "odd last dimension, 3; keep this layer in fp16")],
)  # fmt: skip
def test_rules_of_int4(tmp_path, rows, columns, block, fault):
    values = helper.make_tensor("q", TensorProto.INT4, [rows, columns], np.ones(rows * columns, np.int8))
    scale = array("s", np.ones((rows // block, columns), np.float32))
    nodes = [node("DequantizeLinear", "q", "s", axis=0, block_size=block)]
    path = write(tmp_path / "g.onnx", nodes, [], [("y", FLOAT, [rows, columns])], [values, scale], opset=21)
    found = problems(path, "10.3.0")
    assert ([] if fault is None else [True]) == [fault in f for f in found]


def test_the_opset_must_be_one_that_the_devices_version_reads(tmp_path):
    versions = ("9.2", "10.0.1", "10.3.0", "10.9", "10.13.3.9", "11.4.1", "11.5", None)
    assert [highest_opset(version) for version in versions] == [19, 20, 21, 22, 24, 24, 25, 25]
    path = write(tmp_path / "g.onnx", [node("Neg", "x")], [X], [("y", FLOAT, [2, 4])], opset=22)
    assert problems(path, "10.9.0") == []
    assert "has opset 22, and TensorRT 10.3.0 reads up to 21" in problems(path, "10.3.0")[0]
    for name in list_devices():
        highest_opset(load_device(name).values["tensorrt"].value)  # every profile's version is readable


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_what_we_export_passes(bundle, precision):
    for path in sorted(bundle("jetson", precision).glob("*.onnx")):
        assert problems(path, "10.3.0") == []
        model, _, _ = infer(path)
        assert {node.op_type for node in model.graph.node} <= set(OPERATORS)


@pytest.mark.parametrize("target", ["jetson", "onnx"])
def test_every_tensor_of_every_graph_has_a_type_and_rank(bundle, target):
    for path in bundle(target, {"jetson": "fp16", "onnx": "fp32"}[target]).glob("*.onnx"):
        check_graph(path)
        model, types, _ = infer(path)
        assert {name for node in model.graph.node for name in node.output} <= set(types)
        assert "DOUBLE" not in types.values()


def test_a_graph_that_is_not_valid_is_refused(tmp_path):
    mixed = write(
        tmp_path / "mixed.onnx", [node("Add", "x", "i")], [X, ("i", INT64, [2, 4])], [("y", FLOAT, [2, 4])]
    )
    unknown = write(
        tmp_path / "unknown.onnx", [node("Reshape", "x", "s")], [X, ("s", INT64, None)], [("y", FLOAT, None)]
    )
    for path in (mixed, unknown):
        with pytest.raises(GateError, match=f"{path.name} is not valid ONNX"):
            check_graph(path)


FLOAT16, INT8 = TensorProto.FLOAT16, TensorProto.INT8
FOUR = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "inputs", "since"),
    [
        ("Attention", [("q", FLOAT, FOUR), ("k", FLOAT, FOUR), ("v", FLOAT, FOUR)], "10.14"),
        ("RMSNormalization", [("x", FLOAT, FOUR), ("s", FLOAT, [4])], "10.15"),
        ("RotaryEmbedding", [("x", FLOAT, FOUR), ("c", FLOAT, [1, 3, 2]), ("s", FLOAT, [1, 3, 2])], "10.15"),
    ],
)
def test_an_operator_is_refused_before_the_version_that_brought_it(tmp_path, kind, inputs, since):
    names = [name for name, _, _ in inputs]
    path = write(tmp_path / "g.onnx", [node(kind, *names)], inputs, [("y", FLOAT, FOUR)], opset=23)
    for version in ("10.13.3.9", "10.3.0"):
        found = [fault for fault in problems(path, version) if "node 'culprit'" in fault]
        assert [
            f"({kind}) came with TensorRT {since}; use --profile trt, or update JetPack." in f for f in found
        ] == [True]
    for version in ("10.15.1", "11.4.1", None):
        assert problems(path, version) == []


def test_what_tensorrt_does_not_take_of_attention(tmp_path):
    names = ["q", "k", "v", "", "pk", "pv"]
    inputs = [(name, FLOAT, FOUR) for name in names if name]
    past = helper.make_node("Attention", names, ["y", "nk", "nv"], name="culprit", softcap=5.0)
    outputs = [("y", FLOAT, FOUR), ("nk", FLOAT, [1, 2, 6, 4]), ("nv", FLOAT, [1, 2, 6, 4])]
    found = " ".join(problems(write(tmp_path / "g.onnx", [past], inputs, outputs, opset=23), "10.15"))
    assert "has a past inside; join keys and values before it" in found
    assert "has more than one output" in found
    assert "sets softcap, which the parser refuses" in found
    flat = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="flat", q_num_heads=2, kv_num_heads=2)
    inputs = [(name, FLOAT, [1, 3, 8]) for name in "qkv"]
    found = " ".join(
        problems(write(tmp_path / "f.onnx", [flat], inputs, [("y", FLOAT, [1, 3, 8])], opset=23))
    )
    assert "has 'q' of rank 3; reshape it to 4" in found


def test_axes_that_are_computed_are_taken_from_the_version_that_brought_them(tmp_path):
    inputs = [X, ("s", INT64, [1]), ("e", INT64, [1]), ("a", INT64, [1])]
    path = write(
        tmp_path / "g.onnx", [node("Slice", "x", "s", "e", "a")], inputs, [("y", FLOAT, [None, None])]
    )
    assert "computes its axes 'a'" in problems(path, "10.2")[0]
    assert problems(path, "10.3.0") == []


def quantised(path, axis, user="MatMul", computed_scale=False, pair=None):
    constants = [array("q", np.ones((64, 8), np.int8)), array("s", np.ones(8 if axis else 64, np.float32))]
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="culprit", axis=axis)]
    nodes += [helper.make_node(user, ["x", "w"] if user == "MatMul" else ["w"], ["y"], name="user")]
    return write(path, nodes, [("x", FLOAT, [1, 64])], [("y", FLOAT, None)], constants, opset=19)


def test_dequantised_weights_must_feed_their_product_along_its_outputs(tmp_path):
    assert problems(quantised(tmp_path / "a.onnx", 1), "10.3.0") == []
    assert (
        "has its scales along axis 0; quantise along axis 1" in problems(quantised(tmp_path / "b.onnx", 0))[0]
    )
    found = problems(quantised(tmp_path / "c.onnx", 1, user="Neg"))
    assert "feeds 'user' (Neg), so that its weights would be unpacked into memory" in found[0]


def test_activations_are_quantised_in_pairs(tmp_path):
    constants = [array("s", np.float32(0.1)), array("t", np.float32(0.2)), array("z", np.int8(0))]
    into = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="into")
    back = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="back")
    other = helper.make_node("DequantizeLinear", ["q", "t"], ["y"], name="back")
    ends = [("y", FLOAT, [2, 4])]
    assert problems(write(tmp_path / "a.onnx", [into, back], [X], ends, constants, opset=19), "10.3") == []
    found = problems(write(tmp_path / "b.onnx", [into, other], [X], ends, constants, opset=19))
    assert "has another scale than 'into' before it" in found[0]
    alone = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="back")
    found = problems(write(tmp_path / "c.onnx", [alone], [("q", INT8, [2, 4])], ends, constants, opset=19))
    assert "has values that no QuantizeLinear made" in found[0]
    loose = [into, helper.make_node("Cast", ["q"], ["y"], name="cast", to=FLOAT)]
    found = " ".join(problems(write(tmp_path / "d.onnx", loose, [X], ends, constants, opset=19)))
    assert "'into' (QuantizeLinear) is not followed by DequantizeLinear" in found


def test_a_device_is_refused_what_its_tensorrt_cannot_read(bundle, checkpoint, tmp_path, monkeypatch):
    """int4 and opset 23 on versions that lack them: the node, the version and the remedy."""
    from pulse_edge.export import export_bundle

    with pytest.raises(GateError, match=r"\(RMSNormalization\) came with TensorRT 10\.15; use --profile trt"):
        export_bundle(checkpoint, tmp_path / "out", "jetson", profile="trt10.15")
    decoder = bundle("jetson", "int4") / "decoder.onnx"
    found = problems(decoder, "9.3")
    assert "decoder.onnx has opset 21, and TensorRT 9.3 reads up to 19" in found[0]
    assert "takes INT4 from TensorRT 10.0 on; use --precision fp16 or int8" in " ".join(found)
    assert problems(decoder, "10.3.0") == problems(decoder, "11.4.1") == []
    assert list(tmp_path.iterdir()) == []


def test_every_shape_of_a_fixed_graph_must_be_fixed(tmp_path):
    nodes = [node("NonZero", "x")]
    path = write(tmp_path / "g.onnx", nodes, [X], [("y", INT64, [2, None])])
    with pytest.raises(GateError, match=r"the shape of 'y' is \(2, .*\), not fixed"):
        check_graph(path)


def test_every_entry_of_the_tables_has_a_source(tmp_path):
    from pulse_edge.export import trt_tables as tables

    sources = [entry.source for entry in OPERATORS.values()]
    sources += [source for _, _, source in (*tables.FIXED.values(), *tables.OPSETS, tables.INT4_OPSET)]
    sources += [source for _, source in tables.TYPES_SINCE.values()]
    assert all(sources)
    named = {part.strip() for source in sources for part in source.split(";")}
    assert all(f"``{name}``" in tables.__doc__ or " of " in name for name in named)
    assert set(tables.STEERING) | set(tables.FIXED) <= set(OPERATORS)

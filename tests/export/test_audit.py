"""The audit of float16's range: a planted overflow is found on real pages and kept wide."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from pulse_edge.bundle import read_manifest
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.errors import GateError
from pulse_edge.export import export_bundle
from pulse_edge.export.audit import LARGEST, MARGIN, dangers, keep_wide, peaks
from pulse_edge.export.onnx_writer import check_graph, infer
from pulse_edge.export.slices import Graph
from pulse_edge.export.trt_support import problems
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.reference import TorchBackend
from pulse_edge.samples import SAMPLES, samples


@pytest.fixture(scope="module")
def page():
    return render(read_record(SAMPLES / samples()[0]["record"])).image


def plant(state):
    """Make the products inside one MLP of the decoder and one of the tower too large for float16, and the
    layers behind them small, so that the answer stays an ordinary one."""
    state = dict(state)
    text = "model.language_model.layers.1.mlp."
    tower = next(name for name in state if "encoder.layers.0.mlp.fc1.weight" in name).removesuffix(
        "fc1.weight"
    )
    for name, factor in (
        (f"{text}gate_proj.weight", 300), (f"{text}up_proj.weight", 300), (f"{text}down_proj.weight", 1e-3),
        (f"{tower}fc1.weight", 1e5), (f"{tower}fc2.weight", 1e-3),
    ):  # fmt: skip
        state[name] = (state[name].float() * factor).bfloat16()
    return state


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_planted_overflow_is_found_and_kept_wide(clip_checkpoint, tmp_path, page, precision) -> None:
    checkpoint = clip_checkpoint(tmp_path / "checkpoint", "hf", plant)
    export_bundle(checkpoint, tmp_path / "blind", "jetson", precision=precision)
    export_bundle(checkpoint, tmp_path / "seen", "jetson", precision=precision, pages=[page])
    found = read_manifest(tmp_path / "seen")["checks"]["fp16_range"]
    named = {(row["graph"], row["tensor"]) for row in found["endangered"]}
    assert ("decoder.onnx", "layers.1.mlp.gated") in named
    assert ("vision.onnx", "encoder.layers.0.mlp.fc1") in named
    assert all(row["largest"] > LARGEST / MARGIN for row in found["endangered"])
    assert not {tensor for _, tensor in named if tensor.startswith("layers.0.")}
    assert "decoder.onnx: layers.1.mlp.down_proj" in found["kept_fp32"]  # which reads it
    for path in (tmp_path / "seen").glob("*.onnx"):
        check_graph(path)
        assert problems(path, "10.3.0") == []
    _, types, _ = infer(tmp_path / "seen/decoder.onnx")
    assert types["layers.1.mlp.gated"] == "FLOAT"
    assert types["layers.0.mlp.gated"] == "FLOAT16"
    theirs = TorchBackend(load_model(checkpoint, "float32"))
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(5, 3, 336, 336)).astype(np.float32)
    embeds = rng.normal(size=(1, 9, 128)).astype(np.float32)
    with torch.inference_mode():
        wanted = theirs.encode(tiles, (800, 600)), theirs._run(torch.from_numpy(embeds))
    hidden = {
        "encoder.layers.0.attended": rng.normal(size=(5, 37, 64)),
        "encoder.layers.0.layer_norm2": rng.normal(size=(5, 37, 64)),
    }
    for name, kept in (("blind", False), ("seen", True)):
        layer = as_written(tmp_path / name / "vision.onnx", hidden, "encoder.layers.0.out")
        logits = as_written(tmp_path / name / "decoder.onnx", {"inputs_embeds": embeds}, "logits")[0]
        assert np.isfinite(layer).all() == kept
        assert np.isfinite(logits).all() == kept
    picture = onnxruntime.InferenceSession(str(tmp_path / "seen/vision.onnx")).run(
        None, {"pixel_values": tiles}
    )[0]
    assert np.abs(picture.reshape(-1, 128) - wanted[0]).max() < 0.01 * np.ptp(wanted[0])
    bound = {"fp16": 0.01, "int8": 0.1, "int4": 0.6}[precision]
    assert np.abs(logits - wanted[1]).max() < bound * np.ptp(wanted[1])


def as_written(path, feed, output):
    """What a part of a graph gives with every node in the type that it has, by ONNX's own reference.

    ONNX Runtime widens float16 on a CPU, whatever its options, and with it drops the overflow.
    """
    graph = Graph.read(path)
    whole = Graph(path, onnx.load(str(path)), graph.types, graph.shapes)
    part = whole.part([name for name in feed if name != "inputs_embeds"], [output])
    given = {}
    for value in part.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]  # 0 where it is dynamic
        given[value.name] = np.asarray(feed.get(value.name, np.zeros(shape)), kind)
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(part).run([output], given)[0]


def test_a_sound_model_is_left_alone_and_peaks_are_those_of_torch(clip_checkpoint, tmp_path, page) -> None:
    checkpoint = clip_checkpoint(tmp_path / "checkpoint", "hf")
    export_bundle(checkpoint, tmp_path / "blind", "jetson")
    export_bundle(checkpoint, tmp_path / "seen", "jetson", pages=[page])
    checks = read_manifest(tmp_path / "seen")["checks"]
    assert checks["fp16_range"]["endangered"] == checks["fp16_range"]["kept_fp32"] == []
    assert checks["profiles"] == {"run": 12, "parts": "all", "not_run": []}
    for name in ("decoder.onnx", "vision.onnx"):
        assert (tmp_path / "blind" / name).read_bytes() == (tmp_path / "seen" / name).read_bytes()
    embeds = np.random.default_rng(1).normal(size=(1, 7, 128)).astype(np.float32)
    largest, _ = peaks(tmp_path / "seen/decoder.onnx", [{"inputs_embeds": embeds}])
    model, seen = load_model(checkpoint, "float32").model.language_model, {}
    for i, layer in enumerate(model.layers):
        for part in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.mlp, part).register_forward_hook(
                lambda module, given, out, key=f"layers.{i}.mlp.{part}": seen.update(
                    {key: float(out.abs().max())}
                )
            )
    with torch.inference_mode():
        model(inputs_embeds=torch.from_numpy(embeds))
    for name, value in seen.items():
        assert largest[name] == pytest.approx(value, rel=2e-3)  # the bundle's weights are float16


def half_graph(path, nodes, outputs=("y",)):
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4]) for name in outputs]
    graph = helper.make_graph(nodes, "g", values, ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_an_output_that_overflows_is_refused(tmp_path) -> None:
    path = half_graph(tmp_path / "g.onnx", [helper.make_node("Mul", ["x", "x"], ["y"], name="square")])
    largest, _ = peaks(path, [{"x": np.full((1, 4), 300.0)}])
    assert largest == {"y": 90000.0}
    found = dangers(path, largest)
    assert [(row.graph, row.tensor, row.node) for row in found] == [("g.onnx", "y", "square")]
    with pytest.raises(GateError, match=r"'y' overflows float16 on real ECGs, and it is an output"):
        keep_wide(path, ["y"])


def test_a_chain_of_endangered_tensors_is_wide_from_end_to_end(tmp_path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"], name="a"),
        helper.make_node("Add", ["a", "a"], ["b"], name="b"),
        helper.make_node("Div", ["b", "a"], ["y"], name="y"),
    ]
    path = half_graph(tmp_path / "g.onnx", nodes)
    x = np.full((1, 4), 500, np.float16)
    assert np.isnan(as_written(path, {"x": x}, "y")).all()
    largest, _ = peaks(path, [{"x": x}])
    assert keep_wide(path, [row.tensor for row in dangers(path, largest)]) == ["a", "b", "y"]
    check_graph(path)
    np.testing.assert_array_equal(as_written(path, {"x": x}, "y"), np.full((1, 4), 2, np.float16))

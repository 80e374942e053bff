"""A vision graph of 8-bit weights and activations: its form, what it computes, and what it may cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pulse_edge import commands
from pulse_edge.errors import BudgetError, UnknownNameError, UserError
from pulse_edge.export.trt_support import problems
from pulse_edge.samples import SAMPLES

pytest.importorskip("nncf")
TABLE = SAMPLES / "samples.csv"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped samples, whose patients are test patients, as a calibration set."""
    path = tmp_path_factory.mktemp("calibration") / "own.yaml"
    path.write_text(f"records: {TABLE}\nside: test\nsize: 3\nphotos: 0\n")
    return str(path)


@pytest.fixture(scope="module")
def rounded(small_checkpoint: Path, own: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounded") / "b"
    commands.export(
        target="onnx", model=str(small_checkpoint), output=folder, vision="int8", calibration=own,
        records=TABLE, limit=6, accept_loss=True,
    )  # fmt: skip
    return folder


def test_every_product_reads_integers_that_tensorrt_takes(rounded) -> None:
    model = onnx.load(rounded / "vision.onnx")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = held[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    channels = [
        held[node.input[1]].size
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and held.get(node.input[0], np.empty(0)).ndim == 4
    ]
    assert channels
    assert min(channels) > 1  # a scale for every output channel
    assert problems(rounded / "vision.onnx", "10.3") == []
    manifest = json.loads((rounded / "manifest.json").read_text())
    assert manifest["precision"]["vision"] == "int8"
    assert manifest["checks"]["vision_int8"]["products"] >= len(channels)
    assert commands.verify(rounded)["ok"]


def test_it_computes_nearly_the_same(rounded, small_bundle) -> None:
    draw = np.random.default_rng(0)
    tiles = draw.normal(size=(5, 3, 336, 336)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(folder / "vision.onnx").run(None, {"pixel_values": tiles})[0].ravel()
        for folder in (small_bundle, rounded)
    )
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert 0.98 < cosine < 1 - 1e-9


def test_what_it_costs_is_measured_and_written_down(rounded) -> None:
    found = json.loads((rounded / "manifest.json").read_text())["parity"]["accuracy"]
    assert found["n"] == 6
    assert found["budget"] == {"auroc": 0.002, "flips": 0.005}


def test_a_broken_budget_leaves_nothing(small_checkpoint, own, tmp_path, monkeypatch) -> None:
    from pulse_edge.evaluate import gate

    monkeypatch.setitem(gate.BUDGETS, 8, gate.Budget(-1.0, 0.0))
    with pytest.raises(BudgetError, match="--accept-loss"):
        commands.export(
            target="onnx", model=str(small_checkpoint), output=tmp_path / "b", vision="int8",
            calibration=own, records=TABLE, limit=6,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vision": "int4"}, "int4"),
        ({"vision": "int8"}, "--calibration"),
        ({"vision": "int8", "calibration": "own"}, "--records"),
        ({"vision": "int8", "calibration": "own", "accept_loss": True, "target": "jetson"}, "issue 4832"),
        ({"records": TABLE}, "--vision int8"),
    ],
)
def test_options_that_do_not_go_together(small_checkpoint, own, tmp_path, options, match) -> None:
    given = {"target": "onnx", **options}
    if given.get("calibration"):
        given["calibration"] = own
    with pytest.raises((UserError, UnknownNameError), match=match):
        commands.export(model=str(small_checkpoint), output=tmp_path / "b", **given)

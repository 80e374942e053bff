"""Tables and heads that a checkpoint holds as 8 bits: targets take those very integers, or their values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pulse_edge
from pulse_edge import commands
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.model.checkpoint import save_model
from pulse_edge.model.layouts import HEAD, TABLE
from pulse_edge.model.shards import Shards
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples


@pytest.fixture(scope="module", params=["tied", "apart"])
def quantised(request, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A checkpoint of 8 bits, table and head included; and whether they are one."""
    import torch

    from pulse_edge.model.checkpoint import load_model

    folder = tmp_path_factory.mktemp("tables")
    model = load_model(small_checkpoint, "float32")
    tied = request.param == "tied"
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    else:
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach() * 1.5)
    save_model(model, Tokenizer.from_folder(small_checkpoint), folder / "c", {"name": "c"})
    commands.quantize(
        str(folder / "c"), folder / "q", 8, method="rtn", embedding=8, lm_head=8, accept_loss=True
    )
    return folder / "q", tied


def same(one: Path, two: Path) -> float:
    """The largest difference of a probability between two models on a shipped ECG."""
    page = render(read_record(SAMPLES / samples()[1]["record"])).image
    a, b = (pulse_edge.load(path).label(page) for path in (one, two))
    return max(abs(a[name] - b[name]) for name in a)


def test_onnx_runtime_reads_the_integers(quantised, tmp_path) -> None:
    folder, tied = quantised
    commands.export(target="onnx", model=str(folder), output=tmp_path / "b", profile="trt")
    shards = Shards(folder)
    assert (HEAD in shards.forms) != tied
    held = shards.integers(TABLE, 0, shards.shape(TABLE)[0])
    data = (tmp_path / "b" / "embed.onnx.data").read_bytes()
    assert data.startswith(held.integers.tobytes())
    assert held.scale.astype(np.float32).tobytes() in data
    # smaller than float16's, and a tied head adds nothing
    assert len(data) < 1.2 * held.integers.size + 8192
    head = [i for i in onnx.load(tmp_path / "b" / "decoder.onnx", load_external_data=False).graph.initializer
            if i.data_type == onnx.TensorProto.INT8 and held.integers.shape[0] in i.dims]  # fmt: skip
    assert len(head) == 1
    where = {entry.key: entry.value for entry in head[0].external_data}
    assert (where["location"] == "embed.onnx.data") == tied
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert (manifest["precision"]["embed"], manifest["precision"]["lm_head"]) == ("int8", "int8")
    assert same(folder, tmp_path / "b") < 1e-3


def test_the_profile_ort_multiplies_by_the_same_integers(quantised, tmp_path) -> None:
    folder, tied = quantised
    commands.export(target="onnx", model=str(folder), output=tmp_path / "b")
    shards, key = Shards(folder), TABLE if tied else HEAD
    held = shards.integers(key, 0, shards.shape(key)[0])
    graph = onnx.load(tmp_path / "b" / "decoder.onnx").graph
    stored = next(numpy_helper.to_array(i) for i in graph.initializer if i.name == "logits.integers")
    assert np.array_equal((stored.reshape(held.integers.shape) ^ 0x80).view(np.int8), held.integers)


def test_a_jetson_gets_the_values_of_the_table_and_the_integers_of_a_head(quantised, tmp_path) -> None:
    folder, tied = quantised
    commands.export(target="jetson", model=str(folder), output=tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["precision"]["embed"] == "fp16"
    assert manifest["precision"]["lm_head"] == ("fp16" if tied else "int8")
    shards = Shards(folder)
    values = shards.rows(TABLE, 0, shards.shape(TABLE)[0]).astype(np.float16)
    assert (tmp_path / "b" / "embed.onnx.data").read_bytes().startswith(values.tobytes())


def test_core_ml_holds_the_integers(quantised, tmp_path) -> None:
    ct = pytest.importorskip("coremltools")
    folder, _ = quantised
    commands.export(target="coreml", model=str(folder), output=tmp_path / "b")
    shards = Shards(folder)
    held = shards.integers(TABLE, 0, shards.shape(TABLE)[0])
    for name in ("embed", "decoder"):
        spec = ct.models.utils.load_spec(str(tmp_path / "b" / f"{name}.mlpackage"))
        for function in spec.mlProgram.functions.values():
            (block,) = function.block_specializations.values()
            shapes = [
                tuple(d.constant.size for d in op.outputs[0].type.tensorType.dimensions)
                for op in block.operations
                if op.type == "constexpr_blockwise_shift_scale"
            ]
            assert held.shape in shapes
    weights = (tmp_path / "b" / "embed.mlpackage/Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    assert held.integers.tobytes() in weights
    assert same(folder, folder) == 0

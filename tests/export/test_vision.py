"""The vision graph against PyTorch, for both kinds of tower."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from pulse_edge.export.graphs import write_vision
from pulse_edge.export.onnx_writer import check_graph
from pulse_edge.export.vision import ClipShape, plan_vision
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration


@pytest.fixture(scope="module")
def clip():
    """A random CLIP tower whose last layer is not used, as in PULSE, with large channels."""
    torch.manual_seed(8)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=336,
        patch_size=56, hidden_act="quick_gelu", initializer_range=0.1,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
    )  # fmt: skip
    config = PulseConfig(
        text_config=text, vision_config=vision, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    model = PulseForConditionalGeneration(config).eval()
    with torch.no_grad():  # one channel as large as real towers have them: its square exceeds float16
        for name, value in model.model.vision_tower.named_parameters():
            if name.endswith("position_embedding.weight"):
                value[:, 5] = 400
    return model


@pytest.fixture(scope="module")
def vision(clip, student, tmp_path_factory):
    """Export and run the vision graph of a tower in a precision, once for each."""
    done = {}

    def export(tower, half):
        key = (tower, half)
        if key not in done:
            path = tmp_path_factory.mktemp("vision") / "vision.onnx"
            write_vision(path, {"clip": clip, "conv": student}[tower], half)
            done[key] = path
        return done[key]

    return export


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(9).normal(size=(5, 3, 336, 336)).astype(np.float32)


def features(path, tiles):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["image_features"], {"pixel_values": tiles})[0]


@pytest.mark.parametrize("tower", ["clip", "conv"])
@pytest.mark.parametrize(("half", "bound"), [(False, 1e-5), (True, 1e-2)])
def test_equals_torch(clip, student, vision, tiles, tower, half, bound):
    model = {"clip": clip, "conv": student}[tower]
    with torch.inference_mode():
        expected = model.encode_images(torch.from_numpy(tiles)).numpy()
    ours = features(vision(tower, half), tiles)
    assert ours.dtype == np.float32
    assert expected.shape == {"clip": (5, 36, 32), "conv": (5, 49, 64)}[tower]
    assert np.abs(ours - expected).max() < bound * np.ptp(expected)


def test_products_of_8_bits_stay_near(clip, in_memory, tiles, tmp_path):
    """The profile ort rounds weights by the column and activations by the token, nothing else."""
    shape = ClipShape.read(clip.config.to_dict())
    writer = plan_vision(tmp_path / "vision.onnx", shape, in_memory(clip.state_dict()), False, integers=True)
    writer.fill()
    check_graph(tmp_path / "vision.onnx")
    kinds = [
        node.op_type for node in onnx.load(str(tmp_path / "vision.onnx"), load_external_data=False).graph.node
    ]
    assert kinds.count("MatMulIntegerToFloat") == 6
    assert kinds.count("QuantizeLinear") == 4  # queries, keys and values share one
    with torch.inference_mode():
        expected = clip.encode_images(torch.from_numpy(tiles)).numpy()
    gap = np.abs(features(tmp_path / "vision.onnx", tiles) - expected)
    assert 0 < gap.max() < 0.03 * np.ptp(expected)


@pytest.mark.parametrize("tower", ["clip", "conv"])
def test_a_page_of_three_tiles_may_be_filled_up_with_zeros(clip, student, vision, tiles, tower):
    """CLIP looks at each tile alone; the convolutional tower lets them see each other, empty ones too."""
    model = {"clip": clip, "conv": student}[tower]
    with torch.inference_mode():
        expected = model.encode_images(torch.from_numpy(tiles[:3])).numpy()
        whole = model.encode_images(torch.from_numpy(tiles))[:3].numpy()
    filled = tiles.copy()
    filled[3:] = 0
    np.testing.assert_allclose(features(vision(tower, False), filled)[:3], expected, atol=1e-4)
    assert np.allclose(expected, whole, atol=1e-4) == (tower == "clip")


def test_half_precision_keeps_norms_in_float32(vision):
    path = vision("clip", True)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 3  # before the first layer and twice in it; the second layer is not used
    assert {types[node.input[0]] for node in norms} == {onnx.TensorProto.FLOAT}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Conv")]
    assert {types[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT16}


def test_batch_norms_are_folded_and_the_model_is_left_alone(student, vision):
    graph = onnx.load(str(vision("conv", False)), load_external_data=False).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    kinds = [type(module).__name__ for module in student.modules()]
    assert "BatchNorm2d" in kinds
    assert all(value.dtype == torch.float32 for value in student.parameters())


def test_the_file_names_no_place_on_this_machine(vision):
    content = vision("conv", False).read_bytes()
    assert not [
        trace
        for trace in (b".py", b"site-packages", b"Traceback", b"/home", b"pulse_edge/")
        if trace in content
    ]

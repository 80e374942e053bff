"""The vision and embedding packages against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from pulse_edge.contract import MAX_TILES
from pulse_edge.export.coreml.embedding import convert_embedding
from pulse_edge.export.coreml.package import finish
from pulse_edge.export.coreml.vision import convert_vision
from pulse_edge.export.milrun import load_package
from pulse_edge.export.weights import precision
from pulse_edge.model.preprocess import normalize
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration


@pytest.fixture(scope="module")
def clip():
    """A PULSE with a small CLIP tower, whose class token and last layer are not read."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=336,
        patch_size=56, hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    config = PulseConfig(
        vision_config=tower, text_config=text, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    model = PulseForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in model.model.multi_modal_projector.parameters():
            value.mul_(10)
    return model


def played(model, name, folder, views):
    path = folder / f"{name}.mlpackage"
    made, tokens = convert_vision(path, model, precision(name, "coreml"))
    finish(made, path)
    stack = np.zeros((MAX_TILES, 336, 336, 3), np.uint8)
    stack[: len(views)] = views
    shown = (np.arange(MAX_TILES) < len(views)).astype(np.float32)
    given = {"tiles": stack.reshape(-1, 336, 3), "shown": shown}
    features = load_package(path, "fp16").run(None, given)["image_features"]
    assert features.shape[1] == tokens
    return features[: len(views)]


@pytest.mark.parametrize(("name", "limit"), [("fp32", 1e-4), ("fp16", 0.05)])
@pytest.mark.parametrize("count", [5, 3])
@pytest.mark.parametrize("tower", ["clip", "convolutions"])
def test_features_equal_pytorch(tower, name, limit, count, clip, small_model, tmp_path):
    """Pages of three tiles too: what fills up is zero behind the normalisation, as in training."""
    model = clip if tower == "clip" else small_model
    views = np.random.default_rng(0).integers(0, 256, (count, 336, 336, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.encode_images(torch.from_numpy(normalize(views))).numpy()
    made = played(model, name, tmp_path, views)
    assert np.abs(made - expected).max() < limit * max(1, np.abs(expected).max() / 10)


def test_the_embedding_looks_up_any_number_of_tokens(small_model, tmp_path):
    table = small_model.get_input_embeddings().weight.detach().numpy()
    path = tmp_path / "embed.mlpackage"
    finish(convert_embedding(path, table, precision("fp32", "coreml"), longest=64), path)
    package = load_package(path)
    for ids in ([3], [5, 1, 5], list(range(64))):
        rows = package.run(None, {"input_ids": np.array([ids], np.int32)})["inputs_embeds"]
        assert np.array_equal(rows[0], table[ids])

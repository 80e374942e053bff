"""Pruned visual tokens in bundles: the graphs choose as PyTorch does, on real pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from pulse_edge import commands, load
from pulse_edge.image_io import open_image
from pulse_edge.model.checkpoint import load_model, save_model
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples


@pytest.fixture(params=["ink", "uniform"])
def clip(request, small_checkpoint: Path, tmp_path: Path) -> Path:
    """A random model of PULSE-7B's form that keeps 60 of its 180 visual tokens."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=336,
        patch_size=56, hidden_act="quick_gelu", initializer_range=0.1,
    )  # fmt: skip
    tokenizer = Tokenizer.from_folder(small_checkpoint)
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=tokenizer.vocab_size, max_position_embeddings=512,
    )  # fmt: skip
    config = PulseConfig(
        text_config=text, vision_config=vision, vision_feature_layer=-2,
        vision_feature_select_strategy="default", keep_tokens=60, keep_by=request.param,
    )  # fmt: skip
    save_model(PulseForConditionalGeneration(config).eval(), tokenizer, tmp_path / "clip", {"name": "clip"})
    return tmp_path / "clip"


def test_a_written_clip_graph_keeps_the_same_tokens(clip: Path, tmp_path: Path) -> None:
    commands.export("jetson", str(clip), precision="fp16", output=tmp_path / "bundle")
    session, model = load(tmp_path / "bundle"), load_model(clip, "float32")
    for row in samples()[:3]:
        page = np.asarray(open_image(SAMPLES / row["image"]))
        for picture in (page, page[: len(page) // 3]):  # five tiles, and four
            tiles, size = preprocess(picture), (picture.shape[1], picture.shape[0])
            ours = session.backend.encode(tiles, size)
            with torch.inference_mode():
                wanted = model.merge_images(model.encode_images(torch.from_numpy(tiles)), size).numpy()
            assert ours.shape == wanted.shape == (60, 32)
            # one other token would differ by the spread
            assert np.abs(ours - wanted).max() < 0.02 * np.ptp(wanted)

"""Golden vectors of the PULSE reference code, and the checkpoints that they were computed with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FLAT, UNPAD = "pulse_tiny_flat", "pulse_tiny_spatial_unpad"


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def gold(golden: Path) -> Callable[[str], Any]:
    """Read a JSON file of the golden vectors by its path."""
    return lambda path: json.loads((golden / path).read_text("utf-8"))


@pytest.fixture(scope="session", params=[FLAT, UNPAD])
def tiny(request: pytest.FixtureRequest) -> str:
    """The name of each tiny checkpoint in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def student() -> Any:
    """A small random model: convolutional tower (49 tokens a tile), context of 300, tied embeddings."""
    import torch
    from transformers import LlamaConfig

    from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
    from pulse_edge.model.tower import PulseConvVisionConfig

    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=300, tie_word_embeddings=True,
    )  # fmt: skip
    config = PulseConfig(
        text_config=text, vision_config=PulseConvVisionConfig(
            widths=(8, 8, 8, 16), depths=(1, 0, 0, 0), context_layers=1, context_heads=2
        ),
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    model = PulseForConditionalGeneration(config)
    model.train()
    with torch.no_grad():
        model.encode_images(torch.randn(2, 3, 336, 336))  # so that the running statistics are not trivial
    model.eval()
    return model


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A copy of the sharded LLaVA checkpoint to damage, in a folder whose name says nothing."""
    folder = tmp_path / "x"
    shutil.copytree(golden / "model" / FLAT, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder

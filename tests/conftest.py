"""What every test may ask for: the repository's root and the shared data beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` with golden vectors, real ECGs and photos; the test is skipped without it.

    It is looked for in ``PULSE_EDGE_SHARED``, in the checkout and beside it. It is never written to.
    """
    named = os.environ.get("PULSE_EDGE_SHARED")
    for folder in [Path(named)] if named else [ROOT / "shared", ROOT.parent / "shared"]:
        if (folder / "golden").is_dir():
            return folder
    pytest.skip("the folder 'shared' is not here; name it with PULSE_EDGE_SHARED")


SMALL: dict[str, Any] = {
    "vision": {
        "widths": [6, 6, 12, 24],
        "strides": [4, 2, 2, 3],
        "depths": [0, 0, 0, 1],
        "context_layers": 1,
    },
    "text": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    },
}


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Any]:
    """Make a random model: convolutional tower, query heads that share key heads, tied embeddings.

    ``text`` overrides what the decoder's configuration says.
    """
    import torch
    from transformers import LlamaConfig

    from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
    from pulse_edge.model.tower import PulseConvVisionConfig

    def make(**text: Any) -> Any:
        torch.manual_seed(0)
        vision = PulseConvVisionConfig(
            widths=(8, 8, 8, 16), depths=(1, 0, 0, 0), context_layers=1, context_heads=2
        )
        decoder = LlamaConfig(
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            **text,
        )
        config = PulseConfig(
            text_config=decoder, vision_config=vision, vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=True,
        )  # fmt: skip
        model = PulseForConditionalGeneration(config)
        model.train()
        with torch.no_grad():
            model.encode_images(torch.randn(5, 3, 336, 336))  # so that the running statistics are not trivial
        return model.eval()

    return make


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the shipped model's architecture: small, and with random weights that are large
    enough for pictures and questions to change the answer. Not to be written to."""
    import torch

    from pulse_edge.model.checkpoint import save_model
    from pulse_edge.model.tokenizer import Tokenizer
    from pulse_edge.train.build import build_model
    from pulse_edge.train.recipe import ModelShape
    from pulse_edge.train.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("small")
    train_tokenizer(folder, 700)
    tokenizer = Tokenizer.from_folder(folder)
    torch.manual_seed(0)
    model = build_model(ModelShape(vocab_size=700, **SMALL), tokenizer.vocab_size)
    model.train()
    with torch.no_grad():
        for _ in range(3):  # so that the running statistics are not trivial
            model.encode_images(torch.randn(5, 3, 336, 336))
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and ("language" in name or "projector" in name):
                weight.mul_(15 if ".layers." in name else 6)
    save_model(model.eval(), tokenizer, folder / "checkpoint", {"name": "small"})
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint as a bundle of float32. Not to be written to: see ``own_bundle``."""
    from pulse_edge import commands

    output = tmp_path_factory.mktemp("bundles") / "small-onnx"
    commands.export(target="onnx", precision="fp32", model=str(small_checkpoint), output=output)
    return output


@pytest.fixture
def own_bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))

"""Packages of the small random PULSE, one precision at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> Any:
    """The small random PULSE in float32."""
    from pulse_edge.model.checkpoint import load_model

    return load_model(small_checkpoint, "float32")


@pytest.fixture(scope="session")
def packages(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Convert vision, embedding and decoder in a precision, once: ``{"vision": path, ...}``."""
    from pulse_edge.export.coreml.decoder import Source, build_chunk, plan_chunks, plan_layout
    from pulse_edge.export.coreml.embedding import convert_embedding
    from pulse_edge.export.coreml.package import convert, finish, program
    from pulse_edge.export.coreml.vision import convert_vision
    from pulse_edge.export.fields import weights_of
    from pulse_edge.export.shape import decoder_shape
    from pulse_edge.export.weights import precision

    made: dict[str, dict[str, Path]] = {}

    def make(name: str) -> dict[str, Path]:
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        how = precision(name, "coreml")
        weights, shape = weights_of(small_model), decoder_shape(small_model.config.text_config)
        paths = {role: folder / f"{role}.mlpackage" for role in ("vision", "embed", "decoder")}
        finish(convert_vision(paths["vision"], small_model, how)[0], paths["vision"])
        table = weights("embed_tokens.weight")
        finish(convert_embedding(paths["embed"], table, how, 64), paths["embed"])
        layout = plan_layout(shape, 384, how)
        functions, _ = build_chunk(layout, plan_chunks(shape, 48)[0], Source(weights), how)
        finish(convert(program(functions), paths["decoder"]), paths["decoder"])
        made[name] = paths
        return paths

    return make

"""Real photos, and the graph as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pulse_edge.image_io import open_image


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tests share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photo(shared: Path) -> Callable[[str], np.ndarray]:
    """Read one of the real pictures: uint8 [H, W, 3]."""
    return lambda name: np.asarray(open_image(shared / "photos" / "images" / name, upright=True))


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph as it is exported."""
    from pulse_edge.export.capture_graph.onnx import write_onnx

    path = tmp_path_factory.mktemp("capture") / "capture.onnx"
    write_onnx(path)
    return path

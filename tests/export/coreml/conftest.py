"""What the tests of the Core ML target share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pulse_edge.export  # noqa: F401 - keeps coremltools quiet while it is imported

pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> Any:
    """The small random PULSE in float32."""
    from pulse_edge.model.checkpoint import load_model

    return load_model(small_checkpoint, "float32")

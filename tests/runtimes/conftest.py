from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.session import Session
from pulse_edge.samples import SAMPLES


@pytest.fixture(scope="session")
def pages() -> dict[str, NDArray[np.uint8]]:
    """Pictures that make 5, 4 and 3 tiles: an ECG page, and a wide and a tall piece of it."""
    page = np.asarray(Image.open(SAMPLES / "normal.png").convert("RGB"))
    return {"page": page, "wide": page[700:950], "tall": page[:, :850]}


@pytest.fixture
def bundled(small_bundle: Path) -> Session:
    return load(small_bundle, threads=1)


@pytest.fixture
def reference(small_checkpoint: Path) -> Session:
    return load(small_checkpoint)

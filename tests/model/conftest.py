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
def student(make_student: Callable[..., Any]) -> Any:
    """The random model with 49 tokens a tile and a context of 300."""
    return make_student(hidden_size=32, intermediate_size=64, vocab_size=512, max_position_embeddings=300)


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A copy of the sharded LLaVA checkpoint to damage, in a folder whose name says nothing."""
    folder = tmp_path / "x"
    shutil.copytree(golden / "model" / FLAT, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder

"""What every test may ask for: the repository's root and the shared data beside it."""

from __future__ import annotations

import os
from pathlib import Path

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

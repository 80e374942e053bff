"""That the small model converts at all; what the packages compute is asked in the other files."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_packages_are_written(packages, precision):
    paths = packages(precision)
    assert all((path / "Data/com.apple.CoreML/model.mlmodel").is_file() for path in paths.values())

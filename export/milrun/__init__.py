"""Execute Core ML packages (ML Programs) without a Mac, from their protobuf and weight file alone.

It shows what a package computes: the meaning of the program, its weights as stored, and what half precision
does to it. It says nothing about the Neural Engine's own numerics, nor about speed. See docs/milrun.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pulse_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from pulse_edge.export.milrun.package import Package

__all__ = ["load_package"]


def load_package(path: str | Path, precision: str = "fp32") -> Package:
    """Open a ``.mlpackage`` folder.

    Args:
        path: of the folder.
        precision: ``"fp32"``: the program's meaning, computed in float32 throughout. ``"fp16"``: every result
            that the program declares fp16 is rounded to it; within an op (a convolution, a matrix product, a
            sum, a norm, attention) values are accumulated in float32 and rounded once.

    Raises:
        BundleError: the folder is no package, is damaged, or holds something else than an ML Program.
        MissingExtraError: torch or coremltools is not installed.
        UnknownNameError: there is no such precision.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "coreml") from error
    from pulse_edge.export.milrun.package import Package

    return Package(Path(path), precision)

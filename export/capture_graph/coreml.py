"""The capture graph as a Core ML package.

It is float32 throughout: places in a photo of 1600 pixels and indices into spectra of 33,024 entries are
beyond float16. So it is for the CPU and the GPU, not for the Neural Engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import coremltools as ct
import numpy as np

from pulse_edge.export.capture_graph.module import OUTPUTS
from pulse_edge.export.capture_graph.reference import LONG_SIDE
from pulse_edge.export.capture_graph.traced import traced
from pulse_edge.export.coreml.package import convert

# Of twenty thousand operations every pass that rewrites patterns takes minutes.
_PASSES: Final = ("common::const_elimination", "common::dead_code_elimination")


def convert_capture(path: Path, side: int = LONG_SIDE) -> Any:
    """Convert `module.CaptureGraph` for a canvas of ``side`` pixels to a package.

    Inputs are ``image`` float32 [1, 3, side, side] and ``size`` float32 [2]; `export.coreml.package.finish`
    completes the package.

    Raises:
        OSError: the disk is full.
    """
    module, _ = traced(side)
    inputs = [
        ct.TensorType("image", (1, 3, side, side), np.float32),
        ct.TensorType("size", (2,), np.float32),
    ]
    outputs = [ct.TensorType(name, dtype=np.float32) for name in OUTPUTS]
    return convert(module, path, inputs, outputs, passes=_PASSES)

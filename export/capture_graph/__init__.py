"""Capture as one graph for every device: a photo to the model's tiles, exported beside the model.

`module.py` is the path, in matrix products and samplings of fixed shapes; `onnx.py` and `coreml.py` write
it. The numpy path in runtimes/capture is the reference; docs/capture-graph.md says how far apart they are.
"""

from __future__ import annotations

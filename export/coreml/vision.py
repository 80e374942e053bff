"""The vision package: five tiles as one tall picture in, visual embeddings out.

The tiles come stacked, 336 wide and 1,680 high, so that what ``preprocess`` draws goes in as it is, pixel
buffer to pixel buffer. CLIP's mean and deviation are in the graph: an image input of Core ML has a scale
for all channels together, and CLIP's deviations differ. ``shown`` says which tiles exist: a page outside
0.5 < width/height < 2 has fewer than five, and the model was taught with zeros in their place, which no
pixel value gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from torch import Tensor, nn

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD, MAX_TILES, TILE_SIZE
from pulse_edge.export.coreml.package import convert, quiet
from pulse_edge.export.graphs import VisionGraph
from pulse_edge.export.weights import Precision
from pulse_edge.model.pulse import PulseForConditionalGeneration

STACK = (1, 3, MAX_TILES * TILE_SIZE, TILE_SIZE)


class StackedVision(nn.Module):
    """Normalisation, tower and projector: tiles 0 to 255 [1, 3, 1680, 336] -> float [5, T, H].

    Args:
        model: the whole PULSE; it is copied, not changed.
    """

    gain: Tensor
    mean: Tensor

    def __init__(self, model: PulseForConditionalGeneration) -> None:
        super().__init__()
        self.read = VisionGraph(model, half=False, rank=torch.int32)
        mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
        self.register_buffer("gain", 1 / (255 * std), persistent=False)
        self.register_buffer("mean", 255 * mean, persistent=False)

    def forward(self, tiles: Tensor, shown: Tensor) -> Tensor:
        """Compute the features of five tiles, before merging; ``shown`` [5] is 1 or, for filling, 0."""
        levels = (tiles - self.mean) * self.gain
        views = torch.cat([levels[:, :, i * TILE_SIZE : (i + 1) * TILE_SIZE] for i in range(MAX_TILES)])
        features: Tensor = self.read(views * shown.reshape(MAX_TILES, 1, 1, 1))
        return features


def convert_vision(path: Path, model: PulseForConditionalGeneration, how: Precision) -> tuple[Any, int]:
    """Convert tower and projector to a package.

    Input: ``tiles``, an RGB picture 336 wide and 1,680 high, and ``shown`` [5]. Output: ``image_features``
    [5, T, H]. Weights stay dense, in float16 unless all is float32.

    Returns:
        The model, for `package.finish`, and T.
    """
    half = how.compute is np.float16
    module = StackedVision(model).eval()
    example = torch.zeros(STACK), torch.ones(MAX_TILES)
    with torch.inference_mode(), quiet():
        tokens = int(module(*example).shape[1])
        traced = torch.jit.trace(module, example, check_trace=False)
    del module
    kind = np.float16 if half else np.float32
    made = convert(
        traced,
        path,
        inputs=[
            ct.ImageType(name="tiles", shape=STACK, color_layout=ct.colorlayout.RGB),
            ct.TensorType(name="shown", shape=(MAX_TILES,), dtype=kind),
        ],
        outputs=[ct.TensorType(name="image_features", dtype=kind)],
        half=half,
    )
    return made, tokens

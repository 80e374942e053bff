"""The static shapes of a decoder's packages: lengths, and how a large one is cut into chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pulse_edge.export.shape import DecoderShape, Weights
from pulse_edge.export.weights import Precision
from pulse_edge.model.quantized import QuantizedWeight

ALIGNMENT: Final = 32  # of the cache's sides: states of others fail on the Neural Engine (issue 2631)
_CHUNK: Final = 900_000_000  # weights: four layers of 7B; bounds the exporter's memory and a package's size


@dataclass(frozen=True)
class Chunk:
    """Layers ``start`` to ``stop - 1`` of a decoder, in a package of their own.

    Attributes:
        name: of the package, without its ending.
        last: it also holds the final norm and the head, and gives logits rather than rows.
    """

    name: str
    start: int
    stop: int
    last: bool


@dataclass(frozen=True)
class Layout:
    """What is fixed in the shapes of all packages of a decoder.

    Attributes:
        shape: of the decoder.
        context: tokens that may be read, visual ones included.
        cache: length of the states: the context and room for padding, a multiple of 32.
        prefill: rows that ``prefill`` reads at once.
    """

    shape: DecoderShape
    context: int
    cache: int
    prefill: int


@dataclass(frozen=True)
class Source:
    """Where a decoder's weights come from.

    Attributes:
        weights: gives a weight by its name inside the language model, e.g. ``layers.0.mlp.up_proj.weight``.
        integers: those that the checkpoint itself holds as integers, by the same names.
    """

    weights: Weights
    integers: Mapping[str, QuantizedWeight] = field(default_factory=dict)


def plan_layout(shape: DecoderShape, context: int, how: Precision) -> Layout:
    """Choose the static lengths of a decoder.

    int4 in blocks is a format of the GPU, whose kernels want many rows. The others may run on the Neural
    Engine, where updates of a state were seen to fail above 32 rows (coremltools issue 2553).
    """
    prefill = min(128 if how.name == "int4" else 32, -(-context // ALIGNMENT) * ALIGNMENT)
    return Layout(shape, context, -(-(context + prefill - 1) // ALIGNMENT) * ALIGNMENT, prefill)


def plan_chunks(shape: DecoderShape, ffn: int) -> list[Chunk]:
    """Cut a decoder into chunks of whole layers, of at most 900 million weights where a layer has fewer.

    Args:
        shape: of the decoder.
        ffn: width inside its MLPs.
    """
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim
    size = max(1, min(shape.layers, _CHUNK // (attention + 3 * shape.hidden * ffn)))
    starts = range(0, shape.layers, size)
    if len(starts) == 1:
        return [Chunk("decoder", 0, shape.layers, True)]
    stops = [min(start + size, shape.layers) for start in starts]
    return [
        Chunk(f"decoder-{i}", start, stop, stop == shape.layers)
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]

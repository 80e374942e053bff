"""The choice of visual tokens of :mod:`pulse_edge.model.ink` as ONNX nodes."""

from __future__ import annotations

import math

import numpy as np

from pulse_edge.contract import MAX_TILES, exact_div
from pulse_edge.export.onnx_writer import GraphWriter
from pulse_edge.model.places import BLACK, CLOSING, DARKER, NEAR, uniform


def choose_rows(
    w: GraphWriter, pixels: str, x: str, tokens: int, width: int, image: int, keep: int, by: str
) -> str:
    """Write the nodes that keep some of a page's tokens.

    Args:
        w: of the graph.
        pixels: tensor, normalised tiles float32 [5, 3, image, image].
        x: tensor, features [5, tokens, width].
        tokens: of a tile.
        width: of a feature.
        image: side of a tile in pixels.
        keep: tokens of the page.
        by: which, see ``merge.KEEP_BY``.

    Returns:
        The tensor [5, keep / 5, width].
    """

    count = MAX_TILES * tokens
    if by == "uniform":
        index = w.constant(uniform(count, keep), np.int64)
    else:
        index = _most_ink(w, pixels, tokens, image, keep)
    rows = w.op("Reshape", x, w.constant([count, width], np.int64), name="ink/rows")
    kept = w.op("Gather", rows, index, name="ink/kept", axis=0)
    form = w.constant([MAX_TILES, exact_div(keep, MAX_TILES), width], np.int64)
    return w.op("Reshape", kept, form, name="ink/tiles")


def _most_ink(w: GraphWriter, pixels: str, tokens: int, image: int, keep: int) -> str:
    """Write the nodes that find the ``keep`` tokens with most ink; return int64 [keep]."""

    def pooled(value: str, window: int, name: str) -> str:
        pads = [window // 2] * 4
        return w.op("MaxPool", value, name=name, kernel_shape=[window] * 2, strides=[1, 1], pads=pads)

    def above(value: str, least: float, name: str) -> str:
        beyond = w.op("Greater", value, w.constant(least, np.float32), name=name)
        return w.cast(beyond, np.float32, f"{name}/f32")

    ends = (w.constant([v], np.int64) for v in (0, 1, 1))
    red = w.op("Slice", pixels, *ends, name="ink/red")
    darker = w.op("Sub", pooled(red, NEAR, "ink/paper"), red, name="ink/darker")
    around = w.op("Neg", pooled(red, CLOSING, "ink/around"), name="ink/around/neg")
    closed = w.op("Neg", pooled(around, CLOSING, "ink/closed/neg"), name="ink/closed")
    dark = w.op("Mul", above(darker, DARKER, "ink/dark"), above(closed, BLACK, "ink/lit"), name="ink/pixels")
    side, count = math.isqrt(tokens), MAX_TILES * tokens
    patch = exact_div(image, side)
    cut = w.op("Reshape", dark, w.constant([MAX_TILES * side, patch, side, patch], np.int64), name="ink/cut")
    found = w.op("ReduceSum", cut, w.constant([1, 3], np.int64), name="ink/found", keepdims=0)
    found = w.op("Reshape", found, w.constant([count], np.int64), name="ink/flat")
    rank = w.op("Mul", found, w.constant(float(count), np.float32), name="ink/scaled")
    rank = w.op("Add", rank, w.constant(np.arange(count)[::-1], np.float32), name="ink/rank")
    number = w.constant([keep], np.int64)
    _, chosen = w.pair("TopK", rank, number, names=("ink/most", "ink/chosen"), axis=0)
    placed = w.cast(chosen, np.float32, "ink/chosen/f32")
    ordered, _ = w.pair(
        "TopK", placed, number, names=("ink/ordered", "ink/ordered/places"), axis=0, largest=0
    )
    return w.cast(ordered, np.int64, "ink/index")

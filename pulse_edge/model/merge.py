"""The tiles' features become one sequence of visual tokens.

Source of the method: ``prepare_inputs_labels_for_multimodal`` and ``unpad_image`` in
``llava/model/llava_arch.py`` of AIMedLab/PULSE (commit a439b6c). PULSE-7B merges ``flat``: every token
of every view, padding included. LLaVA-1.6 merges ``spatial_unpad``: the tiles are laid out as the page,
rows and columns that only hold padding are dropped, and every row ends with a learned newline.

Both are a choice of rows, computed here once for numpy and torch alike. A model with ``keep_tokens`` chooses
in its vision graph already (:mod:`.ink`): what comes out of it is ``kept`` whole, whatever the picture.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import ImageError, UserError
from pulse_edge.model.preprocess import geometry

Merge = Literal["flat", "spatial_unpad"]
MERGES: Final[tuple[Merge, ...]] = ("flat", "spatial_unpad")
KEEP_BY: Final = ("ink", "uniform")
KEPT: Final = "kept"  # what a bundle's manifest says in their place where the graph has chosen


def merge_features(
    features: NDArray[np.float32],
    image_size: tuple[int, int],
    merge: str,
    newline: NDArray[np.float32] | None = None,
    views: int | None = None,
) -> NDArray[np.float32]:
    """Merge one picture's features.

    Args:
        features: [n, T, H], base view first.
        image_size: (width, height) of the picture in pixels.
        merge: "flat", "spatial_unpad" or "kept".
        newline: [H], the learned end of a row; needed for "spatial_unpad".
        views: how many of the ``n`` show the picture; those behind fill up a graph's static shape.

    Returns:
        [N, H].

    Raises:
        ImageError: if ``n`` is not the number of views of a picture of this size.
        UserError: if the merge is unknown or lacks its newline.
    """
    if merge == KEPT:
        return features.reshape(-1, features.shape[-1])
    features = features[:views]
    n, tokens, width = features.shape
    index = merge_index(n, tokens, image_size, merge)
    rows = features.reshape(n * tokens, width)
    if merge == "flat":
        return rows
    if newline is None:
        raise UserError(f"The merge {merge!r} needs the model's image_newline, which is missing.")
    return np.concatenate([rows, newline.reshape(1, width)])[index]


def merge_index(views: int, tokens: int, image_size: tuple[int, int], merge: str) -> NDArray[np.int64]:
    """Say which row of the features each visual token takes.

    Args:
        views: tiles of the picture, the base view included.
        tokens: per tile, a square number where the merge is "spatial_unpad".
        image_size: (width, height) of the picture in pixels.
        merge: "flat" or "spatial_unpad".

    Returns:
        int64 [N] into the ``views * tokens`` rows; the row behind them, ``views * tokens``, is the newline.

    Raises:
        ImageError: if ``views`` is not the number of views of a picture of this size.
        UserError: if the merge is unknown.
    """
    place = geometry(*image_size)
    if views != place.views:
        raise ImageError(
            f"A picture of {image_size[0]}x{image_size[1]} pixels has {place.views} tiles, not {views}. "
            "Pass all tiles of the picture and its original size as (width, height)."
        )
    if merge == "flat":
        return np.arange(views * tokens)
    if merge != "spatial_unpad":
        raise UserError(f"Unknown merge {merge!r}. Known: {', '.join(MERGES)}.")
    side = math.isqrt(tokens)
    across, down = place.grid
    grid = np.arange(tokens, views * tokens).reshape(down, across, side, side)
    page = grid.swapaxes(1, 2).reshape(down * side, across * side)
    page = page[unpadded(page.shape, image_size)]
    ends = np.full((len(page), 1), views * tokens)
    return np.concatenate([np.arange(tokens), np.hstack([page, ends]).ravel()])


def unpadded(shape: tuple[int, ...], image_size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a feature map (rows, columns) that show the picture.

    Plain truncation as in the reference; transformers rounds and differs on rare sizes.
    """
    rows, columns = shape
    width, height = image_size
    if width / height > columns / rows:
        margin = (rows - int(height * (columns / width))) // 2
        return slice(margin, rows - margin), slice(None)
    margin = (columns - int(width * (rows / height))) // 2
    return slice(None), slice(margin, columns - margin)
